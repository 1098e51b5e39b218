"""VM-entry failures, VM-instruction errors and VM exits, told in words with what is needed to put them right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Protocol

from generator.arch import events, exits
from generator.arch.controls import WORDS
from generator.arch.instruction_errors import BY_NUMBER as ERRORS
from generator.arch.vmcs import BY_NAME
from hvtests.vmx.checks import HOST_LMA, RULES, EntryState, Failure, Rule
from hvtests.vmx.words import field_in_words, field_line

ENTRY_FAILURE = 1 << 31
_MASK = (1 << 64) - 1
_BIT = re.compile(r"\bbits? (\d+)")
_FLAG = re.compile(r"[A-Z][A-Z0-9_/]+")


class Exit(Protocol):
    """What `explain_exit` needs of a recorded VM exit; numbers as the VMCS holds them."""

    @property
    def reason(self) -> int:
        """VM_EXIT_REASON, with bit 31 for a failed entry."""

    @property
    def qualification(self) -> int:
        """EXIT_QUALIFICATION."""

    @property
    def rip(self) -> int:
        """GUEST_RIP."""

    @property
    def interruption_info(self) -> int:
        """VM_EXIT_INTR_INFO; its valid bit is 0 where there is none."""


def rules() -> list[Rule]:
    """Every check on VM entry, in the manual's order."""
    return list(RULES)


def explain_instruction_error(number: int) -> str:
    """A VM-instruction error (VMfailValid) as one line: number, name, meaning, section."""
    error = ERRORS.get(number)
    if error is None:
        return f"VM-instruction error {number}: the manual does not define it"
    return f"VM-instruction error {number} ({error.name}): {error.title} ({error.section})"


def _state_value(state: EntryState, name: str) -> int:
    return int(state.host_lma) if name == HOST_LMA else state.read(name)


def headline(failure: Failure) -> str:
    """How the entry failed: ``VM entry failed (reason 33, qualification 0): guest.cs.db_with_l: ... (SDM ...)``."""
    rule = failure.rule
    if failure.instruction_error is not None:
        how = f"VMfailValid, VM-instruction error {failure.instruction_error}: invalid {rule.stage.value}"
    else:
        how = f"reason {(failure.exit_reason or 0) & 0xFFFF}, qualification {failure.qualification}"
    return f"VM entry failed ({how}): {rule.id}: {rule.sentence} ({rule.section})"


def explain_failure(failure: Failure, state: EntryState,
                    written_at: Callable[[str], str | None] | None = None) -> list[str]:
    """A failed VM entry, line by line: how it failed and which rule, each field with its value decoded, and a value
    that would satisfy the rule.

    `written_at(field)` tells where the field was last written (``templates/vmx/vmcs.asm.j2:41``), if known.
    """
    lines = [headline(failure)]
    for name in failure.rule.reads:
        line = field_line(name, _state_value(state, name))
        place = written_at(name) if written_at else None
        lines.append(f"  {line}" + (f", last written at {place}" if place else ""))
    remedy = suggest(failure, state)
    if remedy:
        lines.append(f"  {remedy}")
    return lines


# -- what would satisfy the rule -----------------------------------------------------------------------------------

def suggest(failure: Failure, state: EntryState) -> str | None:
    """One field's value that satisfies the rule, best one that satisfies all others too; None if none is found.

    The fields are tried from the last that the rule names (its subject) to the first.
    """
    rule = failure.rule
    fallback: str | None = None
    for name in reversed(rule.reads):
        if name == HOST_LMA:
            continue
        now = state.read(name)
        for value in _candidates(rule, name, now, state):
            trial = _Changed(state, name, value)
            if value == now or not rule.holds(trial.state):
                continue
            text = f"it would hold with {_change(name, now, value)}"
            if all(other.holds(trial.state) for other in RULES):
                return text
            fallback = fallback or text
    return fallback


class _Changed:
    """An entry state with one field's value replaced."""

    def __init__(self, state: EntryState, name: str, value: int) -> None:
        self.state = EntryState(lambda field: value if field == name else state.read(field), state.cap, state.memory,
                                vmcs_pointer=state.vmcs_pointer, host_lma=state.host_lma)


def _candidates(rule: Rule, name: str, now: int, state: EntryState) -> Iterable[int]:
    field = BY_NAME[name]
    cap = state.cap
    words = [word for word in WORDS if word.field == name]
    for word in words:
        yield (now | cap.allowed0(word)) & cap.allowed1(word)
    if name.endswith("_CR0"):
        yield (now | cap.cr0_fixed0) & cap.cr0_fixed1
    if name.endswith("_CR4"):
        yield (now | cap.cr4_fixed0) & cap.cr4_fixed1
    if name.endswith("_IA32_EFER"):
        yield now & cap.efer_valid
    if name == "VMCS_LINK_POINTER":
        yield _MASK
    told = [int(bit) for bit in _BIT.findall(rule.sentence)]  # the bits that the rule's text names come first
    for bit in (*told, *range(field.bits)):
        if bit < field.bits:
            yield now ^ 1 << bit
    if words:
        yield from (now ^ (one.mask | other.mask) for one, other in combinations(words[0].bits, 2))
        return
    if field.bits == 64:
        yield now & ~cap.physical_reserved
        yield now & ~0xFFF & ~cap.physical_reserved
        yield now & (1 << cap.linear_bits - 1) - 1
        yield now & 0xFFFF_FFFF
    yield from (now & mask for mask in (0xFFFF, 0xFFF, 0xFF, 0xF))
    yield from (0x0007_0406_0007_0406, 0xF3, 0xFFFF, 1, 0)  # what PAT and virtual-8086 segments want; trivial ones
    if name.endswith("_BASE") and name.removesuffix("_BASE") + "_SELECTOR" in BY_NAME:
        yield state.read(name.removesuffix("_BASE") + "_SELECTOR") << 4


def _change(name: str, now: int, value: int) -> str:
    changed = now ^ value
    flipped = [bit for bit in range(changed.bit_length()) if changed >> bit & 1]
    if len(flipped) > 3:
        return field_line(name, value)
    words = ", ".join(f"bit {bit} = {value >> bit & 1}" for bit in flipped)
    names = [field_in_words(name, now | value), field_in_words(name, now & value)]
    label = _bit_name(*names)
    return f"{name} = {value:#x}: {words}" + (f" ({label})" if label and len(flipped) == 1 else "")


def _bit_name(with_bit: str, without_bit: str) -> str:
    """The flag that one value's words have and the other's lack; "" where the difference is not one flag."""
    extra = [word for word in with_bit.split(", ") if word not in without_bit.split(", ")]
    return extra[0] if len(extra) == 1 and _FLAG.fullmatch(extra[0]) else ""


# -- exits ---------------------------------------------------------------------------------------------------------

def explain_exit(record: Exit) -> str:
    """A VM exit as one line: its name, RIP, and the qualification or event in words."""
    number = record.reason & exits.BASIC_REASON
    vector = None
    words = []
    if record.interruption_info & events.INFO_VALID:
        vector = record.interruption_info & events.INFO_VECTOR_MASK
        words.append(events.describe(record.interruption_info))
    qualification = exits.describe_qualification(number, record.qualification, vector)
    if qualification:
        words.append(qualification)
    failed = "VM entry failed: " if record.reason & ENTRY_FAILURE else ""
    text = f"{failed}{exits.name(number)} (reason {number}) at RIP {record.rip:#x}"
    return text + (": " + "; ".join(words) if words else "")
