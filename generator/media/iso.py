"""A CD image that a BIOS boots by El Torito without emulation; the same bytes at every build."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pycdlib

from generator.media.segments import SECTOR, Segment, check_segments, loader, loader_size, payload, place

CD_SECTOR = 2048
BOOT_PATH, CATALOG_PATH, PAYLOAD_PATH = "/BOOT.BIN;1", "/BOOT.CAT;1", "/HVFORGE.BIN;1"
_FIRST_DESCRIPTOR = 16
_TERMINATOR = 255
_PRIMARY = 1
# ECMA-119 9.1.5 and 8.4.26.1: the same moment as 7 and as 17 bytes, 1 January 1980, 00:00, GMT.
_RECORD_DATE = bytes([80, 1, 1, 0, 0, 0, 0])
_VOLUME_DATE = b"1980010100000000\0"
_NO_DATE = b"0" * 16 + b"\0"
_VOLUME_DATES = {813: _VOLUME_DATE, 830: _VOLUME_DATE, 847: _NO_DATE, 864: _NO_DATE}  # creation, modification; rest
_ROOT_RECORD = 156


def make_iso(
    boot: bytes,
    table_offset: int,
    segments: Sequence[Segment],
    volume_id: str = "HVFORGE",
    sectors_offset: int | None = None,
) -> bytes:
    """An ISO 9660 image with the loader as boot file and the segments in one file, each at a 2048-byte sector.

    The BIOS loads the whole loader, so its own count of sectors to load is 0. Arguments and errors as
    :func:`generator.media.disk.make_disk`; ``volume_id`` is made upper case, 32 characters at most.
    """
    check_segments(segments)
    used = [segment for segment in segments if segment.data]
    size = loader_size(boot, table_offset, len(used))
    blank = bytes(-(-size // CD_SECTOR) * CD_SECTOR)
    body = payload(place(used, 0, CD_SECTOR), CD_SECTOR)
    image, boot_lba, payload_lba = _write(blank, size // SECTOR, body, _identifier(volume_id))
    # Where the payload lies is known only now; the loader's size does not depend on it.
    first = loader(boot, table_offset, place(used, payload_lba, CD_SECTOR), CD_SECTOR, 0, sectors_offset)
    image[boot_lba * CD_SECTOR : boot_lba * CD_SECTOR + len(first)] = first
    _pin_dates(image)
    return bytes(image)


def _identifier(text: str) -> str:
    """``text`` in the characters that ECMA-119 7.4.1 allows in a volume identifier."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text.upper())[:32]


def _write(boot: bytes, load_sectors: int, body: bytes, volume_id: str) -> tuple[bytearray, int, int]:
    """(image, sector of the boot file, sector of the payload file)."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=volume_id, sys_ident="", app_ident_str="HVFORGE")
    iso.add_fp(io.BytesIO(boot), len(boot), iso_path=BOOT_PATH)
    iso.add_eltorito(BOOT_PATH, bootcatfile=CATALOG_PATH, boot_load_size=load_sectors)
    iso.add_fp(io.BytesIO(body), len(body), iso_path=PAYLOAD_PATH)
    out = io.BytesIO()
    iso.write_fp(out)
    lbas = [iso.get_record(iso_path=path).extent_location() for path in (BOOT_PATH, PAYLOAD_PATH)]
    iso.close()
    return bytearray(out.getvalue()), lbas[0], lbas[1]


def _pin_dates(image: bytearray) -> None:
    """Put one moment in the place of the build's own, in the volume descriptor and in every directory record."""
    sector = _FIRST_DESCRIPTOR
    while image[sector * CD_SECTOR] != _TERMINATOR:
        at = sector * CD_SECTOR
        if image[at] == _PRIMARY:
            for offset, date in _VOLUME_DATES.items():
                image[at + offset : at + offset + len(date)] = date
            _pin_record(image, at + _ROOT_RECORD)
            extent, _, length = struct.unpack_from("<III", image, at + _ROOT_RECORD + 2)
            _pin_directory(image, extent * CD_SECTOR, length)
        sector += 1


def _pin_directory(image: bytearray, start: int, length: int) -> None:
    """All our files are in the root directory, whose records never cross a sector (ECMA-119 6.8.1.1)."""
    at = start
    while at < start + length:
        if image[at] == 0:
            at = -(-(at + 1) // CD_SECTOR) * CD_SECTOR
            continue
        _pin_record(image, at)
        at += image[at]


def _pin_record(image: bytearray, at: int) -> None:
    image[at + 18 : at + 25] = _RECORD_DATE
