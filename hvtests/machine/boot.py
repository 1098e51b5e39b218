"""Starts an image on the machine the way firmware would: BIOS disk, El Torito ISO, or multiboot1 kernel.

Registers that a specification leaves undefined get odd values, so that software which relies on them fails here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.cpu import Cpu, Segment
from hvtests.machine.devices.disk import Disk
from hvtests.machine.firmware.bios import Bios
from hvtests.machine.firmware.multiboot import LOADER_MAGIC, information, place_information, read_kernel
from hvtests.machine.imagefile import (
    CD_SECTOR,
    SECTOR,
    ImageFormat,
    find_el_torito_entry,
    read_image,
    recognise_bytes,
)

if TYPE_CHECKING:
    from hvtests.machine.machine import Machine

FIRST_DISK, BOOT_CD = 0x80, 0xE0
BOOT_ADDRESS = 0x7C00
ODD = 0x0BAD_0000_0BAD_0000     # + register number: what undefined registers hold
RFLAGS_RESERVED, RFLAGS_IF = 0x2, 0x200
CR0_PE, CR0_ET = 0x1, 0x10
CODE_16, DATA_16 = 0x009B, 0x0093
CODE_32, DATA_32 = 0xC09B, 0xC093
FLAT = 0xFFFF_FFFF
DATA_SEGMENTS = (L.ES, L.SS, L.DS, L.FS, L.GS)
STACK_SEGMENT, STACK_POINTER = 0x0030, 0x0100  # below the BIOS data area: room for INT 13h, not for a program
DATA_SEGMENT = 0x0040                          # the BIOS data area, where a BIOS' own DS points


def load(machine: Machine, path: Path) -> Bios:
    """Put the image at ``path`` into ``machine``'s memory and set the CPU to its first instruction.

    Raises ImageFileError if it is no image that boots, or too large for the machine.
    """
    data, where = read_image(path), str(path)
    kind = recognise_bytes(data, where)
    if kind is ImageFormat.MULTIBOOT:
        return _start_kernel(machine, data, where)
    if kind is ImageFormat.ISO:
        return _start_cd(machine, data, where)
    return _start_disk(machine, data)


def _bios(machine: Machine, *drives: Disk, boot_entry: bytes | None = None) -> Bios:
    bios = Bios(machine.cpu, machine.memory, machine.clock, machine.devices.a20, drives, boot_entry)
    bios.install(machine.ports)
    return bios


def _start_disk(machine: Machine, data: bytes) -> Bios:
    disk = Disk(data, SECTOR, FIRST_DISK)
    bios = _bios(machine, disk)
    machine.memory.write(BOOT_ADDRESS, disk.read(0, 1))
    enter_real_mode(machine.cpu, BOOT_ADDRESS, FIRST_DISK)
    return bios


def _start_cd(machine: Machine, data: bytes, where: str) -> Bios:
    entry = find_el_torito_entry(data, where)
    disk = Disk(data, CD_SECTOR, BOOT_CD, read_only=True)
    # El Torito 4.2: the packet that INT 13h AH=4Bh gives.
    packet = struct.pack("<BBBBIHHHHBBB", 0x13, 0, BOOT_CD, 0, entry.lba, 0, 0, entry.segment, entry.sectors, 0, 0, 0)
    bios = _bios(machine, disk, boot_entry=packet)
    start = entry.segment << 4
    machine.memory.write(start, data[entry.lba * CD_SECTOR :][: entry.sectors * SECTOR])
    enter_real_mode(machine.cpu, start, BOOT_CD)
    return bios


def _start_kernel(machine: Machine, data: bytes, where: str) -> Bios:
    memory = machine.memory
    kernel = read_kernel(data, memory.size, where)
    place = place_information(kernel, where)
    bios = _bios(machine)
    memory.write(place, information(place, memory.size))
    for load in kernel.loads:
        memory.write(load.address, load.data.ljust(load.size, b"\0"))
    machine.devices.a20.enabled = True
    enter_protected_mode(machine.cpu, kernel.entry, place)
    return bios


def enter_real_mode(cpu: Cpu, start: int, drive: int) -> None:
    """Real mode at 0000:``start`` (below 64 KiB; else in the segment that holds it), DL = ``drive``, interrupts on."""
    _clear(cpu, CR0_ET)
    for segment in DATA_SEGMENTS:
        _set_real_segment(cpu, segment, DATA_SEGMENT)
    _set_real_segment(cpu, L.SS, STACK_SEGMENT)
    segment = start >> 4 & 0xF000
    cpu.set_segment(L.CS, Segment(segment, segment << 4, 0xFFFF, CODE_16))
    cpu.gprs[L.Q_RSP] = STACK_POINTER
    cpu.gprs[L.Q_RDX] = cpu.gprs[L.Q_RDX] & ~0xFF | drive
    cpu.set_table(L.IDTR, 0, 0x3FF)
    cpu.rflags = RFLAGS_RESERVED | RFLAGS_IF
    cpu.rip = start - (segment << 4)


def enter_protected_mode(cpu: Cpu, entry: int, info: int) -> None:
    """The machine state of Multiboot 3.2: 32-bit flat segments, paging and interrupts off, EAX and EBX set.

    GDTR and IDTR are undefined there: here they have limit 0, so a kernel must bring its own before it uses them.
    """
    _clear(cpu, CR0_PE | CR0_ET)
    for segment in DATA_SEGMENTS:
        cpu.set_segment(segment, Segment(0x10, 0, FLAT, DATA_32))
    cpu.set_segment(L.CS, Segment(0x08, 0, FLAT, CODE_32))
    cpu.gprs[L.Q_RAX] = LOADER_MAGIC
    cpu.gprs[L.Q_RBX] = info
    cpu.gprs[L.Q_RSP] &= 0xFFFF_FFFF
    cpu.set_table(L.IDTR, 0, 0)
    cpu.rflags = RFLAGS_RESERVED
    cpu.rip = entry


def _clear(cpu: Cpu, cr0: int) -> None:
    cpu.cr4 = 0
    cpu.efer = 0
    cpu.cr0 = cr0
    cpu.cr3 = 0
    cpu.set_table(L.GDTR, 0, 0)
    cpu.set_segment(L.LDTR, Segment(0, 0, 0xFFFF, 0x0082))
    cpu.set_segment(L.TR, Segment(0, 0, 0xFFFF, 0x008B))
    for number in range(16):
        cpu.gprs[number] = (ODD + number) & (0xFFFF_FFFF if number < 8 else ~0)


def _set_real_segment(cpu: Cpu, number: int, selector: int) -> None:
    cpu.set_segment(number, Segment(selector, selector << 4, 0xFFFF, DATA_16))
