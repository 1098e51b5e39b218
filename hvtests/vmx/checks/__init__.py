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


class Checker:
    """Runs rules in order, and only those that the fields written since the last successful entry can have changed.

    Plans are kept per set of fields, so that the usual entry (GUEST_RIP and little else written) costs one lookup.
    """

    def __init__(self, rules: Iterable[Rule] = RULES) -> None:
        self.rules = tuple(rules)
        self._everything: _Plan = tuple((rule.holds, rule) for rule in self.rules)
        self._by_field: dict[str, _Plan] = {}
        self._by_fields: dict[frozenset[str], _Plan] = {}

    def run(self, state: EntryState, dirty: Collection[str] | None = None) -> Failure | None:
        """The first rule that does not hold, or None: the entry may go on.

        `dirty`: names of the VMCS fields written (and pseudo-fields changed, see `HOST_LMA`) since the last entry with
        this VMCS that passed; None runs every rule. Names that no rule reads are fine.
        """
        if dirty is None:
            plan = self._everything
        elif len(dirty) == 1:
            (field,) = dirty
            found = self._by_field.get(field)
            if found is None:
                found = self._by_field[field] = self._plan(frozenset(dirty))
            plan = found
        else:
            fields = frozenset(dirty)
            found = self._by_fields.get(fields)
            if found is None:
                found = self._by_fields[fields] = self._plan(fields)
            plan = found
        for holds, rule in plan:
            if not holds(state):
                return Failure(rule)
        return None

    def _plan(self, fields: frozenset[str]) -> _Plan:
        return tuple((rule.holds, rule) for rule in self.rules if rule.volatile or not fields.isdisjoint(rule.reads))


def run(state: EntryState, dirty: Collection[str] | None = None) -> Failure | None:
    """One VM entry judged by every rule (or those that `dirty` touches), without keeping plans."""
    return Checker().run(state, dirty)
