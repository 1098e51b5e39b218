"""VM entry: checks, loading guest state, injecting an event. SDM 3C chapter 27 [26]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.events import Event, EventKind
from hvtests.machine.stop import unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.checks import HOST_LMA, EntryState, Failure, msr_load
from hvtests.vmx.msr_lists import read_list
from hvtests.vmx.prepared import (
    CONTROL_FIELDS,
    DERIVING_FIELDS,
    EFER_LME_LMA,
    HOST_FIELDS,
    SEGMENTS_AT,
    SEGMENTS_END,
    Controls,
    HostState,
)
from hvtests.vmx.vmcs import CR0_KEPT, WORD, Vmcs

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

DR7_ENABLES = 0xFF
INVALID_GUEST_STATE, MSR_LOADING, PREEMPTION_TIMER = 33, 34, 52
_CONTROLS = WORD["VM_ENTRY_CONTROLS"]
_INFO, _ERROR, _LENGTH = (WORD[name] for name in (
    "VM_ENTRY_INTR_INFO_FIELD", "VM_ENTRY_EXCEPTION_ERROR_CODE", "VM_ENTRY_INSTRUCTION_LEN"))
_INTERRUPTIBILITY, _ACTIVITY, _PENDING = (WORD[name] for name in (
    "GUEST_INTERRUPTIBILITY_INFO", "GUEST_ACTIVITY_STATE", "GUEST_PENDING_DBG_EXCEPTIONS"))
_TIMER, _DR7, _DEBUGCTL, _PAT = (WORD[name] for name in (
    "VMX_PREEMPTION_TIMER_VALUE", "GUEST_DR7", "GUEST_IA32_DEBUGCTL", "GUEST_IA32_PAT"))
_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = (WORD[name] for name in (
    "GUEST_SYSENTER_CS", "GUEST_SYSENTER_ESP", "GUEST_SYSENTER_EIP"))
_PDPTES = tuple(WORD[f"GUEST_PDPTR{n}"] for n in range(4))


class Entry:
    """VMLAUNCH and VMRESUME once the conditions of the instructions themselves hold."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self.fabric, self.cpu = vmx.machine.fabric, vmx.machine.cpu
        self._host_lma: bool | None = None

    def enter(self, vmcs: Vmcs) -> int | None:
        """Run the guest, or fail: the VM-instruction error number of VMfailValid, None otherwise.

        A failure in guest state or MSR loading has become a VM exit when this returns None.
        """
        vmx = self.vmx
        dirty = vmcs.dirty() if vmcs.checked else None
        failure = self._check(vmcs, dirty)
        if failure is not None:
            vmx.last_failure = failure
            if failure.instruction_error is not None:
                return failure.instruction_error
            self._prepare(vmcs, None)
            vmx.exit.entry_failed(vmcs, INVALID_GUEST_STATE, failure.qualification)
            return None
        if dirty is None or dirty:
            self._prepare(vmcs, dirty)
        vmx.controls, vmx.guest = vmcs.controls, vmcs
        vmx.controls.entry = vmcs.q[_CONTROLS]    # VM exits write "IA-32e mode guest"
        self._load(vmcs, vmx.controls, derive=dirty is None or not dirty.isdisjoint(DERIVING_FIELDS))
        if vmx.controls.msr_lists:
            refused = self._load_msrs(vmcs)
            if refused:
                vmx.complaints.msr_loading(vmcs, refused)
                vmx.guest = None
                vmx.exit.entry_failed(vmcs, MSR_LOADING, refused)
                return None
        vmcs.launched = True
        vmcs.pass_checks()
        if not vmcs.judged:
            vmx.quick.prepare(vmcs, vmx.controls, vmcs.host)
        self._begin(vmcs, vmx.controls)
        return None

    # -- checks ----------------------------------------------------------------------------------------------------

    def _check(self, vmcs: Vmcs, dirty: frozenset[str] | None) -> Failure | None:
        lma = bool(self.cpu.efer >> 10 & 1)
        if lma is not self._host_lma and dirty is not None:
            dirty |= {HOST_LMA}
        self._host_lma = lma
        state = EntryState(vmcs.read, self.vmx.model, self.machine.memory, vmcs_pointer=vmcs.address, host_lma=lma)
        failure = self.vmx.checker.run(state, dirty)
        if failure is not None:
            self.vmx.complaints.entry(vmcs, failure, state)
        return failure

    def _prepare(self, vmcs: Vmcs, dirty: frozenset[str] | None) -> None:
        if dirty is None or not dirty.isdisjoint(CONTROL_FIELDS):
            vmcs.controls = Controls(vmcs)
            vmcs.judged = False
        if dirty is None or not dirty.isdisjoint(HOST_FIELDS):
            vmcs.host = HostState(vmcs)
            vmcs.judged = False

    # -- loading ---------------------------------------------------------------------------------------------------

    def _load(self, vmcs: Vmcs, controls: Controls, *, derive: bool) -> None:
        fabric, guest, entry = self.fabric, vmcs.q, controls.entry
        q, i = fabric.q, fabric.i
        fabric.b[SEGMENTS_AT:SEGMENTS_END] = vmcs.b[SEGMENTS_AT:SEGMENTS_END]
        q[L.Q_CR] = guest[L.Q_CR] & ~CR0_KEPT | q[L.Q_CR] & CR0_KEPT
        q[L.Q_CR + 3], q[L.Q_CR + 4] = guest[L.Q_CR + 3], guest[L.Q_CR + 4]
        if entry & c.ENTRY_LOAD_IA32_EFER:
            q[L.Q_EFER] = guest[L.Q_EFER]
        else:
            long = entry & c.IA32E_MODE_GUEST
            changed = EFER_LME_LMA if guest[L.Q_CR] >> 31 & 1 else 1 << 10
            q[L.Q_EFER] = q[L.Q_EFER] & ~changed | (changed if long else 0)
        q[L.Q_RIP], q[L.Q_RSP] = guest[L.Q_RIP], guest[L.Q_RSP]
        fabric.rflags = guest[L.Q_RFLAGS]
        i[L.I_SYSENTER_CS] = guest[_SYSENTER_CS]
        q[L.Q_SYSENTER_ESP], q[L.Q_SYSENTER_EIP] = guest[_SYSENTER_ESP], guest[_SYSENTER_EIP]
        if entry & c.LOAD_DEBUG_CONTROLS:
            if guest[_DR7] & DR7_ENABLES:
                raise unmodelled(f"hardware breakpoint: GUEST_DR7 = {guest[_DR7]:#x} at a VM entry")
            q[L.Q_DR + 7] = guest[_DR7]
            fabric.debugctl = guest[_DEBUGCTL]
        if entry & c.ENTRY_LOAD_IA32_PAT:
            q[L.Q_PAT] = guest[_PAT]
        blocking = guest[_INTERRUPTIBILITY]
        hflags = L.HF_GUEST | L.HF_SOFTMMU if derive else vmcs.i[L.I_HFLAGS]
        i[L.I_HFLAGS] = hflags & ~L.HF_INHIBIT_IRQ | (L.HF_INHIBIT_IRQ if blocking & 3 else 0)
        i[L.I_HFLAGS2] = L.HF2_GIF | (L.HF2_NPT if controls.uses_ept else 0) | (
            L.HF2_NMI if blocking & c.BLOCKING_BY_NMI else 0)
        if derive:
            fabric.refresh()
        self.vmx.intercepts.enable(controls)
        if controls.uses_ept:
            self.vmx.shadow = self.vmx.ept.use(controls.eptp)
            self.cpu.physical = self.vmx.shadow.memory
            if guest[L.Q_CR] >> 31 and guest[L.Q_CR + 4] >> 5 & 1 and not q[L.Q_EFER] >> 10 & 1:
                self._check_pdptes(vmcs)
        fabric.flush()
        fabric.dispatch = self.vmx.intercepts.handlers
        fabric.switch_side(1)

    def _check_pdptes(self, vmcs: Vmcs) -> None:
        """The engine has no PDPTE registers: it reads the table. Other values in the VMCS are not modelled."""
        table = vmcs.q[L.Q_CR + 3] & 0xFFFF_FFE0
        memory = self.cpu.physical
        for number, word in enumerate(_PDPTES):
            if memory.u64(table + 8 * number) != vmcs.q[word]:
                raise unmodelled(f"GUEST_PDPTR{number} = {vmcs.q[word]:#x} differs from the table at CR3")

    def _load_msrs(self, vmcs: Vmcs) -> int:
        """Load the VM-entry MSR-load area; the number of the entry that fails, from 1, or 0."""
        msrs = self.machine.msrs
        count = vmcs.read("VM_ENTRY_MSR_LOAD_COUNT")
        entries = read_list(self.machine.memory, vmcs.read("VM_ENTRY_MSR_LOAD_ADDR"), count)
        for number, (index, reserved, value) in enumerate(entries, 1):
            if msr_load.fault(index, reserved, msrs.accepts, value) is not None:
                return number
            msrs.write(index, value)
        return 0

    # -- the first moments of the guest ----------------------------------------------------------------------------

    def _begin(self, vmcs: Vmcs, controls: Controls) -> None:
        vmx, guest = self.vmx, vmcs.q
        if controls.pin & c.ACTIVATE_PREEMPTION_TIMER:
            vmx.timer.start(guest[_TIMER])
        info = guest[_INFO]
        if controls.proc & c.MONITOR_TRAP_FLAG:
            vmx.monitor_trap.arm()
        if info & c.INFO_VALID and info >> 8 & 7 == c.OTHER_EVENT:
            vmx.record_injection(vmcs.address, info, 0)
            return vmx.monitor_trap.exit(pending=guest[_PENDING], activity=guest[_ACTIVITY])
        if info & c.INFO_VALID:
            event = Event(info & 0xFF, EventKind(info >> 8 & 7), guest[_ERROR] if info & c.INFO_ERROR_CODE else None,
                          guest[_LENGTH], injected=True)
            vmx.record_injection(vmcs.address, info, guest[_ERROR] if info & c.INFO_ERROR_CODE else 0)
            vmx.events.inject(event)
            if vmx.guest is None:
                return
        elif guest[_ACTIVITY] != c.ACTIVE:
            vmx.events.inactive(guest[_ACTIVITY])
            return
        elif guest[_PENDING] & (c.PENDING_DEBUG_ENABLED | c.PENDING_DEBUG_BS):
            vmx.events.pending_debug(guest[_PENDING], guest[_INTERRUPTIBILITY])
            if vmx.guest is None:
                return
        vmx.events.update_lines()
        if vmx.guest is not None and controls.pin & c.ACTIVATE_PREEMPTION_TIMER and guest[_TIMER] == 0:
            vmx.exit.event(PREEMPTION_TIMER)
