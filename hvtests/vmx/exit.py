"""VM exit: recording why, saving guest state, loading host state. SDM 3C chapter 28 [27]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.events import Event
from hvtests.machine.stop import unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.ept import EptExit
from hvtests.vmx.msr_lists import read_list, store_value
from hvtests.vmx.prepared import EFER_LME_LMA, SEGMENTS_AT, SEGMENTS_END, Controls
from hvtests.vmx.vmcs import CR0_KEPT, RIGHTS_STALE, WORD, Vmcs

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

_REASON, _QUALIFICATION, _INFO, _ERROR, _VECTORING, _VECTORING_ERROR, _LENGTH, _INSTRUCTION = (WORD[name] for name in (
    "VM_EXIT_REASON", "EXIT_QUALIFICATION", "VM_EXIT_INTR_INFO", "VM_EXIT_INTR_ERROR_CODE",
    "IDT_VECTORING_INFO_FIELD", "IDT_VECTORING_ERROR_CODE", "VM_EXIT_INSTRUCTION_LEN", "VMX_INSTRUCTION_INFO"))
_ENTRY_INFO, _ENTRY_CONTROLS = WORD["VM_ENTRY_INTR_INFO_FIELD"], WORD["VM_ENTRY_CONTROLS"]
_INTERRUPTIBILITY, _ACTIVITY, _PENDING = (WORD[name] for name in (
    "GUEST_INTERRUPTIBILITY_INFO", "GUEST_ACTIVITY_STATE", "GUEST_PENDING_DBG_EXCEPTIONS"))
_TIMER, _DR7, _DEBUGCTL, _PAT = (WORD[name] for name in (
    "VMX_PREEMPTION_TIMER_VALUE", "GUEST_DR7", "GUEST_IA32_DEBUGCTL", "GUEST_IA32_PAT"))
_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = (WORD[name] for name in (
    "GUEST_SYSENTER_CS", "GUEST_SYSENTER_ESP", "GUEST_SYSENTER_EIP"))
_LINEAR, _PHYSICAL = WORD["GUEST_LINEAR_ADDRESS"], WORD["GUEST_PHYSICAL_ADDRESS"]
_PDPTES = tuple(WORD[f"GUEST_PDPTR{n}"] for n in range(4))
_TASK_BASE = L.q_base(L.TR)
STORE_LMA = 1 << 5      # IA32_VMX_MISC
RFLAGS_TF, RFLAGS_RF = 1 << 8, 1 << 16
EPT_VIOLATION, EPT_MISCONFIGURATION, PML_FULL = 48, 49, 62
LINEAR_VALID, FINAL_ACCESS, NMI_UNBLOCKING = 1 << 7, 1 << 8, 1 << 12


class Exit:
    """Leaves the guest. Every method returns with the host's state loaded and root mode's handlers in place."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self.fabric, self.cpu = vmx.machine.fabric, vmx.machine.cpu
        self._stores_lma = bool(vmx.model.misc & STORE_LMA)

    def instruction(self, reason: int, length: int, qualification: int = 0, information: int | None = None) -> None:
        """An exit by an instruction of `length` bytes at RIP; RFLAGS.RF is saved as 0 (SDM 3C 28.3.3)."""
        vmcs = self.vmx.guest
        assert vmcs is not None
        self._check_task(vmcs)
        if information is not None:
            vmcs.q[_INSTRUCTION] = information
        if self.vmx.quick.exit(reason, length, qualification):
            return
        self._leave(vmcs, reason, qualification, length, 0)

    def event(self, reason: int, qualification: int = 0, *, information: int = 0, error_code: int = 0,
              length: int = 0, during: Event | None = None, resume_flag: bool | None = None,
              activity: int = c.ACTIVE, pending: int = 0) -> None:
        """Any other exit. `information`, `error_code`: VM-exit interruption information; `during`: the event whose
        delivery it interrupted; `resume_flag`: what is saved as RFLAGS.RF, None for what it is; `pending`: pending
        debug exceptions to save."""
        vmcs = self.vmx.guest
        assert vmcs is not None
        self._check_task(vmcs)
        vmcs.q[_INFO], vmcs.q[_ERROR] = information, error_code
        flags = None if resume_flag is None else RFLAGS_RF if resume_flag else 0
        if during is not None:
            vmcs.q[_VECTORING] = event_information(during)
            vmcs.q[_VECTORING_ERROR] = during.error_code or 0
            length = during.length
        self._leave(vmcs, reason, qualification, length, flags, information, keep=during is not None,
                    activity=activity, pending=pending)

    def ept(self, failure: EptExit, during: Event | None = None) -> None:
        """An EPT violation or misconfiguration (SDM 3C 28.2.1, table 28-7), or the page-modification log is full."""
        vmcs = self.vmx.guest
        assert vmcs is not None
        resume_flag = during is None or during.length == 0
        if failure.log_full:
            self.event(PML_FULL, during=during, resume_flag=resume_flag)
            return
        vmcs.q[_PHYSICAL] = failure.address
        if failure.misconfigured:
            self.event(EPT_MISCONFIGURATION, during=during, resume_flag=resume_flag)
            return
        vmcs.q[_LINEAR] = self.cpu.linear
        qualification = failure.access | failure.rights << 3 | LINEAR_VALID | (0 if failure.walk else FINAL_ACCESS)
        self.event(EPT_VIOLATION, qualification, during=during, resume_flag=resume_flag)

    def expect_task(self) -> None:
        """LTR has loaded the task register; any other change of it is a task switch."""
        vmcs = self.vmx.guest
        assert vmcs is not None
        vmcs.q[_TASK_BASE] = self.fabric.q[_TASK_BASE]

    def _check_task(self, vmcs: Vmcs) -> None:
        """The engine switches tasks by itself, where a guest ought to exit with reason 9."""
        if vmcs.q[_TASK_BASE] != self.fabric.q[_TASK_BASE]:
            raise unmodelled(f"task switch in a guest, to the TSS at linear {self.fabric.q[_TASK_BASE]:#x}; seen at "
                             f"{self.cpu.code_linear:#x}")

    # -- the steps -------------------------------------------------------------------------------------------------

    def _leave(self, vmcs: Vmcs, reason: int, qualification: int, length: int, resume_flag: int | None,
               information: int = 0, *, keep: bool = False, activity: int = c.ACTIVE, pending: int = 0) -> None:
        vmx, guest = self.vmx, vmcs.q
        vmx.monitor_trap.disarm()
        vmx.events.restore_nmi_blocking()
        guest[_REASON], guest[_QUALIFICATION], guest[_LENGTH] = reason, qualification, length
        guest[_INFO] = information
        if not keep:
            guest[_VECTORING] = 0
        guest[_ENTRY_INFO] &= ~c.INFO_VALID
        vmx.exits.add(vmcs.address, reason, qualification, self.fabric.q[L.Q_RIP], length, information)
        self._save(vmcs, vmx.controls, resume_flag)
        if guest[_INTERRUPTIBILITY] & c.BLOCKING_BY_MOV_SS and guest[L.Q_RFLAGS] & RFLAGS_TF:
            pending |= c.PENDING_DEBUG_BS       # of MOV SS itself: held back by it (SDM 3C 28.3.4)
        guest[_ACTIVITY], guest[_PENDING] = activity, pending
        if vmx.controls.msr_lists:
            self._store_msrs(vmcs)
        self._load_host(vmcs)

    def _save(self, vmcs: Vmcs, controls: Controls, resume_flag: int | None) -> None:
        fabric, guest, exit_ = self.fabric, vmcs.q, controls.exit
        q, i = fabric.q, fabric.i
        flags = fabric.rflags
        vmcs.b[SEGMENTS_AT:SEGMENTS_END] = fabric.b[SEGMENTS_AT:SEGMENTS_END]
        guest[RIGHTS_STALE] = 1
        guest[L.Q_CR], guest[L.Q_CR + 3], guest[L.Q_CR + 4] = q[L.Q_CR], q[L.Q_CR + 3], q[L.Q_CR + 4]
        guest[L.Q_RIP], guest[L.Q_RSP] = q[L.Q_RIP], q[L.Q_RSP]
        guest[L.Q_RFLAGS] = flags if resume_flag is None else flags & ~RFLAGS_RF | resume_flag
        guest[_SYSENTER_CS] = i[L.I_SYSENTER_CS]
        guest[_SYSENTER_ESP], guest[_SYSENTER_EIP] = q[L.Q_SYSENTER_ESP], q[L.Q_SYSENTER_EIP]
        efer = q[L.Q_EFER]
        if exit_ & c.SAVE_IA32_EFER:
            guest[L.Q_EFER] = efer
        if exit_ & c.SAVE_DEBUG_CONTROLS:
            guest[_DR7] = q[L.Q_DR + 7]
            guest[_DEBUGCTL] = fabric.debugctl
        if exit_ & c.SAVE_IA32_PAT:
            guest[_PAT] = q[L.Q_PAT]
        if self._stores_lma:
            guest[_ENTRY_CONTROLS] = guest[_ENTRY_CONTROLS] & ~c.IA32E_MODE_GUEST | (
                c.IA32E_MODE_GUEST if efer >> 10 & 1 else 0)
            controls.entry = guest[_ENTRY_CONTROLS]
        hflags = i[L.I_HFLAGS] | (L.HF_SMAP if q[L.Q_CR + 4] >> 21 & 1 else 0)
        blocking = self.vmx.events.blocking(guest[L.Q_RIP]) if hflags & L.HF_INHIBIT_IRQ else 0
        guest[_INTERRUPTIBILITY] = blocking | (c.BLOCKING_BY_NMI if i[L.I_HFLAGS2] & L.HF2_NMI else 0)
        vmcs.i[L.I_HFLAGS] = hflags
        if controls.pin & c.ACTIVATE_PREEMPTION_TIMER:
            left = self.vmx.timer.stop()
            if exit_ & c.SAVE_PREEMPTION_TIMER:
                guest[_TIMER] = left
        if controls.uses_ept and q[L.Q_CR] >> 31 and q[L.Q_CR + 4] >> 5 & 1 and not efer >> 10 & 1:
            self._save_pdptes(vmcs)

    def _save_pdptes(self, vmcs: Vmcs) -> None:
        table = vmcs.q[L.Q_CR + 3] & 0xFFFF_FFE0
        for number, word in enumerate(_PDPTES):
            vmcs.q[word] = self.cpu.physical.u64(table + 8 * number)

    def _store_msrs(self, vmcs: Vmcs) -> None:
        address, memory = vmcs.read("VM_EXIT_MSR_STORE_ADDR"), self.machine.memory
        entries = read_list(memory, address, vmcs.read("VM_EXIT_MSR_STORE_COUNT"))
        for number, (index, reserved, _) in enumerate(entries):
            value = self.machine.msrs.read(index)
            if value is None or reserved:
                raise unmodelled(f"VMX abort 1: VM-exit MSR-store entry {number + 1} names MSR {index:#x}")
            store_value(memory, address, number, value)

    def _load_host(self, vmcs: Vmcs, *, load_msrs: bool = True) -> None:
        fabric, host, vmx = self.fabric, vmcs.host, self.vmx
        q, i = fabric.q, fabric.i
        fabric.b[SEGMENTS_AT:SEGMENTS_END] = host.segments
        q[L.Q_CR] = host.cr0 & ~CR0_KEPT | q[L.Q_CR] & CR0_KEPT
        q[L.Q_CR + 3], q[L.Q_CR + 4] = host.cr3, host.cr4
        if host.efer is None:
            wide = vmx.controls.exit & c.HOST_ADDRESS_SPACE_SIZE
            q[L.Q_EFER] = q[L.Q_EFER] & ~EFER_LME_LMA | (EFER_LME_LMA if wide else 0)
        else:
            q[L.Q_EFER] = host.efer
        if host.pat is not None:
            q[L.Q_PAT] = host.pat
        q[L.Q_RIP], q[L.Q_RSP] = host.rip, host.rsp
        fabric.rflags = 2
        i[L.I_SYSENTER_CS] = host.sysenter_cs
        q[L.Q_SYSENTER_ESP], q[L.Q_SYSENTER_EIP] = host.sysenter_esp, host.sysenter_eip
        q[L.Q_DR + 7] = 0x400
        fabric.debugctl = 0
        nmi_blocked = i[L.I_HFLAGS2] & L.HF2_NMI and not vmx.controls.pin & c.VIRTUAL_NMIS
        i[L.I_HFLAGS2] = L.HF2_GIF | (L.HF2_NMI if nmi_blocked else 0)
        if host.hflags is None:
            i[L.I_HFLAGS] = L.HF_GUEST | L.HF_SOFTMMU
            fabric.refresh()
            host.hflags = i[L.I_HFLAGS]
        else:
            i[L.I_HFLAGS] = host.hflags
        self.machine.root.enable()
        self.cpu.physical = self.machine.memory
        if vmx.shadow is not None:
            vmx.shadow = None
            vmx.ept.leave()
        fabric.flush()
        vmx.guest = None
        fabric.dispatch = self.machine.root.handlers
        fabric.switch_side(0)
        if load_msrs and vmx.controls.msr_lists:
            self._load_msrs(vmcs)
        self.machine.update_lines()

    def _load_msrs(self, vmcs: Vmcs) -> None:
        address = vmcs.read("VM_EXIT_MSR_LOAD_ADDR")
        for number, (index, reserved, value) in enumerate(
                read_list(self.machine.memory, address, vmcs.read("VM_EXIT_MSR_LOAD_COUNT")), 1):
            if reserved or index in (0xC000_0100, 0xC000_0101) or not self.machine.msrs.write(index, value):
                raise unmodelled(f"VMX abort 4: VM-exit MSR-load entry {number} sets MSR {index:#x} to {value:#x}")

    def entry_failed(self, vmcs: Vmcs, reason: int, qualification: int) -> None:
        """A VM entry that failed in guest state or MSR loading (SDM 3C 27.8 [26.8]): no guest state is saved."""
        vmx = self.vmx
        vmx.controls = vmcs.controls
        vmcs.q[_REASON], vmcs.q[_QUALIFICATION] = c.ENTRY_FAILURE | reason, qualification
        vmx.exits.add(vmcs.address, c.ENTRY_FAILURE | reason, qualification, vmcs.q[L.Q_RIP], 0, 0)
        vmx.timer.stop()
        self._load_host(vmcs)


def event_information(event: Event) -> int:
    """An event as interruption information has it (SDM 3C tables 25-18, 25-19)."""
    return (event.vector | event.kind << 8 | c.INFO_VALID
            | (c.INFO_ERROR_CODE if event.error_code is not None else 0))
