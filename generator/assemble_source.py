"""Reading assembly text: from rendered lines to statements, before Keystone sees any of it.

The language: Intel syntax; one instruction or directive a line; ``;`` begins a comment; ``label:`` alone or before an
instruction; ``.set name, expression`` (constants only); data by ``.byte .word .long .quad .ascii .asciz .zero``;
``.balign n`` or ``.align n`` (n in bytes) padded with NOP. Data is encoded by Python:
Keystone only ever sees instructions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from generator.assemble_directives import refused_directive
from generator.assemble_expression import ESCAPES, NAME, ExpressionError, evaluate
from generator.assemble_operands import RESERVED
from generator.errors import AssemblerError
from generator.render import Line

DATA_SIZES = {".byte": 1, ".word": 2, ".long": 4, ".quad": 8}
_LABEL = re.compile(r"\s*([A-Za-z_.$][\w.$@]*)\s*:(?!:)")
_SET = re.compile(r"\s*(?:\.(?:set|equ)\s+([A-Za-z_.$][\w.$@]*)\s*,|([A-Za-z_.$][\w.$@]*)\s*=(?!=))(.*)")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'")
_STRING = re.compile(r'"((?:\\.|[^"\\])*)"')
_ZERO_LIMIT = 1 << 24


class Kind(Enum):
    INSTRUCTION = auto()
    DATA = auto()
    ALIGN = auto()
    EMPTY = auto()  # labels alone


@dataclass(slots=True)
class Statement:
    """One line that makes bytes or defines labels. ``items`` are a data directive's expressions or byte strings."""

    line: Line
    labels: list[str]
    kind: Kind
    text: str                          # without labels and comment
    size: int = 0                      # DATA: bytes it takes; ALIGN: the alignment
    unit: int = 0                      # DATA: bytes of one item
    items: Sequence[str | bytes] = ()

    @property
    def where(self) -> str:
        return f"{self.line.file}:{self.line.line}"


@dataclass(slots=True)
class Source:
    """A parsed unit: its statements, where each label stands, and the constants that it knows."""

    statements: list[Statement]
    labels: dict[str, int]      # name -> index of statement
    constants: dict[str, int]   # externals and .set


def strip_comment(text: str) -> str:
    """``text`` without a ``;`` comment; a ``;`` in quotes is none."""
    if ";" not in text:
        return text
    if '"' not in text and "'" not in text:
        return text.split(";", 1)[0]
    position = 0
    while position < len(text):
        quoted = _QUOTED.match(text, position)
        if quoted is not None:
            position = quoted.end()
        elif text[position] == ";":
            return text[:position]
        else:
            position += 1
    return text


def without_quotes(text: str) -> str:
    """``text`` with what stands in quotes taken out: for looking for words and signs."""
    return _QUOTED.sub("", text) if '"' in text or "'" in text else text


def parse(lines: Sequence[Line], externals: Mapping[str, int]) -> Source:
    """Statements of ``lines``. Raises AssemblerError for a label defined twice or a directive it cannot read."""
    source = Source([], {}, dict(externals))
    for line in lines:
        text = strip_comment(line.text)
        if not text.strip():
            continue
        constant = _SET.match(text)
        if constant is not None:
            _define(source, constant[1] or constant[2], constant[3], line)
            continue
        labels = []
        while (match := _LABEL.match(text)) is not None:
            labels.append(match[1])
            text = text[match.end() :]
        statement = _statement(line, labels, text.strip(), source.constants)
        for label in labels:
            _check_new(source, label, statement.where)
            source.labels[label] = len(source.statements)
        source.statements.append(statement)
    return source


def _check_new(source: Source, name: str, where: str) -> None:
    if name.lower() in RESERVED:
        raise AssemblerError(f"{name!r} cannot be a symbol: it is a register or a word of Intel syntax", where)
    if name in source.labels:
        first = source.statements[source.labels[name]].where if source.labels[name] < len(source.statements) else where
        raise AssemblerError(f"{name!r} is defined twice; first at {first}", where)
    if name in source.constants:
        raise AssemblerError(f"{name!r} is already a constant or a symbol from outside this unit", where)


def _define(source: Source, name: str, expression: str, line: Line) -> None:
    where = f"{line.file}:{line.line}"
    _check_new(source, name, where)
    try:
        source.constants[name] = evaluate(expression, source.constants)
    except ExpressionError as error:
        raise AssemblerError(f".set {name}: {error} (only constants may stand here, no labels)", where) from None


