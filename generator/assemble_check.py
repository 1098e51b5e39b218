"""The round trip: does what Capstone reads in the bytes say the same as the source line?

Compared are prefixes, mnemonic, number and order of operands, registers, operand sizes, segment overrides, every part
of an address, and every number after symbols are resolved. What may differ, and nothing else: spellings of one thing
(je and jz), numbers that are equal at the operand's width, a memory size that the other operand determines, the order
of XCHG and TEST operands, and operands that Capstone writes out and the manual leaves implied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from generator.assemble_expression import ExpressionError, evaluate
from generator.assemble_operands import (
    REGISTERS,
    SEGMENTS,
    Immediate,
    Instruction,
    Memory,
    Operand,
    OperandError,
    Register,
    read_instruction,
    symbols_in,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONDITIONS = {
    "z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "na": "be", "nbe": "a",
    "nge": "l", "nl": "ge", "ng": "le", "nle": "g", "pe": "p", "po": "np",
}  # fmt: skip
_OPERAND_SIZE = 0x66
_LEGACY_PREFIXES = frozenset(bytes.fromhex("2636 2e3e 6465 66 67 f0f2f3"))
# Mnemonics in which 66 is part of the opcode, and those that name the size that it chooses.
_PREFIX_IS_OPCODE = _words("vmclear invept invvpid invpcid clflushopt clwb adcx")
_PREFIX_SHOWN = {
    16: _words("cbw cwd pushaw popaw pushf popf iret stosw movsw lodsw scasw cmpsw insw outsw"),
    32: _words("cwde cdq pushad popad pushfd popfd iretd stosd movsd lodsd scasd cmpsd insd outsd"),
}
_CONDITIONAL = re.compile(rf"(j|set|cmov)({'|'.join(_CONDITIONS)})$")
_SPELLINGS = {
    "movabs": "mov", "sal": "shl", "repz": "repe", "repnz": "repne", "wait": "fwait", "icebp": "int1",
    "loopz": "loope", "loopnz": "loopne", "pusha": "pushaw", "popa": "popaw", "pushal": "pushad", "popal": "popad",
}  # fmt: skip
# Instructions whose memory operand has one size only, or none: what is written before the bracket says nothing.
_SIZE_IMPLIED = _words(
    "lea lgdt lidt sgdt sidt invlpg invept invvpid invpcid vmxon vmclear vmptrld vmptrst fxsave fxrstor fxsave64 "
    "fxrstor64 xsave xrstor xsave64 xrstor64 xsaveopt xsaveopt64 xsavec xsaves xrstors xsavec64 xsaves64 "
    "xrstors64 ldmxcsr stmxcsr cmpxchg8b cmpxchg16b clflush clflushopt clwb prefetcht0 prefetcht1 prefetcht2 "
    "prefetchnta prefetchw str sldt smsw lmsw ltr lldt verr verw fnstcw fldcw fnstsw fnstenv fldenv fnsave frstor "
    "monitor nop"
)
# Stack and branch operands are as wide as the mode unless written otherwise.
_MODE_SIZED = _words("push pop call jmp")
_SHIFTS = _words("shl shr sar rol ror rcl rcr")
# Instructions whose number is a byte whatever the other operand is: counts, bit offsets, ports, vectors.
_BYTE_NUMBERS = _SHIFTS | _words("shld shrd bt bts btr btc in out int")
_TWO_SIZES = _SHIFTS | _words("movzx movsx movsxd")
# What Capstone calls the sign extensions in 16-bit code, and what they are (SDM 2A, CBW and CWD).
_CAPSTONE_16 = {"cwde": "cbw", "cbw": "cwde", "cdq": "cwd", "cwd": "cdq"}
_STRING = re.compile(r"(?:movs|cmps|stos|lods|scas|ins|outs)[bwdq]$")
_BRANCH = re.compile(r"(?:j[a-z]+|call|loop(?:e|ne)?)$")
_COMMUTES = frozenset(("xchg", "test"))


@dataclass(frozen=True, slots=True)
class Decoded:
    """What is compared: the source text and Capstone's, where the code stands, and the mode."""

    source: str
    text: str
    address: int
    code: bytes
    bits: int


def difference(decoded: Decoded, symbols: Mapping[str, int]) -> str | None:
    """None when both say the same, else in words what differs. Pure."""
    try:
        theirs = read_instruction(decoded.text)
        if decoded.code[0] == _OPERAND_SIZE or decoded.code[1:2] == b"\x66":
            problem = _hidden_prefix(theirs, decoded)
            if problem is not None:
                return problem
        if " ".join(decoded.source.split()) == decoded.text and theirs.mnemonic not in _CAPSTONE_16:
            return None
        return _compare(read_instruction(decoded.source), theirs, decoded, symbols)
    except (OperandError, ExpressionError) as error:
        return str(error)


