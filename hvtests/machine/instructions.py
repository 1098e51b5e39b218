"""System instructions as the architecture defines them, for the engine's intercepts to call.

Each method does one instruction at the current RIP and moves RIP past it, or raises Fault or PageFault with nothing
changed. Whether a guest exits instead is decided before they are called (hvtests.vmx.intercepts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvtests.machine import io, registers
from hvtests.machine import layout as L
from hvtests.machine.cpu import MASK64, Segment
from hvtests.machine.decode import Instruction
from hvtests.machine.delivery import GP, NP, Fault, read_descriptor
from hvtests.machine.events import Event, software_event
from hvtests.machine.stop import unmodelled

if TYPE_CHECKING:
    from hvtests.machine.machine import Machine

UD, DB = 6, 1
MASK32 = 0xFFFF_FFFF
CR4_DE, DR7_GD, DR6_BD = 1 << 3, 1 << 13, 1 << 13
DR7_ENABLES, DR7_FIXED, DR7_CLEAR = 0xFF, 1 << 10, 0xD000
DR6_FIXED = 0xFFFF_0FF0
DR6_WRITABLE = 0xE00F


class Instructions:
    """The instructions; `machine` has what they work on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu, self.fabric, self.model = machine.cpu, machine.fabric, machine.model

    def current(self) -> Instruction:
        """The instruction at RIP. Ends the run as unmodelled where the decoder does not know it."""
        found = self.cpu.instruction()
        if found is None:
            raise unmodelled(f"instruction {self.cpu.code().hex()} at {self.cpu.code_linear:#x}")
        return found

    def skip(self) -> None:
        """An instruction without effect here: INVD, WBINVD, MONITOR, MWAIT, PAUSE."""
        self.cpu.advance(self.current().length)

    def software_interrupt(self) -> Event:
        """The event of the INT n, INT3, INTO or INT1 at RIP."""
        found = self.current()
        event = software_event(found)
        if event is None:
            raise unmodelled(f"software interrupt by opcode {found.opcode:#x} at {self.cpu.code_linear:#x}")
        return event

    def cpuid(self) -> None:
        cpu, q = self.cpu, self.fabric.q
        length = self.current().length
        leaf, subleaf, cr4, long = q[L.Q_RAX] & MASK32, q[L.Q_RCX] & MASK32, q[L.Q_CR + 4], cpu.code_bits == 64
        values = self.model.cpuid(leaf, subleaf, cr4=cr4, long_mode=long)
        q[L.Q_RAX], q[L.Q_RBX], q[L.Q_RCX], q[L.Q_RDX] = values
        if long:
            self.machine.on_cpuid(leaf, subleaf, cr4, values)
        cpu.advance(length)

    def msr(self) -> None:
        """RDMSR, or WRMSR if the engine's error code says so."""
        q, msrs = self.fabric.q, self.machine.msrs
        address = q[L.Q_RCX] & MASK32
        if self.fabric.i[L.I_ERROR_CODE]:
            if not msrs.write(address, (q[L.Q_RDX] & MASK32) << 32 | q[L.Q_RAX] & MASK32):
                raise Fault(GP, 0)
        else:
            value = msrs.read(address)
            if value is None:
                raise Fault(GP, 0)
            q[L.Q_RAX], q[L.Q_RDX] = value & MASK32, value >> 32
        self.cpu.advance(self.current().length)

    def rdtsc(self, seen: Callable[[int], int] | None = None) -> None:
        """RDTSC or RDTSCP of the TSC as `seen` makes it appear; the engine has checked CR4.TSD."""
        q, found = self.fabric.q, self.current()
        now = self.machine.clock.now()
        if seen is not None:
            now = seen(now)
        q[L.Q_RAX], q[L.Q_RDX] = now & MASK32, now >> 32 & MASK32
        if found.opcode == 0x0F01:
            q[L.Q_RCX] = q[L.Q_TSC_AUX] & MASK32
        self.cpu.advance(found.length)

    def rdpmc(self) -> None:
        """The modelled CPU has no performance counters."""
        raise Fault(GP, 0)

    def undefined(self) -> None:
        """An instruction that does not exist here: RSM outside SMM."""
        raise Fault(UD)

    def invlpg(self) -> None:
        self.fabric.flush()
        self.cpu.advance(self.current().length)

    def port(self) -> None:
        """IN, OUT, INS, OUTS."""
        access = self.port_access()
        io.check_permission(self.cpu, access.port, access.size)
        io.perform(self.cpu, self.machine.ports, access)

    def port_access(self) -> io.PortAccess:
        """The port access of the instruction at RIP."""
        port, size, value = self.fabric.io
        return io.PortAccess(self.current(), port & 0xFFFF, size, value, self.fabric.code == L.CODE_IN)

    def xsetbv(self) -> None:
        q = self.fabric.q
        value = (q[L.Q_RDX] & MASK32) << 32 | q[L.Q_RAX] & MASK32
        registers.load_xcr0(self.cpu, self.model, q[L.Q_RCX] & MASK32, value)
        self.cpu.advance(self.current().length)

    def ltr(self) -> None:
        """LTR (SDM 2A "LLDT", "LTR"): the engine has checked mode and CPL. Raises Fault #GP or #NP."""
        cpu, found = self.cpu, self.current()
        selector = self.word_operand(found)
        if selector & 0xFFFC == 0:
            raise Fault(GP, 0)
        error_code = selector & 0xFFFC
        task = read_descriptor(cpu, selector, GP, error_code)
        if selector & 4 or task.access & 0x1F not in ((9,) if cpu.efer >> 10 & 1 else (1, 9)):
            raise Fault(GP, error_code)
        if not task.present:
            raise Fault(NP, error_code)
        base = task.base
        if cpu.efer >> 10 & 1:
            base |= int.from_bytes(cpu.read_linear(task.address + 8 & MASK64, 4, user=False), "little") << 32
        cpu.write_linear(task.address + 5 & MASK64, bytes([task.access & 0xFF | 2]), user=False)
        cpu.set_segment(L.TR, Segment(selector, base, task.limit, task.access | 2))
        cpu.advance(found.length)

    # -- control and debug registers -------------------------------------------------------------------------------

    def operand(self, found: Instruction) -> int:
        """The general register that MOV to or from CRn or DRn names, as a source."""
        return self.fabric.q[found.rm] & (MASK32 if self.cpu.code_bits != 64 else ~0)

    def word_operand(self, found: Instruction) -> int:
        """The 16-bit source of LMSW or LTR."""
        if found.memory is None:
            return self.fabric.q[found.rm] & 0xFFFF
        offset = self.cpu.effective_offset(found.memory, found.length)
        linear = self.cpu.linear_address(found.memory.segment, offset)
        return int.from_bytes(self.cpu.read_linear(linear, 2), "little")

    def cr0_source(self, found: Instruction) -> int:
        """What MOV to CR0, LMSW or CLTS would put into CR0."""
        cr0 = self.cpu.cr0
        if found.opcode == 0x0F06:
            return cr0 & ~8
        if found.opcode == 0x0F01:
            return cr0 & ~0xE | self.word_operand(found) & 0xF
        return self.operand(found)

    def write_cr0(self) -> None:
        """MOV to CR0, LMSW, CLTS."""
        found = self.current()
        value = self.cr0_source(found)
        self.machine.check_cr(0, value)
        registers.load_cr0(self.cpu, self.model, value)
        self.cpu.advance(found.length)

    def write_cr3(self) -> None:
        found = self.current()
        registers.load_cr3(self.cpu, self.model, self.operand(found))
        self.cpu.advance(found.length)

    def write_cr4(self) -> None:
        found = self.current()
        value = self.operand(found)
        self.machine.check_cr(4, value)
        registers.load_cr4(self.cpu, self.model, value)
        self.cpu.advance(found.length)

    def read_cr8(self) -> None:
        found = self.current()
        self.fabric.q[found.rm] = self.cpu.cr8
        self.cpu.advance(found.length)

    def write_cr8(self) -> None:
        found = self.current()
        value = self.operand(found)
        if value >> 4:
            raise Fault(GP, 0)
        self.cpu.cr8 = value
        self.cpu.advance(found.length)

    def read_dr(self) -> None:
        found = self.current()
        self._check_dr(found.reg)
        number = found.reg + 2 if found.reg in (4, 5) else found.reg
        self.fabric.q[found.rm] = self.cpu.dr[number]
        self.cpu.advance(found.length)

    def write_dr(self) -> None:
        """MOV to DRn. Hardware breakpoints are not modelled: enabling one ends the run."""
        found = self.current()
        self._check_dr(found.reg)
        number = found.reg + 2 if found.reg in (4, 5) else found.reg
        value = self.operand(found)
        if number >= 6 and value >> 32:
            raise Fault(GP, 0)
        if number == 7:
            if value & DR7_ENABLES:
                raise unmodelled(f"hardware breakpoint: DR7 = {value:#x} at {self.cpu.code_linear:#x}")
            value = value & ~DR7_CLEAR | DR7_FIXED
        elif number == 6:
            value = value & DR6_WRITABLE | DR6_FIXED
        self.cpu.dr[number] = value
        self.cpu.advance(found.length)

    def _check_dr(self, number: int) -> None:
        """SDM 2B "MOV - Debug registers": #UD for DR4 and DR5 with CR4.DE, #DB under DR7.GD."""
        if number in (4, 5) and self.cpu.cr4 & CR4_DE:
            raise Fault(UD)
        if self.cpu.dr[7] & DR7_GD:
            self.cpu.dr[6] |= DR6_BD
            raise Fault(DB)
