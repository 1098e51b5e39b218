"""Template globals that return bytes Python encoded: the forms the assembler cannot be trusted with.

Each returns one or more lines of data directives; those are emitted as they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GPR64 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


def bytes_(data: bytes) -> str:
    """``.byte`` lines of at most 16 bytes; an empty string for no bytes."""
    rows = (data[i : i + 16] for i in range(0, len(data), 16))
    return "\n".join(".byte " + ",".join(f"0x{byte:02x}" for byte in row) for row in rows)


def far_jump16(selector: int | str, target: int | str) -> str:
    """JMP ptr16:16 for 16-bit code."""
    return f".byte 0xea\n.word {target}\n.word {selector}"


def far_jump32(selector: int | str, target: int | str, bits: int = 32) -> str:
    """JMP ptr16:32; with ``bits=16`` for 16-bit code (operand-size prefix), as when entering protected mode."""
    return f".byte {'0x66,' if bits == 16 else ''}0xea\n.long {target}\n.word {selector}"


def _table_load(extension: int, address: int | str, bits: int) -> str:
    mnemonic = {2: "lgdt", 3: "lidt"}[extension]
    if bits == 64:
        return f"{mnemonic} [{address}]" if str(address) in GPR64 else f"{mnemonic} [rip + {address}]"
    if bits == 32:
        return f".byte 0x0f,0x01,0x{extension << 3 | 5:02x}\n.long {address}"
    # The prefix loads all 32 bits of the base; without it the CPU takes 24 (SDM 2A, LGDT/LIDT).
    return f".byte 0x66,0x0f,0x01,0x{extension << 3 | 6:02x}\n.word {address}"


def lgdt(address: int | str, bits: int) -> str:
    """LGDT from an absolute address (16- and 32-bit code); in 64-bit code a register or ``[rip + symbol]``."""
    return _table_load(2, address, bits)


def lidt(address: int | str, bits: int) -> str:
    """LIDT; the same forms as :func:`lgdt`."""
    return _table_load(3, address, bits)


def call16(target: str) -> str:
    """CALL rel16 for 16-bit code (Keystone makes the 32-bit form, which pushes four bytes)."""
    return f".byte 0xe8\n.word {target} - . - 2"


def ret16(bytes_to_drop: int = 0) -> str:
    """Near RET with a 16-bit return address."""
    return ".byte 0xc3" if not bytes_to_drop else f".byte 0xc2\n.word {bytes_to_drop}"


def retf16() -> str:
    """Far RET with a 16-bit offset."""
    return ".byte 0xcb"


def push16(value: int) -> str:
    """PUSH imm16 in 16-bit code."""
    return f".byte 0x68\n.word {value}"


def _gs(opcode: int, register: str, displacement: int) -> str:
    # ModRM r/m=100 with SIB base=101, index=100 is [disp32] without RIP (SDM 2A 2.2.1.6).
    if register not in GPR64:
        raise ValueError(f"{register!r} is not a 64-bit general register")
    number = GPR64.index(register)
    code = bytes((0x65, 0x48 | number >> 3 << 2, opcode, (number & 7) << 3 | 4, 0x25))
    return bytes_(code + displacement.to_bytes(4, "little", signed=displacement < 0))


def gs_load(register: str, displacement: int) -> str:
    """``mov register, gs:[displacement]`` with a 64-bit register and an absolute displacement."""
    return _gs(0x8B, register, displacement)


def gs_store(displacement: int, register: str) -> str:
    """``mov gs:[displacement], register``."""
    return _gs(0x89, register, displacement)


HELPERS: dict[str, Callable[..., Any]] = {
    "bytes_": bytes_, "far_jump16": far_jump16, "far_jump32": far_jump32, "lgdt": lgdt, "lidt": lidt,
    "call16": call16, "ret16": ret16, "retf16": retf16, "push16": push16, "gs_load": gs_load, "gs_store": gs_store,
}
