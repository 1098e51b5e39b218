"""What the engine has spoilt when an access to memory ends an instruction: status flags, and the kind of the access.

The engine brings the name of the operation that the flags come from (cc_op) back to what it was when the instruction
began, but not its operands: SETcc, RCL and RCR have replaced them by the flags themselves before the access. And it
makes a read-modify-write as a read and then a write, where the architecture asks for both rights at once (SDM 3A 4.6).
"""

from __future__ import annotations

from hvtests.machine import layout as L
from hvtests.machine.cpu import Cpu
from hvtests.machine.fabric import Fabric
from hvtests.machine.native import BOX_BLOCK

ACCESS_LOAD, ACCESS_STORE, ACCESS_FETCH = 0, 1, 2
LOCK = 0xF0
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, LOCK, 0xF2, 0xF3))
_SHIFTS = frozenset((0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3))
# Conditions that the engine computes from something else than all flags: B, AE always; Z, NZ, S, NS if it knows cc_op,
# BE, A, L, GE, LE, G if it knows that a CMP or SUB came before.
_CARRY = frozenset((2, 3))
_ZERO_AND_SIGN = frozenset((4, 5, 8, 9))
_RELATIONS = frozenset((6, 7, 12, 13, 14, 15))
_SUBTRACTIONS = range(14, 18)       # cc_op of CMP and SUB by operand size

# Opcode -> values of ModRM.reg with which it reads and writes its memory operand; two-byte opcodes from 0F00H.
_ANY = frozenset(range(8))
READ_MODIFY_WRITE: dict[int, frozenset[int]] = {
    **dict.fromkeys((base + width for base in range(0, 0x38, 8) for width in (0, 1)), _ANY),
    **dict.fromkeys((0x80, 0x81, 0x83), _ANY - {7}),
    **dict.fromkeys((0x82,), _ANY - {7}),
    **dict.fromkeys((0x86, 0x87), _ANY),
    **dict.fromkeys(_SHIFTS, _ANY),
    **dict.fromkeys((0xF6, 0xF7), frozenset((2, 3))),
    **dict.fromkeys((0xFE, 0xFF), frozenset((0, 1))),
    **dict.fromkeys((0x0FA4, 0x0FA5, 0x0FAB, 0x0FAC, 0x0FAD, 0x0FB0, 0x0FB1, 0x0FB3, 0x0FBB, 0x0FC0, 0x0FC1), _ANY),
    0x0FBA: frozenset((5, 6, 7)),
    0x0FC7: frozenset((1,)),
}


def opcode_of(code: bytes, bits: int) -> tuple[int, int] | None:
    """Opcode (0F00H + its second byte for two-byte ones) and ModRM byte of the instruction that `code` begins with,
    whether it has the latter or not; None if `code` is too short."""
    at = next((at for at, byte in enumerate(code) if byte not in _PREFIXES), len(code))
    if bits == 64 and code[at:at + 1] and code[at] & 0xF0 == 0x40:
        at += 1
    two = code[at:at + 1] == b"\x0f"
    at += two
    if at + 1 >= len(code):
        return None
    return (0x0F00 if two else 0) | code[at], code[at + 1]


def reads_and_writes(code: bytes, bits: int) -> bool:
    """Whether the instruction that `code` begins with reads its memory operand and then writes it."""
    found = opcode_of(code, bits)
    if found is None:
        return False
    opcode, modrm = found
    return modrm >> 6 != 3 and modrm >> 3 & 7 in READ_MODIFY_WRITE.get(opcode, ())


def keep_flags(cpu: Cpu, fabric: Fabric) -> None:
    """A load or store of the instruction at RIP did not come about: bring back the status flags that it began with.

    Not possible, and not tried: the store of RCL and RCR, whose load has succeeded.
    """
    if fabric.fault_access == ACCESS_FETCH or fabric.i[L.I_CC_OP] == L.CC_OP_EFLAGS:
        return
    found = opcode_of(cpu.code(), cpu.code_bits)
    if found is not None and _flags_computed(*found, fabric.i[L.I_CC_OP], fabric.box[BOX_BLOCK] == cpu.code_linear):
        fabric.i[L.I_CC_OP] = L.CC_OP_EFLAGS
        fabric.q[L.Q_CC_SRC] &= L.STATUS_FLAGS
    else:
        # The instruction starts a block of its own now, for which the engine knows no cc_op.
        fabric.whole_flags()


def _flags_computed(opcode: int, modrm: int, operation: int, first: bool) -> bool:
    """Whether the engine has put the status flags in place of their operands. `first`: the instruction begins a block
    of code, so that the engine did not know cc_op when it translated it."""
    if opcode in _SHIFTS:
        return modrm >> 3 & 7 in (2, 3)
    if opcode & ~0xF != 0x0F90:
        return False
    condition = opcode & 0xF
    if condition in _CARRY:
        return False
    if condition in _ZERO_AND_SIGN:
        return first
    if condition in _RELATIONS:
        return first or operation not in _SUBTRACTIONS
    return True


def load_of_a_write(cpu: Cpu, fabric: Fabric) -> bool:
    """Whether the access that did not come about is the load of a read-modify-write: it needs the right to write."""
    return fabric.fault_access == ACCESS_LOAD and reads_and_writes(cpu.code(), cpu.code_bits)
