"""Assembly text -> machine code: Keystone behind guard rails.

Keystone 0.9.2 makes silent mistakes, hangs and crashes. So: it runs in a child process with a time limit; it sees only
instructions (data, padding and constants are Python's work, see assemble_source.py); forms it gets wrong are refused
by name (assemble_rules.py); and every instruction is decoded again by Capstone and compared with its source line
(assemble_check.py). Every source line gets a label of ours, and a table behind the code tells where each one
landed; the table is cut off again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import capstone

from generator.assemble_check import Decoded, difference
from generator.assemble_child import Keystone, Program, locate, run_programs
from generator.assemble_expression import ExpressionError, evaluate
from generator.assemble_operands import symbols_in
from generator.assemble_rules import refuse
from generator.assemble_source import Kind, Source, Statement, data_bytes, names_in, parse
from generator.errors import AssemblerError
from generator.render import Line
from generator.suggest import nearest

_RIP = re.compile(r"\[\s*rip\s*([+-][^\]]+)\]")
_RIP_PLACEHOLDER = 0x5AC39A71  # a displacement that Python replaces; any value that is found once in an instruction
_NOP = b"\x90"


@dataclass(frozen=True, slots=True)
class Unit:
    """Text to assemble as one program: ``bits`` is 16, 32 or 64; ``base`` the address of its first byte."""

    name: str
    bits: int
    base: int
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class ListingRow:
    """One source line: what it became, as Capstone reads it (data: the directive itself)."""

    address: int
    data: bytes
    text: str
    file: str
    line: int
    source: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """The code of one unit; ``symbols`` maps its labels to absolute addresses, in the order of the text."""

    name: str
    base: int
    bits: int
    code: bytes
    symbols: dict[str, int]
    rows: list[ListingRow]


def assemble(
    units: Sequence[Unit], externals: Mapping[str, int] | None = None, time_limit: float = 20.0
) -> list[Assembled]:
    """Assemble ``units``, in order. ``externals`` are constants usable in all of them (addresses, sizes).

    Labels of earlier units are known in later ones. ``time_limit`` is in seconds, for the child process as a whole.
    Raises AssemblerError, which names the template's file and line, for anything that is not certainly right.
    """
    waiting = [(unit, parse(unit.lines, externals or {})) for unit in units]
    known = _Labels()
    done: list[Assembled] = []
    with Keystone(time_limit) as keystone:
        while waiting:
            batch = _independent(waiting, known)
            waiting = waiting[len(batch) :]
            programs = [_program(unit, source) for unit, source in batch]
            outcomes = run_programs(keystone, programs)
            for (unit, source), program, outcome in zip(batch, programs, outcomes, strict=True):
                if outcome.error or not outcome.code:
                    raise locate(unit.name, program, outcome)
                assembled = _finish(unit, source, program, outcome.code)
                done.append(assembled)
                known.add(assembled)
    return done


class _Labels:
    """Labels of the units that are done: constants for those to come."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.units: dict[str, list[str]] = {}

    def add(self, unit: Assembled) -> None:
        for name, value in unit.symbols.items():
            self.values[name] = value
            self.units.setdefault(name, []).append(unit.name)

    def give(self, source: Source) -> None:
        """Make them known to ``source``, whose own labels and constants come first."""
        for statement in source.statements if self.values else ():
            for name in names_in(statement.text):
                if name not in self.values or name in source.labels or name in source.constants:
                    continue
                if len(self.units[name]) > 1:
                    units = ", ".join(self.units[name])
                    raise AssemblerError(f"{name!r} is a label of several units ({units})", statement.where)
                source.constants[name] = self.values[name]


def _independent(waiting: Sequence[tuple[Unit, Source]], known: _Labels) -> Sequence[tuple[Unit, Source]]:
    """The first units that need no label of one another, ready to run: they share a child process."""
    defined: set[str] = set()
    for count, (_, source) in enumerate(waiting):
        if defined:
            words = {name for statement in source.statements for name in names_in(statement.text)}
            if words & defined - set(source.labels):
                return waiting[:count]
        known.give(source)
        defined.update(source.labels)
    return waiting


def _program(unit: Unit, source: Source) -> Program:
    """What Keystone gets of each statement, after the rules have been asked and every name has been found."""
    texts: list[str] = []
    needs: list[list[str]] = []
    for statement in source.statements:
        names: list[str] = []
        if statement.kind is Kind.INSTRUCTION:
            instruction = refuse(statement, unit.bits, source.constants)
            names = [name for operand in instruction.operands for name in symbols_in(operand)]
            for name in names:
                if name not in source.labels and name not in source.constants:
                    known = [*source.labels, *source.constants]
                    raise AssemblerError(
                        f"{statement.text!r}: nothing defines {name!r}{nearest(name, known)}", statement.where
                    )
        texts.append(_keystone_text(statement, names, source))
        needs.append([name for name in names if name in source.labels])
    return Program(unit.bits, unit.base, source.statements, texts, needs)


