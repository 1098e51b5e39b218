"""Guest accesses to control and debug registers, ports and MSRs: exits by masks and bitmaps, or the access itself.

SDM 3C 26.1.3 [25.1.3], 26.3 [25.3] (changes to instruction behaviour), 25.6.4 and 25.6.9 (bitmaps), tables 28-3 to
28-5 [27-3 to 27-5] (qualifications).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import io, registers
from hvtests.machine import layout as L
from hvtests.machine.decode import Instruction
from hvtests.machine.delivery import GP, Fault
from hvtests.vmx import bits as c
from hvtests.vmx.operands import linear_operand
from hvtests.vmx.vmcs import WORD

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

CR_ACCESS, DR_ACCESS, IO_INSTRUCTION, RDMSR, WRMSR, TPR_BELOW_THRESHOLD = 28, 29, 30, 31, 32, 43
RFLAGS_TF = 1 << 8
MOV_TO, MOV_FROM, CLTS, LMSW = 0 << 4, 1 << 4, 2 << 4, 3 << 4
TSC = 0x10
MASK32 = 0xFFFF_FFFF
_LINEAR, _INSTRUCTION = WORD["GUEST_LINEAR_ADDRESS"], WORD["VMX_INSTRUCTION_INFO"]
_ADDRESS_SIZE = {16: 0, 32: 1, 64: 2}


class Accesses:
    """The accesses of the running guest; each raises what the instruction itself would."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self.fabric, self.cpu, self.do = vmx.machine.fabric, vmx.machine.cpu, vmx.machine.instructions

    # -- control registers -----------------------------------------------------------------------------------------

    def read_cr(self) -> None:
        """MOV from CRn, SMSW."""
        found, controls = self.do.current(), self.vmx.controls
        if found.opcode == 0x0F01:
            return self._smsw(found)
        number = found.reg
        if controls.proc & {3: c.CR3_STORE_EXITING, 8: c.CR8_STORE_EXITING}.get(number, 0):
            return self._cr_exit(found, MOV_FROM)
        if number == 0:
            value = self.cpu.cr0 & ~controls.cr0_mask | controls.cr0_shadow & controls.cr0_mask
        elif number == 4:
            value = self.cpu.cr4 & ~controls.cr4_mask | controls.cr4_shadow & controls.cr4_mask
        elif number == 8 and controls.proc & c.USE_TPR_SHADOW:
            value = self.machine.memory.u8(controls.vtpr_at) >> 4
        else:
            value = self.cpu.cr8 if number == 8 else self.cpu.cr3
        self.fabric.q[found.rm] = value & (MASK32 if self.cpu.code_bits != 64 else ~0)
        self.cpu.advance(found.length)

    def _smsw(self, found: Instruction) -> None:
        controls = self.vmx.controls
        value = self.cpu.cr0 & ~controls.cr0_mask | controls.cr0_shadow & controls.cr0_mask
        if found.memory is not None:
            self.cpu.write_linear(linear_operand(self.cpu, found), (value & 0xFFFF).to_bytes(2, "little"))
        elif found.operand_size == 16:
            self.fabric.q[found.rm] = self.fabric.q[found.rm] & ~0xFFFF | value & 0xFFFF
        else:
            self.fabric.q[found.rm] = value & (MASK32 if found.operand_size == 32 else ~0)
        self.cpu.advance(found.length)

    def _cr_exit(self, found: Instruction, access: int) -> None:
        self.vmx.exit.instruction(CR_ACCESS, found.length, found.reg | access | found.rm << 8)

    def write_cr(self) -> None:
        """MOV to CRn, CLTS, LMSW."""
        found, controls = self.do.current(), self.vmx.controls
        if found.opcode == 0x0F06:
            return self._clts(found)
        if found.opcode == 0x0F01:
            return self._lmsw(found)
        number = found.reg
        value = self.do.operand(found)
        if number == 8:
            if controls.proc & c.CR8_LOAD_EXITING:
                return self._cr_exit(found, MOV_TO)
            if controls.proc & c.USE_TPR_SHADOW:
                return self._write_vtpr(found, value)
            return self.do.write_cr8()
        if number == 3:
            if value not in controls.cr3_targets:
                return self._cr_exit(found, MOV_TO)
            return self.do.write_cr3()
        mask, shadow = (controls.cr0_mask, controls.cr0_shadow) if number == 0 else (
            controls.cr4_mask, controls.cr4_shadow)
        if (value ^ shadow) & mask:
            return self._cr_exit(found, MOV_TO)
        if number == 0:
            self._load_cr0(self.cpu.cr0 & mask | value & ~mask)
        else:
            new = self.cpu.cr4 & mask | value & ~mask
            self.machine.check_cr(4, new)
            registers.load_cr4(self.cpu, self.machine.model, new)
        self.cpu.advance(found.length)

    def _write_vtpr(self, found: Instruction, value: int) -> None:
        """MOV to CR8 under "use TPR shadow": the exit comes behind the instruction (SDM 3C 30.1.2, 30.3)."""
        if value >> 4:
            raise Fault(GP, 0)
        controls = self.vmx.controls
        self.machine.memory.set_u32(controls.vtpr_at, value << 4)
        self.cpu.advance(found.length)
        if value < controls.tpr_threshold & 0xF:
            stepping = self.cpu.rflags & RFLAGS_TF
            self.vmx.exit.event(TPR_BELOW_THRESHOLD, pending=c.PENDING_DEBUG_BS if stepping else 0)

    def _load_cr0(self, value: int) -> None:
        self.machine.check_cr(0, value)
        registers.load_cr0(self.cpu, self.machine.model, value)

    def _clts(self, found: Instruction) -> None:
        """Exits if TS is masked and its shadow is 1; leaves a masked TS alone."""
        controls = self.vmx.controls
        if controls.cr0_mask & 8:
            if controls.cr0_shadow & 8:
                return self.vmx.exit.instruction(CR_ACCESS, found.length, CLTS)
        else:
            self.cpu.cr0 &= ~8
        self.cpu.advance(found.length)

    def _lmsw(self, found: Instruction) -> None:
        """Exits if it would change a masked bit of CR0[3:0] as the shadow has it; PE can only be set."""
        controls = self.vmx.controls
        source = self.do.word_operand(found)
        mask = controls.cr0_mask & 0xF
        differs = (source ^ controls.cr0_shadow) & mask
        if not source & 1:
            differs &= ~1
        if differs:
            qualification = LMSW | (source & 0xFFFF) << 16
            if found.memory is not None:
                qualification |= 1 << 6
                assert self.vmx.guest is not None
                self.vmx.guest.q[_LINEAR] = linear_operand(self.cpu, found)
            return self.vmx.exit.instruction(CR_ACCESS, found.length, qualification)
        changed = 0xF & ~mask & (0xF if source & 1 else 0xE)
        self._load_cr0(self.cpu.cr0 & ~changed | source & changed)
        self.cpu.advance(found.length)

    # -- debug registers -------------------------------------------------------------------------------------------

    def _dr(self, access: int) -> bool:
        if not self.vmx.controls.proc & c.MOV_DR_EXITING:
            return False
        found = self.do.current()
        if found.reg in (4, 5) and self.cpu.cr4 & 8:
            raise Fault(6)
        self.vmx.exit.instruction(DR_ACCESS, found.length, found.reg | access | found.rm << 8)
        return True

    def read_dr(self) -> None:
        if not self._dr(MOV_FROM):
            self.do.read_dr()

    def write_dr(self) -> None:
        if not self._dr(MOV_TO):
            self.do.write_dr()

    # -- MSRs ------------------------------------------------------------------------------------------------------

    def msr(self) -> None:
        """RDMSR or WRMSR."""
        address = self.fabric.q[L.Q_RCX] & MASK32
        write = bool(self.fabric.i[L.I_ERROR_CODE])
        if self._msr_exits(address, write):
            return self.vmx.exit.instruction(WRMSR if write else RDMSR, self.do.current().length)
        if address == TSC and not write:
            return self.do.rdtsc(self.vmx.controls.tsc)
        self.do.msr()

    def _msr_exits(self, address: int, write: bool) -> bool:
        controls = self.vmx.controls
        if not controls.proc & c.USE_MSR_BITMAPS:
            return True
        if address <= 0x1FFF:
            at = 0
        elif 0xC000_0000 <= address <= 0xC000_1FFF:
            at = 1024
        else:
            return True
        number = address & 0x1FFF
        return bool(self.machine.memory.u8(controls.msr_bitmap + at + (2048 if write else 0) + (number >> 3))
                    >> (number & 7) & 1)

    # -- ports -----------------------------------------------------------------------------------------------------

    def port(self) -> None:
        """IN, OUT, INS, OUTS: the permission check of the guest itself comes first."""
        access = self.do.port_access()
        io.check_permission(self.cpu, access.port, access.size)
        if not self._port_exits(access.port, access.size):
            return io.perform(self.cpu, self.machine.ports, access)
        self._port_exit(access)

    def outs_exits(self) -> bool:
        """The load of the instruction at RIP did not come about: whether it is that of OUTS, which exits, or is
        refused, before it loads (SDM 3C 26.1.1)."""
        found = self.cpu.instruction()
        if found is None or found.opcode not in (0x6E, 0x6F):
            return False
        size = 1 if found.opcode == 0x6E else min(found.operand_size, 32) // 8
        access = io.PortAccess(found, self.fabric.q[L.Q_RDX] & 0xFFFF, size, 0, False)
        try:
            io.check_permission(self.cpu, access.port, size)
        except Fault as fault:
            self.vmx.events.fault(fault)
            return True
        if not self._port_exits(access.port, size):
            return False
        self._port_exit(access)
        return True

    def _port_exit(self, access: io.PortAccess) -> None:
        found = access.instruction
        qualification = (access.size - 1 | access.input << 3 | access.string << 4 | access.repeated << 5
                         | access.immediate << 6 | access.port << 16)
        if not access.string:
            return self.vmx.exit.instruction(IO_INSTRUCTION, found.length, qualification)
        guest = self.vmx.guest
        assert guest is not None
        guest.q[_LINEAR] = io.string_address(self.cpu, access)
        information = _ADDRESS_SIZE[found.address_size] << 7
        if not access.input:
            information |= (found.segment if found.segment is not None else L.DS) << 15
        self.vmx.exit.instruction(IO_INSTRUCTION, found.length, qualification, information)

    def _port_exits(self, port: int, size: int) -> bool:
        controls = self.vmx.controls
        if not controls.proc & c.USE_IO_BITMAPS:
            return bool(controls.proc & c.UNCONDITIONAL_IO_EXITING)
        if port + size > 0x10000:
            return True
        for each in range(port, port + size):
            bitmap = controls.bitmap_a if each < 0x8000 else controls.bitmap_b
            if self.machine.memory.u8(bitmap + (each >> 3 & 0xFFF)) >> (each & 7) & 1:
                return True
        return False
