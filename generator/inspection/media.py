"""What a bootable file puts into memory, read back from its bytes: a BIOS disk, an El Torito ISO, a multiboot1 kernel.

The reverse of generator.media, written from the formats and not from the writers: El Torito 1.0, Multiboot
Specification 0.6.96, System V ABI (ELF), and hvforge's own media table (docs/boot-protocol.md).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile

from generator import layout, records
from generator.errors import ImageFileError

SECTOR, CD_SECTOR = 512, 2048
_SIGNATURE = b"\x55\xaa"
_BOOT_RECORD = 17 * CD_SECTOR
_VOLUME = 16 * CD_SECTOR
_HEADER_WITHIN = 8192
_HEADER_ADDRESSES = 1 << 16
_HEADER_MANDATORY, _HEADER_KNOWN = 0xFFFF, 0x0007
_TABLE_AT = layout.LOADER_TABLE - layout.LOADER
_ROWS_MAX = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """``data`` goes to physical ``address``; ``memory`` bytes are taken there, what is not in the data as zeros."""

    address: int
    data: bytes
    memory: int
    place: str  # in the file, in words

    @property
    def end(self) -> int:
        return self.address + self.memory


@dataclass(frozen=True, slots=True)
class Medium:
    """A bootable file: its ``format`` in words, ``facts`` as (label, text), what it loads, and its entry where told."""

    format: str
    facts: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]
    entry: int | None = None


class PhysicalMemory:
    """Memory as it is once the pieces are loaded; nothing else exists."""

    def __init__(self, pieces: Sequence[Piece], where: str) -> None:
        self._pieces = pieces
        self._where = where

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from physical ``address``. Raises ImageFileError where the image loads nothing."""
        for piece in self._pieces:
            if piece.address <= address and address + size <= piece.end:
                start = address - piece.address
                return piece.data[start:start + size].ljust(size, b"\0")
        raise ImageFileError(f"nothing that this image loads is at {address:#x} to {address + size:#x}", self._where)


def read_medium(data: bytes, where: str) -> Medium:
    """Take the file's bytes apart. ``where`` names it in messages. Raises ImageFileError if it cannot boot."""
    if data[:4] == b"\x7fELF":
        return _kernel(data, where)
    if data[0x8001:0x8006] == b"CD001":
        if data[_BOOT_RECORD + 7:_BOOT_RECORD + 30] == b"EL TORITO SPECIFICATION":
            return _iso(data, where)
        if data[510:512] != _SIGNATURE:
            raise ImageFileError("an ISO 9660 file system without an El Torito boot record: nothing to boot", where)
    if data[510:512] == _SIGNATURE:
        return _disk(data, where)
    if _header(data) is not None:
        return _kernel(data, where)
    raise ImageFileError(
        "not a bootable image: expected a disk (55 AA at offset 510), an El Torito ISO, or a multiboot1 kernel", where)


def _disk(data: bytes, where: str) -> Medium:
    facts = [("boot sector", "sector 0, which the BIOS loads at 0x7c00")]
    for number in range(4):
        status, kind, first, count = struct.unpack_from("<B3xB3xII", data, 446 + 16 * number)
        if kind:
            sectors = f"type {kind:#04x}, sectors {first} to {first + count - 1}"
            facts.append((f"partition {number + 1}", f"active, {sectors}" if status == 0x80 else sectors))
    loader, pieces = _hvforge_loader(data, data, where)
    return Medium("BIOS disk", (*facts, *loader), pieces)


def _iso(data: bytes, where: str) -> Medium:
    (catalog,) = struct.unpack_from("<I", data, _BOOT_RECORD + 0x47)
    entries = data[catalog * CD_SECTOR:catalog * CD_SECTOR + 64]
    if len(entries) < 64 or sum(struct.unpack_from("<16H", entries)) & 0xFFFF or entries[30:32] != _SIGNATURE:
        raise ImageFileError(f"El Torito boot catalog at sector {catalog}: damaged validation entry", where)
    if entries[1] != 0:
        raise ImageFileError(f"El Torito boot catalog: platform {entries[1]:#04x}, expected 0 (x86 BIOS)", where)
    indicator, media, segment, _, _, sectors, lba = struct.unpack_from("<BBHBBHI", entries, 32)
    if indicator != 0x88:
        raise ImageFileError("El Torito default entry: not marked bootable (88)", where)
    if media & 0xF:
        raise ImageFileError(f"El Torito default entry: media type {media & 0xF}, expected 0 (no emulation)", where)
    if lba * CD_SECTOR + sectors * SECTOR > len(data):
        raise ImageFileError(f"El Torito boot image at sector {lba}: runs past the end of the file", where)
    at = (segment or 0x7C0) << 4
    volume = data[_VOLUME + 40:_VOLUME + 72].decode("ascii", "replace").rstrip()
    facts = (
        ("volume", volume),
        ("boot catalog", f"sector {catalog}"),
        ("boot image", f"sector {lba}, {sectors} sectors of 512 bytes, no emulation, loaded at {at:#x}"),
    )
    boot = data[lba * CD_SECTOR:lba * CD_SECTOR + sectors * SECTOR]
    loader, pieces = _hvforge_loader(boot, data, where)
    return Medium("El Torito ISO", (*facts, *loader), pieces)


