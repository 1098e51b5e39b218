"""Forms that Keystone 0.9.2 gets wrong, hangs on or dies of: refused by name before it sees them.

One row is one rule: its name, the modes it holds in, a predicate, and what to write instead. test_assemble_rules.py
shows for every row what Keystone makes of it against GNU as. The round trip through Capstone would find most of them
too, but late and in its own words, and some never: there is nothing to decode when the assembler dies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from generator.assemble_expression import ExpressionError, evaluate
from generator.assemble_operands import (
    HIGH_BYTES,
    Immediate,
    Instruction,
    Memory,
    Operand,
    OperandError,
    Register,
    read_instruction,
    symbols_in,
)
from generator.assemble_source import Statement, without_quotes
from generator.errors import AssemblerError

ALL = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class Form:
    """What a predicate looks at. ``constants`` have values already; any other name in an operand is a label."""

    text: str
    bits: int
    instruction: Instruction
    constants: Mapping[str, int]

    @property
    def mnemonic(self) -> str:
        return self.instruction.mnemonic

    @property
    def memory(self) -> Memory | None:
        return next((item for item in self.instruction.operands if isinstance(item, Memory)), None)

    @property
    def registers(self) -> list[Register]:
        return [item for item in self.instruction.operands if isinstance(item, Register)]

    def labels(self, operand: Operand) -> list[str]:
        """Names in ``operand`` whose place only the assembler knows."""
        return [name for name in symbols_in(operand) if name not in self.constants]

    def immediate(self, index: int) -> Immediate | None:
        operands = self.instruction.operands
        item = operands[index] if index < len(operands) else None
        return item if isinstance(item, Immediate) else None


@dataclass(frozen=True, slots=True)
class Rule:
    """``modes`` are bits of code; ``advice`` completes the sentence "...: write"."""

    name: str
    modes: tuple[int, ...]
    applies: Callable[[Form], bool]
    reason: str
    advice: str


def _names(*mnemonics: str) -> Callable[[Form], bool]:
    known = frozenset(mnemonics)
    return lambda form: form.mnemonic in known


def _matches(pattern: str) -> Callable[[Form], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda form: compiled.search(without_quotes(form.text)) is not None


def _absolute(form: Form) -> bool:
    memory = form.memory
    return memory is not None and memory.base is None and memory.index is None and form.mnemonic != "movabs"


def _rip_number(form: Form) -> bool:
    memory = form.memory
    return memory is not None and memory.base == "rip" and not symbols_in(memory)


def _far_pointer(form: Form) -> bool:
    target = form.immediate(0)
    return form.mnemonic in ("jmp", "call", "ljmp", "lcall") and target is not None and ":" in target.text


def _table(form: Form) -> bool:
    return form.mnemonic in ("lgdt", "lidt", "sgdt", "sidt")


def _push_number(form: Form) -> bool:
    return form.mnemonic == "push" and form.immediate(0) is not None


def _push_label(form: Form) -> bool:
    value = form.immediate(0)
    return form.mnemonic == "push" and value is not None and bool(form.labels(value))


def _push_wide(form: Form) -> bool:
    item = form.immediate(0)
    if form.mnemonic != "push" or item is None:
        return False
    try:
        return not -(1 << 31) <= evaluate(item.text, form.constants) < 1 << 31
    except ExpressionError:
        return False


def _push_segment(form: Form) -> bool:
    return form.mnemonic in ("push", "pop") and any(item.name in ("fs", "gs") for item in form.registers)


def _near_16(form: Form) -> bool:
    return form.mnemonic == "call" and form.immediate(0) is not None


def _mov_label(form: Form) -> bool:
    operands = form.instruction.operands
    value = form.immediate(1)
    first = operands[0] if operands else None
    wide = isinstance(first, Register | Memory) and 64 == (first.bits if isinstance(first, Register) else first.size)
    return form.mnemonic != "movabs" and wide and value is not None and bool(form.labels(value))


def _high_byte(form: Form) -> bool:
    registers = form.registers
    if not any(item.name in HIGH_BYTES for item in registers):
        return False
    names = {item.name for item in registers}
    if form.memory is not None:
        names |= {name for name in (form.memory.base, form.memory.index) if name is not None}
    needs_rex = re.compile(r"r(8|9|1[0-5])[bwd]?$|(sp|bp|si|di)l$")
    return any(item.bits == 64 for item in registers) or any(needs_rex.match(name) for name in names)


def _difference(form: Form) -> bool:
    memory = form.memory
    if memory is None or (memory.base is None and memory.index is None):
        return False
    return len(form.labels(memory)) > 1


def _far_size(form: Form) -> bool:
    return form.mnemonic in ("jmp", "call") and re.search(r"\b(far|fword)\b", form.text) is not None


def _unclosed(form: Form) -> bool:
    plain = without_quotes(form.text)
    return plain.count("[") != plain.count("]") or plain.count("(") != plain.count(")")


def _comment(form: Form) -> bool:
    return re.search(r"#|//|/\*", without_quotes(form.text)) is not None


_NO_FORM = "Keystone does not know it"

RULES: tuple[Rule, ...] = (
    Rule("comment", ALL, _comment, "Keystone drops the rest of the line", "comments with ;"),
    Rule("unclosed-bracket", ALL, _unclosed, "Keystone ignores it and makes up an address", "the other bracket"),
    Rule("absolute-address-64", (64,), _absolute, "Keystone makes it relative to RIP, with a wrong displacement",
         "[rip + symbol], a register with the address, or {{ gs_load() }} and {{ gs_store() }}"),
    Rule("rip-number", (64,), _rip_number, "a number beside rip is a distance, not an address", "[rip + symbol]"),
    Rule("address-difference", ALL, _difference, "Keystone adds labels that are to be subtracted",
         "the difference in a register, or a number from Jinja"),
    Rule("far-pointer", ALL, _far_pointer, "Keystone truncates the target, or fails without an error",
         "{{ far_jump16(selector, target) }} or {{ far_jump32(selector, target) }}"),
    Rule("far-indirect", ALL, _far_size, _NO_FORM, "ljmp [...] or lcall [...]"),
    Rule("table-register-32", (32,), _table, "Keystone adds a prefix that cuts the base to 24 bits",
         "{{ lgdt(symbol, 32) }} or {{ lidt(symbol, 32) }}"),
    Rule("iret", (32, 64), _names("iret"), "Keystone makes the 16-bit form", "iretd or iretq"),
    Rule("pushf-popf", (32, 64), _names("pushf", "popf"), "Keystone makes the 16-bit form",
         "pushfd and popfd (32-bit), pushfq and popfq (64-bit)"),
    Rule("push-number-16", (16,), _push_number, "Keystone pushes four bytes", "{{ push16(number) }}"),
    Rule("push-segment-16", (16,), _push_segment, "Keystone moves four bytes", "mov ax, fs; push ax (on two lines)"),
    Rule("push-label", (32, 64), _push_label, "Keystone truncates it or fails", "the label into a register first"),
    Rule("push-wide-64", (64,), _push_wide, "Keystone pushes two bytes of it", "the number into a register first"),
    Rule("call-16", (16,), _near_16, "Keystone makes the 32-bit form, which pushes four bytes", "{{ call16(label) }}"),
    Rule("return-16", (16,), _names("ret", "retf"), "Keystone makes the 32-bit form, which pops four bytes",
         "{{ ret16() }} or {{ retf16() }}"),
    Rule("mov-label-64", (64,), _mov_label, "Keystone makes a sign-extended number, GNU as a memory access",
         "lea register, [rip + label], movabs register, label, or a 32-bit register"),
    Rule("high-byte-with-rex", (64,), _high_byte, "it cannot be encoded, and Keystone ends its process",
         "another byte register"),
    Rule("sysret-sysexit", (64,), _names("sysret", "sysexit", "sysretq", "sysexitq"),
         "Keystone chooses the operand size itself", ".byte 0x48, 0x0f, 0x07 (SYSRETQ) or 0x48, 0x0f, 0x35 (SYSEXITQ)"),
    Rule("long-nop", ALL, lambda form: form.mnemonic == "nop" and bool(form.instruction.operands),
         "Keystone makes another instruction (0f 18)", ".balign for padding"),
    Rule("numeric-label", ALL, _matches(r"(^|[\s,+-])\d+[bf]$|^\d+\s*:"), _NO_FORM, "a label with a name"),
    Rule("offset", ALL, _matches(r"\boffset\s+[a-z_.]"), _NO_FORM, "the bare label: it is its address"),
    Rule("short-near", ALL, _matches(r"^\w+\s+(short|near)\b"), _NO_FORM, "the bare label: the shortest form is taken"),
    Rule("lretq", ALL, _names("lretq", "lretl", "lretw", "lret"), _NO_FORM, "retfq or retf"),
    Rule("cet", ALL, _names("endbr64", "endbr32", "rdsspq", "rdsspd", "incsspq", "incsspd", "saveprevssp", "rstorssp",
         "wrssq", "wrssd", "wrussq", "wrussd", "setssbsy", "clrssbsy"), _NO_FORM, "its bytes with .byte"),
    Rule("newer-instruction", ALL, _names("rdpid", "serialize", "wbnoinvd", "ptwrite", "pconfig", "tpause", "umonitor",
         "umwait", "movdir64b", "movdiri", "enqcmd", "enqcmds", "ud0", "ud1", "xlat", "lar", "lsl"), _NO_FORM,
         "its bytes with .byte"),
)  # fmt: skip


def refuse(statement: Statement, bits: int, constants: Mapping[str, int]) -> None:
    """Raise AssemblerError for an instruction that cannot be read, or for the first rule that it breaks."""
    unreadable = None
    try:
        instruction = read_instruction(statement.text)
    except OperandError as error:
        unreadable = str(error)
        instruction = Instruction((), statement.text.split()[0].lower(), ())
    form = Form(statement.text, bits, instruction, constants)
    for rule in RULES:
        if bits in rule.modes and rule.applies(form):
            raise AssemblerError(
                f"{statement.text!r} is refused ({rule.name}): {rule.reason}; write {rule.advice}", statement.where
            )
    if unreadable is not None:
        raise AssemblerError(unreadable, statement.where)
