"""What a boot image is, by its content: a BIOS disk, an El Torito ISO, or a multiboot1 kernel.

Sources: El Torito Bootable CD-ROM Format 1.0, Multiboot Specification 0.6.96, System V ABI (ELF).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from generator.errors import ImageFileError

SECTOR = 512
CD_SECTOR = 2048
MBR_SIGNATURE = b"\x55\xaa"
BOOT_RECORD_SECTOR = 17
EL_TORITO_ID = b"EL TORITO SPECIFICATION"

MULTIBOOT_MAGIC = 0x1BADB002
MULTIBOOT_SEARCH = 8192           # the header lies within this many bytes, 4-byte aligned
MULTIBOOT_ADDRESSES = 1 << 16     # the header has address fields: load without looking at ELF
MULTIBOOT_MANDATORY = 0xFFFF      # flags that a loader must understand or refuse the kernel
MULTIBOOT_KNOWN = 0x0007          # page-aligned modules, memory information, video mode (asked for, never given)


class ImageFormat(Enum):
    """The kinds of image; the values are what ``--format`` takes."""

    DISK = "disk"
    ISO = "iso"
    MULTIBOOT = "multiboot"


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """The header; the address fields are physical addresses and mean something with flag bit 16 only."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


@dataclass(frozen=True, slots=True)
class ElToritoEntry:
    """The default entry of the boot catalog: no emulation, x86."""

    lba: int       # in sectors of 2048 bytes
    sectors: int   # to load, in sectors of 512 bytes
    segment: int   # where to load it, real-mode segment


def read_image(path: Path) -> bytes:
    """The file's bytes. Raises ImageFileError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageFileError(f"cannot be read: {error.strerror or error}", str(path)) from error


def recognise(path: Path) -> ImageFormat:
    """The format of the image at ``path``. Raises ImageFileError if it is none that boots, with what is missing."""
    try:
        with path.open("rb") as file:
            head = file.read((BOOT_RECORD_SECTOR + 1) * CD_SECTOR)
    except OSError as error:
        raise ImageFileError(f"cannot be read: {error.strerror or error}", str(path)) from error
    return recognise_bytes(head, str(path))


def recognise_bytes(head: bytes, where: str) -> ImageFormat:
    """As :func:`recognise`, given at least the first 36 KiB of the image (or all of it)."""
    if head[:4] == b"\x7fELF":
        find_multiboot_header(head, where)
        return ImageFormat.MULTIBOOT
    # A hybrid ISO carries an MBR as well; as a CD it is complete.
    if head[0x8001:0x8006] == b"CD001":
        if head[BOOT_RECORD_SECTOR * CD_SECTOR + 7 :].startswith(EL_TORITO_ID):
            return ImageFormat.ISO
        if head[510:512] != MBR_SIGNATURE:
            raise ImageFileError("an ISO 9660 file system without an El Torito boot record: nothing to boot", where)
    if head[510:512] == MBR_SIGNATURE:
        return ImageFormat.DISK
    if _search_multiboot(head) is not None:
        return ImageFormat.MULTIBOOT
    raise ImageFileError(
        "not a bootable image: expected a disk (55 AA at offset 510), an El Torito ISO, or a multiboot1 kernel", where
    )


def find_multiboot_header(data: bytes, where: str) -> MultibootHeader:
    """The multiboot1 header in ``data``. Raises ImageFileError if there is none or if it asks for what nobody knows."""
    header = _search_multiboot(data)
    if header is None:
        raise ImageFileError("an ELF file without a multiboot1 header (1BADB002 in its first 8 KiB)", where)
    unknown = header.flags & MULTIBOOT_MANDATORY & ~MULTIBOOT_KNOWN
    if unknown:
        raise ImageFileError(f"the multiboot header demands unknown features: flags {unknown:#06x}", where)
    return header


def _search_multiboot(data: bytes) -> MultibootHeader | None:
    window = data[:MULTIBOOT_SEARCH]
    for offset in range(0, len(window) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", window, offset)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            if flags & MULTIBOOT_ADDRESSES and len(data) >= offset + 32:
                return MultibootHeader(offset, flags, *struct.unpack_from("<5I", data, offset + 12))
            return MultibootHeader(offset, flags & ~MULTIBOOT_ADDRESSES)
    return None


def find_el_torito_entry(data: bytes, where: str) -> ElToritoEntry:
    """The default boot entry of the ISO in ``data`` (El Torito 2.0-2.2).

    Raises ImageFileError if the catalog is damaged, not for x86, or asks for floppy or disk emulation.
    """
    (catalog_lba,) = struct.unpack_from("<I", data, BOOT_RECORD_SECTOR * CD_SECTOR + 0x47)
    catalog = data[catalog_lba * CD_SECTOR :][:64]
    if len(catalog) < 64 or sum(struct.unpack_from("<16H", catalog)) & 0xFFFF or catalog[30:32] != MBR_SIGNATURE:
        raise ImageFileError(f"El Torito boot catalog at sector {catalog_lba}: damaged validation entry", where)
    if catalog[1] != 0:
        raise ImageFileError(f"El Torito boot catalog: platform {catalog[1]:#04x}, expected 0 (x86 BIOS)", where)
    indicator, media, segment, _, _, sectors, lba = struct.unpack_from("<BBHBBHI", catalog, 32)
    if indicator != 0x88:
        raise ImageFileError("El Torito default entry: not marked bootable (88)", where)
    if media & 0x0F:
        raise ImageFileError(f"El Torito default entry: media type {media & 0xF}, expected 0 (no emulation)", where)
    if lba * CD_SECTOR + sectors * SECTOR > len(data):
        raise ImageFileError(f"El Torito boot image at sector {lba}: runs past the end of the file", where)
    return ElToritoEntry(lba, sectors, segment or 0x7C0)
