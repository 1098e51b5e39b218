"""Forms that Keystone 0.9.2 gets wrong, hangs on or dies of: refused by name before it sees them.

One row is one rule: its name, the modes it holds in, a predicate, and what to write instead. test_assemble_rules.py
shows for every row what Keystone makes of it against GNU as. The round trip through Capstone would find most of them
too, but late and in its own words, and some never: there is nothing to decode when the assembler dies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

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
    """What a predicate looks at: ``plain`` is the text without what stands in quotes, and ``constants`` have values
    already; any other name in an operand is a label."""

    text: str
    plain: str
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
    """``modes`` are bits of code; no ``mnemonics`` means all; ``reason`` and ``advice`` complete the sentence."""

    name: str
    modes: tuple[int, ...]
    mnemonics: frozenset[str]
    applies: Callable[[Form], bool]
    reason: str
    advice: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _always(_: Form) -> bool:
    return True


def _value(form: Form, item: Immediate | None) -> int | None:
    """The number an immediate stands for, if it is known before assembly."""
    try:
        return evaluate(item.text, form.constants) if item is not None else None
    except ExpressionError:
        return None


def _text(pattern: str) -> Callable[[Form], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda form: compiled.search(form.plain) is not None


_BEYOND_SUM = re.compile(r"[*/%&|^~()]|<<|>>")
_NEEDS_REX = re.compile(r"r(8|9|1[0-5])[bwd]?$|(sp|bp|si|di)l$")


def _unclosed(form: Form) -> bool:
    return form.plain.count("[") != form.plain.count("]") or form.plain.count("(") != form.plain.count(")")


def _absolute(form: Form) -> bool:
    memory = form.memory
    return memory is not None and memory.base is None and memory.index is None and form.mnemonic != "movabs"


def _rip_number(form: Form) -> bool:
    memory = form.memory
    return memory is not None and memory.base == "rip" and not symbols_in(memory)


def _difference(form: Form) -> bool:
    memory = form.memory
    if memory is None or (memory.base is None and memory.index is None):
        return False
    return len(form.labels(memory)) > 1


def _arithmetic(form: Form) -> bool:
    for operand in form.instruction.operands:
        if form.labels(operand):
            text = operand.displacement if isinstance(operand, Memory) else form.plain
            if _BEYOND_SUM.search(text) is not None:
                return True
    return False


def _far_pointer(form: Form) -> bool:
    target = form.immediate(0)
    return target is not None and ":" in target.text


def _number(form: Form) -> bool:
    return form.immediate(0) is not None


def _label(form: Form) -> bool:
    value = form.immediate(0)
    return value is not None and bool(form.labels(value))


def _push_ff80(form: Form) -> bool:
    value = _value(form, form.immediate(0))
    return value is not None and 0xFF80 <= value <= 0xFFFF


def _push_wide(form: Form) -> bool:
    value = _value(form, form.immediate(0))
    return value is not None and not -(1 << 31) <= value < 1 << 31


def _segment(*names: str) -> Callable[[Form], bool]:
    return lambda form: any(item.name in names for item in form.registers)


def _wide_label(form: Form) -> bool:
    operands = form.instruction.operands
    value = form.immediate(1)
    first = operands[0] if operands else None
    width = first.bits if isinstance(first, Register) else first.size if isinstance(first, Memory) else None
    return form.mnemonic != "movabs" and width == 64 and value is not None and bool(form.labels(value))


def _high_byte(form: Form) -> bool:
    registers = form.registers
    if not any(item.name in HIGH_BYTES for item in registers):
        return False
    names = {item.name for item in registers}
    if form.memory is not None:
        names |= {name for name in (form.memory.base, form.memory.index) if name is not None}
    return any(item.bits == 64 for item in registers) or any(_NEEDS_REX.match(name) for name in names)


ANY = _words("")
_NO_FORM = "Keystone does not know it"

RULES: tuple[Rule, ...] = (
    Rule("comment", ALL, ANY, _text(r"#|//|/\*"), "Keystone drops the rest of the line", "comments with ;"),
    Rule("unclosed-bracket", ALL, ANY, _unclosed, "Keystone ignores it and makes up an address", "the other bracket"),
    Rule("numeric-label", ALL, ANY, _text(r"(^|[\s,+-])\d+[bf]$|^\d+\s*:"), _NO_FORM, "a label with a name"),
    Rule("offset", ALL, ANY, _text(r"\boffset\s+[a-z_.]"), _NO_FORM, "the bare label: it is its address"),
    Rule("short-near", ALL, ANY, _text(r"^\w+\s+(short|near)\b"), _NO_FORM,
         "the bare label: the shortest form is taken"),
    Rule("absolute-address-64", (64,), ANY, _absolute, "Keystone makes it relative to RIP, with a wrong displacement",
         "[rip + symbol], a register with the address, or {{ gs_load() }} and {{ gs_store() }}"),
    Rule("rip-number", (64,), ANY, _rip_number, "a number beside rip is a distance, not an address", "[rip + symbol]"),
    Rule("address-difference", ALL, ANY, _difference, "Keystone adds labels that are to be subtracted",
         "the difference in a register, or a number from Jinja"),
    Rule("label-arithmetic", ALL, ANY, _arithmetic, "Keystone knows only sums and differences of labels here",
         "the value with .long, or by numbers from Jinja"),
    Rule("high-byte-with-rex", (64,), ANY, _high_byte, "it cannot be encoded, and Keystone ends its process",
         "another byte register"),
    Rule("label-64", (64,), ANY, _wide_label, "Keystone makes a sign-extended number, GNU as a memory access",
         "lea register, [rip + label], movabs register, label, or a 32-bit register"),
    Rule("far-pointer", ALL, _words("jmp call ljmp lcall"), _far_pointer,
         "Keystone truncates the target, or fails without an error",
         "{{ far_jump16(selector, target) }} or {{ far_jump32(selector, target) }}"),
    Rule("far-indirect", ALL, _words("jmp call"), _text(r"\b(far|fword)\b"), _NO_FORM, "ljmp [...] or lcall [...]"),
    Rule("table-register-32", (32,), _words("lgdt lidt sgdt sidt"), _always,
         "Keystone adds a prefix that cuts the base to 24 bits", "{{ lgdt(symbol, 32) }} or {{ lidt(symbol, 32) }}"),
    Rule("iret", (32, 64), _words("iret"), _always, "Keystone makes the 16-bit form", "iretd or iretq"),
    Rule("pushf-popf", (32, 64), _words("pushf popf"), _always, "Keystone makes the 16-bit form",
         "pushfd and popfd (32-bit), pushfq and popfq (64-bit)"),
    Rule("push-number-16", (16,), _words("push"), _number, "Keystone pushes four bytes", "{{ push16(number) }}"),
    Rule("push-segment-16", (16,), _words("push pop"), _segment("fs", "gs"), "Keystone moves four bytes",
         "mov ax, fs and push ax"),
    Rule("push-segment-32", (32,), _words("push pop"), _segment("es", "cs", "ss", "ds"), "Keystone moves two bytes",
         "mov eax, ds and push eax"),
    Rule("push-label", (32, 64), _words("push"), _label, "Keystone truncates it or fails",
         "the label into a register first"),
    Rule("push-ff80", (32, 64), _words("push"), _push_ff80, "Keystone pushes it sign-extended from a byte",
         "the number into a register first"),
    Rule("push-wide-64", (64,), _words("push"), _push_wide, "Keystone pushes two bytes of it",
         "the number into a register first"),
    Rule("call-16", (16,), _words("call"), _number, "Keystone makes the 32-bit form, which pushes four bytes",
         "{{ call16(label) }}"),
    Rule("return-16", (16,), _words("ret retf"), _always, "Keystone makes the 32-bit form, which pops four bytes",
         "{{ ret16() }} or {{ retf16() }}"),
    Rule("sysret-sysexit", ALL, _words("sysret sysexit sysretq sysexitq"), _always,
         "Keystone chooses the operand size itself",
         ".byte 0x48, 0x0f, 0x07 (SYSRETQ) or .byte 0x48, 0x0f, 0x35 (SYSEXITQ)"),
    Rule("swapgs", (16, 32), _words("swapgs"), _always, "it exists in 64-bit code only", "nothing of the kind"),
    Rule("long-nop", ALL, _words("nop"), lambda form: bool(form.instruction.operands),
         "Keystone makes another instruction (0f 18)", ".balign for padding"),
    Rule("lretq", ALL, _words("lretq lretl lretw lret"), _always, _NO_FORM, "retfq or retf"),
    Rule("cet", ALL, _words("endbr64 endbr32 rdsspq rdsspd incsspq incsspd saveprevssp rstorssp wrssq wrssd wrussq "
         "wrussd setssbsy clrssbsy"), _always, _NO_FORM, "its bytes with .byte"),
    Rule("newer-instruction", ALL, _words("rdpid serialize wbnoinvd ptwrite pconfig tpause umonitor umwait movdir64b "
         "movdiri enqcmd enqcmds ud0 ud1 xlat lar lsl"), _always, _NO_FORM, "its bytes with .byte"),
)  # fmt: skip


@lru_cache(maxsize=1024)
def _rules(bits: int, mnemonic: str) -> tuple[Rule, ...]:
    return tuple(
        rule for rule in RULES if bits in rule.modes and (not rule.mnemonics or mnemonic in rule.mnemonics)
    )


def refuse(statement: Statement, bits: int, constants: Mapping[str, int]) -> Instruction:
    """The instruction taken apart. Raises AssemblerError if it cannot be read, or for the first rule it breaks."""
    unreadable = None
    try:
        instruction = read_instruction(statement.text)
    except OperandError as error:
        unreadable = str(error)
        instruction = Instruction((), statement.text.split()[0].lower(), ())
    form = Form(statement.text, without_quotes(statement.text), instruction, constants)
    for rule in _rules(bits, instruction.mnemonic):
        if rule.applies(form):
            raise AssemblerError(
                f"{statement.text!r} is refused ({rule.name}): {rule.reason}; write {rule.advice}", statement.where
            )
    if unreadable is not None:
        raise AssemblerError(unreadable, statement.where)
    return instruction
