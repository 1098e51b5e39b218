"""How the harness starts an image, and how a run ends when the image falls back on the BIOS."""

import struct
from pathlib import Path

import pytest

from generator.errors import ImageFileError
from hvtests import Limits, Machine, StopKind
from hvtests.boot import images, tiny_hypervisor
from hvtests.machine import layout as L
from hvtests.machine.cpu import Mode
from hvtests.runners import grub

RAM = 16 << 20


def booted(tmp_path: Path, data: bytes) -> Machine:
    path = tmp_path / "image"
    path.write_bytes(data)
    machine = Machine(ram=RAM)
    machine.boot(path)
    return machine


def sector(source: str) -> bytes:
    return images.assemble(source, 0x7C00, 16).ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(("make", "drive"), [(sector, 0x80), (lambda s: images.iso_of(sector(s)), 0xE0)])
def test_boot_sector_starts_in_real_mode_with_its_drive(make: object, drive: int, tmp_path: Path) -> None:
    assert callable(make)
    machine = booted(tmp_path, make("hlt"))
    cpu = machine.cpu
    assert cpu.mode() is Mode.REAL
    assert cpu.segment(L.CS).base + cpu.rip == 0x7C00
    assert cpu.gprs[L.Q_RDX] & 0xFF == drive
    assert cpu.rflags & 0x200
    assert machine.memory.read(0x7DFE, 2) == b"\x55\xaa"


def test_registers_that_nothing_defines_are_odd(tmp_path: Path) -> None:
    cpu = booted(tmp_path, sector("hlt")).cpu
    assert len({cpu.gprs[n] for n in range(16)}) == 16
    assert cpu.segment(L.DS).base != 0
    kernel = booted(tmp_path, images.multiboot_elf(b"", "")).cpu
    assert kernel.mode() is Mode.PROTECTED
    assert kernel.gprs[L.Q_RCX] != 0
    assert kernel.table(L.GDTR)[1] == 0


def test_interrupt_vectors_all_lead_into_rom(tmp_path: Path) -> None:
    machine = booted(tmp_path, sector("hlt"))
    for vector in range(256):
        ip, cs = struct.unpack("<HH", machine.memory.read(4 * vector, 4))
        assert (cs << 4) + ip >= 0xF0000
        assert machine.memory.read((cs << 4) + ip + 2, 1) == b"\xcf"


@pytest.mark.parametrize(
    ("source", "kind", "detail"),
    [
        ("mov ah, 0\nint 0x16", StopKind.HALT, "INT 16h waits for a key"),
        ("int 0x19", StopKind.SHUTDOWN, "gave the machine back to the BIOS"),
        ("int 0x18", StopKind.SHUTDOWN, "gave the machine back to the BIOS"),
        (".byte 0xea, 0xf0, 0xff, 0x00, 0xf0", StopKind.SHUTDOWN, "gave the machine back to the BIOS"),
        ("ud2", StopKind.HALT, "#UD in real mode at 0000:7c00"),
        ("xor cx, cx\ndiv cl", StopKind.HALT, "#DE in real mode at 0000:7c02"),
        ("cli\nhlt", StopKind.HALT, ""),
        ("mov al, 1\nout 0x92, al", StopKind.SHUTDOWN, "port 0x92"),
        ("mov al, 0xfe\nout 0x64, al", StopKind.SHUTDOWN, "keyboard controller"),
        ("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax", StopKind.SHUTDOWN, "S5"),
        ("mov al, 0x42\nout 0xf4, al", StopKind.DEBUG_EXIT, "0x42"),
    ],
)
def test_ends(source: str, kind: StopKind, detail: str, tmp_path: Path) -> None:
    machine = booted(tmp_path, sector(source + "\nhlt\n"))
    stop = machine.run(Limits(seconds=20))
    assert stop.kind is kind, stop
    assert detail in stop.detail


def test_an_interrupt_without_a_service_returns(tmp_path: Path) -> None:
    machine = booted(tmp_path, sector("int 0x60\nint 8\nmov al, 7\nout 0xf4, al\nhlt"))
    assert machine.run(Limits(seconds=20)).code == 7


def test_the_trap_port_means_nothing_outside_the_rom(tmp_path: Path) -> None:
    # The registers ask INT 15h to fail with CF; a plain OUT must not call it.
    machine = booted(tmp_path, sector("clc\nmov ah, 0xff\nout 0xb2, al\nsetc al\nadd al, 3\nout 0xf4, al\nhlt"))
    assert machine.run(Limits(seconds=20)).code == 3


def test_unsupported_services_fail_as_callers_expect(tmp_path: Path) -> None:
    machine = booted(tmp_path, sector("clc\nmov ah, 0xff\nint 0x15\nsetc al\nadd al, ah\nout 0xf4, al\nhlt"))
    assert machine.run(Limits(seconds=20)).code == 0x87


def test_teletype_reaches_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(sector("mov ax, 0x0e48\nint 0x10\nmov al, 0x69\nint 0x10\nmov al, 1\nout 0xf4, al\nhlt"))
    from hvtests.machine.boot import load

    machine = Machine(ram=RAM)
    bios = load(machine, path)
    machine.run(Limits(seconds=20))
    assert bios.screen == b"Hi"


def test_time_passes_in_virtual_time_only(tmp_path: Path) -> None:
    # INT 15h AH=86h waits 0x20:0000 microseconds, 2.097 s: 38 ticks of the 18.2 Hz clock.
    source = "mov ah, 0x86\nmov cx, 0x20\nxor dx, dx\nint 0x15\nmov ah, 0\nint 0x1a\nmov al, dl\nout 0xf4, al\nhlt"
    machine = booted(tmp_path, sector(source))
    assert machine.run(Limits(seconds=20)).code == 38


@pytest.mark.parametrize("data", [b"", bytes(512), b"\x7fELF" + bytes(600)])
def test_what_does_not_boot_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageFileError):
        booted(tmp_path, data)


def test_kernel_too_large_for_the_machine_is_refused(tmp_path: Path) -> None:
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    with pytest.raises(ImageFileError, match="only 16 MiB of RAM"):
        booted(tmp_path, images.elf32([(0x100000, header, RAM)], 0x100000))


def test_grub_boots_a_kernel_from_its_rescue_cd(tmp_path: Path) -> None:
    """Somebody else's loader, a large one, on our BIOS: it finds its CD, its modules and the memory map by itself."""
    assert grub.missing() is None
    kernel, cd = tmp_path / "kernel", tmp_path / "cd"
    kernel.write_bytes(tiny_hypervisor.build())
    grub.make_rescue_iso(kernel, cd)
    machine = Machine(ram=64 << 20)
    machine.boot(cd)
    stop = machine.run(Limits(seconds=100))
    assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, tiny_hypervisor.DONE)
    assert machine.serial == b"tiny\n"
