"""Segment descriptors, access rights in VMX form, gates and task-state segments.

SDM 3A 3.4.5 (segment descriptors), 3.5 (system descriptors), 6.11 and 6.14.1 (gates), 8.2.1 and 8.7 (TSS);
SDM 3C 25.4.1 [24.4.1] (access rights in the VMCS).

Access rights in VMX form are bits 55:40 of a descriptor with the limit's bits 19:16 (bits 11:8) as 0, plus bit 16
of their own: unusable.
"""

from __future__ import annotations

from typing import Final

# Access rights, SDM 3C table 25-2
AR_TYPE_MASK: Final = 0xF
AR_ACCESSED: Final = 1 << 0        # code and data
AR_WRITABLE: Final = 1 << 1        # data
AR_READABLE: Final = 1 << 1        # code
AR_EXPAND_DOWN: Final = 1 << 2     # data
AR_CONFORMING: Final = 1 << 2      # code
AR_CODE: Final = 1 << 3            # else data
AR_S: Final = 1 << 4               # code or data; 0 = system
AR_DPL_SHIFT: Final = 5
AR_DPL_MASK: Final = 3 << AR_DPL_SHIFT
AR_P: Final = 1 << 7               # present
AR_AVL: Final = 1 << 12            # for software
AR_L: Final = 1 << 13              # 64-bit code
AR_DB: Final = 1 << 14             # 32-bit operands, or 32-bit stack pointer
AR_G: Final = 1 << 15              # limit in units of 4 KiB
AR_UNUSABLE: Final = 1 << 16
AR_RESERVED: Final = 0xFFFE_0F00   # bits 31:17 and 11:8: 0 in a usable segment

# System-segment and gate types (SDM 3A 3.5, table 3-2)
TYPE_TSS16_AVAILABLE: Final = 1
TYPE_LDT: Final = 2
TYPE_TSS16_BUSY: Final = 3
TYPE_CALL_GATE16: Final = 4
TYPE_TASK_GATE: Final = 5
TYPE_INTERRUPT_GATE16: Final = 6
TYPE_TRAP_GATE16: Final = 7
TYPE_TSS_AVAILABLE: Final = 9      # 32-bit, or 64-bit in IA-32e mode
TYPE_TSS_BUSY: Final = 11
TYPE_CALL_GATE: Final = 12
TYPE_INTERRUPT_GATE: Final = 14
TYPE_TRAP_GATE: Final = 15

# Whole access rights that images use
AR_CODE64: Final = AR_P | AR_S | AR_CODE | AR_READABLE | AR_ACCESSED | AR_L | AR_G
AR_CODE32: Final = AR_P | AR_S | AR_CODE | AR_READABLE | AR_ACCESSED | AR_DB | AR_G
AR_CODE16: Final = AR_P | AR_S | AR_CODE | AR_READABLE | AR_ACCESSED
AR_DATA32: Final = AR_P | AR_S | AR_WRITABLE | AR_ACCESSED | AR_DB | AR_G
AR_DATA16: Final = AR_P | AR_S | AR_WRITABLE | AR_ACCESSED
AR_TSS_AVAILABLE: Final = AR_P | TYPE_TSS_AVAILABLE
AR_TSS_BUSY: Final = AR_P | TYPE_TSS_BUSY
AR_LDT: Final = AR_P | TYPE_LDT

# Selectors, SDM 3A 3.4.2
SELECTOR_RPL: Final = 3
SELECTOR_TI: Final = 1 << 2        # in the LDT

# 64-bit TSS, SDM 3A 8.7: offsets in bytes
TSS64_RSP = (4, 12, 20)                             # RSP0 to RSP2
TSS64_IST = (36, 44, 52, 60, 68, 76, 84)            # IST1 to IST7
TSS64_IO_MAP_BASE: Final = 102
TSS64_SIZE: Final = 104

# 32-bit TSS, SDM 3A 8.2.1: offsets in bytes
TSS32_ESP0: Final = 4
TSS32_SS0: Final = 8
TSS32_IO_MAP_BASE: Final = 102
TSS32_SIZE: Final = 104

# 16-bit TSS, SDM 3A 8.6: offsets in bytes
TSS16_SP0: Final = 2
TSS16_SS0: Final = 4


def effective_limit(limit: int, ar: int) -> int:
    """The offset of the last byte, from a descriptor's 20-bit limit field and its granularity."""
    return limit << 12 | 0xFFF if ar & AR_G else limit


