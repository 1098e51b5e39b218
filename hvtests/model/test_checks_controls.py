"""Each rule on control fields is broken alone, and is the first to fail."""

from __future__ import annotations

import pytest

from hvtests.model.breaking import Break
from hvtests.model.breaks_controls import CONTROLS
from hvtests.vmx.checks import RULES, Checker, Stage

CHECKER = Checker()


@pytest.mark.parametrize("case", CONTROLS, ids=lambda case: case.rule)
def test_breaking_the_rule_alone(case: Break) -> None:
    state = case.state()
    assert [rule.id for rule in RULES if not rule.holds(state)] == case.expected
    failure = CHECKER.run(state)
    assert failure is not None and failure.rule.id == case.expected[0]
    assert failure.instruction_error == 7 and failure.exit_reason is None


def test_each_rule_is_broken_by_a_case() -> None:
    assert {case.rule for case in CONTROLS} == {rule.id for rule in RULES if rule.stage is Stage.CONTROLS}
