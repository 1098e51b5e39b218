"""VMX itself: the state of VMX operation, and the machine whose CPU has it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hvtests.machine.delivery import GP, Fault
from hvtests.machine.machine import Machine
from hvtests.machine.stop import unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.checks import RULES, Checker, EntryState, Failure
from hvtests.vmx.complaints import Complaints
from hvtests.vmx.entry import Entry
from hvtests.vmx.exit import Exit
from hvtests.vmx.field_support import supported_fields
from hvtests.vmx.guest_events import PREEMPTION_TIMER, GuestEvents
from hvtests.vmx.instructions import VmxInstructions
from hvtests.vmx.intercepts import Intercepts
from hvtests.vmx.monitor_trap import MonitorTrap
from hvtests.vmx.prepared import Controls
from hvtests.vmx.quick import Quick
from hvtests.vmx.records import ExitLog, ExitRecord, Injection
from hvtests.vmx.shadow import Shadow, ShadowTables
from hvtests.vmx.timer import PreemptionTimer
from hvtests.vmx.vmcs import Vmcs

__all__ = ["ExitRecord", "Injection", "Vmx", "VmxMachine"]

EXITS_KEPT = 1 << 16
CR0_UNRESTRICTED = 1 | 1 << 31     # PE and PG: free for a guest under "unrestricted guest"


class Vmx:
    """VMX operation of one machine.

    `on`: in VMX operation; `region`: physical address of the VMXON region; `current`: the current VMCS; `guest`: the
    VMCS whose guest runs, None in root operation. `exits` logs VM exits and `injections` injected events; `failures`
    counts VMfail, `last_failure` is the check that the last failed VM entry broke. `fields`: the VMCS fields that the
    CPU has.
    """

    def __init__(self, machine: VmxMachine, model: CpuModel, exits_kept: int | None) -> None:
        self.machine, self.model = machine, model
        self.on = False
        self.region: int | None = None
        self.current: Vmcs | None = None
        self.guest: Vmcs | None = None
        self.active: dict[int, Vmcs] = {}
        self.failures = 0
        self.last_failure: Failure | None = None
        self.complaints = Complaints()
        self.exits = ExitLog(exits_kept)
        self._injections: deque[tuple[int, int, int]] = deque(maxlen=exits_kept)
        self.controls: Controls
        self.shadow: Shadow | None = None
        self.checker = Checker()
        self.fields = supported_fields(model)
        self.ept = ShadowTables(self)
        self.timer = PreemptionTimer(self)
        self.monitor_trap = MonitorTrap(self)
        self.exit = Exit(self)
        self.events = GuestEvents(self)
        self.instructions = VmxInstructions(self)
        self.intercepts = Intercepts(self)
        self._entry = Entry(self)
        self.quick = Quick(self)
        machine.fabric.side_changed = self._side_changed
        machine.on_cpuid = self.quick.remember_cpuid
        machine.root.on_undefined = self.instructions.on_undefined
        machine.on_guest_deadline = self._timer_expired
        machine.check_cr = self.check_cr

    # -- VMX operation ---------------------------------------------------------------------------------------------

    def enter_operation(self, region: int) -> None:
        """VMXON succeeded."""
        self.on, self.region = True, region
        self.set_current(None)

    def leave_operation(self) -> None:
        """VMXOFF: active VMCSs go back to memory."""
        for vmcs in self.active.values():
            vmcs.store(self.machine.memory)
        self.active.clear()
        self.on, self.region = False, None
        self.set_current(None)

    def set_current(self, vmcs: Vmcs | None) -> None:
        """Another VMCS is current, or none."""
        self.current = vmcs
        self.quick.set_current(vmcs)

    def forget(self, vmcs: Vmcs) -> None:
        """VMCLEAR: the VMCS is no longer active, nor current."""
        if self.current is vmcs:
            self.set_current(None)

    def enter(self, vmcs: Vmcs) -> int | None:
        """VM entry with the current VMCS; see Entry.enter."""
        return self._entry.enter(vmcs)

    def _side_changed(self) -> None:
        """Native code has entered or left the guest of the current VMCS."""
        machine = self.machine
        if machine.fabric.side:
            assert self.current is not None
            self.guest, self.controls = self.current, self.current.controls
            self.controls.entry = self.current.read("VM_ENTRY_CONTROLS")
            self.shadow = self.ept.use(self.controls.eptp)
            machine.cpu.physical = self.shadow.memory
            machine.fabric.dispatch = self.intercepts.handlers
        else:
            self.guest = self.shadow = None
            machine.cpu.physical = machine.memory
            machine.fabric.dispatch = machine.root.handlers

    def blocked_by_mov_ss(self) -> bool:
        """Whether the instruction at RIP, in root operation, follows MOV SS or POP SS."""
        cpu = self.machine.cpu
        return cpu.interrupts_inhibited and bool(self.events.blocking(cpu.rip) & c.BLOCKING_BY_MOV_SS)

    def address(self) -> int:
        """Address of the VMCS whose guest runs."""
        return 0 if self.guest is None else self.guest.address

    @property
    def injections(self) -> list[Injection]:
        """Events that VM entries injected, oldest first."""
        return [Injection(*row) for row in self._injections]

    def record_injection(self, vmcs: int, information: int, error_code: int) -> None:
        """Log an event that a VM entry injects."""
        self._injections.append((vmcs, information, error_code))

    # -- rules that both sides share -------------------------------------------------------------------------------

    def fixed_bits_hold(self, number: int, value: int, *, unrestricted: bool = False) -> bool:
        """Whether CR0 or CR4 has a value that VMX operation supports (SDM 3C 24.8 [23.8])."""
        must = self.model.capability(f"IA32_VMX_CR{number}_FIXED0")
        may = self.model.capability(f"IA32_VMX_CR{number}_FIXED1")
        if unrestricted and number == 0:
            must &= ~CR0_UNRESTRICTED
        return not (must & ~value or value & ~may)

    def check_cr(self, number: int, value: int) -> None:
        """MOV to CR0 or CR4 in VMX operation. Raises Fault #GP(0)."""
        if self.on:
            unrestricted = self.guest is not None and bool(self.controls.proc2 & c.UNRESTRICTED_GUEST)
            if not self.fixed_bits_hold(number, value, unrestricted=unrestricted):
                raise Fault(GP, 0)

    def valid_eptp(self, pointer: int) -> bool:
        """Whether VM entry with EPT would accept this EPTP."""
        values = {"EPT_POINTER": pointer, "CPU_BASED_VM_EXEC_CONTROL": c.ACTIVATE_SECONDARY_CONTROLS,
                  "SECONDARY_VM_EXEC_CONTROL": c.ENABLE_EPT}
        state = EntryState.of(values, self.model)
        rules = (rule for rule in RULES if "EPT_POINTER" in rule.reads and values.keys() >= {*rule.reads})
        return all(rule.holds(state) for rule in rules)

    def _timer_expired(self) -> None:
        if self.guest is None:
            raise unmodelled("the VMX-preemption timer expired outside a guest")
        if self.monitor_trap.first():
            return
        self.exit.event(PREEMPTION_TIMER)


class VmxMachine(Machine):
    """A PC whose CPU has VMX as `cpu` describes it (CpuModel.default() if not given).

    `exits_kept`: how many VM exits `vmx.exits` holds at most; None keeps all, 0 none.
    """

    def __init__(self, ram: int = 256 << 20, cpu: CpuModel | None = None,
                 console: Callable[[bytes], None] | None = None, *, exits_kept: int | None = EXITS_KEPT) -> None:
        model = cpu or CpuModel.default()
        super().__init__(ram, model, console)
        self.vmx = Vmx(self, model, exits_kept)

    def update_lines(self) -> None:
        """Tell the engine which events are waiting, for the guest if one runs."""
        if self.vmx.guest is not None:
            self.vmx.events.update_lines()
        else:
            super().update_lines()
