"""What every medium carries: the payload's pieces, and the loader that a BIOS boots with the table it is given."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from generator.errors import LayoutError
from generator.records import MEDIA_MAGIC, MEDIA_ROW, MEDIA_TABLE

SECTOR = 512
LOADER_LIMIT = 12 << 10          # bytes the loader may take (0x7c00 to 0xac00)
PAYLOAD_LIMIT = 64 << 20         # bytes of payload on a BIOS medium
_SIGNATURE_AT = 510
_SIGNATURE = b"\x55\xaa"


@dataclass(frozen=True, slots=True)
class Segment:
    """``data`` belongs at physical ``address``; ``memory`` bytes are taken there if that is more than the data."""

    address: int
    data: bytes
    memory: int = 0

    @property
    def end(self) -> int:
        return self.address + max(len(self.data), self.memory)


@dataclass(frozen=True, slots=True)
class Placed:
    """A segment's place on a medium, in its sectors."""

    segment: Segment
    lba: int
    sectors: int


def check_segments(segments: Sequence[Segment]) -> None:
    """Raise LayoutError for segments that overlap, or for a payload above the limit."""
    ordered = sorted(segments, key=lambda segment: segment.address)
    for lower, upper in pairwise(ordered):
        if lower.end > upper.address:
            raise LayoutError(
                f"payload segments overlap: {lower.address:#x} to {lower.end:#x} and one at {upper.address:#x}"
            )
    total = sum(len(segment.data) for segment in segments)
    if total > PAYLOAD_LIMIT:
        raise LayoutError(
            f"the payload has {total} bytes; a BIOS medium carries at most {PAYLOAD_LIMIT}: use smaller files"
        )


def place(segments: Sequence[Segment], first_lba: int, sector: int) -> list[Placed]:
    """The segments one behind another from ``first_lba``, each beginning with a sector of ``sector`` bytes."""
    placed, lba = [], first_lba
    for segment in segments:
        sectors = -(-len(segment.data) // sector)
        if sectors:
            placed.append(Placed(segment, lba, sectors))
        lba += sectors
    return placed


def payload(placed: Sequence[Placed], sector: int) -> bytes:
    """The placed segments' bytes, each filled up to whole sectors."""
    return b"".join(item.segment.data.ljust(item.sectors * sector, b"\0") for item in placed)


def loader(
    boot: bytes,
    table_offset: int,
    placed: Sequence[Placed],
    sector: int,
    sectors_to_load: int,
    sectors_offset: int | None,
) -> bytes:
    """The loader with its media table at ``table_offset`` filled in, in whole 512-byte sectors.

    ``sectors_to_load`` is how many 512-byte sectors behind the first one the loader has to read itself; it stands
    in the table and, where ``sectors_offset`` is given, as a word there. Raises LayoutError when it does not fit.
    """
    end = table_offset + MEDIA_TABLE.size + MEDIA_ROW.size * len(placed)
    size = loader_size(boot, table_offset, len(placed))
    if size > LOADER_LIMIT:
        raise LayoutError(f"the loader and its table of {len(placed)} rows take {size} bytes of {LOADER_LIMIT}")
    image = bytearray(boot.ljust(size, b"\0"))
    rows = b"".join(
        MEDIA_ROW.pack(
            lba=item.lba, sectors=item.sectors, checksum=checksum(item.segment.data),
            destination=item.segment.address, length=len(item.segment.data),
        )
        for item in placed
    )
    head = MEDIA_TABLE.pack(
        magic=MEDIA_MAGIC, sector_size=sector, boot_sectors=sectors_to_load, count=len(placed)
    )
    image[table_offset:end] = head + rows
    if sectors_offset is not None:
        image[sectors_offset : sectors_offset + 2] = sectors_to_load.to_bytes(2, "little")
    if bytes(image[_SIGNATURE_AT : _SIGNATURE_AT + 2]) not in (b"\0\0", _SIGNATURE):
        raise LayoutError("the loader's first sector has code where its signature belongs (offset 510)")
    image[_SIGNATURE_AT : _SIGNATURE_AT + 2] = _SIGNATURE
    return bytes(image)


def checksum(data: bytes) -> int:
    """What the loader adds up again after reading: the whole little-endian 32-bit words, modulo 2^32."""
    words: tuple[int, ...] = struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
    return sum(words) & 0xFFFF_FFFF


def loader_size(boot: bytes, table_offset: int, rows: int) -> int:
    """Bytes of the loader in whole 512-byte sectors, its table of ``rows`` rows included."""
    end = max(len(boot), table_offset + MEDIA_TABLE.size + MEDIA_ROW.size * rows)
    return -(-end // SECTOR) * SECTOR
