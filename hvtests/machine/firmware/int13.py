"""INT 13h: disk services, by geometry and by the extensions (BIOS Enhanced Disk Drive Specification 3.0)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from hvtests.machine.devices.disk import HEADS, SECTORS_PER_TRACK, Disk
from hvtests.machine.firmware.call import Call

OK, BAD_COMMAND, WRITE_PROTECTED, NOT_FOUND = 0x00, 0x01, 0x03, 0x04
EXTENSIONS_VERSION = 0x21    # EDD 1.1
SUPPORTS_ACCESS, SUPPORTS_PARAMETERS = 1, 4
MOST_SECTORS = 127           # EDD 3.0, table 1: more in one call is left to the firmware's mood, so it fails here
PACKET = struct.Struct("<BBHHHQ")
NO_GEOMETRY = 0xFFFF_FFFF


class DiskServices:
    """Services over ``drives``; ``boot_entry`` is what AH=4Bh tells of an El Torito boot (19 bytes), if it was one."""

    def __init__(self, drives: Sequence[Disk], boot_entry: bytes | None = None) -> None:
        self._drives = {drive.number: drive for drive in drives}
        self._boot_entry = boot_entry
        self._services: Mapping[int, Callable[[Call, Disk], int]] = {
            0x00: _nothing_to_do,
            0x01: _nothing_to_do,
            0x02: _read_by_geometry,
            0x04: _nothing_to_do,
            0x08: self._parameters,
            0x0D: _nothing_to_do,
            0x15: self._type,
            0x41: _extensions_present,
            0x42: _extended_read,
            0x43: _extended_write,
            0x44: _nothing_to_do,
            0x47: _nothing_to_do,
            0x48: _extended_parameters,
            0x4B: self._emulation_status,
        }

    def __call__(self, call: Call) -> None:
        drive = self._drives.get(call.dl)
        service = self._services.get(call.ah)
        if drive is None or service is None:
            call.fail(BAD_COMMAND)
            return
        keeps_ah = call.ah in (0x15, 0x41)
        status = service(call, drive)
        if status != OK:
            call.fail(status)
            return
        if not keeps_ah:
            call.ah = OK
        call.succeed()

    def _parameters(self, call: Call, drive: Disk) -> int:
        if drive.sector_size != 512:
            return BAD_COMMAND
        last = drive.cylinders - 1
        call.ch, call.cl = last & 0xFF, SECTORS_PER_TRACK | last >> 2 & 0xC0
        call.dh = HEADS - 1
        call.dl = sum(0x80 <= number < 0xE0 for number in self._drives)
        call.bl = 0
        return OK

    def _type(self, call: Call, drive: Disk) -> int:
        if drive.sector_size != 512:
            return BAD_COMMAND
        call.ah = 3  # fixed disk
        call.cx, call.dx = drive.sectors >> 16, drive.sectors
        return OK

    def _emulation_status(self, call: Call, _drive: Disk) -> int:
        if self._boot_entry is None or call.al not in (0, 1):
            return BAD_COMMAND
        call.memory.write(call.ds + call.si, self._boot_entry)
        return OK


def _nothing_to_do(_call: Call, _drive: Disk) -> int:
    return OK


def _read_by_geometry(call: Call, drive: Disk) -> int:
    sector, cylinder, count = call.cl & 0x3F, call.ch | (call.cl & 0xC0) << 2, call.al
    if drive.sector_size != 512 or not 1 <= count <= 128 or sector == 0 or call.dh >= HEADS:
        return BAD_COMMAND
    try:
        data = drive.read(drive.lba(cylinder, call.dh, sector), count)
    except IndexError:
        return NOT_FOUND
    call.memory.write(call.es + call.bx, data)
    return OK


def _extensions_present(call: Call, _drive: Disk) -> int:
    if call.bx != 0x55AA:
        return BAD_COMMAND
    call.bx = 0xAA55
    call.ah = EXTENSIONS_VERSION
    call.cx = SUPPORTS_ACCESS | SUPPORTS_PARAMETERS
    return OK


def _packet(call: Call) -> tuple[int, int, int] | None:
    """(sectors, linear buffer address, first sector) of the packet at DS:SI; None for one that EDD does not allow."""
    size, _, count, offset, segment, lba = PACKET.unpack(call.memory.read(call.ds + call.si, PACKET.size))
    if size < PACKET.size or count > MOST_SECTORS:
        return None
    return count, (segment << 4) + offset, lba


def _set_done(call: Call, sectors: int) -> None:
    """On an error the packet says how many sectors were transferred."""
    call.memory.set_u16(call.ds + call.si + 2, sectors)


def _extended_read(call: Call, drive: Disk) -> int:
    packet = _packet(call)
    if packet is None:
        return BAD_COMMAND
    count, buffer, lba = packet
    try:
        data = drive.read(lba, count)
    except IndexError:
        _set_done(call, 0)
        return NOT_FOUND
    call.memory.write(buffer, data)
    return OK


def _extended_write(call: Call, drive: Disk) -> int:
    packet = _packet(call)
    if packet is None:
        return BAD_COMMAND
    count, buffer, lba = packet
    try:
        drive.write(lba, call.memory.read(buffer, count * drive.sector_size))
    except (IndexError, PermissionError) as error:
        _set_done(call, 0)
        return NOT_FOUND if isinstance(error, IndexError) else WRITE_PROTECTED
    return OK


def _extended_parameters(call: Call, drive: Disk) -> int:
    at = call.ds + call.si
    if call.memory.u16(at) < 26:
        return BAD_COMMAND
    if drive.sector_size == 512:
        flags, geometry = 0x0002, (drive.cylinders, HEADS, SECTORS_PER_TRACK)
    else:
        flags, geometry = 0x0004, (NO_GEOMETRY,) * 3  # removable; no geometry
    call.memory.write(at, struct.pack("<HHIIIQH", 26, flags, *geometry, drive.sectors, drive.sector_size))
    return OK
