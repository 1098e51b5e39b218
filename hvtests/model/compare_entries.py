"""Compares the rules with Bochs on the sample of `entry_trials`. Run: ``python -m hvtests.model.compare_entries [N]``.

Prints for each CPU, with N combined trials beside the single ones (3000 if not given), how many VM entries were tried,
how many differ and are explained in `bochs_differences`, and each that is not.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hvtests.model.bochs_cpus import LYNNFIELD, SKYLAKE_X, TIGERLAKE
from hvtests.model.bochs_differences import ALL, as_bochs, outcome_of, row_of
from hvtests.model.bochs_entry import MEMORY_MIB, Outcome, Trial, memory, try_entries
from hvtests.model.breaking import Words
from hvtests.model.entry_trials import Sample
from hvtests.model.valid_state import VMCS_POINTER
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.checks import Checker, EntryState

CPUS = (SKYLAKE_X, TIGERLAKE, LYNNFIELD)


@dataclass
class Comparison:
    """What came of it: trials tried, outcomes Bochs told, differences by the row that explains them, and the rest."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    decisive: set[str] = field(default_factory=set)  # rules that some trial breaks first

    @property
    def summary(self) -> str:
        """One line."""
        return (f"{self.tried} VM entries compared with Bochs: {self.tried - sum(self.explained.values())} agree, "
                f"{sum(self.explained.values())} differ for {len(self.explained)} reasons that "
                f"hvtests/model/bochs_differences.py lists, {len(self.unexplained)} are not explained")


def state_of(sample: Sample, trial: Trial) -> EntryState:
    """The entry that a trial is, for the rules."""
    values = dict(sample.bases[trial.base])
    values.update(trial.changes)
    return EntryState.of(values, sample.cap, Words(memory(sample.cap), MEMORY_MIB << 20), vmcs_pointer=VMCS_POINTER)


def compare(sample: Sample, trials: Sequence[Trial], told: Sequence[Outcome]) -> Comparison:
    """Judge each trial by the rules, and by the rules as Bochs has them; that one must agree on every trial.

    A trial that changes a field which the CPU in Bochs does not have is left out.
    """
    result, checker = Comparison(), Checker()
    for trial, outcome in zip(trials, told, strict=True):
        if outcome.kind == "unwritable":
            continue
        state = state_of(sample, trial)
        failure = checker.run(state)
        result.tried += 1
        result.outcomes[str(outcome)] += 1
        if failure is not None:
            result.decisive.add(failure.rule.id)
        if as_bochs(state) != outcome:
            ours = f"{outcome_of(failure)}" + (f" by {failure.rule.id}" if failure else "")
            result.unexplained.append(f"{trial}: Bochs: {outcome}; the rules: {ours}")
        elif outcome_of(failure) != outcome:
            result.explained[row_of(state, failure, outcome)] += 1
    return result


def compare_on(cap: CpuModel, count: int) -> Comparison:
    """Every single trial and `count` combined ones on one CPU."""
    sample = Sample(cap)
    trials = sample.singles() + sample.combined(count)
    return compare(sample, trials, try_entries(cap, sample.bases, trials))


def main(count: int) -> int:
    """Run and print; 0 if nothing is unexplained."""
    unexplained = 0
    for cap in CPUS:
        start = time.monotonic()
        result = compare_on(cap, count)
        print(f"{cap.name}: " + ", ".join(f"{number} {outcome}" for outcome, number in result.outcomes.most_common()))
        for rule, number in result.explained.most_common():
            section, why = ALL[rule]
            print(f"{number:6} explained: {rule}: {why} (SDM 3C {section})")
        for line in result.unexplained:
            print(f"NOT EXPLAINED: {line}")
        print(f"{result.summary} ({time.monotonic() - start:.0f} s)")
        unexplained += len(result.unexplained)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000))
