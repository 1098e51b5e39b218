"""The second opinion on every instruction: GNU as and ld on the same text, at the same addresses.

The whole text is assembled by GNU as. Where it takes another length than Keystone did (imm32 for imm8, a near jump for
a short one), that line is looked at alone and then replaced by Keystone's bytes, so that all addresses meet and every
other line can be compared byte by byte. Two encodings of one line count as equal only if Capstone reads the same text
in both; nothing of the assembler under test is used for that.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import capstone
from elftools.elf.elffile import ELFFile

from generator.assemble import Assembled, ListingRow

_BRANCH = re.compile(r"\s*(?:lock\s+|rep\w*\s+)?(?:j\w+|call|loop\w*)\s", re.IGNORECASE)
_REGISTER = re.compile(
    r"(?:[re]?[abcd]x|[abcd][lh]|[re]?(?:si|di|bp|sp)|(?:si|di|bp|sp)l|r\d+[bwd]?|[cdefgs]s|[cd]r\d+|[xy]?mm\d+|st.*)$"
)
_NAME = re.compile(r"(?<![\w.$])[A-Za-z_.$][\w.$]*")
_RIP = re.compile(r"\[\s*rip\b([^\]]*)\]")
_FAR = "_linked"
_PADDING, _FILL = ".balign ", 0xCC
_TABLE = "hvforge_line_"


@dataclass(frozen=True, slots=True)
class Difference:
    """A line that both assemblers understand differently."""

    row: ListingRow
    keystone: str  # bytes and Capstone's text
    gnu: str


class GnuError(Exception):
    """GNU as or ld refused the text."""


def as_bytes(bits: int, base: int, text: str, work: Path, outside: Mapping[str, int] | None = None) -> bytes:
    """``text`` in Intel syntax, assembled by GNU as and linked flat at ``base``; ``outside`` is for the linker.

    Raises GnuError with the first message.
    """
    source, linked = work / "unit.s", work / "unit.bin"
    source.write_text(f".intel_syntax noprefix\n.code{bits}\n{text}\n")
    linked.unlink(missing_ok=True)
    _run(["as", "--64" if bits == 64 else "--32", "-o", str(work / "unit.o"), str(source)])
    symbols = [f"--defsym={name}={value:#x}" for name, value in (outside or {}).items()]
    _run([*_ld(bits), *symbols, f"-Ttext={base:#x}", "--oformat=binary", "-o", str(linked), str(work / "unit.o")])
    return linked.read_bytes() if linked.exists() else b""


def decode(bits: int, address: int, code: bytes) -> str:
    """Capstone's reading of ``code``, instructions separated by ``;``; what it cannot read is left as bytes."""
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    texts, taken = [], 0
    for _, size, mnemonic, operands in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm_lite(code, address):
        texts.append(f"{mnemonic} {operands}".strip())
        taken += size
    return "; ".join(texts + ([code[taken:].hex(" ")] if taken < len(code) else []))


def meaning(bits: int, address: int, code: bytes) -> str:
    """:func:`decode` of one instruction, a distance from RIP turned into the address that it reaches."""

    def reached(match: re.Match[str]) -> str:
        distance = int(match[2] or "0", 0)
        return f"[{address + len(code) + (-distance if match[1] == '-' else distance):#x}]"

    return re.sub(r"\[rip(?: ([+-]) (\w+))?\]", reached, decode(bits, address, code))


def compare(unit: Assembled, constants: Mapping[str, int], work: Path) -> list[Difference]:
    """The lines of ``unit`` on which GNU as differs. ``constants``: everything the text uses and does not define."""
    rows = unit.rows
    texts = [_gnu_text(row, unit.symbols, constants) for row in rows]
    found: list[Difference] = []
    padding = {index for index, text in enumerate(texts) if _PADDING in text}
    replaced: set[int] = set()
    while True:
        pieces = _assemble_whole(unit, texts, constants, work)
        other = [
            i for i, row in enumerate(rows) if i not in replaced | padding and len(pieces[i]) != len(row.data)
        ]
        if not other:
            break
        alone = _assemble_alone(unit, {i: texts[i] for i in other}, {**constants, **unit.symbols}, work)
        for index in other:
            found += _judge(unit.bits, rows[index], alone[index])
            labels = re.match(r"(?:[^\n:]+:\n)*", texts[index])
            head = labels[0] if labels is not None else ""
            texts[index] = head + ".byte " + ",".join(f"{byte:#x}" for byte in rows[index].data)
        replaced.update(other)
    for index, row in enumerate(rows):
        # Padding counts by its length: with NOPs for filling, GNU as would choose instructions of its own.
        if index in padding and pieces[index] == bytes([_FILL]) * len(row.data):
            continue
        if index not in replaced and pieces[index] != row.data:
            found += _judge(unit.bits, row, pieces[index])
    return found


def _judge(bits: int, row: ListingRow, gnu: bytes) -> list[Difference]:
    ours, theirs = meaning(bits, row.address, row.data), meaning(bits, row.address, gnu)
    if ours == theirs or _selector(ours) == _selector(theirs) != "":
        return []
    return [Difference(row, f"{row.data.hex(' ')}  {ours}", f"{gnu.hex(' ')}  {theirs}")]


def _selector(text: str) -> str:
    """Moves of a 16-bit selector, without the other register's width where that changes nothing ("": no such move).

    From a register of any width only 16 bits are taken; into one of 32 or 64 bits they come extended with zeros
    (SDM 2B, MOV, SLDT and STR).
    """
    to = re.fullmatch(r"mov ([c-gs]s), (\w+)", text)
    if to is not None:
        return f"{to[1]} {to[2].strip('erdw')}"
    of = re.fullmatch(r"(?:mov ([er]\w+), ([c-gs]s)|(?:str|sldt) ([er]\w+))", text)
    if of is None or of[0].endswith("w"):
        return ""
    return f"{text.split()[0]} {(of[1] or of[3]).strip('erd')} {of[2]}"


