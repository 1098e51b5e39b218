"""ImageSpec -> the physical memory map. Everything is placed one after another, so overlaps cannot happen.

From 1 MiB up: code, read-only data, data, tables that Python computes, then what is only zero (bss, with the stacks
and their guard pages); from 2 MiB up the VMs' memory, in the order of image.toml. All addresses are host-physical,
and the host maps them one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from generator.errors import LayoutError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE, LARGE_PAGE = 4 * KIB, 2 * MIB

# The loader: real-mode memory below 640 KiB. The BIOS' own data end at 0x600 and its stack is near 0xf76a.
LOADER_INFO = 0x600
LOADER_MMAP = 0x680
LOADER_MMAP_END = LOADER_MMAP + 64 * 24
LOADER = 0x7C00
LOADER16 = 0x7E00
LOADER32 = 0x8000
LOADER_TABLE = 0x8600
LOADER_END = 0xAC00                # the BIOS loads at most this much of it from a CD
LOADER_BUFFER = 0x10000
LOADER_BUFFER_SIZE = 32 * KIB      # 64 sectors of 512 bytes, 16 of 2048: within one 64 KiB segment

CORE = 1 * MIB                     # where multiboot loaders put kernels
ENTRY32_SIZE = 1 * KIB             # the multiboot header and entry32
TEXT_SIZE = 24 * KIB               # window for all code; what is not used of it is zero
CORE_END = 2 * MIB                 # the core fits below this; the VMs' memory begins here at the earliest
STACK_SIZE = 8 * KIB
IST_STACK_SIZE = 4 * KIB
MEMORY_END = 3 * GIB               # above are PCI's memory windows on every PC


class Kind(StrEnum):
    """What a region holds; it decides how the host maps it."""

    TEXT = "text"      # read, execute
    RODATA = "rodata"  # read
    DATA = "data"      # read, write
    TABLES = "tables"  # read: page tables, EPT, bitmaps
    BSS = "bss"        # read, write; zero at the start and not in any file
    GUARD = "guard"    # not mapped
    GUEST = "guest"    # read, write; a VM's memory


@dataclass(frozen=True, slots=True)
class Blob:
    """Something to place: ``size`` bytes, whose contents are made when all symbols are known (None: zero)."""

    name: str
    kind: Kind
    size: int
    align: int = 8
    fill: Callable[[Mapping[str, int]], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """Consecutive bytes of one kind: ``start`` up to, not including, ``end``."""

    name: str
    kind: Kind
    start: int
    end: int


@dataclass
class Layout:
    """Where everything is. ``symbols``: name -> address of every blob, and a few sizes; ``regions`` ascending."""

    regions: list[Region] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, tuple[int, Blob]] = field(default_factory=dict)
    guests: list[tuple[int, int]] = field(default_factory=list)   # (base, size) per VM

    def region(self, name: str) -> Region:
        """The region called ``name``. KeyError if there is none."""
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(name)

    @property
    def core_file_end(self) -> int:
        """End of what a loader has to put into memory from 1 MiB up."""
        return self.region("tables").end

    @property
    def core_end(self) -> int:
        """End of the hypervisor's own memory."""
        return self.region("bss").end


def up(value: int, step: int) -> int:
    """The next multiple of ``step`` at or above ``value``."""
    return -(-value // step) * step


_ORDER = (Kind.RODATA, Kind.DATA, Kind.TABLES, Kind.BSS)


def make_layout(blobs: Sequence[Blob], guest_sizes: Sequence[int], where: str) -> Layout:
    """Place ``blobs`` behind the code and the VMs' memory behind them.

    ``where`` names the image file for messages. Raises LayoutError when something does not fit.
    """
    layout = Layout()
    layout.regions.append(Region("text", Kind.TEXT, CORE, CORE + TEXT_SIZE))
    at = CORE + TEXT_SIZE
    for kind in _ORDER:
        start = at = up(at, PAGE)
        guards: list[Region] = []
        for blob in (blob for blob in blobs if blob.kind is kind or (kind is Kind.BSS and blob.kind is Kind.GUARD)):
            at = up(at, blob.align)
            layout.symbols[blob.name] = at
            layout.symbols[f"{blob.name}_end"] = at + blob.size
            layout.blobs[blob.name] = (at, blob)
            if blob.kind is Kind.GUARD:
                guards.append(Region(blob.name, Kind.GUARD, at, at + blob.size))
            at += blob.size
        layout.regions.append(Region(str(kind), kind, start, up(at, PAGE)))
        layout.regions += guards
    bss = layout.region("bss")
    if bss.end > CORE_END:
        raise LayoutError(
            f"the hypervisor needs {bss.end - CORE >> 10} KiB, but only {CORE_END - CORE >> 10} KiB are below 2 MiB: "
            "use fewer VMs", where)
    layout.symbols["bss_start"] = bss.start
    layout.symbols["bss_dwords"] = (bss.end - bss.start) // 4
    at = CORE_END
    for index, size in enumerate(guest_sizes):
        if at + size > MEMORY_END:
            raise LayoutError(
                f"vm[{index}].memory: the VMs need memory up to {at + size:#x}, above {MEMORY_END:#x}, where a PC has "
                "its PCI window: give them less", where)
        layout.guests.append((at, size))
        layout.regions.append(Region(f"vm{index}", Kind.GUEST, at, at + size))
        at += size
    return layout