def canonical_mnemonic(mnemonic: str) -> str:
    """One spelling for each mnemonic that has several."""
    conditional = _CONDITIONAL.match(mnemonic)
    if conditional is not None:
        return conditional[1] + _CONDITIONS[conditional[2]]
    return _SPELLINGS.get(mnemonic, mnemonic)


def _hidden_prefix(theirs: Instruction, decoded: Decoded) -> str | None:
    """An operand-size prefix that Capstone's text does not show: PUSH FS with four bytes in 16-bit code, say."""
    position = 0
    while decoded.code[position] in _LEGACY_PREFIXES and decoded.code[position] != _OPERAND_SIZE:
        position += 1
    if decoded.code[position] != _OPERAND_SIZE:
        return None
    other = 32 if decoded.bits == 16 else 16
    sizes = {item.bits if isinstance(item, Register) else item.size for item in theirs.operands
             if not isinstance(item, Immediate) and not (isinstance(item, Register) and item.name in SEGMENTS)}
    name = canonical_mnemonic(theirs.mnemonic)
    name = _CAPSTONE_16.get(name, name) if decoded.bits == 16 else name
    wide = any(isinstance(item, Register) and item.name[1:3] == "mm" for item in theirs.operands)
    if other in sizes or wide or name in _PREFIX_IS_OPCODE or name in _PREFIX_SHOWN[other]:
        return None
    if decoded.bits == 16 and name[0] == "j":
        return None  # a near jump with 32-bit displacement: within 64 KiB it goes to the same place
    return "it has an operand-size prefix that the source line does not ask for"


def _compare(ours: Instruction, theirs: Instruction, decoded: Decoded, symbols: Mapping[str, int]) -> str | None:
    name, other = canonical_mnemonic(ours.mnemonic), canonical_mnemonic(theirs.mnemonic)
    if decoded.bits == 32:  # PUSHA and POPA are the 32-bit forms there
        name = {"pushaw": "pushad", "popaw": "popad"}.get(name, name)
        other = {"pushaw": "pushad", "popaw": "popad"}.get(other, other)
    if decoded.bits == 16:
        other = _CAPSTONE_16.get(other, other)
    far = not name.startswith("l") or other.startswith("l")
    if not far and isinstance(theirs.operands[0], Memory) and theirs.operands[0].size is None:
        other = "l" + other  # Capstone's way to write an indirect far jump or call: "jmp ptr [...]"
    if name != other:
        return f"the mnemonic is {theirs.mnemonic}"
    if _prefixes(ours) != _prefixes(theirs):
        return f"the prefixes are {' '.join(theirs.prefixes) or 'none'}"
    left, right = ours.operands, theirs.operands
    if not left and _STRING.match(name):
        return _string_operands(right, decoded.bits)
    if name == "imul" and len(left) == 2 and len(right) == 3 and right[0] == right[1] == left[0]:
        right = (right[0], right[2])  # imul r, imm is short for imul r, r, imm
    if name in _SHIFTS and len(right) == 1 and left[1:] == (Immediate("1"),):
        left = left[:1]  # Capstone leaves the 1 of RCL and RCR with memory out
    if len(left) != len(right):
        return f"there are {len(right)} operands"
    problem = _operands(name, left, right, decoded, symbols)
    if problem is not None and name in _COMMUTES and len(left) == 2:
        return _operands(name, left, (right[1], right[0]), decoded, symbols) and problem
    return problem


def _prefixes(instruction: Instruction) -> list[str]:
    compares = instruction.mnemonic[:4] in ("cmps", "scas")  # there REP and REPE are one prefix
    return ["repe" if compares and prefix == "rep" else _SPELLINGS.get(prefix, prefix)
            for prefix in instruction.prefixes]


def _operands(
    name: str, left: tuple[Operand, ...], right: tuple[Operand, ...], decoded: Decoded, symbols: Mapping[str, int]
) -> str | None:
    width = _operand_width(name, right, decoded.bits)
    for ours, theirs in zip(left, right, strict=True):
        problem: str | None
        if isinstance(ours, Register) and isinstance(theirs, Register):
            problem = None if _same_register(ours, theirs, right) else f"{ours.name} became {theirs.name}"
        elif isinstance(ours, Immediate) and isinstance(theirs, Immediate):
            problem = _same_number(ours.text, theirs.text, width, symbols)
            if problem is not None and _BRANCH.match(name):
                problem = f"the target is out of this form's reach: {problem}"
        elif isinstance(ours, Memory) and isinstance(theirs, Memory):
            problem = _same_memory(name, ours, theirs, left, decoded, symbols)
        else:
            problem = f"{_kind(ours)} became {_kind(theirs)}"
        if problem is not None:
            return problem
    return None


def _kind(operand: Operand) -> str:
    return {Register: "a register", Immediate: "a number", Memory: "memory"}[type(operand)]


