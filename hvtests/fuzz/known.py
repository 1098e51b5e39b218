"""Where the engine of the harness, or Bochs 2.7, is known to differ from the manual: what the comparison excuses.

Each row was found by the comparison. A row excuses a program only if its pattern is in the text, its condition holds,
and nothing but its fields differs; None stands for all fields, where the programs part at that instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hvtests.fuzz.image import Outcome
from hvtests.fuzz.programs import Program

GP_VECTOR, PF_VECTOR, AC_VECTOR = 13, 14, 17
_READ_AND_WRITE = r"\b(add|xor|inc|not|xadd) (dword ptr |byte ptr )?\[|\block "


@dataclass(frozen=True)
class Known:
    """One difference: `section` of the manual says what is right, `sentence` who differs from it and how."""

    name: str
    section: str
    sentence: str
    pattern: str
    fields: frozenset[str] | None
    holds: Callable[[Program, Outcome, Outcome], bool]      # program, harness, Bochs


def _both_page_faults(_: Program, ours: Outcome, theirs: Outcome) -> bool:
    return ours["VECTOR"] == theirs["VECTOR"] == PF_VECTOR


def _always(_program: Program, _ours: Outcome, _theirs: Outcome) -> bool:
    return True


KNOWN: tuple[Known, ...] = (
    Known("read and write", "SDM 3A 4.7, 4.8",
          "the engine reads before it writes: it has marked a page that cannot be written accessed",
          _READ_AND_WRITE, frozenset(("MARKS",)), _both_page_faults),
    Known("read and write over two pages", "SDM 3A 4.7",
          "the engine finds the second page absent before it finds the first one not writable",
          _READ_AND_WRITE, frozenset(("ERROR", "MARKS", "CR2")),
          lambda program, ours, theirs: _both_page_faults(program, ours, theirs) and ours["CR2"] > theirs["CR2"]),
    Known("alignment check", "SDM 3A 6.15, #AC", "the engine has no alignment check",
          r"", None, lambda _program, _ours, theirs: theirs["VECTOR"] == AC_VECTOR),
    Known("SMSW r32", "SDM 2B SMSW", "bits 31:16 are undefined: Bochs stores CR0, the engine leaves them",
          r"\bsmsw e", None, _always),
    Known("accessed bit", "SDM 3A 3.4.5.1", "the engine does not set a code descriptor's accessed bit in far transfers",
          r"\b(retf|retfq|iretq)\b", frozenset(("GDT",)), _always),
    Known("null SS", "SDM 2B MOV", "in 64-bit mode a null selector for SS must have RPL = CPL; the engine takes any",
          r"mov ecx, 0x[123]\nmov ss", None, lambda program, *_: program.mode == "kernel64"),
    Known("segment type", "SDM 3A 5.5",
          "the engine lets software write through a read-only data segment or a code segment, and read through an "
          "execute-only one", r"\bmov (ds|es|ss), ecx", None,
          lambda program, _, theirs: program.mode.endswith("32") and theirs["VECTOR"] == GP_VECTOR),
)


def differing(ours: Outcome, theirs: Outcome) -> frozenset[str]:
    """Names of the fields that differ."""
    return frozenset(name for name, value in ours.items() if value != theirs[name])


def unexplained(program: Program, ours: Outcome, theirs: Outcome) -> frozenset[str]:
    """Fields that differ and that no row of :data:`KNOWN` excuses."""
    left = differing(ours, theirs)
    for known in KNOWN:
        if left and re.search(known.pattern, program.text) and known.holds(program, ours, theirs):
            left = frozenset() if known.fields is None else left - known.fields
    return left
