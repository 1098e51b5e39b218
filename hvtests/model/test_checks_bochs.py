"""The rules against Bochs: thousands of VM entries, each tried in both; every difference is one written down."""

from __future__ import annotations

import pytest

from hvtests.model.bochs_differences import LACKS, OTHERWISE, STRICTER
from hvtests.model.bochs_entry import ENTERED, Outcome, Trial, try_entries
from hvtests.model.compare_entries import Comparison, compare, state_of
from hvtests.model.entry_trials import BASES, combined, singles
from hvtests.vmx.checks import BY_ID, RULES, Checker, Stage

pytestmark = [pytest.mark.bochs, pytest.mark.timeout(300)]
COMBINED = 3000


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    trials = singles() + combined(COMBINED)
    return compare(trials, try_entries(BASES, trials))


def test_the_image_tells_each_kind_of_outcome() -> None:
    """Outcomes whose cause is plain: what the image prints is what happened, and in the order of the trials."""
    trials = [Trial(base, ()) for base in BASES] + [
        Trial("LONG", (("VIRTUAL_PROCESSOR_ID", 0),)),
        Trial("LONG", (("HOST_CR0", 0),)),
        Trial("LONG", (("GUEST_RFLAGS", 0),)),
        Trial("LONG", (("VMCS_LINK_POINTER", 1),)),
        Trial("LONG", (("VM_EXIT_REASON", 0),)),
        Trial("LONG", ()),
    ]
    told = try_entries(BASES, trials)
    assert told[:-5] == [ENTERED] * len(BASES) + [Outcome("fail", 7)]
    assert told[-5:] == [Outcome("fail", 8), Outcome("exit", 33, 0), Outcome("exit", 33, 4), ENTERED, ENTERED]


def test_every_difference_is_known(comparison: Comparison) -> None:
    print(comparison.summary)
    assert comparison.unexplained == []


def test_the_sample_is_large_and_has_every_outcome(comparison: Comparison) -> None:
    assert comparison.tried > 10_000
    assert sum(comparison.explained.values()) < comparison.tried // 50
    for outcome in ("entered", "error 7", "error 8", "reason 33 qualification 0", "reason 33 qualification 2",
                    "reason 33 qualification 4"):
        assert comparison.outcomes[outcome] > 0, outcome


def test_every_known_difference_is_seen(comparison: Comparison) -> None:
    """A row that nothing shows any more would excuse something else."""
    assert set(comparison.explained) == set(LACKS | STRICTER | OTHERWISE)
    assert set(LACKS | OTHERWISE) <= set(BY_ID)


def test_most_rules_are_decisive_in_the_sample() -> None:
    """Which rules the comparison judges: those that some trial breaks first. The rest need a CPU that Bochs has not."""
    decided = {failure.rule.id for trial in singles() if (failure := Checker().run(state_of(trial)))}
    judged = [rule for rule in RULES if rule.id in decided]
    assert len(judged) >= 232
    assert {rule.stage for rule in judged} == set(Stage)
