"""Directives that never reach Keystone: refused by name, each with its reason and what to write instead."""

from __future__ import annotations

from dataclasses import dataclass

_NO_FORM = "Keystone does not know it"


@dataclass(frozen=True, slots=True)
class DirectiveRule:
    """A directive that never reaches Keystone, and why."""

    names: tuple[str, ...]
    reason: str
    advice: str


DIRECTIVES: tuple[DirectiveRule, ...] = (
    DirectiveRule((".text", ".data", ".bss", ".section", ".previous", ".pushsection", ".popsection"),
                  "a section switch ends Keystone's process or loses the text", "one unit for each section"),
    DirectiveRule((".incbin",), "it would read any file of the host", "{{ bytes_(data) }} with data from Python"),
    DirectiveRule((".include",), "Keystone gives no code and no error for a missing file", "{% include %}"),
    DirectiveRule((".fill",), "Keystone hangs on a count made of labels", ".zero n or .space n, value"),
    DirectiveRule((".org",), _NO_FORM, "a unit with another base"),
    DirectiveRule((".code16", ".code32", ".code64"), "the mode belongs to the unit", "a unit of its own"),
    DirectiveRule((".macro", ".endm", ".rept", ".endr", ".if", ".else", ".endif", ".irp"),
                  "a line made by it could not be traced to its template", "Jinja's macros, loops and conditions"),
    DirectiveRule((".global", ".globl", ".extern", ".type", ".size", ".intel_syntax", ".att_syntax"),
                  "there is no linker here", "nothing: labels are known in later units by themselves"),
)  # fmt: skip


def refused_directive(name: str) -> str | None:
    """The sentence about a directive that is refused by name, if it is one."""
    for rule in DIRECTIVES:
        if name in rule.names:
            return f"{name} is refused: {rule.reason}; write {rule.advice}"
    return None
