"""The checks that a VM entry makes, by name and in the manual's order: controls, host state, guest state.

`RULES` is all of them. :class:`Checker` runs them against one VM entry and returns the first that fails::

    checker = Checker()
    state = EntryState(vmcs.read, cpu_model, memory, vmcs_pointer=pointer)
    failure = checker.run(state, None)           # the first entry: every rule
    failure = checker.run(state, {"GUEST_RIP"})  # later: the rules that depend on fields written since

MSR loading (SDM 3C 27.4) is judged entry by entry by `msr_load.fault`, after the guest state is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hvtests.vmx.checks import (
    controls_entry,
    controls_execution,
    guest_registers,
    guest_segments,
    guest_state,
    host,
)
from hvtests.vmx.checks.registry import Check, Failure, Rule, Stage
from hvtests.vmx.checks.state import HOST_LMA, EntryState, PhysicalMemory

__all__ = ["BY_ID", "HOST_LMA", "RULES", "Checker", "EntryState", "Failure", "PhysicalMemory", "Rule", "Stage", "run"]

RULES: tuple[Rule, ...] = tuple(rule for rules in (
    controls_execution.SET,
    controls_entry.EXIT_SET,
    controls_entry.ENTRY_SET,
    host.SET,
    host.SEGMENTS,
    host.SIZE,
    guest_registers.SET,
    guest_segments.SET,
    guest_state.TABLES,
    guest_state.FLOW,
    guest_state.OTHER,
    guest_state.PAGES,
) for rule in rules.rules)

BY_ID: dict[str, Rule] = {rule.id: rule for rule in RULES}

_Plan = tuple[tuple[Check, Rule], ...]
_Plans = dict[frozenset[str] | str, _Plan]


class Checker:
    """Runs rules in order, and only those that the fields written since the last successful entry can have changed.
    One for each machine.

    Rules that read memory run on each entry, but only where their guard says that the VMCS makes them look there.
    Plans are kept per set of fields, so that the usual entry (GUEST_RIP and little else written) costs one lookup.
    """

    def __init__(self, rules: Iterable[Rule] = RULES) -> None:
        self.rules = tuple(rules)
        self._everything: _Plan = tuple((rule.holds, rule) for rule in self.rules)
        self._guarded = tuple((rule.guard, rule) for rule in self.rules if rule.guard is not None)
        self._guard_fields = frozenset(field for _, rule in self._guarded for field in rule.guard_reads)
        # By armed rules, then by fields written. `_rearming` holds the plans after a write that decides about guards.
        self._plans: dict[frozenset[str], _Plans] = {}
        self._rearming: dict[frozenset[str], _Plans] = {}
        self._armed: dict[int, _Plans] = {}  # by VMCS

    def run(self, state: EntryState, dirty: Collection[str] | None = None) -> Failure | None:
        """The first rule that does not hold, or None: the entry may go on.

        `dirty`: names of the VMCS fields written (and pseudo-fields changed, see `HOST_LMA`) since the last entry with
        this VMCS that passed; None runs every rule. Names that no rule reads are fine.
        """
        if dirty is None:
            self._armed.pop(state.vmcs_pointer, None)
            plan = self._everything
        else:
            plans = self._armed.get(state.vmcs_pointer)
            if plans is None:
                plans = self._arm(state)
            key: frozenset[str] | str
            if len(dirty) == 1:
                (key,) = dirty
            else:
                key = frozenset(dirty)
            known = plans.get(key)
            plan = known if known is not None else self._plan(state, key, frozenset(dirty))
        for holds, rule in plan:
            if not holds(state):
                return Failure(rule)
        return None

    def _arm(self, state: EntryState) -> _Plans:
        """Note which rules that read memory the VMCS makes look there."""
        armed = frozenset(rule.id for guard, rule in self._guarded if guard(state))
        plans = self._armed[state.vmcs_pointer] = self._plans.setdefault(armed, {})
        return plans

    def _plan(self, state: EntryState, key: frozenset[str] | str, fields: frozenset[str]) -> _Plan:
        armed = frozenset(rule.id for guard, rule in self._guarded if guard(state))
        if fields.isdisjoint(self._guard_fields):
            plans = self._plans.setdefault(armed, {})
        else:
            plans = self._rearming.setdefault(armed, {})
            self._armed.pop(state.vmcs_pointer, None)  # a field that decides about guards: ask them again next time
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = tuple((rule.holds, rule) for rule in self.rules
                                      if rule.id in armed or not fields.isdisjoint(rule.reads))
        return plan


def run(state: EntryState, dirty: Collection[str] | None = None) -> Failure | None:
    """One VM entry judged by every rule (or those that `dirty` touches), without keeping plans."""
    return Checker().run(state, dirty)
