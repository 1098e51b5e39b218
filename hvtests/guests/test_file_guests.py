"""Guests in files: ELF executables of both classes by GNU as and ld, and a flat one that climbs through the modes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from generator.build import build, write
from hvtests.guests import climb
from hvtests.runners.base import Runner, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

RUNNERS = [pytest.param(UnicornRunner, id="harness"), pytest.param(BochsRunner, id="bochs", marks=pytest.mark.bochs)]

# Text at one address, data at another, a word of .bss that must be zero; the message is reached by its address.
SOURCE = """
    .intel_syntax noprefix
    .globl _start
    .text
_start:
    mov eax, OFFSET zero
    cmp dword ptr [eax], 0
    mov ebx, 1
    jne done
    mov eax, 1
    mov ebx, OFFSET message
    mov ecx, OFFSET message_end - message
    vmcall
    mov ebx, eax
done:
    mov eax, 2
    vmcall
    .data
message: .ascii "hello from an ELF\\n"
message_end:
    .bss
zero: .long 0
"""
TOML = """
[image]
name = "elf"
[[vm]]
name = "elf"
memory = "4M"
[vm.guest]
file = "guest.elf"
format = "elf"
"""


def _run(toml: str, directory: Path, runner: Runner) -> list[str]:
    (directory / "image.toml").write_text(toml)
    image = build(directory / "image.toml", ["disk"])
    write(image, directory)
    result = runner.run(directory / f"{image.name}.img")
    assert result.verdict is Verdict.FINISHED, result.text
    return result.lines


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("bits", "emulation"), [(32, "elf_i386"), (64, "elf_x86_64")])
def test_an_elf_runs_as_linked(
    bits: int, emulation: str, runner: Callable[[], Runner], tmp_path: Path
) -> None:
    (tmp_path / "guest.s").write_text(SOURCE)
    subprocess.run(["as", f"--{bits}", "guest.s", "-o", "guest.o"], cwd=tmp_path, check=True, timeout=30)
    subprocess.run(["ld", "-m", emulation, "-Ttext=0x10000", "-Tdata=0x22000", "guest.o", "-o", "guest.elf"],
                   cwd=tmp_path, check=True, timeout=30, stderr=subprocess.DEVNULL)
    assert "[elf] hello from an ELF" in _run(TOML, tmp_path, runner())


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_flat_guest_climbs_from_real_mode_to_long_mode_and_back(
    runner: Callable[[], Runner], tmp_path: Path
) -> None:
    (tmp_path / "climb.bin").write_bytes(climb.climbing_guest())
    lines = _run(climb.IMAGE, tmp_path, runner())
    assert "hvforge: vm climb: exits CR_ACCESS 4" in lines  # paging on, off, on for long mode, off
