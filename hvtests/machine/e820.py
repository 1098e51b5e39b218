"""The memory map of a PC with a given amount of RAM, as its firmware tells it (INT 15h E820, multiboot's mmap)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

EBDA = 0x9FC00             # extended BIOS data area: the last KiB of conventional memory
CONVENTIONAL_END = 0xA0000
ROM = 0xF0000
EXTENDED = 0x100000
PCI_HOLE = 0xC000_0000     # RAM ends here at the latest; above are devices
FIRMWARE_TABLES = 0x20000  # firmware keeps the top of RAM for its own tables
FLASH = 0xFFFC_0000
FOUR_GIB = 0x1_0000_0000
MINIMUM_RAM = 2 << 20


class RegionType(IntEnum):
    """Type of a range (ACPI 6.4, table 15.4)."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class Region:
    """A range of physical addresses, ``base`` .. ``base + length - 1``."""

    base: int
    length: int
    type: RegionType


def memory_map(ram: int) -> tuple[Region, ...]:
    """Regions in ascending order for ``ram`` bytes of RAM (2 MiB at least, whole pages).

    The gap at A0000h (VGA, option ROMs) and the one above RAM are in no region, as on real machines.
    RAM above 3 GiB is not told: the harness' machine does not move it above 4 GiB.
    """
    if ram < MINIMUM_RAM or ram % 0x1000:
        raise ValueError(f"{ram} bytes of RAM: expected at least 2 MiB in whole pages")
    top = min(ram, PCI_HOLE)
    spans = (
        (0,                     EBDA,                  RegionType.RAM),
        (EBDA,                  CONVENTIONAL_END,      RegionType.RESERVED),
        (ROM,                   EXTENDED,              RegionType.RESERVED),
        (EXTENDED,              top - FIRMWARE_TABLES, RegionType.RAM),
        (top - FIRMWARE_TABLES, top,                   RegionType.RESERVED),
        (FLASH,                 FOUR_GIB,              RegionType.RESERVED),
    )  # fmt: skip
    return tuple(Region(begin, end - begin, kind) for begin, end, kind in spans)
