"""What Python computes so that assembly need not: page tables, EPT, bitmaps, GDT, IDT, TSS.

Each function returns bytes for one blob of the layout. Sizes in bytes, addresses host-physical unless named gpa.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from generator.arch import descriptors as d
from generator.arch import msrs, paging
from generator.layout import GIB, LARGE_PAGE, PAGE, Kind, Region

# Selectors of the host's GDT and of the loader's.
CODE64, DATA64, TSS64 = 0x08, 0x10, 0x18
LOADER_CODE32, LOADER_DATA32, LOADER_CODE16, LOADER_DATA16 = 0x08, 0x10, 0x18, 0x20

_CODE = d.AR_P | d.AR_S | d.AR_CODE | d.AR_READABLE | d.AR_ACCESSED
_DATA = d.AR_P | d.AR_S | d.AR_WRITABLE | d.AR_ACCESSED
AR_CODE64 = _CODE | d.AR_L | d.AR_G
AR_CODE32 = _CODE | d.AR_DB | d.AR_G
AR_DATA32 = _DATA | d.AR_DB | d.AR_G
AR_CODE16, AR_DATA16 = _CODE, _DATA
FLAT = 0xFFFF_FFFF

VECTORS_ON_IST = (8, 2, 18)  # #DF, NMI, #MC have a stack each (IST1 to 3): theirs, whatever they interrupt

# MSRs that a guest reads and writes without an exit: they are in the VMCS or exchanged with the vCPU.
GUEST_MSRS = (
    "IA32_FS_BASE", "IA32_GS_BASE", "IA32_KERNEL_GS_BASE", "IA32_STAR", "IA32_LSTAR", "IA32_CSTAR", "IA32_FMASK",
    "IA32_SYSENTER_CS", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP", "IA32_PAT", "IA32_TSC_AUX",
)


def loader_descriptor(ar: int) -> int:
    """A flat descriptor of the loader as a number: 4 GiB with G, 64 KiB without."""
    return int.from_bytes(d.descriptor(0, FLAT if ar & d.AR_G else 0xFFFF, ar), "little")


def gdt(tss: int) -> bytes:
    """The host's GDT: null, 64-bit code, data, TSS at address ``tss``."""
    return (
        bytes(8)
        + d.descriptor(0, FLAT, AR_CODE64)
        + d.descriptor(0, FLAT, AR_DATA32)
        + d.descriptor64(tss, d.TSS64_SIZE - 1, d.AR_TSS_AVAILABLE)
    )


def table_register(limit: int, base: int) -> bytes:
    """The ten bytes that LGDT and LIDT take in 64-bit mode."""
    return struct.pack("<HQ", limit, base)


def idt(stubs: int, interrupt: int) -> bytes:
    """256 interrupt gates: vectors 0 to 31 lead to ``stubs + 16 * vector``, the others to ``interrupt``."""
    return b"".join(
        d.gate64(CODE64, stubs + 16 * vector if vector < 32 else interrupt,
                 ist=VECTORS_ON_IST.index(vector) + 1 if vector in VECTORS_ON_IST else 0)
        for vector in range(256)
    )


def host_page_tables(at: int, directories: int, regions: Sequence[Region]) -> bytes:
    """PML4, PDPT, ``directories`` page directories and one page table, one after another from address ``at``.

    The page table maps the core's first 2 MiB in 4 KiB pages by kind (W^X, guard pages absent); the VMs' memory is
    mapped in 2 MiB pages, writable and never executable. Nothing else is mapped: a stray pointer faults.
    """
    pml4, pdpt = bytearray(PAGE), bytearray(PAGE)
    tables = [bytearray(PAGE) for _ in range(directories)]
    page_table = bytearray(PAGE)
    table = paging.PTE_P | paging.PTE_RW
    _put(pml4, 0, at + PAGE | table)
    for number in range(directories):
        _put(pdpt, number, at + (2 + number) * PAGE | table)
    _put(tables[0], 0, at + (2 + directories) * PAGE | table)
    used = paging.PTE_P | paging.PTE_A | paging.PTE_D
    flags = {
        Kind.TEXT: used,
        Kind.RODATA: used | paging.PTE_XD,
        Kind.TABLES: used | paging.PTE_XD,
        Kind.DATA: used | paging.PTE_XD | paging.PTE_RW,
        Kind.BSS: used | paging.PTE_XD | paging.PTE_RW,
        Kind.GUARD: 0,
    }
    for region in regions:
        if region.kind is Kind.GUEST:
            for page in range(region.start, region.end, LARGE_PAGE):
                entry = page | used | paging.PTE_RW | paging.PTE_PS | paging.PTE_XD
                _put(tables[page // GIB], page % GIB // LARGE_PAGE, entry)
        else:
            for page in range(region.start, region.end, PAGE):
                entry = page | flags[region.kind] if flags[region.kind] else 0
                _put(page_table, page % LARGE_PAGE // PAGE, entry)
    return bytes(pml4 + pdpt + b"".join(tables) + page_table)


def ept_tables(at: int, base: int, size: int) -> bytes:
    """EPT PML4, PDPT and PD from address ``at``: gpa 0 to ``size`` (at most 1 GiB) is host memory from ``base``.

    2 MiB pages, write-back, all rights; the guest has nothing else.
    """
    pml4, pdpt, directory = bytearray(PAGE), bytearray(PAGE), bytearray(PAGE)
    _put(pml4, 0, at + PAGE | paging.EPT_RWX)
    _put(pdpt, 0, at + 2 * PAGE | paging.EPT_RWX)
    leaf = paging.EPT_RWX | paging.MEMTYPE_WB << paging.EPT_MEMTYPE_SHIFT | paging.EPT_PS
    for offset in range(0, size, LARGE_PAGE):
        _put(directory, offset // LARGE_PAGE, base + offset | leaf)
    return bytes(pml4 + pdpt + directory)


def guest_page_tables(at: int) -> bytes:
    """The tables with which a guest starts in long mode: the first GiB one to one in 2 MiB pages; ``at`` is a gpa."""
    pml4, pdpt, directory = bytearray(PAGE), bytearray(PAGE), bytearray(PAGE)
    table = paging.PTE_P | paging.PTE_RW | paging.PTE_US
    _put(pml4, 0, at + PAGE | table)
    _put(pdpt, 0, at + 2 * PAGE | table)
    for number in range(paging.ENTRIES):
        _put(directory, number, number * LARGE_PAGE | table | paging.PTE_PS)
    return bytes(pml4 + pdpt + directory)


def msr_bitmap(passed: Iterable[str]) -> bytes:
    """The MSR bitmap (SDM 3C 25.6.9): reads low, reads high, writes low, writes high; 1 = exit."""
    bitmap = bytearray(b"\xff" * PAGE)
    for name in passed:
        address = msrs.BY_NAME[name].address
        part = 0 if address in msrs.BITMAP_LOW else 1024
        for half in (0, 2048):
            bitmap[half + part + (address & 0x1FFF) // 8] &= ~(1 << address % 8) & 0xFF
    return bytes(bitmap)


def io_bitmaps() -> bytes:
    """I/O bitmaps A and B (SDM 3C 25.6.4): every port exits, for a VM owns none of the machine's."""
    return b"\xff" * 2 * PAGE


def _put(table: bytearray, index: int, entry: int) -> None:
    struct.pack_into("<Q", table, 8 * index, entry)
