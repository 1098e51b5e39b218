"""What a check on VM entry is: one rule, one small function; and the sets that keep rules in the manual's order.

A rule's function takes an :class:`~hvtests.vmx.checks.state.EntryState` and returns True when the rule holds. Its
docstring's first paragraph is the sentence that users see; `reads` names every VMCS field whose value it depends on
(a test compares this with what it really reads), so that an entry after few VMWRITEs checks few rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from hvtests.vmx.checks.state import EntryState

Check = Callable[[EntryState], bool]
RegisterCheck = Callable[[EntryState, str], bool]


class Stage(Enum):
    """Which group a rule belongs to, and so how a VM entry that breaks it fails (SDM 3C 27.2, 27.3, 27.8 [26.8])."""

    CONTROLS = "control fields"
    HOST = "host state"
    GUEST = "guest state"

    @property
    def instruction_error(self) -> int | None:
        """VM-instruction error number of VMfailValid; None for the guest stage, which ends in a VM exit."""
        return {Stage.CONTROLS: 7, Stage.HOST: 8}.get(self)

    @property
    def exit_reason(self) -> int | None:
        """Basic exit reason of the failed entry; None for the stages that end in VMfailValid."""
        return 33 if self is Stage.GUEST else None


@dataclass(frozen=True, slots=True)
class Rule:
    """One check. `qualification` is EXIT_QUALIFICATION of the failure (guest stage only, SDM 3C 27.8).

    A rule that reads memory has a `guard`, which tells whether it will look there; then it runs on each entry,
    whichever fields were written. A guard depends only on the fields of `guard_reads`, and those only on VMWRITE.
    """

    id: str
    stage: Stage
    section: str
    sentence: str
    reads: tuple[str, ...]
    holds: Check
    qualification: int = 0
    guard: Check | None = None
    guard_reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """The first rule that a VM entry broke."""

    rule: Rule

    @property
    def stage(self) -> Stage:
        """Controls, host state or guest state."""
        return self.rule.stage

    @property
    def instruction_error(self) -> int | None:
        """7 or 8 for VMfailValid; None when the entry fails with a VM exit."""
        return self.rule.stage.instruction_error

    @property
    def exit_reason(self) -> int | None:
        """VM_EXIT_REASON with bit 31 set (0x80000021), or None for VMfailValid."""
        reason = self.rule.stage.exit_reason
        return None if reason is None else 1 << 31 | reason

    @property
    def qualification(self) -> int:
        """EXIT_QUALIFICATION of the failed entry: 0, 2 (PDPTEs), 3 (NMI injection) or 4 (VMCS link pointer)."""
        return self.rule.qualification


class RuleSet:
    """Rules of one stage in the order they were declared."""

    def __init__(self, stage: Stage, section: str) -> None:
        self.stage = stage
        self.section = section
        self.rules: list[Rule] = []

    def rule(self, id_: str, *reads: str, section: str | None = None, qualification: int = 0,
             guard: Check | None = None, guard_reads: tuple[str, ...] = ()) -> Callable[[Check], Check]:
        """Declare the decorated function a rule."""
        def declare(check: Check) -> Check:
            self._add(id_, reads, section, check.__doc__, check, qualification, guard, guard_reads)
            return check
        return declare

    def each(self, registers: Sequence[str], id_: str, *reads: str, section: str | None = None,
             qualification: int = 0) -> Callable[[RegisterCheck], RegisterCheck]:
        """Declare one rule per register; `{r}` in id, fields and sentence is the register (lower case in the id)."""
        def declare(check: RegisterCheck) -> RegisterCheck:
            for register in registers:
                sentence = (check.__doc__ or "").replace("{r}", register)
                fields = tuple(field.replace("{r}", register) for field in reads)
                name = id_.replace("{r}", register.removeprefix("GUEST_").lower())
                self._add(name, fields, section, sentence, _bind(check, register), qualification)
            return check
        return declare

    def _add(self, id_: str, reads: tuple[str, ...], section: str | None, doc: str | None, check: Check,
             qualification: int = 0, guard: Check | None = None, guard_reads: tuple[str, ...] = ()) -> None:
        sentence = re.sub(r"\s+", " ", (doc or "").split("\n\n")[0]).strip()
        self.rules.append(Rule(id_, self.stage, f"SDM 3C {section or self.section}", sentence, reads, check,
                               qualification, guard, guard_reads))


def _bind(check: RegisterCheck, register: str) -> Check:
    def bound(state: EntryState) -> bool:
        return check(state, register)
    return bound
