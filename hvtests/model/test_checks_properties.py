"""What holds of all rules together: valid states pass, rules read what they declare, few rules run after few writes."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generator.arch.vmcs import BY_NAME, FieldType
from hvtests.model.breaking import Break, Words
from hvtests.model.breaks_controls import CONTROLS
from hvtests.model.breaks_guest import GUEST
from hvtests.model.breaks_guest_state import GUEST_STATE
from hvtests.model.breaks_host import HOST
from hvtests.model.random_state import random_states
from hvtests.model.valid_state import VMCS_POINTER, Mode, everything, valid_state
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.checks import BY_ID, HOST_LMA, RULES, Checker, EntryState, Rule, Stage, run

FULL, DEFAULT, EVERYTHING = CpuModel.skylake_x(), CpuModel.default(), everything()
ALL_BREAKS = CONTROLS + HOST + GUEST + GUEST_STATE


@pytest.mark.parametrize("cap", [FULL, DEFAULT, EVERYTHING], ids=lambda cap: cap.name)
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name)
def test_the_ground_state_of_each_mode_is_valid(mode: Mode, cap: CpuModel) -> None:
    state = EntryState.of(valid_state(mode, cap), cap, vmcs_pointer=VMCS_POINTER)
    assert [rule.id for rule in RULES if not rule.holds(state)] == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_random_valid_state_passes_every_rule(data: st.DataObject) -> None:
    cap = data.draw(st.sampled_from((FULL, DEFAULT)))
    values = data.draw(random_states(cap))
    failure = run(EntryState.of(values, cap, Words({}), vmcs_pointer=VMCS_POINTER))
    assert failure is None, failure.rule.id


def test_the_order_is_the_manuals() -> None:
    stages = [rule.stage for rule in RULES]
    assert stages == sorted(stages, key=list(Stage).index)
    sections = [tuple(int(part) for part in rule.section.removeprefix("SDM 3C ").split(".")) for rule in RULES]
    assert sections == sorted(sections)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_describes_itself(rule: Rule) -> None:
    assert BY_ID[rule.id] is rule
    assert rule.sentence.endswith(".") and "{" not in rule.sentence
    known = {HOST_LMA} | {name for name, field in BY_NAME.items() if field.type is not FieldType.READ_ONLY}
    assert rule.reads and set(rule.reads) <= known and set(rule.guard_reads) <= set(rule.reads)


def test_rules_read_only_what_they_declare() -> None:
    """A rule that read more would be skipped after a write to the field it hides."""
    for case in ALL_BREAKS:
        original = case.state()
        seen: set[str] = set()

        def read(name: str, original: EntryState = original, seen: set[str] = seen) -> int:
            seen.add(name)
            return original.read(name)

        state = EntryState(read, original.cap, original.memory, vmcs_pointer=VMCS_POINTER, host_lma=original.host_lma)
        for rule in RULES:
            seen.clear()
            rule.holds(state)
            assert seen <= set(rule.reads), rule.id
            if rule.guard is not None:
                seen.clear()
                rule.guard(state)
                assert seen <= set(rule.guard_reads), rule.id


@pytest.mark.parametrize("case", [case for case in ALL_BREAKS if not case.before and case.host_lma],
                         ids=lambda case: case.rule)
def test_after_writing_the_broken_fields_the_rule_runs(case: Break) -> None:
    """First a valid entry, then only the changed fields are dirty: the same rule must be found."""
    broken = case.state()
    valid = valid_state(case.mode, broken.cap)
    values = dict(valid)
    state = EntryState.of(values, broken.cap, broken.memory, vmcs_pointer=VMCS_POINTER)
    checker = Checker()
    assert checker.run(state) is None
    assert checker.run(state, {"GUEST_RIP"}) is None
    values.update(case.values(broken.cap))
    dirty = {name for name in values if values[name] != valid.get(name, 0)}
    failure = checker.run(state, dirty)
    assert failure is not None and failure.rule.id == case.rule


def test_memory_is_looked_at_again_on_each_entry() -> None:
    """Without EPT the PDPTEs are in the guest's memory, and change with no VMWRITE."""
    words: dict[int, int] = {}
    values = valid_state(Mode.PAE, FULL)
    values["SECONDARY_VM_EXEC_CONTROL"] &= ~0x82  # EPT, unrestricted guest
    state = EntryState.of(values, FULL, Words(words), vmcs_pointer=VMCS_POINTER)
    checker = Checker()
    assert checker.run(state) is None
    assert checker.run(state, {"GUEST_RIP"}) is None
    words[values["GUEST_CR3"]] = 0x3
    for dirty in ({"GUEST_RIP"}, {"GUEST_RIP", "GUEST_RSP"}, set[str]()):
        failure = checker.run(state, dirty)
        assert failure is not None and failure.rule.id == "guest.pdptes.memory" and failure.qualification == 2


def test_one_state_object_may_serve_two_vmcss() -> None:
    values = valid_state(Mode.LONG, FULL)
    linked = dict(values, VMCS_LINK_POINTER=0x32_0000)
    current = values
    state = EntryState(lambda name: current.get(name, 0), FULL, Words({0x32_0000: 0x2B}), vmcs_pointer=VMCS_POINTER)
    checker = Checker()
    assert checker.run(state) is None and checker.run(state, {"GUEST_RIP"}) is None
    current, state.vmcs_pointer = linked, 0x33_0000
    state.memory = Words({})
    failure = checker.run(state, {"GUEST_RIP"})
    assert failure is not None and failure.rule.id == "guest.link.revision"


def test_an_entry_after_writing_rip_costs_little() -> None:
    """The target is 2 microseconds; the limit here leaves room for a busy machine, and sees a plan that is not kept."""
    values = valid_state(Mode.LONG, DEFAULT)
    state = EntryState(values.__getitem__, DEFAULT, vmcs_pointer=VMCS_POINTER)
    checker, dirty = Checker(), {"GUEST_RIP"}
    assert checker.run(state, dirty) is None
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(2000):
            checker.run(state, dirty)
        best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 4e-6
