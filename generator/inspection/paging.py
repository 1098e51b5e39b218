"""Page tables, EPT and bitmaps, read back from memory into ranges that a person can read.

SDM 3A 4.5 (4-level paging), SDM 3C 29.3 [28.3] (EPT), 25.6.4 (I/O bitmaps), 25.6.9 (MSR bitmaps).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from generator.arch import msrs, paging

Read = Callable[[int, int], bytes]
_ENTRY_SIZE = 8
_TYPES = {
    paging.MEMTYPE_UC: "UC", paging.MEMTYPE_WC: "WC", paging.MEMTYPE_WT: "WT", paging.MEMTYPE_WP: "WP",
    paging.MEMTYPE_WB: "WB",
}


@dataclass(frozen=True, slots=True)
class MappedRange:
    """Addresses ``start`` up to, not including, ``end`` lead to ``target`` and on, alike in everything else.

    ``rights`` is like ``rw-``; ``page`` the size of the pages in bytes; ``notes`` what else the entries say.
    """

    start: int
    end: int
    target: int
    rights: str
    page: int
    notes: str = ""


@dataclass(frozen=True, slots=True)
class _Leaf:
    address: int
    target: int
    rights: str
    page: int
    notes: str


def page_ranges(read: Read, root: int) -> list[MappedRange]:
    """What the 4-level tables from ``root`` map. A right counts only if every level gives it (SDM 3A 4.6)."""
    def walk(table: int, level: int, base: int, above: int) -> Iterator[_Leaf]:
        for number, entry in _entries(read, table):
            if not entry & paging.PTE_P:
                continue
            address = _canonical(base | number << 12 + 9 * (level - 1))
            # XD forbids, the others allow: turned over, one AND joins the levels.
            rights = above & (entry ^ paging.PTE_XD) & (paging.PTE_RW | paging.PTE_US | paging.PTE_XD)
            if level == 1 or (level < 4 and entry & paging.PTE_PS):
                page = 1 << 12 + 9 * (level - 1)
                words = "".join(("r", "w" if rights & paging.PTE_RW else "-", "x" if rights & paging.PTE_XD else "-"))
                notes = ["user"] if rights & paging.PTE_US else []
                notes += ["reserved bits set"] if level > 1 and entry & (page - 1) & ~0x1FFF else []
                yield _Leaf(address, entry & paging.PTE_ADDRESS & ~(page - 1), words, page, " ".join(notes))
            else:
                yield from walk(entry & paging.PTE_ADDRESS, level - 1, address, rights)

    return _merge(walk(root, 4, 0, paging.PTE_RW | paging.PTE_US | paging.PTE_XD))


def ept_ranges(read: Read, pointer: int) -> list[MappedRange]:
    """What the EPT that ``pointer`` (an EPTP) leads to maps; entries that would misconfigure are marked."""
    def walk(table: int, level: int, base: int, above: int) -> Iterator[_Leaf]:
        for number, entry in _entries(read, table):
            if not entry & paging.EPT_RWX:
                continue
            address = base | number << 12 + 9 * (level - 1)
            rights = above & entry & paging.EPT_RWX
            if level == 1 or (level < 4 and entry & paging.EPT_PS):
                page = 1 << 12 + 9 * (level - 1)
                words = "".join(letter if rights & bit else "-" for letter, bit in
                                (("r", paging.EPT_R), ("w", paging.EPT_W), ("x", paging.EPT_X)))
                notes = [_TYPES.get(entry >> paging.EPT_MEMTYPE_SHIFT & 7, "reserved memory type")]
                notes += ["ignores PAT"] if entry & paging.EPT_IGNORE_PAT else []
                wrong = entry & paging.EPT_RWX in (paging.EPT_W, paging.EPT_W | paging.EPT_X)
                wrong = wrong or notes[0] not in _TYPES.values() or bool(entry & (page - 1) & ~0xFFF)
                notes += ["MISCONFIGURED"] if wrong else []
                yield _Leaf(address, entry & paging.EPT_ADDRESS & ~(page - 1), words, page, " ".join(notes))
            else:
                yield from walk(entry & paging.EPT_ADDRESS, level - 1, address, rights)

    levels = (pointer >> paging.EPTP_WALK_SHIFT & 7) + 1
    return _merge(walk(pointer & paging.EPTP_ADDRESS, levels, 0, paging.EPT_RWX))


def _entries(read: Read, table: int) -> Iterator[tuple[int, int]]:
    yield from enumerate(struct.unpack(f"<{paging.ENTRIES}Q", read(table, paging.ENTRIES * _ENTRY_SIZE)))


def _canonical(address: int) -> int:
    return address | 0xFFFF_0000_0000_0000 if address >> 47 & 1 else address


def _merge(leaves: Iterator[_Leaf]) -> list[MappedRange]:
    """Neighbours that differ in nothing but their place become one range."""
    ranges: list[MappedRange] = []
    for leaf in leaves:
        end = leaf.address + leaf.page
        if ranges:
            last = ranges[-1]
            follows = last.end == leaf.address and last.target + (last.end - last.start) == leaf.target
            if follows and (last.rights, last.page, last.notes) == (leaf.rights, leaf.page, leaf.notes):
                ranges[-1] = MappedRange(last.start, end, last.target, last.rights, last.page, last.notes)
                continue
        ranges.append(MappedRange(leaf.address, end, leaf.target, leaf.rights, leaf.page, leaf.notes))
    return ranges


def translate(ranges: list[MappedRange], address: int) -> int | None:
    """Where ``address`` leads by ``ranges``; None if nowhere."""
    for item in ranges:
        if item.start <= address < item.end:
            return item.target + address - item.start
    return None


def ports_without_exit(bitmap_a: bytes, bitmap_b: bytes) -> list[tuple[int, int]]:
    """(first, last) port of every range whose bit is 0."""
    return _zero_ranges(bitmap_a + bitmap_b, 0)


def msrs_without_exit(bitmap: bytes) -> list[tuple[str, str]]:
    """(MSR or range of MSRs, ``r``, ``w`` or ``rw``) of those whose bits are 0, in the order of addresses."""
    parts = (("r", 0, msrs.BITMAP_LOW.start), ("r", 1024, msrs.BITMAP_HIGH.start),
             ("w", 2048, msrs.BITMAP_LOW.start), ("w", 3072, msrs.BITMAP_HIGH.start))
    passed: dict[int, str] = {}
    for letter, at, base in parts:
        for first, last in _zero_ranges(bitmap[at:at + 1024], base):
            for address in range(first, last + 1):
                passed[address] = passed.get(address, "") + letter
    runs: list[tuple[int, int, str]] = []
    for address, letters in sorted(passed.items()):
        if runs and runs[-1][1] + 1 == address and runs[-1][2] == letters:
            runs[-1] = runs[-1][0], address, letters
        else:
            runs.append((address, address, letters))
    return list(_msr_names(runs))


def _msr_names(runs: list[tuple[int, int, str]]) -> Iterator[tuple[str, str]]:
    """One row per MSR that has a name, one per run of those that have none."""
    for first, last, letters in runs:
        start = first
        for address in [address for address in sorted(msrs.BY_ADDRESS) if first <= address <= last]:
            if start < address:
                yield _span(start, address - 1), letters
            yield f"{msrs.BY_ADDRESS[address].name} ({address:#x})", letters
            start = address + 1
        if start <= last:
            yield _span(start, last), letters


def _span(first: int, last: int) -> str:
    return f"{first:#x}" if first == last else f"{first:#x} to {last:#x}"


def _zero_ranges(bitmap: bytes, base: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index, byte in enumerate(bitmap):
        if byte == 0xFF:
            continue
        for bit in range(8):
            if not byte >> bit & 1:
                number = base + 8 * index + bit
                if ranges and ranges[-1][1] + 1 == number:
                    ranges[-1] = ranges[-1][0], number
                else:
                    ranges.append((number, number))
    return ranges
