"""What happens to an event when no guest runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.delivery import GP, Fault
from hvtests.machine.events import (
    DEBUG,
    DOUBLE_FAULT,
    NMI,
    PAGE_FAULT,
    Event,
    EventKind,
    TaskGate,
    TripleFault,
    deliver,
    escalate,
    exception,
)
from hvtests.machine.fabric import ALWAYS
from hvtests.machine.paging import PRESENT, WRITE, AccessFault, PageFault
from hvtests.machine.restart import keep_flags, load_of_a_write, opcode_of
from hvtests.machine.stop import Stop, StopKind, StopRun, unmodelled
from hvtests.machine.syscalls import syscall, sysenter

if TYPE_CHECKING:
    from hvtests.machine.machine import Machine

UD, INT1 = 6, b"\xf1"      # the engine does not know INT1
RFLAGS_TF, DR6_BS, CR4_SMAP = 1 << 8, 1 << 14, 1 << 21
FAR_RETURNS, FAR_FRAME = frozenset((0xCA, 0xCB, 0xCF)), 40
XSETBV = b"\x0f\x01\xd1"
# CR and DR intercepts, 16 bits each: CR read, CR write, DR read, DR write
ROOT_CR_DR = 1 << 8 | (1 | 1 << 3 | 1 << 4 | 1 << 8) << 16 | 0xFF << 32 | 0xFF << 48


class RootMode:
    """Handlers by event code for code that runs outside any guest.

    `on_undefined` is asked about each #UD first and says whether it was an instruction of its own (VMX).
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu, self.fabric = machine.cpu, machine.fabric
        self.on_undefined: Callable[[], bool] = lambda: False
        do = machine.instructions
        self.handlers: dict[int, Callable[[], None]] = {
            L.CODE_INTERRUPT: self.external_interrupt,
            L.CODE_NMI: self.nmi,
            L.CODE_HLT: self.hlt,
            L.CODE_SOFTWARE_INTERRUPT: self.software_interrupt,
            L.CODE_ICEBP: self.software_interrupt,
        }
        for code, action in {
            L.CODE_CPUID: do.cpuid, L.CODE_MSR: do.msr, L.CODE_RDTSC: do.rdtsc, L.CODE_RDPMC: do.rdpmc,
            L.CODE_INVD: do.skip, L.CODE_WBINVD: do.skip, L.CODE_MONITOR: do.skip, L.CODE_MWAIT: do.skip,
            L.CODE_INVLPG: do.invlpg, L.CODE_RSM: do.undefined, L.CODE_IN: do.port, L.CODE_OUT: do.port,
            L.CODE_SYSCALL: lambda: syscall(self.cpu), L.CODE_SYSENTER: lambda: sysenter(self.cpu),
            L.CODE_CR_WRITE: do.write_cr0, L.CODE_CR_WRITE + 3: do.write_cr3, L.CODE_CR_WRITE + 4: do.write_cr4,
            L.CODE_CR_WRITE + 8: do.write_cr8, L.CODE_CR_READ + 8: do.read_cr8,
            **{L.CODE_DR_READ + number: do.read_dr for number in range(8)},
            **{L.CODE_DR_WRITE + number: do.write_dr for number in range(8)},
        }.items():
            self.handlers[code] = lambda action=action: self.attempt(action)  # type: ignore[misc]
        for vector in range(32):
            self.handlers[L.CODE_EXCEPTION + vector] = lambda vector=vector: self.exception(vector)  # type: ignore[misc]

    def enable(self) -> None:
        """Set the intercepts that root mode needs."""
        self.fabric.q[L.Q_INTERCEPT] = ALWAYS
        self.fabric.q[L.Q_INTERCEPT_CR_DR] = ROOT_CR_DR

    def attempt(self, action: Callable[[], None]) -> None:
        """Do an instruction; what it raises is delivered, and the trap of single-stepping after it."""
        stepping = self.fabric.q[L.Q_RFLAGS] & RFLAGS_TF
        try:
            action()
            if stepping:
                self.cpu.dr[6] |= DR6_BS
                self.inject(exception(DEBUG))
        except Fault as fault:
            self.inject(exception(fault.vector, fault.error_code or 0))
        except PageFault as fault:
            self.cpu.cr2 = fault.linear
            self.inject(exception(PAGE_FAULT, fault.error_code))

    def exception(self, vector: int) -> None:
        """The engine raised an exception; some are instructions that it leaves to the model."""
        error_code = self.fabric.i[L.I_ERROR_CODE]
        if vector == UD:
            if self.on_undefined():
                return
            if self.cpu.code()[:1] == INT1:
                return self.software_interrupt()
        if vector == GP:
            if self.cpu.code()[:3] == XSETBV:
                return self.attempt(self.machine.instructions.xsetbv)
            self.check_target()
        if vector == PAGE_FAULT:
            if self.machine.retry_split_fetch(error_code):
                return
            if self.retry_far_return(error_code):
                return
            keep_flags(self.cpu, self.fabric)
            if load_of_a_write(self.cpu, self.fabric):
                error_code |= WRITE
            self.cpu.cr2 = self.fabric.fault_address
        self.inject(exception(vector, error_code))

    def check_target(self) -> None:
        """#GP by the engine: it raises that of a transfer to an address that is not canonical after the transfer."""
        rip = self.cpu.rip
        if self.cpu.code_bits == 64 and rip >> 47 not in (0, 0x1FFFF):
            raise unmodelled(f"transfer to {rip:#x}, which is not canonical (SYSRET, or a jump, call or return)")

    def retry_far_return(self, error_code: int) -> bool:
        """#PF by the engine: it reads the stack of RETF and IRET at CPL 3 as supervisor, which SMAP forbids. Whether it
        was that, and the instruction runs once more without SMAP."""
        cpu, fabric = self.cpu, self.fabric
        if cpu.cpl != 3 or not cpu.cr4 & CR4_SMAP or error_code != PRESENT:
            return False
        found = opcode_of(cpu.code() + b"\x00", cpu.code_bits)
        top = cpu.linear_address(L.SS, cpu.gprs[L.Q_RSP])
        if found is None or found[0] not in FAR_RETURNS or not 0 <= fabric.fault_address - top < FAR_FRAME:
            return False
        try:
            cpu.translate(fabric.fault_address, user=True)
        except AccessFault:
            return False
        self.machine.run_without_smap()
        return True

    def inject(self, event: Event) -> None:
        """Deliver an event, and what goes wrong with that, down to a triple fault."""
        first = event
        while True:
            try:
                return deliver(self.cpu, event)
            except Fault as fault:
                vector, error_code = fault.vector, fault.error_code or 0
            except PageFault as fault:
                self.cpu.cr2 = fault.linear
                vector, error_code = PAGE_FAULT, fault.error_code
            except TaskGate as gate:
                raise unmodelled(f"{gate} for vector {event.vector}, outside a guest") from None
            try:
                vector = escalate(event, vector)
            except TripleFault:
                raise StopRun(Stop(StopKind.TRIPLE_FAULT, self._triple_fault(first))) from None
            event = exception(vector, 0 if vector == DOUBLE_FAULT else error_code)

    def _triple_fault(self, first: Event) -> str:
        code = "" if first.error_code is None else f", error code {first.error_code:#x}"
        return (f"triple fault: vector {first.vector}{code} at CS:RIP {self.cpu.segment(L.CS).selector:#06x}:"
                f"{self.cpu.rip:#x}, CR2 {self.cpu.cr2:#x}")

    def software_interrupt(self) -> None:
        """INT n, INT3, INTO, INT1."""
        self.inject(self.machine.instructions.software_interrupt())

    def external_interrupt(self) -> None:
        """RFLAGS.IF is 1 and an interrupt is waiting."""
        self.inject(Event(self.machine.take_interrupt(), EventKind.EXTERNAL))

    def nmi(self) -> None:
        """An NMI is waiting and not blocked."""
        self.machine.take_nmi()
        self.inject(Event(NMI, EventKind.NMI))

    def hlt(self) -> None:
        """Wait for an interrupt that is due; what nothing can end is the end of the run."""
        enabled = self.cpu.rflags >> 9 & 1
        if self.machine.nmi_pending or (self.machine.interrupt_pending and enabled):
            return self.machine.instructions.skip()
        reason = "interrupts on and none to come" if enabled else "interrupts off"
        raise StopRun(Stop(StopKind.HALT, f"HLT with {reason}, at {self.cpu.code_linear:#x}"))