def _operand_width(name: str, operands: tuple[Operand, ...], bits: int) -> int:
    """Bits at which an immediate counts: the first operand's; the mode's for stack and branches."""
    first = operands[0] if operands else None
    if name in _BYTE_NUMBERS:
        return 8
    if name == "push" or _BRANCH.match(name):
        return bits
    if isinstance(first, Register):
        return first.bits
    if isinstance(first, Memory) and first.size is not None:
        return first.size
    return 64


def _same_register(ours: Register, theirs: Register, all_theirs: tuple[Operand, ...]) -> bool:
    if ours.name == theirs.name or {ours.name, theirs.name} == {"st", "st(0)"}:
        return True
    # MOV to and from a segment register moves 16 bits whatever the width of the other register (SDM 2B, MOV).
    segment = any(isinstance(item, Register) and item.name in SEGMENTS for item in all_theirs)
    return segment and ours.name[-2:] == theirs.name[-2:] and ours.name not in SEGMENTS and min(ours.bits, 16) == 16


def _number(text: str, symbols: Mapping[str, int]) -> int:
    value = symbols.get(text)
    if value is not None:
        return value
    try:
        return int(text, 0)
    except ValueError:
        return evaluate(text, symbols)


def _same_number(ours: str, theirs: str, width: int, symbols: Mapping[str, int]) -> str | None:
    value, other = _number(ours, symbols), _number(theirs, symbols)
    if not -(1 << (width - 1)) <= value < 1 << width:
        return f"{ours} = {value:#x} does not fit in {width} bits"
    if (value - other) % (1 << width):
        return f"{ours} = {value:#x} became {other & ((1 << width) - 1):#x}"
    return None


def _same_memory(
    name: str, ours: Memory, theirs: Memory, left: tuple[Operand, ...], decoded: Decoded, symbols: Mapping[str, int]
) -> str | None:
    if ours.segment != theirs.segment:
        return f"the segment is {theirs.segment or 'the default'}"
    if name not in _SIZE_IMPLIED and not name.startswith("set") and ours.size != theirs.size:
        problem = _size_problem(name, ours, theirs, left, decoded.bits)
        if problem is not None:
            return problem
    if not _same_registers(ours, theirs, decoded.bits):
        return f"the address is made of {_parts(theirs)} instead of {_parts(ours)}"
    value = _number(ours.displacement, symbols) if ours.displacement else 0
    other = _number(theirs.displacement, symbols) if theirs.displacement else 0
    if ours.base in ("rip", "eip"):
        if not symbols_in(ours):
            return "a number beside rip is a displacement from the next instruction; name the place by a symbol"
        other += decoded.address + len(decoded.code)
    width = _address_width(ours, decoded.bits)
    if not -(1 << (width - 1)) <= value < 1 << width or (value - other) % (1 << width):
        return f"the displacement {value:#x} became {other:#x}"
    return None


def _size_problem(name: str, ours: Memory, theirs: Memory, left: tuple[Operand, ...], bits: int) -> str | None:
    if ours.size is not None:
        return f"the memory operand has {theirs.size} bits instead of {ours.size}"
    if name in _MODE_SIZED:
        return None if theirs.size == bits else f"the memory operand has {theirs.size} bits"
    known = {item.bits for item in left if isinstance(item, Register)}
    if name in _TWO_SIZES or (theirs.size not in known and not _segment_move(left)):
        return "the size of the memory operand must be written (byte ptr, word ptr, dword ptr, qword ptr)"
    return None


def _segment_move(left: tuple[Operand, ...]) -> bool:
    return any(isinstance(item, Register) and item.name in SEGMENTS for item in left)


def _same_registers(ours: Memory, theirs: Memory, bits: int) -> bool:
    if (ours.base, ours.index, ours.scale) == (theirs.base, theirs.index, theirs.scale):
        return True
    pairs = ({ours.base, ours.index}, {theirs.base, theirs.index})
    if pairs[0] != pairs[1] or ours.scale != 1 or theirs.scale != 1:
        return False
    # Which of two unscaled registers is the base matters only for the default segment: BP and SP choose SS.
    stack = {"ebp", "esp"} & {str(name) for name in pairs[0]}
    return bits == 64 or not stack or ours.segment is not None


def _parts(memory: Memory) -> str:
    index = f"{memory.index}*{memory.scale}" if memory.index else None
    return " + ".join(part for part in (memory.base, index) if part) or "no register"


def _address_width(memory: Memory, bits: int) -> int:
    register = memory.base or memory.index
    return bits if register is None else REGISTERS[register]


def _string_operands(operands: tuple[Operand, ...], bits: int) -> str | None:
    """String instructions are written without operands: the default registers of the mode, the default segments."""
    letter = {16: "", 32: "e", 64: "r"}[bits]
    for operand in operands:
        if not isinstance(operand, Memory):
            continue
        if operand.base not in (f"{letter}si", f"{letter}di") or operand.index or operand.displacement:
            return f"it addresses memory by {_parts(operand)}"
        default = (None, "es") if operand.base.endswith("di") else (None, "ds")
        if operand.segment not in default:
            return f"the segment is {operand.segment}"
    return None