def limit_field(limit: int, ar: int) -> int:
    """The 20-bit limit field for `limit` in bytes, as VMX holds it. ValueError if `ar` cannot express it."""
    if ar & AR_G:
        if limit & 0xFFF != 0xFFF:
            raise ValueError(f"limit {limit:#x} is not a multiple of 4 KiB less one, but G is 1")
        return limit >> 12
    if limit > 0xF_FFFF:
        raise ValueError(f"limit {limit:#x} needs G = 1")
    return limit


def descriptor(base: int, limit: int, ar: int) -> bytes:
    """An 8-byte segment descriptor; `limit` in bytes, `ar` in VMX form. ValueError for values out of range."""
    if not 0 <= base < 1 << 32:
        raise ValueError(f"base {base:#x} does not fit 32 bits: use descriptor64")
    if not 0 <= limit < 1 << 32:
        raise ValueError(f"limit {limit:#x} does not fit 32 bits")
    if ar & (AR_RESERVED | AR_UNUSABLE):
        raise ValueError(f"access rights {ar:#x} have bits that no descriptor has")
    field = limit_field(limit, ar)
    value = field & 0xFFFF | (base & 0xFF_FFFF) << 16 | ar << 40 | (field >> 16) << 48 | (base >> 24) << 56
    return value.to_bytes(8, "little")


def descriptor64(base: int, limit: int, ar: int) -> bytes:
    """A 16-byte system descriptor (TSS or LDT) of IA-32e mode (SDM 3A 8.2.3)."""
    if not 0 <= base < 1 << 64:
        raise ValueError(f"base {base:#x} does not fit 64 bits")
    return descriptor(base & 0xFFFF_FFFF, limit, ar) + (base >> 32).to_bytes(8, "little")


def unpack(data: bytes) -> tuple[int, int, int]:
    """(base, limit in bytes, access rights in VMX form) of the 8-byte descriptor `data`."""
    value = int.from_bytes(data[:8], "little")
    base = value >> 16 & 0xFF_FFFF | (value >> 56 & 0xFF) << 24
    ar = value >> 40 & 0xF0FF
    return base, effective_limit(value & 0xFFFF | (value >> 48 & 0xF) << 16, ar), ar


def gate(selector: int, offset: int, *, type_: int = TYPE_INTERRUPT_GATE, dpl: int = 0) -> bytes:
    """An 8-byte interrupt or trap gate of protected mode (SDM 3A 6.11)."""
    if not 0 <= offset < 1 << 32:
        raise ValueError(f"offset {offset:#x} does not fit 32 bits: use gate64")
    rights = 0x80 | dpl << 5 | type_
    value = offset & 0xFFFF | selector << 16 | rights << 40 | (offset >> 16) << 48
    return value.to_bytes(8, "little")


def gate64(selector: int, offset: int, *, ist: int = 0, type_: int = TYPE_INTERRUPT_GATE, dpl: int = 0) -> bytes:
    """A 16-byte interrupt or trap gate of IA-32e mode (SDM 3A 6.14.1); `ist` 0 to 7."""
    if not 0 <= ist <= 7:
        raise ValueError(f"IST {ist} is not 0 to 7")
    low = int.from_bytes(gate(selector, offset & 0xFFFF_FFFF, type_=type_, dpl=dpl), "little") | ist << 32
    return low.to_bytes(8, "little") + (offset >> 32).to_bytes(8, "little")


def tss64(rsp0: int = 0, ist: tuple[int, ...] = (), io_map_base: int = TSS64_SIZE) -> bytes:
    """A 64-bit TSS with RSP0 and IST1… set and no I/O map (SDM 3A 8.7)."""
    if len(ist) > len(TSS64_IST):
        raise ValueError(f"{len(ist)} IST entries; there are {len(TSS64_IST)}")
    data = bytearray(TSS64_SIZE)
    data[TSS64_RSP[0]:TSS64_RSP[0] + 8] = rsp0.to_bytes(8, "little")
    for offset, stack in zip(TSS64_IST, ist, strict=False):
        data[offset:offset + 8] = stack.to_bytes(8, "little")
    data[TSS64_IO_MAP_BASE:TSS64_IO_MAP_BASE + 2] = io_map_base.to_bytes(2, "little")
    return bytes(data)
