"""Linear addresses to physical ones: the page walk of SDM 3A chapter 4, for accesses that the model itself makes."""

from __future__ import annotations

from dataclasses import dataclass

from hvtests.machine.memory import PhysicalMemory

P, RW, US, A, D, PS, NX = 1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
# Bits of a page fault's error code, SDM 3A 4.7
PRESENT, WRITE, USER, RESERVED, FETCH = 1, 2, 4, 8, 16


class AccessFault(Exception):
    """An access that memory management refuses: a page fault, or what a guest's memory raises in its place."""


class PageFault(AccessFault):
    """#PF: the linear address (for CR2) and the error code."""

    def __init__(self, linear: int, error_code: int) -> None:
        super().__init__(f"page fault at {linear:#x}, error code {error_code:#x}")
        self.linear = linear
        self.error_code = error_code


@dataclass(frozen=True, slots=True)
class Regime:
    """The registers that say how linear addresses are translated."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    physical_bits: int = 40
    alignment_check: bool = False  # RFLAGS.AC: with CR4.SMAP, lets supervisor code touch user pages

    @property
    def paging(self) -> bool:
        return bool(self.cr0 >> 31 & 1)

    @property
    def long(self) -> bool:
        return bool(self.efer >> 10 & 1)

    @property
    def pae(self) -> bool:
        return bool(self.cr4 >> 5 & 1)


def walk(regime: Regime, memory: PhysicalMemory, linear: int, *, write: bool = False, fetch: bool = False,
         user: bool = False) -> int:
    """The physical address of `linear`; sets accessed and dirty bits. Raises PageFault; `memory` may raise its own."""
    if not regime.paging:
        return linear & (0xFFFF_FFFF if not regime.long else (1 << 64) - 1)
    execute_disable = regime.efer >> 11 & 1
    kind = (WRITE if write else 0) | (USER if user else 0)
    if fetch and ((execute_disable and regime.pae) or regime.cr4 >> 20 & 1):
        kind |= FETCH
    if regime.pae:
        rights, leaf_at, leaf, base, size = _walk_pae(regime, memory, linear, kind)
    else:
        rights, leaf_at, leaf, base, size = _walk_32(regime, memory, linear, kind)
    if not _allowed(regime, rights, write, fetch, user):
        raise PageFault(linear, kind | PRESENT)
    marks = A | (D if write else 0)
    if leaf & marks != marks:
        if regime.pae:
            memory.set_u64(leaf_at, leaf | marks)
        else:
            memory.set_u32(leaf_at, leaf | marks)
    return base | linear & (size - 1)


def _allowed(regime: Regime, rights: int, write: bool, fetch: bool, user: bool) -> bool:
    """SDM 3A 4.6. `rights` holds the RW, US and NX bits of the whole walk together."""
    if fetch:
        if rights & NX or (user and not rights & US):
            return False
        return user or not (rights & US and regime.cr4 >> 20 & 1)          # SMEP
    if user:
        return bool(rights & US) and (not write or bool(rights & RW))
    if rights & US and regime.cr4 >> 21 & 1 and not regime.alignment_check:  # SMAP
        return False
    return not write or bool(rights & RW) or not regime.cr0 >> 16 & 1       # WP


Leaf = tuple[int, int, int, int, int]  # rights of the walk, address of the entry, the entry, page's base, its size


def _walk_pae(regime: Regime, memory: PhysicalMemory, linear: int, kind: int) -> Leaf:
    reserved = ADDRESS & ~((1 << regime.physical_bits) - 1)
    if not regime.efer >> 11 & 1:
        reserved |= NX
    rights = RW | US
    levels: tuple[int, ...] = (39, 30, 21, 12)
    if regime.long:
        table = regime.cr3 & ADDRESS
    else:
        linear &= 0xFFFF_FFFF
        pointer = memory.u64((regime.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8)
        if not pointer & P:
            raise PageFault(linear, kind)
        table, levels = pointer & ADDRESS, (21, 12)
        reserved |= 0x7FF << 52
    for shift in levels:
        at = table + (linear >> shift & 511) * 8
        entry = memory.u64(at)
        if not entry & P:
            raise PageFault(linear, kind)
        large = bool(entry & PS) and shift in (30, 21)
        bad = entry & reserved
        if shift == 39:
            bad |= entry & PS
        if large:
            bad |= entry & ((1 << shift) - 1) & ~0x1FFF
        if bad:
            raise PageFault(linear, kind | PRESENT | RESERVED)
        rights &= entry | NX
        rights |= entry & NX
        if large or shift == 12:
            return rights, at, entry, entry & ADDRESS & -(1 << shift), 1 << shift
        if not entry & A:
            memory.set_u64(at, entry | A)
        table = entry & ADDRESS
    raise AssertionError("a walk ends at its last level")


def _walk_32(regime: Regime, memory: PhysicalMemory, linear: int, kind: int) -> Leaf:
    linear &= 0xFFFF_FFFF
    at = (regime.cr3 & 0xFFFF_F000) + (linear >> 22) * 4
    entry = memory.u32(at)
    if not entry & P:
        raise PageFault(linear, kind)
    rights = entry & (RW | US)
    if entry & PS and regime.cr4 >> 4 & 1:
        if entry & 0x0020_0000:
            raise PageFault(linear, kind | PRESENT | RESERVED)
        # PSE-36: bits 20:13 are address bits 39:32 (SDM 3A 4.3)
        return rights, at, entry, entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19, 1 << 22
    if not entry & A:
        memory.set_u32(at, entry | A)
    at = (entry & 0xFFFF_F000) + (linear >> 12 & 1023) * 4
    entry = memory.u32(at)
    if not entry & P:
        raise PageFault(linear, kind)
    return rights & entry, at, entry, entry & 0xFFFF_F000, 1 << 12