def _hvforge_loader(boot: bytes, data: bytes, where: str) -> tuple[list[tuple[str, str]], tuple[Piece, ...]]:
    """What hvforge's media table in the loader ``boot`` says of ``data``; nothing for somebody else's loader."""
    head = boot[_TABLE_AT:_TABLE_AT + records.MEDIA_TABLE.size]
    if len(head) < records.MEDIA_TABLE.size:
        return [], ()
    table = records.MEDIA_TABLE.view(head)
    if table.magic != records.MEDIA_MAGIC:
        return [], ()
    sector, count = table.sector_size, table.count
    if sector not in (SECTOR, CD_SECTOR) or count > _ROWS_MAX:
        raise ImageFileError(f"the loader's media table is damaged: {count} pieces in sectors of {sector} bytes", where)
    pieces = []
    for number in range(count):
        at = _TABLE_AT + records.MEDIA_TABLE.size + number * records.MEDIA_ROW.size
        row = records.MEDIA_ROW.view(boot.ljust(at + records.MEDIA_ROW.size, b"\0"), at)
        found = data[row.lba * sector:row.lba * sector + row.length]
        if len(found) < row.length or row.length > row.sectors * sector:
            raise ImageFileError(
                f"piece {number} of the payload ({row.length} bytes at sector {row.lba}) is not all there", where)
        pieces.append(Piece(row.destination, found, row.length, f"sector {row.lba}, {row.sectors} of {sector} bytes"))
    more = f"; it loads {table.boot_sectors} more sectors of itself" if table.boot_sectors else ""
    return [("loader", f"hvforge's, {count} pieces to load{more}")], tuple(pieces)


def _kernel(data: bytes, where: str) -> Medium:
    header = _header(data)
    if header is None:
        raise ImageFileError("an ELF file without a multiboot1 header (1BADB002 in its first 8 KiB)", where)
    offset, flags = header
    unknown = flags & _HEADER_MANDATORY & ~_HEADER_KNOWN
    if unknown:
        raise ImageFileError(f"the multiboot header demands unknown features: flags {unknown:#06x}", where)
    facts = [("multiboot1 header", f"offset {offset:#x}, flags {flags:#x}")]
    if flags & _HEADER_ADDRESSES:
        header_at, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, offset + 12)
        start = offset - (header_at - load)
        length = load_end - load if load_end else len(data) - start
        piece = Piece(load, data[start:start + length], max(bss_end - load, length), f"offset {start:#x}")
        return Medium("multiboot1 kernel with addresses in its header", tuple(facts), (piece,), entry)
    bits, entry, pieces = _elf(data, where)
    return Medium(f"multiboot1 kernel, ELF{bits}", tuple(facts), tuple(pieces), entry)


def _elf(data: bytes, where: str) -> tuple[int, int, list[Piece]]:
    """(class in bits, entry, segments)."""
    try:
        elf = ELFFile(io.BytesIO(data))
        segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        pieces = [
            Piece(int(segment["p_paddr"]), segment.data(), int(segment["p_memsz"]),
                  f"offset {int(segment['p_offset']):#x}, {int(segment['p_filesz'])} bytes")
            for segment in segments
        ]
        bits, entry = int(elf.elfclass), int(elf["e_entry"])
        short = [p for segment, p in zip(segments, pieces, strict=True) if len(p.data) < segment["p_filesz"]]
    except Exception as error:  # on a damaged file pyelftools raises whatever its parsers happen to raise
        raise ImageFileError(f"a damaged ELF: {error or type(error).__name__}", where) from None
    if short:
        raise ImageFileError(f"the segment for {short[0].address:#x} ({short[0].place}) is not all there", where)
    return bits, entry, pieces


def _header(data: bytes) -> tuple[int, int] | None:
    """(offset, flags) of the multiboot1 header."""
    return next(_headers(data[:_HEADER_WITHIN]), None)


def _headers(window: bytes) -> Iterator[tuple[int, int]]:
    for offset in range(0, len(window) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", window, offset)
        if magic == records.MULTIBOOT_HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            yield offset, flags
