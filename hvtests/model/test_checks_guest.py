"""Each rule on guest state is broken alone, and is the first to fail, with the manual's exit qualification."""

from __future__ import annotations

import pytest

from hvtests.model.breaking import Break
from hvtests.model.breaks_guest import GUEST
from hvtests.model.breaks_guest_state import GUEST_STATE
from hvtests.vmx.checks import RULES, Checker, Stage

CHECKER = Checker()
CASES = GUEST + GUEST_STATE
# SDM 3C 27.8: 2 for PDPTEs, 3 for an NMI injected while STI blocks, 4 for the link pointer, else 0.
QUALIFICATIONS = {"guest.pdpt": 2, "guest.blocking.sti_for_nmi": 3, "guest.link": 4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_breaking_the_rule_alone(case: Break) -> None:
    state = case.state()
    assert [rule.id for rule in RULES if not rule.holds(state)] == case.expected
    failure = CHECKER.run(state)
    assert failure is not None and failure.rule.id == case.expected[0]
    assert failure.instruction_error is None and failure.exit_reason == 0x8000_0021
    assert failure.qualification == next((q for id_, q in QUALIFICATIONS.items() if case.rule.startswith(id_)), 0)


def test_each_rule_is_broken_by_a_case() -> None:
    assert {case.rule for case in CASES} == {rule.id for rule in RULES if rule.stage is Stage.GUEST}
