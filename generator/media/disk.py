"""A raw disk that a BIOS boots: the loader from sector 0, behind it the payload, a segment at a time."""

from __future__ import annotations

from collections.abc import Sequence

from generator.media.segments import SECTOR, Segment, check_segments, loader, loader_size, payload, place

CYLINDER = 16 * 63 * SECTOR  # emulators describe a disk by cylinders and do not read beyond the last whole one
_PARTITIONS = slice(446, 510)
_ACTIVE = 0x80
_TYPE = 0xDA                 # "not a file system"


def make_disk(
    boot: bytes, table_offset: int, segments: Sequence[Segment], sectors_offset: int | None = None
) -> bytes:
    """A disk image in whole cylinders of 504 KiB.

    ``boot`` is the loader as linked at 0x7c00, ``table_offset`` where its media table lies in it and
    ``sectors_offset`` where the word is that tells its first sector how many more to read. Raises LayoutError when
    the loader is too large or the segments overlap.
    """
    check_segments(segments)
    used = [segment for segment in segments if segment.data]
    size = loader_size(boot, table_offset, len(used))
    placed = place(used, size // SECTOR, SECTOR)
    first = loader(boot, table_offset, placed, SECTOR, size // SECTOR - 1, sectors_offset)
    image = first + payload(placed, SECTOR)
    image = image.ljust(-(-len(image) // CYLINDER) * CYLINDER, b"\0")
    return _with_partition(image)


def _with_partition(image: bytes) -> bytes:
    """One active partition over the whole disk: without one, firmware may take a USB stick for a floppy.

    Where the loader's code reaches into the partition table, there is none.
    """
    if any(image[_PARTITIONS]):
        return image
    sectors = len(image) // SECTOR
    last = b"\xfe\xff\xff"  # CHS values beyond the scale: use LBA
    entry = bytes([_ACTIVE, 0, 2, 0, _TYPE]) + last + (1).to_bytes(4, "little") + (sectors - 1).to_bytes(4, "little")
    return image[: _PARTITIONS.start] + entry + image[_PARTITIONS.start + len(entry) :]
