"""Loads a multiboot1 kernel and makes the information structure for it (Multiboot Specification 0.6.96)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from generator.errors import ImageFileError
from hvtests.machine.e820 import EBDA, memory_map
from hvtests.machine.imagefile import MULTIBOOT_ADDRESSES, find_multiboot_header

LOADER_MAGIC = 0x2BADB002
INFO_SIZE = 0xC00             # what is kept free for it in low memory
INFO_PLACES = (EBDA - INFO_SIZE, 0x9000, 0x1000)
INFO_BYTES = 120              # the structure itself, up to the framebuffer fields
HAS_MEMORY, HAS_COMMAND_LINE, HAS_MODULES, HAS_MAP, HAS_LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
LOADER_NAME = b"hvtests\0"

EHDR = struct.Struct("<16sHHIIIIIHHHHHH")
PHDR = struct.Struct("<8I")
PT_LOAD, EM_386, ET_EXEC = 1, 3, 2


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes for physical memory: ``data`` at ``address``, followed by zeros up to ``size`` bytes."""

    address: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """What to load, and the physical address of the first instruction."""

    loads: tuple[Load, ...]
    entry: int


def read_kernel(file: bytes, ram: int, where: str) -> Kernel:
    """The kernel in ``file`` for a machine with ``ram`` bytes. Raises ImageFileError for one that cannot be loaded."""
    header = find_multiboot_header(file, where)
    if header.flags & MULTIBOOT_ADDRESSES:
        start = header.offset - (header.header_addr - header.load_addr)
        size = header.load_end_addr - header.load_addr if header.load_end_addr else len(file) - start
        if start < 0 or size < 0 or start + size > len(file):
            raise ImageFileError("the multiboot header's address fields point outside the file", where)
        whole = max(size, header.bss_end_addr - header.load_addr)
        kernel = Kernel((Load(header.load_addr, file[start : start + size], whole),), header.entry_addr)
    else:
        kernel = _read_elf(file, where)
    for load in kernel.loads:
        if load.address + load.size > ram:
            raise ImageFileError(
                f"loads {load.size:#x} bytes at {load.address:#x}, but there are only {ram >> 20} MiB of RAM", where
            )
    return kernel


def _read_elf(file: bytes, where: str) -> Kernel:
    if file[:4] != b"\x7fELF":
        raise ImageFileError("a multiboot1 header without address fields, in a file that is not ELF", where)
    if file[4] != 1:
        raise ImageFileError("an ELF64 file with a multiboot1 header: multiboot1 loaders take ELF32 only", where)
    if len(file) < EHDR.size:
        raise ImageFileError("the ELF header is cut off", where)
    _, kind, machine, _, entry, table, _, _, _, entry_size, count, *_ = EHDR.unpack_from(file)
    if (kind, machine) != (ET_EXEC, EM_386):
        raise ImageFileError(f"ELF type {kind}, machine {machine}: expected an executable (2) for i386 (3)", where)
    loads = []
    for n in range(count):
        if table + n * entry_size + PHDR.size > len(file):
            raise ImageFileError("the ELF program headers are cut off", where)
        kind, offset, virtual, physical, in_file, in_memory, _, _ = PHDR.unpack_from(file, table + n * entry_size)
        if kind != PT_LOAD or in_memory == 0:
            continue
        if offset + in_file > len(file) or in_file > in_memory:
            raise ImageFileError(f"ELF segment {n} runs past the end of the file", where)
        loads.append(Load(physical, file[offset : offset + in_file], in_memory))
        if virtual != physical and virtual <= entry < virtual + in_memory:
            entry += physical - virtual
    if not loads:
        raise ImageFileError("an ELF file without anything to load", where)
    return Kernel(tuple(loads), entry)


def place_information(kernel: Kernel, where: str) -> int:
    """An address in low memory where the information structure overlaps nothing that is loaded."""
    for place in INFO_PLACES:
        if all(load.address >= place + INFO_SIZE or load.address + load.size <= place for load in kernel.loads):
            return place
    raise ImageFileError("the kernel fills all of low memory: no room for the multiboot information", where)


def information(address: int, ram: int) -> bytes:
    """The structure for ``address``: memory sizes and map, an empty command line, no modules, the loader's name."""
    regions = memory_map(ram)
    table = b"".join(struct.pack("<IQQI", 20, region.base, region.length, region.type) for region in regions)
    upper = next(region for region in regions if region.base == 0x100000)
    strings = address + INFO_BYTES  # the name, then the command line: an empty string is the name's last zero
    empty = strings + len(LOADER_NAME) - 1
    map_at = strings + len(LOADER_NAME)
    flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MAP | HAS_LOADER_NAME
    info = struct.pack(
        "<16I",
        flags, EBDA >> 10, upper.length >> 10, 0,  # mem_lower, mem_upper in KiB; boot_device: not told
        empty, 0, 0,                               # cmdline, mods_count, mods_addr
        0, 0, 0, 0,                                # syms
        len(table), map_at,                        # mmap_length, mmap_addr
        0, 0, 0,                                   # drives, config_table
    ) + struct.pack("<I", strings)                 # boot_loader_name
    return info.ljust(INFO_BYTES, b"\0") + LOADER_NAME + table
