"""Guests from files: flat binaries, and ELFs that GNU as and ld made."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.errors import GuestFileError, HvforgeError, LayoutError
from generator.guests import GuestImage, load_guest
from generator.spec import GuestMode, load_spec

SOURCE = ".globl _start\n.text\n_start: hlt\n.data\n.quad 0x1122334455667788\n.bss\n.skip 0x20\n"
CODE = b"\xf4" * 16


def load(tmp_path: Path, guest: str, memory: str = "2M") -> GuestImage:
    path = tmp_path / "x.toml"
    path.write_text(f'[image]\nname = "x"\n[[vm]]\nname = "v"\nmemory = "{memory}"\n[vm.guest]\n{guest}\n')
    return load_guest(load_spec(path).vms[0], tmp_path)


def refused(tmp_path: Path, guest: str, kind: type[HvforgeError] = GuestFileError, memory: str = "2M") -> str:
    with pytest.raises(kind) as caught:
        load(tmp_path, guest, memory)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def link(tmp_path: Path, *options: str, bits: int = 64, source: str = SOURCE) -> Path:
    """An ELF by GNU as and ld."""
    (tmp_path / "g.s").write_text(source)
    subprocess.run(["as", f"--{bits}", "-o", "g.o", "g.s"], cwd=tmp_path, check=True, timeout=30)
    emulation = "elf_x86_64" if bits == 64 else "elf_i386"
    subprocess.run(["ld", "-m", emulation, "-o", "g.elf", *(options or ("-Ttext=0x10000", "-Tdata=0x20000")), "g.o"],
                   cwd=tmp_path, check=True, timeout=30, capture_output=True)
    return tmp_path / "g.elf"


FLAT = 'file = "g.bin"\nformat = "flat"\nmode = "long"'
ELF = 'file = "g.elf"\nformat = "elf"'


def test_flat(tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(CODE)
    assert load(tmp_path, FLAT) == GuestImage(((0x1000, CODE),), 0x1000, GuestMode.LONG)
    assert load(tmp_path, FLAT + "\nload = 0x8000\nentry = 0x8004").entry == 0x8004
    assert load(tmp_path, FLAT.replace("long", "real")).mode is GuestMode.REAL
    assert load(tmp_path, FLAT).end == 0x1010


def test_flat_fills_the_memory_to_its_last_byte(tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(bytes(0x1FF000))
    assert load(tmp_path, FLAT).end == 0x200000


def test_elf64(tmp_path: Path) -> None:
    link(tmp_path)
    guest = load(tmp_path, ELF)
    assert guest.mode is GuestMode.LONG
    assert guest.entry == 0x10000
    memory = dict(guest.segments)
    assert memory[0x10000] == b"\xf4"
    assert memory[0x20000] == struct.pack("<Q", 0x1122334455667788) + bytes(0x20)  # .bss is zeros after .data


def test_elf32(tmp_path: Path) -> None:
    link(tmp_path, bits=32)
    guest = load(tmp_path, ELF)
    assert (guest.mode, guest.entry) == (GuestMode.PROTECTED, 0x10000)


def test_elf_is_loaded_at_physical_addresses(tmp_path: Path) -> None:
    """A kernel linked high and loaded low: p_paddr counts, and the entry moves with its segment."""
    (tmp_path / "g.ld").write_text(
        "ENTRY(_start) SECTIONS { . = 0xffffffff80000000; .text : AT(0x100000) { *(.text) *(.data) } "
        "/DISCARD/ : { *(.bss) *(.note*) } }")
    link(tmp_path, "-T", "g.ld", source=SOURCE.replace("_start: hlt", "nop\n_start: hlt"))
    guest = load(tmp_path, ELF)
    assert guest.segments[0][0] == 0x100000
    assert guest.entry == 0x100001


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path, FLAT) == ("x.toml:7: vm[0].guest.file: there is no file g.bin (a path is relative to its "
                                       "image.toml)")


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "g.bin").mkdir()
    assert refused(tmp_path, FLAT) == "x.toml:7: vm[0].guest.file: g.bin is a directory (name a file)"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "g.bin").touch()
    assert refused(tmp_path, FLAT) == "x.toml:7: vm[0].guest.file: g.bin is empty (it must hold the guest's code)"


def test_unreadable_file(tmp_path: Path) -> None:
    """A loop of links cannot be opened by anybody, not even by root."""
    (tmp_path / "g.bin").symlink_to(tmp_path / "g.bin")
    assert refused(tmp_path, FLAT) == ("x.toml:7: vm[0].guest.file: g.bin cannot be read: too many levels of symbolic "
                                       "links")


def test_status() -> None:
    assert (GuestFileError.status, LayoutError.status) == (67, 66)


def test_flat_that_is_an_elf(tmp_path: Path) -> None:
    link(tmp_path).rename(tmp_path / "g.bin")
    assert refused(tmp_path, FLAT) == (
        'x.toml:8: vm[0].guest.format: g.bin is an ELF, not flat (write format = "elf", and leave out mode, load, '
        "entry)")


def test_elf_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "g.elf").write_bytes(b"MZ\x90\x00" + bytes(60))
    assert refused(tmp_path, ELF) == (
        "x.toml:8: vm[0].guest.format: g.elf is no ELF: it begins with 4d 5a 90 00, not 7f 45 4c 46 "
        '(for plain bytes write format = "flat" and a mode)')


def test_flat_too_large(tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(bytes(0x200000))
    assert refused(tmp_path, FLAT, LayoutError) == (
        "x.toml:7: vm[0].guest.file: guest too large: the whole of g.bin, 2097152 bytes at 0x1000, ends at 0x201000, "
        'but the VM\'s memory of 2M ends at 0x200000 (write memory = "4M")')


def test_elf_too_large(tmp_path: Path) -> None:
    link(tmp_path, "-Ttext=0x3ff000", "-Tdata=0x500000")
    message = refused(tmp_path, ELF, LayoutError)
    assert 'VM\'s memory of 2M ends at 0x200000 (write memory = "4M")' in message


def test_elf_that_no_vm_could_hold(tmp_path: Path) -> None:
    link(tmp_path, "-Ttext=0x80000000", "-Tdata=0x80010000")
    assert refused(tmp_path, ELF, LayoutError).endswith("(no VM can have that much)")


def test_entry_outside_a_flat_file(tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(CODE)
    assert refused(tmp_path, FLAT + "\nentry = 0x1010") == (
        "x.toml:10: vm[0].guest.entry: 0x1010 is outside g.bin, which is loaded at 0x1000 to 0x100f "
        "(leave entry out to start at its first byte)")


def test_object_file(tmp_path: Path) -> None:
    link(tmp_path)
    (tmp_path / "g.o").rename(tmp_path / "g.elf")
    assert refused(tmp_path, ELF) == (
        "x.toml:7: vm[0].guest.file: g.elf is an object file (link it first); a guest is an executable ELF")


def test_position_independent(tmp_path: Path) -> None:
    link(tmp_path, "-pie", "--no-dynamic-linker")
    assert "position-independent" in refused(tmp_path, ELF)


def test_other_machine(tmp_path: Path) -> None:
    path = link(tmp_path)
    data = bytearray(path.read_bytes())
    data[18:20] = struct.pack("<H", 183)  # e_machine: AArch64
    path.write_bytes(data)
    assert refused(tmp_path, ELF) == (
        "x.toml:7: vm[0].guest.file: g.elf is a 64-bit ELF for AARCH64; a guest is 32-bit for 386 or 64-bit for X86_64")


def test_x32(tmp_path: Path) -> None:
    """32-bit addresses with 64-bit code: a class that fits neither mode."""
    path = link(tmp_path, bits=32)
    data = bytearray(path.read_bytes())
    data[18:20] = struct.pack("<H", 62)
    path.write_bytes(data)
    assert "is a 32-bit ELF for X86_64" in refused(tmp_path, ELF)


def test_entry_in_no_segment(tmp_path: Path) -> None:
    link(tmp_path, "-Ttext=0x10000", "-Tdata=0x20000", "-e", "0x5000")
    assert "has its entry 0x5000 in no segment" in refused(tmp_path, ELF)


def test_nothing_to_load(tmp_path: Path) -> None:
    path = link(tmp_path)
    data = bytearray(path.read_bytes())
    data[56:58] = struct.pack("<H", 0)  # e_phnum
    path.write_bytes(data)
    assert "has no PT_LOAD segment" in refused(tmp_path, ELF)


def test_overlapping_segments(tmp_path: Path) -> None:
    path = link(tmp_path)
    data = bytearray(path.read_bytes())
    headers, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for index in range(count):
        struct.pack_into("<Q", data, headers + index * 56 + 24, 0x10000)  # p_paddr
    path.write_bytes(data)
    assert "has segments that overlap: 0x10000 to " in refused(tmp_path, ELF, LayoutError)


def test_cut_short(tmp_path: Path) -> None:
    path = link(tmp_path)
    path.write_bytes(path.read_bytes()[:0x1001])
    assert "is a damaged ELF" in refused(tmp_path, ELF)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 0x120), st.binary(min_size=1, max_size=8), st.integers(0, 0x3000))
def test_any_damage_gives_one_line_or_a_guest(
        tmp_path_factory: pytest.TempPathFactory, at: int, patch: bytes, length: int) -> None:
    work = tmp_path_factory.getbasetemp() / "damaged"
    if not (work / "whole").exists():
        work.mkdir(exist_ok=True)
        link(work).rename(work / "whole")
    whole = (work / "whole").read_bytes()
    data = whole[:at] + patch + whole[at + len(patch):]
    (work / "g.elf").write_bytes(data[:max(length, 4)])
    try:
        guest = load(work, ELF)
    except HvforgeError as error:
        assert "\n" not in str(error)
    else:
        assert guest.end <= 0x200000
        assert any(address <= guest.entry < address + len(content) for address, content in guest.segments)
