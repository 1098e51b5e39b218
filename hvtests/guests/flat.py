"""Small guests written in a test: assembled by GNU as, linked flat, run with an image.toml made for them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.build import build, write
from hvtests.runners.base import Runner, RunResult

LOAD = 0x1000
SCRATCH = 0x8000          # where guests here keep an IDT
EXIT = "mov eax, 2\nvmcall\n"

# For 64-bit guests: GDT with 64-bit code (08H), data (10H), 32-bit code (18H); an IDT at SCRATCH of which one vector
# leads to `handler`.
GDT = """
    .align 8
gdt:  .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdtr: .word 31
      .quad gdt
idtr: .word 0xfff
      .quad 0x8000
"""


def with_handler(vector: int) -> str:
    """Code that sets up GDT and IDT, ``vector`` leading to the label ``handler``."""
    return f"""
    mov edi, {SCRATCH}
    mov ecx, 512
    xor eax, eax
    rep stosq
    lea rax, [rip + gdtr]
    lgdt [rax]
    mov ax, 0x10
    mov ss, ax
    mov ds, ax
    lea rax, [rip + handler]
    mov [{SCRATCH + 16 * vector}], ax
    mov word ptr [{SCRATCH + 16 * vector + 2}], 8
    mov word ptr [{SCRATCH + 16 * vector + 4}], 0x8e00
    lea rax, [rip + idtr]
    lidt [rax]
"""


@dataclass(frozen=True)
class Guest:
    """One VM: its code (GNU as, Intel syntax) or the name of a template, how it starts, keys for image.toml."""

    name: str
    code: str = ""
    mode: str = "long"
    template: str = ""
    keys: str = ""         # lines of [[vm]]
    load: int = LOAD


def _assemble(guest: Guest, directory: Path) -> None:
    bits = {"real": 16, "protected": 32, "long": 64}[guest.mode]
    (directory / f"{guest.name}.s").write_text(f".intel_syntax noprefix\n.code{bits}\n_start:\n{guest.code}\n")
    wide = bits == 64
    subprocess.run(["as", "--64" if wide else "--32", f"{guest.name}.s", "-o", f"{guest.name}.o"], cwd=directory,
                   check=True, timeout=30)
    subprocess.run(["ld", "-m", "elf_x86_64" if wide else "elf_i386", f"-Ttext={guest.load:#x}", "--oformat=binary",
                    "-e", "_start", f"{guest.name}.o", "-o", f"{guest.name}.bin"],
                   cwd=directory, check=True, timeout=30, stderr=subprocess.DEVNULL)


def make(guests: Sequence[Guest], directory: Path, image: str = "") -> Path:
    """The disk image with these guests; ``image``: more lines of [image]."""
    toml = f'[image]\nname = "flat"\n{image}\n'
    for guest in guests:
        toml += f'[[vm]]\nname = "{guest.name}"\nmemory = "2M"\n{guest.keys}\n[vm.guest]\n'
        if guest.template:
            toml += f'template = "{guest.template}"\n'
        else:
            _assemble(guest, directory)
            toml += f'file = "{guest.name}.bin"\nformat = "flat"\nmode = "{guest.mode}"\nload = {guest.load:#x}\n'
    (directory / "flat.toml").write_text(toml)
    write(build(directory / "flat.toml", ["disk"]), directory)
    return directory / "flat.img"


def run(guests: Sequence[Guest], directory: Path, runner: Runner, image: str = "") -> RunResult:
    """Build and boot."""
    return runner.run(make(guests, directory, image), timeout=60)


def status(result: RunResult, name: str) -> int:
    """The status with which a VM left by the EXIT hypercall."""
    for line in result.lines:
        if line == f"hvforge: vm {name}: ended: exited":
            return 0
        if line.startswith(f"hvforge: vm {name}: ended: failed, status "):
            return int(line.split(", status ")[1].split(",")[0], 16)
    raise AssertionError(f"VM {name} did not exit:\n{result.text}")
