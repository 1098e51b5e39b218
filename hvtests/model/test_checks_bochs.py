"""The rules against Bochs: thousands of VM entries, each tried in both; every difference is one written down."""

from __future__ import annotations

import pytest

from hvtests.model.bochs_cpus import LYNNFIELD, SKYLAKE_X, TIGERLAKE
from hvtests.model.bochs_differences import ALL, LACKS, OTHERWISE
from hvtests.model.bochs_entry import ENTERED, Outcome, Trial, try_entries
from hvtests.model.compare_entries import Comparison, compare_on
from hvtests.model.entry_trials import Sample
from hvtests.vmx.checks import BY_ID, Stage

pytestmark = [pytest.mark.bochs, pytest.mark.timeout(300)]
COMBINED = {SKYLAKE_X.name: 3000, TIGERLAKE.name: 500, LYNNFIELD.name: 500}


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    return {cap.name: compare_on(cap, COMBINED[cap.name]) for cap in (SKYLAKE_X, TIGERLAKE, LYNNFIELD)}


def test_the_image_tells_each_kind_of_outcome() -> None:
    """Outcomes whose cause is plain: what the image prints is what happened, and in the order of the trials."""
    bases = Sample(SKYLAKE_X).bases
    trials = [Trial(base, ()) for base in bases] + [
        Trial("LONG", (("VIRTUAL_PROCESSOR_ID", 0),)),
        Trial("LONG", (("HOST_CR0", 0),)),
        Trial("LONG", (("GUEST_RFLAGS", 0),)),
        Trial("LONG", (("VMCS_LINK_POINTER", 1),)),
        Trial("LONG", (("TERTIARY_VM_EXEC_CONTROL", 0),)),  # a field that this CPU lacks
        Trial("LONG", ()),
    ]
    told = try_entries(SKYLAKE_X, bases, trials)
    assert told[:-5] == [ENTERED] * len(bases) + [Outcome("fail", 7)]
    assert told[-5:] == [Outcome("fail", 8), Outcome("exit", 33, 0), Outcome("exit", 33, 4),
                         Outcome("unwritable", 0x2034), ENTERED]


@pytest.mark.parametrize("name", COMBINED)
def test_every_difference_is_known(name: str, comparisons: dict[str, Comparison]) -> None:
    comparison = comparisons[name]
    print(f"{name}: {comparison.summary}")
    assert comparison.unexplained == []
    assert comparison.tried > 4_500
    assert sum(comparison.explained.values()) < comparison.tried // 25


def test_the_sample_has_every_outcome(comparisons: dict[str, Comparison]) -> None:
    outcomes = comparisons[SKYLAKE_X.name].outcomes
    for outcome in ("entered", "error 7", "error 8", "reason 33 qualification 0", "reason 33 qualification 2",
                    "reason 33 qualification 4"):
        assert outcomes[outcome] > 0, outcome


def test_every_known_difference_is_seen(comparisons: dict[str, Comparison]) -> None:
    """A row that nothing shows any more would excuse something else."""
    assert set[str]().union(*(comparison.explained for comparison in comparisons.values())) == \
        set(ALL)
    assert set(LACKS | OTHERWISE) <= set(BY_ID)


def test_most_rules_are_decisive_in_the_sample(comparisons: dict[str, Comparison]) -> None:
    """Which rules the comparison judges: those that some trial breaks first. The rest need a CPU that Bochs has not,
    or a host outside IA-32e mode."""
    judged = set[str]().union(*(comparison.decisive for comparison in comparisons.values()))
    assert len(judged) >= 240
    assert {BY_ID[name].stage for name in judged} == set(Stage)
    print(f"{len(judged)} of {len(BY_ID)} rules were decisive; not: {', '.join(sorted(set(BY_ID) - judged))}")