def _gnu_text(row: ListingRow, symbols: Mapping[str, int], constants: Mapping[str, int]) -> str:
    """The source line in GNU's dialect: labels on lines of their own, OFFSET before a symbol that is a number."""
    text = row.source
    labels = ""
    while (match := re.match(r"([A-Za-z_.$][\w.$]*):\s*", text)) is not None:
        labels += f"{match[1]}:\n"
        text = text[match.end() :]
    text = re.sub(r";(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$).*", "", text).strip()
    text = re.sub(r"'([^\\'])'", lambda char: str(ord(char[1])), text)
    head, _, rest = text.partition(" ")
    if head in (".align", ".balign"):
        return f"{labels}{_PADDING}{rest}, {_FILL:#x}"
    if head in (".ascii", ".asciz", ".zero", ".space"):  # the dialects differ in escapes; nothing is encoded here
        return labels + (".byte " + ",".join(f"{byte:#x}" for byte in row.data) if row.data else "")
    if text.startswith(".") or _BRANCH.match(text):
        return labels + text
    mnemonic, _, operands = text.partition(" ")
    if mnemonic.lower() in ("lock", "rep", "repe", "repne", "repz", "repnz"):
        more, _, operands = operands.strip().partition(" ")
        mnemonic = f"{mnemonic} {more}"
    items = []
    for item in operands.split(",") if operands.strip() else []:
        words = _NAME.findall(re.sub(r"0x\w+", "0", item))
        names = [name for name in words if not _REGISTER.match(name.lower())]
        bare = "[" not in item and names and all(name in symbols or name in constants for name in names)
        items.append(f"offset {item.strip()}" if bare else item.strip())
    return f"{labels}{mnemonic} {', '.join(items)}"


def _linked(texts: Sequence[str], values: Mapping[str, int]) -> tuple[list[str], dict[str, int]]:
    """``[rip + name]`` made a matter for the linker: GNU as takes a name it knows the value of for the distance."""
    far: dict[str, int] = {}

    def rename(name: re.Match[str]) -> str:
        if name[0] not in values:
            return name[0]
        far[f"{name[0]}{_FAR}"] = values[name[0]]
        return f"{name[0]}{_FAR}"

    return [_RIP.sub(lambda inside: "[rip" + _NAME.sub(rename, inside[1]) + "]", text) for text in texts], far


def _definitions(texts: Sequence[str], values: Mapping[str, int]) -> str:
    used = {name for text in texts for name in _NAME.findall(text)}
    return "".join(f".set {name}, {values[name]:#x}\n" for name in sorted(used & set(values)))


def _assemble_whole(unit: Assembled, texts: Sequence[str], constants: Mapping[str, int], work: Path) -> list[bytes]:
    own = {name: value for name, value in constants.items() if name not in unit.symbols}
    texts, far = _linked(texts, own)
    lines = [_definitions(texts, own)]
    for index, text in enumerate(texts):
        lines.append(f"{_TABLE}{index}:\n{text}")
    lines.append(f"{_TABLE}{len(texts)}:")
    lines += [f".long {_TABLE}{index} - {_TABLE}0" for index in range(len(texts) + 1)]
    code = as_bytes(unit.bits, unit.base, "\n".join(lines), work, far)
    size = len(code) - 4 * (len(texts) + 1)
    offsets = struct.unpack_from(f"<{len(texts) + 1}I", code, size)
    assert offsets[-1] == size
    return [code[offsets[index] : offsets[index + 1]] for index in range(len(texts))]


def _assemble_alone(
    unit: Assembled, texts: Mapping[int, str], values: Mapping[str, int], work: Path
) -> dict[int, bytes]:
    """Each text in a section of its own at its line's address, every symbol an absolute number."""
    plain = {index: re.sub(r"^[A-Za-z_.$][\w.$]*:\n", "", text, flags=re.MULTILINE) for index, text in texts.items()}
    linked, far = _linked(list(plain.values()), values)
    lines = [".intel_syntax noprefix", f".code{unit.bits}", _definitions(linked, values)]
    lines += [f'.section .t{index}, "ax"\n{text}' for index, text in zip(plain, linked, strict=True)]
    (work / "alone.s").write_text("\n".join(lines) + "\n")
    _run(["as", "--64" if unit.bits == 64 else "--32", "-o", str(work / "alone.o"), str(work / "alone.s")])
    # Addresses in a script: some thousand --section-start options would be too long a command line.
    places = "".join(f".t{index} {unit.rows[index].address:#x} : {{ *(.t{index}) }}\n" for index in plain)
    symbols = "".join(f"{name} = {value:#x};\n" for name, value in far.items())
    (work / "alone.ld").write_text(f"{symbols}SECTIONS {{\n{places}}}\n")
    _run([*_ld(unit.bits), "--no-check-sections", "-T", str(work / "alone.ld"), "-o", str(work / "alone.elf"),
          str(work / "alone.o")])  # fmt: skip
    with (work / "alone.elf").open("rb") as file:
        elf = ELFFile(file)
        return {index: elf.get_section_by_name(f".t{index}").data() for index in plain}


def _ld(bits: int) -> list[str]:
    return ["ld", "-m", "elf_x86_64" if bits == 64 else "elf_i386", "--no-warn-rwx-segments", "-e", "0"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        messages = [line for line in done.stderr.splitlines() if "Error" in line or "ld:" in line]
        raise GnuError(messages[0] if messages else done.stderr.strip())
