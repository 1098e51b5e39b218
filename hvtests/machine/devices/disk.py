"""Sectors for the BIOS' disk services: a file's bytes, with writes kept apart."""

from __future__ import annotations

HEADS, SECTORS_PER_TRACK = 16, 63


class Disk:
    """A drive of ``sector_size``-byte sectors, known to the BIOS as ``number`` (80h: first disk, E0h: the boot CD).

    What is written stays in memory: the image file never changes. A last partial sector is filled with zeros.
    """

    def __init__(self, data: bytes, sector_size: int, number: int, read_only: bool = False) -> None:
        self.sector_size = sector_size
        self.number = number
        self.read_only = read_only
        self.sectors = -(-len(data) // sector_size)
        self._data = data
        self._written: dict[int, bytes] = {}

    def read(self, lba: int, count: int) -> bytes:
        """``count`` sectors from ``lba``. Raises IndexError past the end."""
        self._check(lba, count)
        size = self.sector_size
        data = bytearray(self._data[lba * size : (lba + count) * size].ljust(count * size, b"\0"))
        for sector in self._written.keys() & range(lba, lba + count):
            data[(sector - lba) * size : (sector - lba + 1) * size] = self._written[sector]
        return bytes(data)

    def write(self, lba: int, data: bytes) -> None:
        """Whole sectors from ``lba``. Raises IndexError past the end, PermissionError on a read-only drive."""
        count, rest = divmod(len(data), self.sector_size)
        if rest:
            raise ValueError(f"{len(data)} bytes are not whole sectors of {self.sector_size}")
        if self.read_only:
            raise PermissionError(f"drive {self.number:#x} is read-only")
        self._check(lba, count)
        for i in range(count):
            self._written[lba + i] = data[i * self.sector_size : (i + 1) * self.sector_size]

    @property
    def cylinders(self) -> int:
        """Cylinders of the geometry told to software that asks for one (16 heads, 63 sectors): 1 to 1024."""
        return max(1, min(1024, self.sectors // (HEADS * SECTORS_PER_TRACK)))

    def lba(self, cylinder: int, head: int, sector: int) -> int:
        """Address of a sector by geometry; ``sector`` counts from 1."""
        return (cylinder * HEADS + head) * SECTORS_PER_TRACK + sector - 1

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or lba + count > self.sectors:
            raise IndexError(f"sectors {lba}..{lba + count - 1} of {self.sectors}")
