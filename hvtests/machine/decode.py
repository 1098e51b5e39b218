"""The little of instruction decoding that the intercepts leave to do: length, ModRM, operands of system instructions.

Only instructions of :data:`_ONE_BYTE`, :data:`_TWO_BYTE` and the 0F 38 map are known; anything else gives None.
Opcodes are numbers like 0xCD, 0x0F20, 0x0F3880. SDM 2A chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPNE, REP = 0x66, 0x67, 0xF0, 0xF2, 0xF3
_SEGMENTS = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
_PREFIXES = frozenset((OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPNE, REP, *_SEGMENTS))

# Opcode -> bytes of immediate; those with ModRM are in _MODRM.
_ONE_BYTE = {**dict.fromkeys((0xCD, 0xE4, 0xE5, 0xE6, 0xE7), 1),
             **dict.fromkeys((0x90, 0xCC, 0xCE, 0xCF, 0xF1, 0xF4, 0x6C, 0x6D, 0x6E, 0x6F, 0xEC, 0xED, 0xEE, 0xEF,
                              0x9C, 0x9D), 0)}
_TWO_BYTE = frozenset((0x00, 0x01, 0x05, 0x06, 0x07, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x34,
                       0x35, 0x37, 0x78, 0x79, 0xA2, 0xAA, 0xC7))
_MODRM = frozenset((0x00, 0x01, 0x20, 0x21, 0x22, 0x23, 0x78, 0x79, 0xC7))
_REGISTER_ONLY = frozenset((0x20, 0x21, 0x22, 0x23))  # MOV CR, MOV DR: mod is ignored
_BASES_16 = ((3, 6), (3, 7), (5, 6), (5, 7), (6, None), (7, None), (5, None), (3, None))


@dataclass(frozen=True, slots=True)
class MemoryOperand:
    """Registers by hardware number; `base` or `index` None if unused. `segment` is the one that applies."""

    base: int | None
    index: int | None
    scale: int          # 0..3: the index is shifted by it
    displacement: int   # sign-extended
    segment: int
    size: int           # address size in bits
    rip_relative: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction. `mod`, `reg`, `rm` are 0 without ModRM; reg and rm include REX bits."""

    opcode: int
    length: int
    prefixes: frozenset[int]
    operand_size: int   # bits: 16, 32 or 64 as prefixes and mode say
    address_size: int
    segment: int | None  # override
    mod: int = 0
    reg: int = 0
    rm: int = 0
    immediate: int = 0
    memory: MemoryOperand | None = None

    @property
    def modrm_byte(self) -> int:
        """The ModRM byte without REX's part."""
        return self.mod << 6 | (self.reg & 7) << 3 | self.rm & 7


@lru_cache(maxsize=4096)
def decode(code: bytes, bits: int) -> Instruction | None:
    """The instruction at the start of `code` for code of `bits` 16, 32 or 64; None if it is not one of those known,
    or if `code` is too short."""
    try:
        return _decode(code, bits)
    except IndexError:
        return None


def _decode(code: bytes, bits: int) -> Instruction | None:
    at, prefixes, segment, rex = 0, set[int](), None, 0
    while code[at] in _PREFIXES:
        prefixes.add(code[at])
        segment = _SEGMENTS.get(code[at], segment)
        at += 1
    if bits == 64 and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    size_prefix, address_prefix = OPERAND_SIZE in prefixes, ADDRESS_SIZE in prefixes
    if bits == 64:
        operand = 64 if rex & 8 else 16 if size_prefix else 32
        address = 32 if address_prefix else 64
        segment = segment if segment in (4, 5) else None
    else:
        operand = 48 - bits if size_prefix else bits
        address = 48 - bits if address_prefix else bits
    opcode = code[at]
    at += 1
    modrm, immediate = False, 0
    if opcode == 0x0F:
        opcode = code[at]
        at += 1
        if opcode == 0x38:
            opcode, modrm = 0x0F3800 | code[at], True
            at += 1
            if opcode not in (0x0F3880, 0x0F3881, 0x0F3882):
                return None
        elif opcode in (0x78, 0x79) and prefixes & {OPERAND_SIZE, REPNE, REP}:
            return None     # EXTRQ, INSERTQ
        elif opcode in _TWO_BYTE:
            modrm, opcode = opcode in _MODRM, 0x0F00 | opcode
        else:
            return None
    elif opcode in _ONE_BYTE:
        if _ONE_BYTE[opcode]:
            immediate = code[at]
            at += 1
    else:
        return None
    kept = frozenset(prefixes)
    if not modrm:
        return Instruction(opcode, at, kept, operand, address, segment, immediate=immediate)
    mod, reg, rm = code[at] >> 6, code[at] >> 3 & 7 | (rex & 4) << 1, code[at] & 7
    at += 1
    if mod == 3 or (opcode & 0xFF in _REGISTER_ONLY and opcode < 0x10000):
        return Instruction(opcode, at, kept, operand, address, segment, 3, reg, rm | (rex & 1) << 3)
    memory, at = _memory(code, at, mod, rm, rex, address, bits, segment)
    if at > len(code):
        return None
    return Instruction(opcode, at, kept, operand, address, segment, mod, reg, rm | (rex & 1) << 3, memory=memory)


def _memory(code: bytes, at: int, mod: int, rm: int, rex: int, size: int, bits: int,
            override: int | None) -> tuple[MemoryOperand, int]:
    base: int | None
    index: int | None
    scale, relative = 0, False
    if size == 16:
        base, index = _BASES_16[rm]
        width = (2 if rm == 6 else 0, 1, 2)[mod]
        if mod == 0 and rm == 6:
            base = None
        stack = base == 5
    else:
        base, index = rm | (rex & 1) << 3, None
        width = (0, 1, 4)[mod]
        if rm == 4:
            sib = code[at]
            at += 1
            scale = sib >> 6
            index = sib >> 3 & 7 | (rex & 2) << 2
            base = sib & 7 | (rex & 1) << 3
            if index == 4:
                index = None
            if sib & 7 == 5 and mod == 0:
                base, width = None, 4
        elif rm == 5 and mod == 0:
            base, width, relative = None, 4, bits == 64
        stack = base in (4, 5)
    displacement = int.from_bytes(code[at:at + width], "little", signed=True)
    if at + width > len(code):
        raise IndexError
    segment = override if override is not None else 2 if stack else 3
    return MemoryOperand(base, index, scale, displacement, segment, size, relative), at + width