def _statement(line: Line, labels: list[str], text: str, constants: Mapping[str, int]) -> Statement:
    if not text:
        return Statement(line, labels, Kind.EMPTY, text)
    if text[0] != ".":
        return Statement(line, labels, Kind.INSTRUCTION, text)
    head, *others = text.split(None, 1)
    rest = others[0] if others else ""
    where = f"{line.file}:{line.line}"
    try:
        if head in DATA_SIZES:
            items = [item.strip() for item in _split_items(rest)]
            unit = DATA_SIZES[head]
            return Statement(line, labels, Kind.DATA, text, unit * len(items), unit, items)
        if head in (".ascii", ".asciz"):
            data = b"".join(_string(item, where) + (b"\0" if head == ".asciz" else b"") for item in _split_items(rest))
            return Statement(line, labels, Kind.DATA, text, len(data), len(data), [data])
        if head in (".zero", ".space", ".skip"):
            size, *fill = (evaluate(item, constants) for item in _split_items(rest))
            if not 0 <= size <= _ZERO_LIMIT:
                raise AssemblerError(f"{head} of {size} bytes: 0 to {_ZERO_LIMIT} are possible", where)
            value = bytes([(fill[0] if fill else 0) & 0xFF])
            return Statement(line, labels, Kind.DATA, text, size, size, [value * size])
        if head in (".align", ".balign"):
            size = evaluate(rest, constants)
            if size < 1 or size & (size - 1) or size > 4096:
                raise AssemblerError(f"{head} {size}: a power of two up to 4096 (bytes) is possible", where)
            return Statement(line, labels, Kind.ALIGN, text, size)
    except ExpressionError as error:
        raise AssemblerError(f"{head}: {error}", where) from None
    refused = refused_directive(head)
    if refused is not None:
        raise AssemblerError(refused, where)
    known = " ".join([*DATA_SIZES, ".ascii .asciz .zero .balign .set"])
    raise AssemblerError(f"directive {head!r} is not one of ours ({known}); loops and conditions are Jinja's", where)


def _split_items(text: str) -> list[str]:
    """``text`` at its commas outside quotes."""
    if '"' not in text and "'" not in text:
        return text.split(",")
    items, position, start = [], 0, 0
    while position < len(text):
        quoted = _QUOTED.match(text, position)
        if quoted is not None:
            position = quoted.end()
            continue
        if text[position] == ",":
            items.append(text[start:position])
            start = position + 1
        position += 1
    return [*items, text[start:]]


def _string(text: str, where: str) -> bytes:
    match = _STRING.fullmatch(text.strip())
    if match is None:
        raise AssemblerError(f"expected a string in double quotes, found {text.strip()!r}", where)
    out, position, body = bytearray(), 0, match[1]
    while position < len(body):
        if body[position] != "\\":
            out += body[position].encode()
            position += 1
        elif body[position + 1] == "x" and re.fullmatch(r"[0-9a-fA-F]{2}", body[position + 2 : position + 4]):
            out.append(int(body[position + 2 : position + 4], 16))
            position += 4
        elif body[position + 1] in ESCAPES:
            out.append(ESCAPES[body[position + 1]])
            position += 2
        else:
            known = " ".join("\\" + name for name in ESCAPES)
            raise AssemblerError(f"escape {body[position : position + 2]!r} is not one of {known} \\xNN", where)
    return bytes(out)


def data_bytes(statement: Statement, address: int, symbols: Mapping[str, int]) -> bytes:
    """The bytes of a DATA statement. Raises AssemblerError for a value that does not fit or has no definition."""
    out = bytearray()
    here: dict[str, int] | None = None
    bits = 8 * statement.unit
    for item in statement.items:
        if isinstance(item, bytes):
            out += item
            continue
        try:
            if "." in item and here is None:
                here = {**symbols, ".": address}
            value = evaluate(item, symbols if here is None else here)
        except ExpressionError as error:
            raise AssemblerError(f"{statement.text}: {error}", statement.where) from None
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise AssemblerError(f"{statement.text}: {value:#x} does not fit in {bits} bits", statement.where)
        out += (value & ((1 << bits) - 1)).to_bytes(statement.unit, "little")
    return bytes(out)


def names_in(text: str) -> list[str]:
    """The words of ``text`` outside quotes: mnemonics, registers and symbols alike."""
    return NAME.findall(without_quotes(text))
