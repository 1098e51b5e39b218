"""From programs to outcomes: one image that runs them all, alone on the machine or as a guest of our hypervisor."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from generator.build import build, write
from hvtests.fuzz.programs import MODES, Program
from hvtests.runners.base import Runner

BASE = 0x1_0000
LOAD_LIMIT = 0x9_8000
CHUNK = 0x8000
# What a program leaves, in the order of image.s: SEGMENTS is DS, ES, FS, GS; MARKS the accessed and dirty bits of the
# pages; MEMORY and GDT are hashes.
FIELDS = (
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
    "VECTOR", "ERROR", "RIP", "CS", "RFLAGS", "SS", "CR2", "DR6", "CR4", "CR0", "SEGMENTS", "MEMORY", "MARKS", "GDT",
)
REGISTERS = tuple(name.lower() for name in FIELDS[:16])
KERNEL = {"rax": 0x1111, "rcx": 3, "rdx": 0x2222, "rbx": 0x12_0040, "rsp": 0x12_1800, "rbp": 0x12_0100,
          "rsi": 0x12_0200, "rdi": 0x12_0400}
USER = {**KERNEL, "rbx": 0x12_B040, "rsp": 0x12_C800, "rbp": 0x12_B100, "rsi": 0x12_B200, "rdi": 0x12_B400}
EFER = 0xD01    # SCE, LME, LMA, NXE

Outcome = dict[str, int]


def outcomes(image: Path, runner: Runner, *, guest: bool) -> list[Outcome]:
    """What each program left, in order; fewer than there are programs if the machine ended before the last."""
    result = runner.run(image, timeout=60)
    if guest:
        # COM1 has lines of 128 characters at most, behind the VM's name
        text = "".join(re.findall(r"^\[fuzz\] (.*)$", result.text, re.MULTILINE)).replace("@", "\n@")
    else:
        text = result.debugcon.decode("latin-1")
    rows = (row.split() for row in re.findall(r"@([0-9a-f ]+)", text))
    return [dict(zip(FIELDS, (int(word, 16) for word in words), strict=True))
            for _, *words in rows if len(words) == len(FIELDS)]


def make(programs: Sequence[Program], directory: Path, *, guest: bool) -> Path:
    """The disk image that runs `programs`."""
    text = Path(__file__).with_name("image.s").read_text() + _table(programs)
    code = _flat(directory, text, {"GUEST": int(guest), "COUNT": len(programs)}, BASE)
    if guest:
        (directory / "fuzz.bin").write_bytes(code)
        (directory / "fuzz.toml").write_text(
            '[image]\nname = "fuzz"\nwatchdog_ticks = 4_000_000_000\n[[vm]]\nname = "fuzz"\nmemory = "2M"\n[vm.guest]\n'
            f'file = "fuzz.bin"\nformat = "flat"\nmode = "long"\nload = {BASE:#x}\n')
        write(build(directory / "fuzz.toml", ["disk"]), directory)
        return directory / "fuzz.img"
    tables = BASE + (len(code) + 0xFFF & ~0xFFF)
    code = code.ljust(tables - BASE, b"\0") + _identity(tables)
    chunks = -(-len(code) // CHUNK)
    assert BASE + chunks * CHUNK <= LOAD_LIMIT, "too many programs for one image"
    loader = Path(__file__).parent.parent / "model" / "bochs_boot.s"
    boot = _flat(directory, loader.read_text(), {"STAGE2": BASE, "PML4": tables, "CHUNKS": chunks}, 0x7C00)
    image = directory / "fuzz.img"
    image.write_bytes((boot + code).ljust(2 << 20, b"\0"))
    return image


def _table(programs: Sequence[Program]) -> str:
    """For each program what image.s loads before it, then the programs themselves."""
    table, texts = ["", ".balign 8", "cases:"], []
    for number, program in enumerate(programs):
        bits, code, data, page = MODES[program.mode]
        registers = USER if program.mode.startswith("user") else KERNEL
        values = (page, program.rflags, code, data, program.cr4, program.cr0, EFER, data,
                  *(registers.get(name, 0x5000 + index) for index, name in enumerate(REGISTERS)))
        table.append(f".quad c{number}, e{number} - c{number}, " + ", ".join(map(hex, values)))
        texts.append(f".code{bits}\nc{number}:\n{program.text}\n.byte 0xcd, 0x80\ne{number}:")
    return "\n".join((*table, *texts, ""))


def _flat(directory: Path, text: str, symbols: dict[str, int], origin: int) -> bytes:
    """GNU as and ld: the flat binary of `text` at `origin`."""
    defines = [part for name, value in symbols.items() for part in ("--defsym", f"{name}={value}")]
    source, linked, binary = (directory / f"part{suffix}" for suffix in (".s", ".elf", ".bin"))
    source.write_text(text)
    subprocess.run(["as", "--64", *defines, "-o", f"{source}.o", source], check=True, timeout=30)
    subprocess.run(["ld", "-m", "elf_x86_64", "--no-warn-rwx-segments", f"-Ttext={origin:#x}", "-e", "_start",
                    "-o", linked, f"{source}.o"], check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, binary], check=True, timeout=30)
    return binary.read_bytes()


def _identity(table: int) -> bytes:
    """Page tables at `table`: the first GiB mapped to itself."""
    first, second = (struct.pack("<Q", table + at | 3).ljust(4096, b"\0") for at in (0x1000, 0x2000))
    return first + second + b"".join(struct.pack("<Q", number << 21 | 0x83) for number in range(512))
