"""Instructions in Intel syntax, taken apart: the same reader for source lines and for Capstone's text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from generator.assemble_expression import NAME


def _registers() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for stem in "abcd":
        sizes |= {f"{stem}l": 8, f"{stem}h": 8, f"{stem}x": 16, f"e{stem}x": 32, f"r{stem}x": 64}
    for stem in ("si", "di", "bp", "sp", "ip"):
        sizes |= {f"{stem}l": 8, stem: 16, f"e{stem}": 32, f"r{stem}": 64}
    for number in range(8, 16):
        sizes |= {f"r{number}b": 8, f"r{number}w": 16, f"r{number}d": 32, f"r{number}": 64}
    for number in range(16):
        sizes |= {f"xmm{number}": 128, f"ymm{number}": 256, f"cr{number}": 64, f"dr{number}": 64}
    sizes |= {f"st({number})": 80 for number in range(8)} | {"st": 80}
    sizes |= {f"mm{number}": 64 for number in range(8)}
    sizes |= dict.fromkeys(SEGMENTS, 16)
    return sizes


SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
REGISTERS = _registers()  # name -> bits
HIGH_BYTES = frozenset(("ah", "bh", "ch", "dh"))
SIZES = {
    "byte": 8, "word": 16, "dword": 32, "fword": 48, "qword": 64, "tbyte": 80, "xword": 80, "oword": 128,
    "xmmword": 128, "ymmword": 256, "pword": 48,
}  # fmt: skip
PREFIXES = frozenset(("lock", "rep", "repe", "repz", "repne", "repnz"))

_SIZE = re.compile(rf"(?:({'|'.join(SIZES)})\s+)?ptr\b\s*")
_SEGMENT = re.compile(r"(es|cs|ss|ds|fs|gs)\s*:\s*(?=\[)")
_SCALED = re.compile(r"(?:(\w+)\s*\*\s*([1248]|0x[1248])|([1248]|0x[1248])\s*\*\s*(\w+))$")
# Words that Intel syntax takes for operators or sizes; a label of that name would be read as one.
RESERVED = frozenset(("ptr", "offset", "short", "near", "far", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor",
                      "not", "mod", "shl", "shr", "flat", *SIZES, *REGISTERS))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """``size`` in bits or None when not written; ``displacement`` an expression ("" for none)."""

    size: int | None
    segment: str | None
    base: str | None
    index: str | None
    scale: int
    displacement: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A number, symbol or expression that is not in brackets."""

    text: str


@dataclass(frozen=True, slots=True)
class Register:
    """A register by its lower-case name."""

    name: str
    bits: int


Operand = Memory | Immediate | Register


@dataclass(frozen=True, slots=True)
class Instruction:
    """``prefixes`` and ``mnemonic`` in lower case; operands in Intel's order."""

    prefixes: tuple[str, ...]
    mnemonic: str
    operands: tuple[Operand, ...]


class OperandError(ValueError):
    """Text that is not an operand."""


@lru_cache(maxsize=8192)
def read_instruction(text: str) -> Instruction:
    """Take ``text`` (no label, no comment) apart. Raises OperandError. Pure, so that answers may be kept."""
    words = text.split(None, 1)
    prefixes = []
    while len(words) == 2 and words[0].lower() in PREFIXES:
        prefixes.append(words[0].lower())
        words = words[1].split(None, 1)
    operands = tuple(read_operand(item) for item in _split(words[1])) if len(words) == 2 else ()
    return Instruction(tuple(prefixes), words[0].lower(), operands)


def _split(text: str) -> list[str]:
    """``text`` at commas outside brackets and quotes."""
    if "'" not in text:
        return text.split(",")
    return re.split(r",(?=(?:[^']|'(?:\\.|[^'\\])')*$)", text)


@lru_cache(maxsize=8192)
def read_operand(text: str) -> Operand:
    """One operand. Raises OperandError for what is none."""
    rest = text.strip()
    lower = rest.lower()
    bits = REGISTERS.get(lower)
    if bits is not None:
        return Register(lower, bits)
    if "[" not in rest:
        if not rest or "]" in rest:
            raise OperandError(f"cannot read the operand {text.strip()!r}")
        return Immediate(rest)
    size = _SIZE.match(lower)
    if size is not None:
        rest, lower = rest[size.end() :], lower[size.end() :]
    segment = _SEGMENT.match(lower)
    if segment is not None:
        rest = rest[segment.end() :]
    if not (rest.startswith("[") and rest.endswith("]")) or rest.count("[") != 1 or rest.count("]") != 1:
        raise OperandError(f"cannot read the operand {text.strip()!r}: write it as size ptr segment:[...]")
    base, index, scale, displacement = _address(rest[1:-1], text)
    # Capstone writes "ptr [rax]" where an operand has no size of its own.
    bits = SIZES[size[1]] if size is not None and size[1] is not None else None
    return Memory(bits, segment[1] if segment is not None else None, base, index, scale, displacement)


def _address(inside: str, text: str) -> tuple[str | None, str | None, int, str]:
    base = index = None
    scale = 1
    rest: list[str] = []
    for sign, term in _terms(inside):
        lower = term.lower()
        scaled = _SCALED.match(lower)
        name = (scaled[1] or scaled[4]) if scaled is not None else lower
        if name not in REGISTERS:
            rest.append(sign + term)
            continue
        if sign == "-":
            raise OperandError(f"cannot subtract a register in {text.strip()!r}")
        if scaled is not None and index is None:
            index, scale = name, int(scaled[2] or scaled[3], 0)
        elif scaled is None and base is None:
            base = name
        elif scaled is None and index is None:
            index = name
        else:
            raise OperandError(f"too many registers in {text.strip()!r}")
    displacement = "".join(rest)
    return base, index, scale, displacement.removeprefix("+")


def _terms(text: str) -> list[tuple[str, str]]:
    """(sign, term) at the outermost + and -."""
    terms: list[tuple[str, str]] = []
    depth, start, sign = 0, 0, "+"
    for position, letter in enumerate(text):
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        elif letter in "+-" and depth == 0:
            before = text[start:position].strip()
            if before and before[-1] not in "*/%&|^<>":
                terms.append((sign, before))
                start, sign = position + 1, letter
            elif not before:
                sign = "-" if (sign == "-") != (letter == "-") else "+"
                start = position + 1
    last = text[start:].strip()
    if not last:
        raise OperandError(f"an address ends in nothing: [{text}]")
    return [*terms, (sign, last)]


def symbols_in(operand: Operand) -> list[str]:
    """Names that a register operand has not: symbols of an immediate or of a displacement."""
    text = operand.displacement if isinstance(operand, Memory) else getattr(operand, "text", "")
    return NAME.findall(text) if text and not text.isdigit() else []
