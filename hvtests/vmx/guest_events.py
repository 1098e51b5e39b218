"""Exceptions, interrupts and their windows while a guest runs: which exit, and which reach the guest's own handlers.

SDM 3C 26.2 [25.2] (other causes of VM exits), 27.6, 27.7 [26.6, 26.7] (events at VM entry), 28.2.2 to 28.2.4
[27.2.2 to 27.2.4] (what an exit records of them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.delivery import Fault
from hvtests.machine.events import (
    DEBUG,
    DOUBLE_FAULT,
    NMI,
    PAGE_FAULT,
    SOFTWARE,
    Event,
    EventKind,
    TaskGate,
    TripleFault,
    deliver,
    escalate,
    exception,
)
from hvtests.machine.machine import complete
from hvtests.machine.paging import WRITE, PageFault
from hvtests.machine.restart import ACCESS_FETCH, ACCESS_LOAD, keep_flags, load_of_a_write
from hvtests.machine.stop import Stop, StopKind, StopRun, unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.ept import EptExit
from hvtests.vmx.exit import event_information

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

EXCEPTION_NMI, EXTERNAL_INTERRUPT, TRIPLE_FAULT, INTERRUPT_WINDOW, NMI_WINDOW, TASK_SWITCH = 0, 1, 2, 7, 8, 9
PREEMPTION_TIMER = 52
STI, MOV_SEGMENT, LONGEST_MOV_SS = 0xFB, 0x8E, 7
RFLAGS_TF = 1 << 8
DR6_CONDITIONS = 0x600F      # B3 to B0, BD, BS
TASK_BY_GATE = 3 << 30


class GuestEvents:
    """Events of the running guest."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self.fabric, self.cpu = vmx.machine.fabric, vmx.machine.cpu
        self.keeps_nmis_blocked = False     # an IRET runs that must not unblock them

    # -- exceptions ------------------------------------------------------------------------------------------------

    def raised(self, vector: int) -> None:
        """The engine, or an instruction of the model, raised an exception at RIP."""
        error_code = self.fabric.i[L.I_ERROR_CODE]
        if vector == PAGE_FAULT:
            if self.fabric.fault_access == ACCESS_FETCH and self.vmx.monitor_trap.first():
                return
            if self.machine.retry_split_fetch(error_code):
                return
            if self.machine.root.retry_far_return(error_code):
                self.vmx.monitor_trap.again()
                return
            if self.fabric.fault_access == ACCESS_LOAD and self.vmx.intercepts.accesses.outs_exits():
                return
            keep_flags(self.cpu, self.fabric)
            if load_of_a_write(self.cpu, self.fabric):
                error_code |= WRITE
            self.inject(exception(PAGE_FAULT, error_code), self.fabric.fault_address)
        elif vector == DEBUG:
            conditions = self.cpu.dr[6] & DR6_CONDITIONS
            if conditions & c.PENDING_DEBUG_BS and self.vmx.monitor_trap.due:
                self.cpu.dr[6] &= ~c.PENDING_DEBUG_BS
                return self.vmx.monitor_trap.exit(pending=c.PENDING_DEBUG_BS)
            self.inject(exception(DEBUG), conditions)
        else:
            self.inject(exception(vector, error_code))

    def fault(self, fault: Fault | PageFault) -> None:
        """Deliver what an instruction of the model raised."""
        if isinstance(fault, PageFault):
            self.inject(exception(PAGE_FAULT, fault.error_code), fault.linear)
        else:
            conditions = self.cpu.dr[6] & DR6_CONDITIONS if fault.vector == DEBUG else 0
            self.inject(exception(fault.vector, fault.error_code or 0), conditions)

    def inject(self, event: Event, qualification: int = 0) -> None:
        """Deliver an event to the guest, unless it or what goes wrong with it exits.

        `qualification`: the address of a page fault, the DR6 conditions of a debug exception. An event that VM entry
        injects never exits by itself (SDM 3C 27.6.1.2).
        """
        if not event.injected:
            if self._exits(event):
                return self._exit(event, qualification)
            if event.vector == PAGE_FAULT and event.kind is EventKind.EXCEPTION:
                self.cpu.cr2 = qualification
        while True:
            try:
                deliver(self.cpu, event)
                if self.vmx.monitor_trap.armed:
                    self.vmx.monitor_trap.exit()
                return
            except Fault as fault:
                vector, error_code, qualification = fault.vector, fault.error_code or 0, 0
            except PageFault as fault:
                vector, error_code, qualification = PAGE_FAULT, fault.error_code, fault.linear
            except EptExit as failure:
                return self.vmx.exit.ept(failure, during=event)
            except TaskGate as gate:
                return self._task_switch(event, gate)
            second = exception(vector, error_code)
            if self._exits(second):
                return self._exit(second, qualification, during=event)
            if vector == PAGE_FAULT:
                self.cpu.cr2 = qualification
            try:
                vector = escalate(event, vector)
            except TripleFault:
                return self.vmx.exit.event(TRIPLE_FAULT)
            event = exception(vector, 0 if vector == DOUBLE_FAULT else error_code)
            if vector == DOUBLE_FAULT and self._exits(event):
                return self._exit(event, 0)

    def _exits(self, event: Event) -> bool:
        """Whether the exception bitmap makes an event exit; page faults also by error code (SDM 3C 25.6.3)."""
        if event.kind in (EventKind.EXTERNAL, EventKind.NMI, EventKind.SOFTWARE_INTERRUPT):
            return False
        controls = self.vmx.controls
        listed = bool(controls.exceptions >> event.vector & 1)
        if event.vector == PAGE_FAULT and event.kind is EventKind.EXCEPTION:
            matches = (event.error_code or 0) & controls.page_fault_mask == controls.page_fault_match
            return listed is matches
        return listed

    def _exit(self, event: Event, qualification: int, during: Event | None = None) -> None:
        """Exit reason 0. RFLAGS.RF is saved as the event would have pushed it (SDM 3C 28.3.3)."""
        if event.vector == DEBUG and event.kind is EventKind.EXCEPTION:
            self.cpu.dr[6] &= ~DR6_CONDITIONS
        fault_like = event.kind is EventKind.EXCEPTION and event.vector not in (1, 3, 4, 8, 18)
        self.vmx.exit.event(EXCEPTION_NMI, qualification, information=event_information(event),
                            error_code=event.error_code or 0, length=event.length, during=during,
                            resume_flag=True if fault_like else None)

    def _task_switch(self, event: Event, gate: TaskGate) -> None:
        """A task gate in the IDT: reason 9 (SDM 3C 26.4.2, table 28-6)."""
        self.vmx.exit.event(TASK_SWITCH, gate.selector | TASK_BY_GATE, during=event,
                            length=event.length if event.kind in SOFTWARE else 0)

    def software_interrupt(self) -> None:
        """INT n, INT3, INTO, INT1."""
        self.inject(self.machine.instructions.software_interrupt())

    def triple_fault(self) -> None:
        """The engine found it by itself."""
        self.vmx.exit.event(TRIPLE_FAULT)

    # -- interrupts ------------------------------------------------------------------------------------------------

    def update_lines(self) -> None:
        """Tell the engine which asynchronous events it must stop for."""
        machine, controls = self.machine, self.vmx.controls
        always = machine.interrupt_pending and controls.pin & c.EXTERNAL_INTERRUPT_EXITING
        if machine.nmi_pending and controls.pin & c.VIRTUAL_NMIS:
            always = 1       # virtual NMIs: physical ones are never blocked
        request = 0
        if always or machine.interrupt_pending:
            request |= L.REQUEST_HARD
        if machine.nmi_pending and not controls.pin & c.VIRTUAL_NMIS:
            request |= L.REQUEST_NMI
        if controls.proc & c.INTERRUPT_WINDOW_EXITING:
            request |= L.REQUEST_VIRQ
        hflags2 = self.fabric.i[L.I_HFLAGS2] & ~(L.HF2_HIF | L.HF2_VINTR)
        self.fabric.i[L.I_HFLAGS2] = hflags2 | (L.HF2_HIF | L.HF2_VINTR if always else 0)
        self.fabric.set_requests(request)
        if self._iret_leaves_nmis_blocked():
            self.vmx.intercepts.intercept_iret(True)
        if controls.proc & c.NMI_WINDOW_EXITING:
            self._watch_nmi_window()

    def interrupt(self) -> None:
        """The engine stopped for an external interrupt (or an NMI that nothing may block)."""
        machine, controls = self.machine, self.vmx.controls
        if self.vmx.monitor_trap.first():
            return None
        if machine.nmi_pending and controls.pin & c.VIRTUAL_NMIS:
            return self.nmi()
        if controls.pin & c.EXTERNAL_INTERRUPT_EXITING:
            information = 0
            if controls.exit & c.ACKNOWLEDGE_INTERRUPT_ON_EXIT:
                information = machine.take_interrupt() | c.INFO_VALID
            return self.vmx.exit.event(EXTERNAL_INTERRUPT, information=information)
        event = Event(machine.take_interrupt(), EventKind.EXTERNAL)
        self.inject(event)
        self._update_if_inside()

    def nmi(self) -> None:
        """An NMI, not blocked."""
        if self.vmx.monitor_trap.first():
            return
        self.machine.take_nmi()
        if self.vmx.controls.pin & c.NMI_EXITING:
            self.vmx.exit.event(EXCEPTION_NMI, information=NMI | EventKind.NMI << 8 | c.INFO_VALID)
            self.cpu.nmi_blocked = True
            return
        self.inject(Event(NMI, EventKind.NMI))
        self._update_if_inside()

    def _update_if_inside(self) -> None:
        if self.vmx.guest is not None:
            self.update_lines()

    def interrupt_window(self) -> None:
        """RFLAGS.IF is 1 and nothing blocks interrupts."""
        if self.vmx.monitor_trap.first():
            return
        self.vmx.exit.event(INTERRUPT_WINDOW)

    def _watch_nmi_window(self) -> None:
        """NMI-window exiting: at once if nothing blocks virtual NMIs, else after the IRET that unblocks them, or after
        the one instruction that STI or MOV SS protects."""
        if self.cpu.nmi_blocked:
            self.vmx.intercepts.intercept_iret(True)
        elif self.cpu.interrupts_inhibited:
            self.machine.after_one_instruction(self._update_if_inside)
        else:
            self.vmx.exit.event(NMI_WINDOW)

    def iret(self) -> None:
        """IRET with NMI-window exiting, or one that leaves NMIs blocked: let it run alone and look again."""
        self.vmx.intercepts.intercept_iret(False)
        self.keeps_nmis_blocked = self._iret_leaves_nmis_blocked()
        self.machine.after_one_instruction(self._after_iret)

    def _iret_leaves_nmis_blocked(self) -> bool:
        """IRET unblocks NMIs only without NMI exiting; with virtual NMIs, it unblocks those (SDM 3C 26.3 [25.3])."""
        return self.cpu.nmi_blocked and self.vmx.controls.pin & (c.NMI_EXITING | c.VIRTUAL_NMIS) == c.NMI_EXITING

    def _after_iret(self) -> None:
        self.restore_nmi_blocking()
        self._update_if_inside()

    def restore_nmi_blocking(self) -> None:
        """After such an IRET, or at the VM exit that came first."""
        if self.keeps_nmis_blocked:
            self.keeps_nmis_blocked = False
            if self.vmx.guest is not None:
                self.cpu.nmi_blocked = True

    # -- special states --------------------------------------------------------------------------------------------

    def inactive(self, activity: int) -> None:
        """The guest is halted, or worse: exit by the event that comes first. SDM 3C 27.7.2, 25.4.2."""
        machine, controls = self.machine, self.vmx.controls
        exit_ = self.vmx.exit
        enabled = self.cpu.rflags >> 9 & 1
        if machine.nmi_pending and not self.cpu.nmi_blocked:
            self.nmi()
        elif activity == c.HLT and controls.proc & c.INTERRUPT_WINDOW_EXITING and enabled:
            exit_.event(INTERRUPT_WINDOW, activity=activity)
        elif machine.interrupt_pending and controls.pin & c.EXTERNAL_INTERRUPT_EXITING and activity != c.WAIT_FOR_SIPI:
            information = 0
            if controls.exit & c.ACKNOWLEDGE_INTERRUPT_ON_EXIT:
                information = machine.take_interrupt() | c.INFO_VALID
            exit_.event(EXTERNAL_INTERRUPT, information=information, activity=activity)
        elif activity == c.HLT and machine.interrupt_pending and enabled:
            self.interrupt()
        elif controls.pin & c.ACTIVATE_PREEMPTION_TIMER and activity != c.WAIT_FOR_SIPI:
            self.vmx.timer.expire()
            exit_.event(PREEMPTION_TIMER, activity=activity)
        else:
            raise StopRun(Stop(StopKind.HALT, f"the guest of VMCS {self.vmx.address():#x} is in activity state "
                                              f"{activity}, and nothing can wake it"))

    def halted(self, length: int) -> None:
        """HLT that does not exit: RIP moves on, then the guest waits."""
        self.cpu.advance(length)
        if self.vmx.monitor_trap.armed:
            return self.vmx.monitor_trap.exit(activity=c.HLT)
        self.inactive(c.HLT)

    def pending_debug(self, pending: int, interruptibility: int) -> None:
        """Pending debug exceptions at VM entry: #DB before the first instruction (SDM 3C 27.7.3)."""
        if interruptibility & c.BLOCKING_BY_MOV_SS:
            if pending & DR6_CONDITIONS == c.PENDING_DEBUG_BS and self.cpu.rflags & RFLAGS_TF:
                return      # the trap of the instruction that MOV SS protects comes in its place
            raise unmodelled("VM entry with pending debug exceptions and blocking by MOV SS")
        conditions = pending & DR6_CONDITIONS
        if not self.vmx.controls.exceptions & 1 << DEBUG:
            self.cpu.dr[6] = self.cpu.dr[6] & ~0xF | conditions
        self.inject(exception(DEBUG), conditions)

    def blocking(self, rip: int) -> int:
        """Whether STI or MOV SS blocks events, when one of them does: by the instruction before RIP."""
        before = b""
        for distance in range(1, LONGEST_MOV_SS + 1):
            try:
                before = self.cpu.read_linear(self._linear(rip - distance), 1, user=False) + before
            except (PageFault, EptExit):
                break
            if distance == 1 and before[0] != STI:
                return c.BLOCKING_BY_MOV_SS
            if distance > 1 and before[0] == MOV_SEGMENT and before[1] >> 3 & 7 == L.SS and complete(
                    before, self.cpu.code_bits) == distance:
                return c.BLOCKING_BY_MOV_SS
        return c.BLOCKING_BY_STI if before else c.BLOCKING_BY_MOV_SS

    def _linear(self, rip: int) -> int:
        return rip if self.cpu.code_bits == 64 else self.cpu.segment(L.CS).base + rip & 0xFFFF_FFFF
