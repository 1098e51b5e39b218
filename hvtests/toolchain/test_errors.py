"""Every error that a user can cause: one line that names the place and what would be right, and a status of its own."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from generator import errors
from generator.cli import BROKEN_PIPE, HUNG_UP, INTERNAL_ERROR, INTERRUPTED, TERMINATED
from hvtests.runners.base import Verdict
from hvtests.toolchain.command import CHECKOUT, MINIMAL, hvforge, one_vm
from hvtests.verification import NOT_VERIFIED

Capture = pytest.CaptureFixture[str]


def elf32(*segments: tuple[int, bytes], machine: int = 3) -> bytes:
    """An ELF32 executable of (physical address, bytes) segments, entry at the first."""
    at = 52 + 32 * len(segments)
    out = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    out += struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, segments[0][0], 52, 0, 0, 52, 32, len(segments), 40, 0, 0)
    for address, data in segments:
        out += struct.pack("<8I", 1, at, address, address, len(data), len(data), 7, 4)
        at += len(data)
    return out + b"".join(data for _, data in segments)


# image.toml: (text, status, place after the file's name, what the line says)
SPEC, TOML, UNKNOWN = errors.SpecError.status, errors.TomlError.status, errors.UnknownKeyError.status
DESCRIPTIONS = {
    "malformed": ('[image]\nname = "x\n', TOML, ":2", "TOML"),
    "not UTF-8": ('[image]\nname = "\udcff"\n', TOML, ":2", "UTF-8"),
    "unknown key": (one_vm('templat = "long64"'), UNKNOWN, ":7: vm[0].guest.templat", 'did you mean "template"?'),
    "unknown table": (one_vm('template = "long64"\n[devices]'), UNKNOWN, ":8: devices", "unknown"),
    "wrong type": (one_vm('template = "long64"\nload = "high"'), SPEC, ":8: vm[0].guest.load", "address"),
    "wrong choice": (one_vm('file = "a"\nformat = "pe"'), SPEC, ":8: vm[0].guest.format", '"flat", "elf"'),
    "missing key": ('[image]\n[[vm]]\nname = "a"\n', SPEC, "", "name"),
    "no such template": (one_vm('template = "long46"'), SPEC, ":7: vm[0].guest.template", 'did you mean "long64"?'),
    "unknown param": (one_vm('template = "long64"\nparams = { mesage = "hi" }'), SPEC, ":8: vm[0].guest.params",
                      'did you mean "message"?'),
    "param of no choice": (one_vm('template = "hostile"\nparams = { attack = "zzz" }'), SPEC, ":8: vm[0].guest.params",
                           '"memory", "write"'),
    "param with a line end": (one_vm('template = "long64"\nparams = { message = "a\\n hlt" }'), SPEC,
                              ":8: vm[0].guest.params.message", "printable ASCII"),
    "memory not in steps": (one_vm('template = "long64"', "3M"), SPEC, ":5: vm[0].memory", "multiple of 2 MiB"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_description_is_wrong(name: str, tmp_path: Path, capfd: Capture) -> None:
    text, status, place, words = DESCRIPTIONS[name]
    path = tmp_path / "image.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = hvforge(capfd, "build", path, "-o", tmp_path / "out")
    assert ran.status == status
    assert ran.error.startswith(f"{path}{place}")
    assert words in ran.error
    assert not (tmp_path / "out").exists()


# Guests from files: (the guest's table, the file's bytes, VM's memory, status, line, what the line says)
GUESTS = {
    "missing": ('file = "guest.bin"\nformat = "flat"\nmode = "long"', None, "2M",
                errors.GuestFileError.status, 7, "there is no file"),
    "no ELF": ('file = "guest.bin"\nformat = "elf"', b"#!/bin/sh\n", "2M",
               errors.NotAsClaimedError.status, 8, "no ELF"),
    "an ELF after all": ('file = "guest.bin"\nformat = "flat"\nmode = "long"', elf32((0x1000, b"\xf4")), "2M",
                         errors.NotAsClaimedError.status, 8, 'write format = "elf"'),
    "for another machine": ('file = "guest.bin"\nformat = "elf"', elf32((0x1000, b"\xf4"), machine=40), "2M",
                            errors.NotAsClaimedError.status, 7, "ARM"),
    "overlaps itself": ('file = "guest.bin"\nformat = "elf"', elf32((0x1000, bytes(64)), (0x1020, bytes(64))), "2M",
                        errors.LayoutError.status, 7, "overlap: 0x1000 to 0x103f, and 0x1020 up"),
    "overlaps its page tables": ('file = "guest.bin"\nformat = "flat"\nmode = "long"\nload = 0x1fc000', bytes(0x1001),
                                 "2M", errors.LayoutError.status, 7, "page tables"),
    "too large": ('file = "guest.bin"\nformat = "flat"\nmode = "protected"', bytes(3 << 20), "2M",
                  errors.TooLargeError.status, 7, 'guest too large: the whole of'),
}


@pytest.mark.parametrize("name", GUESTS)
def test_guest_file_is_wrong(name: str, tmp_path: Path, capfd: Capture) -> None:
    guest, content, memory, status, line, words = GUESTS[name]
    path = tmp_path / "image.toml"
    path.write_text(one_vm(guest, memory))
    if content is not None:
        (tmp_path / "guest.bin").write_bytes(content)
    ran = hvforge(capfd, "build", path, "-o", tmp_path / "out")
    assert ran.status == status
    assert ran.error.startswith(f"{path}:{line}: vm[0].guest")
    assert words in ran.error


def test_too_large_guest_is_told_what_would_do(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "image.toml"
    path.write_text(one_vm('file = "guest.bin"\nformat = "flat"\nmode = "protected"'))
    (tmp_path / "guest.bin").write_bytes(bytes(3 << 20))
    assert 'write memory = "4M"' in hvforge(capfd, "build", path, "-o", tmp_path / "out").error
    path.write_text(one_vm('file = "guest.bin"\nformat = "flat"\nmode = "protected"', "4M"))
    assert hvforge(capfd, "build", path, "-o", tmp_path / "out").status == 0


# Guest templates: (text, status, line, what the line says)
TEMPLATES = {
    "undefined name": ('{{ starts_in("long") }}\nhere:\n    mov rax, {{ vmcs.GUEST_RIPP }}\n',
                       errors.TemplateError.status, 3, "GUEST_RIPP"),
    "undefined variable": ('{{ starts_in("long") }}\n\n    mov eax, {{ nothing }}\n',
                           errors.TemplateError.status, 3, "nothing"),
    "template syntax": ('{{ starts_in("long") }}\n{% if %}\n', errors.TemplateError.status, 2, ""),
    "no such instruction": ('{{ starts_in("long") }}\nstart:\n    nop\n    moov rax, rbx\n    nop\n',
                            errors.AssemblerError.status, 4, "moov"),
    "undefined label": ('{{ starts_in("long") }}\n    jmp nowhere\n', errors.AssemblerError.status, 2, "nowhere"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_wrong(name: str, tmp_path: Path, capfd: Capture) -> None:
    text, status, line, words = TEMPLATES[name]
    (tmp_path / "mine" / "guests").mkdir(parents=True)
    (tmp_path / "mine" / "guests" / "broken.asm.j2").write_text(text)
    path = tmp_path / "image.toml"
    path.write_text(one_vm('template = "broken"'))
    ran = hvforge(capfd, "build", path, "-o", tmp_path / "out", "--templates", tmp_path / "mine")
    assert ran.status == status
    assert ran.error.startswith(f"guests/broken.asm.j2:{line}: ")
    assert words in ran.error


def test_layout_that_does_not_fit_below_the_pci_window(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "image.toml"
    vms = "".join(f'[[vm]]\nname = "v{i}"\nmemory = "1G"\n[vm.guest]\ntemplate = "long64"\n' for i in range(3))
    path.write_text(f'[image]\nname = "big"\n{vms}')
    ran = hvforge(capfd, "build", path, "-o", tmp_path / "out")
    assert ran.status == errors.LayoutError.status
    assert "vm[2].memory" in ran.error


@pytest.mark.parametrize(("emulator", "package"), [("bochs", "bochs"), ("qemu", "qemu-system-x86")])
def test_emulator_is_not_installed(
    emulator: str, package: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = hvforge(capfd, "run", MINIMAL, "--on", emulator)
    assert ran.status == Verdict.EMULATOR_MISSING
    assert ran.error.startswith(f"{emulator}: ")
    assert f"apt-get install {package}" in ran.error


def in_a_file(directory: Path) -> Path:
    (directory / "file").write_text("")
    return directory / "file" / "out"


def over_a_directory(directory: Path) -> Path:
    (directory / "minimal.img").mkdir()
    return directory


@pytest.mark.parametrize("place", [in_a_file, over_a_directory])
def test_output_cannot_be_written(place: Callable[[Path], Path], tmp_path: Path, capfd: Capture) -> None:
    output = place(tmp_path)
    ran = hvforge(capfd, "build", MINIMAL, "-o", output, "--format", "disk")
    assert ran.status == errors.OutputError.status
    assert ran.error.startswith(str(output))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_serial_file_cannot_be_written(tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, "run", MINIMAL, "--on", "bochs", "--serial", tmp_path)
    assert ran.status == errors.OutputError.status
    assert ran.error.startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("command", ["run", "verify", "inspect"])
def test_file_is_no_image(command: str, tmp_path: Path, capfd: Capture) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("just words\n" * 100)
    ran = hvforge(capfd, command, text)
    assert ran.status == errors.ImageFileError.status
    assert ran.error.startswith(f"{text}: not a bootable image")
    ran = hvforge(capfd, command, tmp_path / "nothing.img")
    assert ran.status == errors.ImageFileError.status
    assert ran.error == f"{tmp_path / 'nothing.img'}: cannot be read: no such file or directory"


# Command lines: (arguments, what the line says)
USAGE = {
    "no such command": (["bild"], "bild"),
    "no such option": (["build", "--fast"], "build: No such option"),
    "missing argument": (["build"], "build: Missing argument"),
    "wrong choice": (["run", "x.toml", "--on", "vmware"], "'unicorn', 'bochs', 'qemu'"),
    "not a number": (["run", "x.toml", "--timeout", "soon"], "--timeout"),
    "no time": (["run", "x.toml", "--timeout", "0"], "--timeout"),
    "format of a file": (["run", "x.img", "--format", "iso"], "--format"),
    "no template directory": (["build", "x.toml", "--templates", "nowhere"], "--templates nowhere"),
    "no such topic": (["explain", "weather", "1"], "vmcs, exit, error"),
    "no such field": (["explain", "vmcs", "GUEST_RPI"], "GUEST_RIP"),
    "no such check": (["explain", "check", "guest.cs.db_with_i"], "guest.cs.db_with_l"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, capfd: Capture) -> None:
    arguments, words = USAGE[name]
    ran = hvforge(capfd, *arguments)
    assert ran.status == errors.UsageError.status
    assert words in ran.error


def test_debug_shows_where_it_came_from(tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, "--debug", "build", tmp_path / "nothing.toml")
    assert ran.status == errors.SpecError.status
    assert ran.err.startswith("Traceback ")
    assert ran.err.splitlines()[-1].startswith("hvforge: error: ")


def test_a_fault_of_hvforge_itself_is_one_line_too(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("generator.doctor.survey", fail)
    ran = hvforge(capfd, "doctor")
    assert ran.status == INTERNAL_ERROR
    assert ran.err == "hvforge: internal error: ZeroDivisionError: two lines (hvforge --debug shows where)\n"


def test_interrupt_is_one_line(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("generator.doctor.survey", interrupt)
    ran = hvforge(capfd, "doctor")
    assert (ran.status, ran.err) == (INTERRUPTED, "hvforge: interrupted\n")


def test_each_class_of_errors_has_a_status_that_nothing_else_has() -> None:
    classes = [kind for kind in vars(errors).values()
               if isinstance(kind, type) and issubclass(kind, errors.HvforgeError) and kind is not errors.HvforgeError]
    taken = [error.status for error in classes] + [int(verdict) for verdict in Verdict] + [INTERNAL_ERROR, INTERRUPTED]
    assert len(classes) == 14
    assert len(set(taken)) == len(taken)
    assert all(0 <= status < 256 for status in taken)
    listed = (CHECKOUT / "docs" / "exit-codes.md").read_text()
    for status in [*taken, NOT_VERIFIED, BROKEN_PIPE, HUNG_UP, TERMINATED]:
        assert re.search(rf"(^|[^0-9A-Za-z]){status}\b", listed, re.MULTILINE), status


def test_unreadable_things_name_the_file(tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, "build", tmp_path)
    assert ran.status == errors.SpecError.status
    assert str(tmp_path) in ran.error
    assert list(tmp_path.iterdir()) == []