def _keystone_text(statement: Statement, names: Sequence[str], source: Source) -> str:
    if statement.kind is Kind.DATA:
        return f".zero {statement.size}" if statement.size else ""
    if statement.kind is Kind.ALIGN:
        return f".balign {statement.size}"
    text = statement.text
    constants = [name for name in names if name in source.constants]
    if not constants:
        return text
    relative = _RIP.search(text)
    if relative is not None and not any(name in source.labels for name in names_in(relative[1])):
        text = f"{text[: relative.start()]}[rip + {_RIP_PLACEHOLDER:#x}]{text[relative.end() :]}"
    for name in set(constants):
        value = source.constants[name]
        number = f"{value:#x}" if value >= 0 else f"-{-value:#x}"
        text = re.sub(rf"(?<![\w.$@]){re.escape(name)}(?![\w.$@])", number, text)
    return text


def _finish(unit: Unit, source: Source, program: Program, raw: bytes) -> Assembled:
    statements = source.statements
    size = len(raw) - 4 * (len(statements) + 1)
    offsets = struct.unpack_from(f"<{len(statements) + 1}I", raw, size) if size >= 0 else ()
    if not offsets or offsets[0] != 0 or offsets[-1] != size or list(offsets) != sorted(offsets):
        raise locate(unit.name, program, None)
    symbols = dict(source.constants)
    own = {name: unit.base + offsets[index] for name, index in source.labels.items()}
    symbols.update(own)
    code = bytearray(raw[:size])
    for index, statement in enumerate(statements):
        start, end = offsets[index], offsets[index + 1]
        if statement.kind is Kind.DATA:
            data = data_bytes(statement, unit.base + start, symbols)
            if len(data) != end - start:
                raise AssemblerError(f"{statement.text}: {end - start} bytes instead of {len(data)}", statement.where)
            code[start:end] = data
        elif statement.kind is Kind.ALIGN:
            # Keystone pads 16-bit code with NOPs that are longer instructions there, and ignores a fill value.
            if (unit.base + end) % statement.size or end - start >= statement.size:
                raise AssemblerError(f"{statement.text}: padded by {end - start} bytes, wrongly", statement.where)
            code[start:end] = _NOP * (end - start)
        elif statement.kind is Kind.INSTRUCTION:
            _patch_rip(unit, statement, program.texts[index], code, start, end, symbols)
    rows = _rows(unit, statements, offsets, bytes(code), symbols)
    return Assembled(unit.name, unit.base, unit.bits, bytes(code), own, rows)


def _patch_rip(
    unit: Unit, statement: Statement, text: str, code: bytearray, start: int, end: int, symbols: Mapping[str, int]
) -> None:
    """``[rip + constant]``: Keystone takes the constant for the displacement, so the displacement is ours to make."""
    relative = _RIP.search(statement.text)
    if relative is None or f"{_RIP_PLACEHOLDER:#x}" not in text:
        return
    placeholder = _RIP_PLACEHOLDER.to_bytes(4, "little")
    position = code.find(placeholder, start, end)
    try:
        displacement = evaluate(relative[1], symbols) - (unit.base + end)
    except ExpressionError as error:
        raise AssemblerError(f"{statement.text}: {error}", statement.where) from None
    if position < 0 or code.find(placeholder, position + 1, end) >= 0:
        raise AssemblerError(f"{statement.text}: cannot place the RIP-relative displacement", statement.where)
    if not -(1 << 31) <= displacement < 1 << 31:
        raise AssemblerError(f"{statement.text}: {displacement:#x} bytes away, which no 32 bits hold", statement.where)
    code[position : position + 4] = displacement.to_bytes(4, "little", signed=True)


def _rows(
    unit: Unit, statements: Sequence[Statement], offsets: Sequence[int], code: bytes, symbols: Mapping[str, int]
) -> list[ListingRow]:
    """One row for each statement, every instruction decoded and compared with its source."""
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[unit.bits]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    rows = []
    for index, statement in enumerate(statements):
        address, data = unit.base + offsets[index], code[offsets[index] : offsets[index + 1]]
        text = statement.text
        if statement.kind is Kind.INSTRUCTION:
            found = list(decoder.disasm_lite(data, address))
            if len(found) != 1 or found[0][1] != len(data):
                made = data.hex(" ") or "nothing"
                raise AssemblerError(f"{text!r} became {made}, which is not one instruction", statement.where)
            text = f"{found[0][2]} {found[0][3]}".rstrip()
            problem = difference(Decoded(statement.text, text, address, data, unit.bits), symbols)
            if problem is not None:
                raise AssemblerError(
                    f"{statement.text!r} became {data.hex(' ')}, that is {text!r}: {problem}", statement.where
                )
        line = statement.line
        rows.append(ListingRow(address, data, text, line.file, line.line, line.text.strip()))
    return rows
