"""The state in which a multiboot1 kernel starts, in the harness and in QEMU; and kernels that cannot be loaded."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from generator.errors import ImageFileError
from hvtests import Limits, Machine, StopKind
from hvtests.boot import images
from hvtests.machine.e820 import memory_map
from hvtests.machine.firmware.multiboot import Kernel, Load, place_information, read_kernel
from hvtests.runners.qemu import QemuRunner

RAM = 64 << 20
LIMIT = 60.0
Dump = Callable[[Path], bytes]


def on_harness(image: Path) -> bytes:
    machine = Machine(ram=RAM)
    machine.boot(image)
    stop = machine.run(Limits(seconds=LIMIT))
    assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 0x10), stop
    return bytes(machine.debugcon)


def on_qemu(image: Path) -> bytes:
    return QemuRunner(accelerator="tcg", memory_mib=RAM >> 20).run(image, timeout=LIMIT).debugcon


BOTH = pytest.mark.parametrize(
    "boot", [pytest.param(on_harness, id="harness"), pytest.param(on_qemu, marks=pytest.mark.qemu, id="qemu")]
)


def kernel(tmp_path: Path, work: str, size: int) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(images.multiboot_dump(work, size))
    return path


STATE = """
    mov dword ptr [0x20000], eax
    mov esp, 0x8000
    pushfd
    pop dword ptr [0x20004]
    mov eax, cr0
    mov dword ptr [0x20008], eax
    mov dword ptr [0x101500], 0x11111111
    mov dword ptr [0x1500], 0x22222222
    mov eax, dword ptr [0x101500]
    mov dword ptr [0x2000c], eax
"""
INFORMATION = """
    mov esi, ebx
    mov edi, 0x20000
    mov ecx, 52
    cld
    rep movsb
    mov esi, dword ptr [ebx + 48]
    mov ecx, dword ptr [ebx + 44]
    rep movsb
    mov esi, dword ptr [ebx + 16]
    mov al, byte ptr [esi]
    mov byte ptr [0x202ff], al
"""


@BOTH
def test_machine_state(boot: Dump, tmp_path: Path) -> None:
    eax, flags, cr0, memory = struct.unpack("<4I", boot(kernel(tmp_path, STATE, 16)))
    assert eax == 0x2BADB002
    assert flags & 0x20200 == 0           # VM and IF clear
    assert cr0 & 0x80000001 == 1          # protected, not paged
    assert memory == 0x11111111           # A20 is on


@BOTH
def test_information(boot: Dump, tmp_path: Path) -> None:
    dump = boot(kernel(tmp_path, INFORMATION, 0x300))
    flags, lower, upper, _, _, modules = struct.unpack_from("<6I", dump)
    (map_size,) = struct.unpack_from("<I", dump, 44)
    assert flags & 0x41 == 0x41           # memory sizes and map
    assert lower == 639
    assert upper == RAM // 1024 - 1024 - 128
    assert modules == 0
    entries, at = [], 52
    while at < 52 + map_size:
        size, base, length, kind = struct.unpack_from("<IQQI", dump, at)
        entries.append((base, length, kind))
        at += size + 4
    found = [entry for entry in entries if entry[0] < 1 << 32]
    assert found == [(region.base, region.length, region.type) for region in memory_map(RAM)]


def test_command_line_is_empty_and_the_loader_has_a_name(tmp_path: Path) -> None:
    name = """
        mov esi, dword ptr [ebx + 64]
        mov edi, 0x20000
        mov ecx, 8
        rep movsb
        mov esi, dword ptr [ebx + 16]
        movsb byte ptr es:[edi], byte ptr [esi]
        mov eax, dword ptr [ebx]
        stosd dword ptr es:[edi], eax
    """
    dump = on_harness(kernel(tmp_path, name, 13))
    assert dump[:9] == b"hvtests\0\0"
    assert struct.unpack_from("<I", dump, 9)[0] & 0x204 == 0x204


def test_segments_work_but_no_descriptor_table_is_there(tmp_path: Path) -> None:
    machine = Machine(ram=RAM)
    path = kernel(tmp_path, "mov ax, 0x10\nmov ds, ax\n", 1)
    machine.boot(path)
    stop = machine.run(Limits(seconds=LIMIT))
    assert stop.kind is StopKind.TRIPLE_FAULT


def elf(segments: list[tuple[int, bytes, int]], entry: int = 0x100010) -> bytes:
    return images.elf32(segments, entry)


HEADER = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
ADDRESSES = struct.pack("<III", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF)


def test_bss_is_cleared_and_every_segment_loaded() -> None:
    found = read_kernel(elf([(0x100000, HEADER, 0x2000), (0x200000, b"abc", 3), (0x300000, b"", 0)]), RAM, "k")
    assert found == Kernel((Load(0x100000, HEADER, 0x2000), Load(0x200000, b"abc", 3)), 0x100010)


def test_entry_is_virtual_where_the_segment_is() -> None:
    file = bytearray(elf([(0x100000, HEADER, 0x1000)], entry=0xC0100010))
    struct.pack_into("<I", file, 52 + 8, 0xC0100000)  # p_vaddr
    assert read_kernel(bytes(file), RAM, "k").entry == 0x100010


def test_address_fields_instead_of_elf() -> None:
    fields = struct.pack("<5I", 0x100020, 0x100000, 0x100060, 0x100100, 0x100044)
    file = bytes(64) + b"A" * 0x20 + ADDRESSES + fields + b"code" * 10
    # The header is 20h behind load_addr, so loading begins 20h before it in the file.
    found = read_kernel(file, RAM, "k")
    assert found == Kernel((Load(0x100000, file[64 : 64 + 0x60], 0x100),), 0x100044)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (elf([(0x4000000, HEADER, 16)]), "only 64 MiB of RAM"),
        (elf([(0x100000, HEADER, 1 << 30)]), "only 64 MiB of RAM"),
        (HEADER, "not ELF"),
        (b"\x7fELF\x02" + bytes(59) + HEADER, "ELF64"),
        (b"\x7fELF\x01" + bytes(59) + HEADER, "expected an executable"),
        (elf([(0, b"", 0)]) + bytes(4) + HEADER, "nothing|without anything"),
        (elf([(0x100000, HEADER + b"x" * 100, 200)])[:-50], "runs past the end"),
        (ADDRESSES + struct.pack("<5I", 0, 0x1000, 0, 0, 0), "outside the file"),
    ],
    ids=["too high", "too large", "not ELF", "ELF64", "not i386", "empty", "cut off", "bad fields"],
)
def test_what_cannot_be_loaded_is_named(file: bytes, message: str) -> None:
    with pytest.raises(ImageFileError, match=message) as caught:
        read_kernel(file, RAM, "some.elf")
    assert str(caught.value).startswith("some.elf: ")


def test_information_avoids_what_is_loaded() -> None:
    high = Kernel((Load(0x100000, b"", 0x1000),), 0)
    assert place_information(high, "k") == 0x9F000
    low = Kernel((Load(0x90000, b"", 0x10000),), 0)
    assert place_information(low, "k") == 0x9000
    everything = Kernel((Load(0, b"", 0xA0000),), 0)
    with pytest.raises(ImageFileError, match="no room"):
        place_information(everything, "k")
