"""Guests from files: a flat binary or an ELF → the bytes to load, where, and how the CPU starts.

What image.toml says of the file is checked against what the file is; a guest that does not fit its VM is refused with
both sizes.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from generator.errors import GuestFileError, LayoutError, NotAsClaimedError, TooLargeError
from generator.spec import MEMORY_MAX, MEMORY_STEP, MIB, GuestFormat, GuestMode, VmSpec

_ELF_MAGIC = b"\x7fELF"
_MODES = {(32, "EM_386"): GuestMode.PROTECTED, (64, "EM_X86_64"): GuestMode.LONG}
_TYPES = {
    "ET_REL": "an object file (link it first)",
    "ET_DYN": "position-independent or a shared library (link it with -no-pie -static)",
    "ET_CORE": "a core dump",
}


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest ready to be placed: (guest-physical address, bytes) in ascending order, never overlapping."""

    segments: tuple[tuple[int, bytes], ...]
    entry: int
    mode: GuestMode

    @property
    def end(self) -> int:
        """The guest-physical address after the last byte."""
        return max(address + len(data) for address, data in self.segments)


def load_guest(vm: VmSpec, spec_dir: Path) -> GuestImage:
    """The guest of `vm`, which must be a file; its path is relative to `spec_dir`.

    GuestFileError: the file is missing, unreadable, or not what image.toml claims. LayoutError: it does not fit.
    """
    guest = vm.guest
    if guest.file is None:
        raise ValueError(f"the guest of VM {vm.name} is a template, not a file")
    path = spec_dir / guest.file
    data = _read(vm, path)
    is_elf = data.startswith(_ELF_MAGIC)
    if guest.format is GuestFormat.ELF:
        if not is_elf:
            raise NotAsClaimedError(f'{path} is no ELF: it begins with {data[:4].hex(" ")}, not 7f 45 4c 46 '
                                    '(for plain bytes write format = "flat" and a mode)', guest.where("format"))
        return _elf(vm, path, data)
    if is_elf:
        raise NotAsClaimedError(f'{path} is an ELF, not flat (write format = "elf", and leave out mode, load, entry)',
                                guest.where("format"))
    return _flat(vm, path, data)


def _read(vm: VmSpec, path: Path) -> bytes:
    where = vm.guest.where("file")
    try:
        if path.is_dir():
            raise GuestFileError(f"{path} is a directory (name a file)", where)
        data = path.read_bytes()
    except FileNotFoundError:
        raise GuestFileError(f"there is no file {path} (a path is relative to its image.toml)", where) from None
    except OSError as error:
        raise GuestFileError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}", where) from None
    if not data:
        raise GuestFileError(f"{path} is empty (it must hold the guest's code)", where)
    return data


def _fits(vm: VmSpec, path: Path, address: int, size: int, what: str) -> None:
    end = address + size
    if end <= vm.memory:
        return
    needed = -(-end // MEMORY_STEP) * MEMORY_STEP
    remedy = f'write memory = "{needed // MIB}M"' if needed <= MEMORY_MAX else "no VM can have that much"
    raise TooLargeError(f"guest too large: {what} of {path}, {size} bytes at {address:#x}, ends at {end:#x}, but the "
                      f"VM's memory of {vm.memory // MIB}M ends at {vm.memory:#x} ({remedy})", vm.guest.where("file"))


def _flat(vm: VmSpec, path: Path, data: bytes) -> GuestImage:
    guest = vm.guest
    if guest.mode is None:
        raise ValueError("a flat guest without a mode: load_spec refuses that")
    _fits(vm, path, guest.load, len(data), "the whole")
    entry = guest.load if guest.entry is None else guest.entry
    if not guest.load <= entry < guest.load + len(data):
        raise GuestFileError(f"{entry:#x} is outside {path}, which is loaded at {guest.load:#x} to "
                             f"{guest.load + len(data) - 1:#x} (leave entry out to start at its first byte)",
                             guest.where("entry"))
    return GuestImage(((guest.load, data),), entry, guest.mode)


def _elf(vm: VmSpec, path: Path, data: bytes) -> GuestImage:
    where = vm.guest.where("file")
    try:
        elf = ELFFile(io.BytesIO(data))
        header = (elf.elfclass, str(elf["e_machine"]), str(elf["e_type"]), elf.little_endian, int(elf["e_entry"]))
        loads = [dict(segment.header) for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    except Exception as error:  # on a damaged file pyelftools raises whatever its parsers happen to raise
        raise NotAsClaimedError(f"{path} is a damaged ELF: {error or type(error).__name__}", where) from None
    bits, machine, kind, little_endian, entry = header
    if (bits, machine) not in _MODES or not little_endian:
        raise NotAsClaimedError(f"{path} is a {bits}-bit ELF for {machine.removeprefix('EM_')}; a guest is 32-bit for "
                                "386 or 64-bit for X86_64", where)
    if kind != "ET_EXEC":
        raise NotAsClaimedError(f"{path} is {_TYPES.get(kind, f'of type {kind}')}; a guest is an executable ELF", where)
    segments, start = [], None
    for load in loads:
        address, offset = int(load["p_paddr"]), int(load["p_offset"])
        file_size, memory_size, virtual = int(load["p_filesz"]), int(load["p_memsz"]), int(load["p_vaddr"])
        if memory_size == 0:
            continue
        if offset + file_size > len(data) or file_size > memory_size:
            raise NotAsClaimedError(f"{path} is a damaged ELF: a segment takes {file_size} bytes at offset {offset} "
                                    f"for {memory_size} in memory, and the file has {len(data)} bytes", where)
        _fits(vm, path, address, memory_size, "a segment")
        # The part of a segment that the file does not hold is zero by the ELF specification, and is loaded as zeros.
        segments.append((address, data[offset:offset + file_size] + bytes(memory_size - file_size)))
        if virtual <= entry < virtual + memory_size:
            start = entry - virtual + address
    segments.sort(key=lambda segment: segment[0])
    if not segments:
        raise NotAsClaimedError(f"{path} has no PT_LOAD segment: nothing would be loaded", where)
    for (one, one_data), (two, _) in itertools.pairwise(segments):
        if one + len(one_data) > two:
            raise LayoutError(f"{path} has segments that overlap: {one:#x} to {one + len(one_data) - 1:#x}, and "
                                 f"{two:#x} up", where)
    if start is None:
        raise NotAsClaimedError(f"{path} has its entry {entry:#x} in no segment (link it with an entry symbol)", where)
    return GuestImage(tuple(segments), start, _MODES[bits, machine])
