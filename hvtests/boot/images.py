"""Tiny boot images for tests: each says a text on COM1 and port 0xE9, then does something last.

They stand in for a hypervisor of somebody else: nothing here comes from the generator.
"""

from __future__ import annotations

import io
import struct

import pycdlib
from keystone import KS_ARCH_X86, KS_MODE_16, KS_MODE_32, Ks

MULTIBOOT_LOAD = 0x100000
SHUTDOWN = "mov dx, 0x8900\n" + "".join(f"mov al, {byte}\nout dx, al\n" for byte in b"Shutdown")
HALT = "cli\nhlt\n"
SPIN = "spin: jmp spin\n"
DUMP_AT = 0x9000
DRIVE_AT = 0x8FF0
KERNEL_DUMP_AT = 0x20000
TEXT_AT = 0x180  # where the text lies behind the code's first byte

REAL_MODE = """
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
"""
DUMP = """
    cld
    mov {si}, {at:#x}
    mov {cx}, {size}
dumping:
    lodsb al, byte ptr [{si}]
    out 0xe9, al
    dec {cx}
    jnz dumping
"""
SAY = """
    mov dx, 0x3fb
    mov al, 3
    out dx, al
next:
    lodsb al, byte ptr [{si}]
    test al, al
    jz drain
    mov ah, al
wait:
    mov dx, 0x3fd
    in al, dx
    test al, 0x20
    jz wait
    mov al, ah
    mov dx, 0x3f8
    out dx, al
    out 0xe9, al
    jmp next
drain:
    mov dx, 0x3fd
    in al, dx
    test al, 0x40
    jz drain
"""


def debug_exit(code: int) -> str:
    """Assembly that writes ``code`` to port 0xF4 (where Bochs has nothing)."""
    return f"mov al, {code:#x}\nout 0xf4, al\n"


def assemble(source: str, address: int, bits: int) -> bytes:
    """Machine code of ``source`` at ``address``."""
    return bytes(Ks(KS_ARCH_X86, {16: KS_MODE_16, 32: KS_MODE_32}[bits]).asm(source, address)[0])


def program(text: bytes, last: str, address: int, bits: int, first: str = "") -> bytes:
    """Code for ``address`` that runs ``first``, says ``text`` and runs ``last``."""
    if bits == 16:
        start, si = REAL_MODE, "si"
    else:
        start, si = "cli\ncld\n", "esi"
    source = start + first + f"mov {si}, {address + TEXT_AT:#x}\n" + SAY.format(si=si) + last + HALT
    code = assemble(source, address, bits)
    assert len(code) <= TEXT_AT, f"{len(code)} bytes of code"
    return code.ljust(TEXT_AT, b"\0") + text + b"\0"


def disk(text: bytes, last: str, first: str = "") -> bytes:
    """One boot sector."""
    sector = program(text, last, 0x7C00, 16, first)
    assert len(sector) <= 510, "the text is too long for one sector"
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def dump_disk(work: str, size: int) -> bytes:
    """A boot sector: runs ``work`` (16-bit, DL kept in DRIVE_AT), puts ``size`` bytes from DUMP_AT on port 0xE9, ends.

    ``work`` must leave DS = 0.
    """
    end = DUMP.format(at=DUMP_AT, size=size, si="si", cx="cx") + debug_exit(0x10) + SHUTDOWN + HALT
    code = assemble(REAL_MODE + f"mov byte ptr [{DRIVE_AT:#x}], dl\n" + work + end, 0x7C00, 16)
    assert len(code) <= 510, f"{len(code)} bytes of code"
    return code.ljust(510, b"\0") + b"\x55\xaa"


def iso(text: bytes, last: str, first: str = "") -> bytes:
    """An El Torito ISO, no emulation, whose boot image is the boot sector of :func:`disk` at 0000:7C00."""
    return iso_of(disk(text, last, first))


def iso_of(boot: bytes) -> bytes:
    """An El Torito ISO, no emulation, whose boot image is the sector ``boot``."""
    made = pycdlib.PyCdlib()
    made.new(vol_ident="TEST")
    made.add_fp(io.BytesIO(boot), len(boot), "/BOOT.BIN;1")
    made.add_eltorito("/BOOT.BIN;1", boot_load_size=1, media_name="noemul")
    out = io.BytesIO()
    made.write_fp(out)
    made.close()
    return out.getvalue()


def multiboot_elf(text: bytes, last: str, first: str = "", flags: int = 0) -> bytes:
    """An ELF32 kernel with a multiboot1 header, entry at 1 MiB + 16."""
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF).ljust(16, b"\0")
    body = header + program(text, last, MULTIBOOT_LOAD + 16, 32, first)
    return elf32([(MULTIBOOT_LOAD, body, len(body) + 64)], MULTIBOOT_LOAD + 16)


def multiboot_dump(work: str, size: int, flags: int = 0) -> bytes:
    """An ELF32 kernel that runs ``work`` (32-bit), puts ``size`` bytes from KERNEL_DUMP_AT on port 0xE9, ends."""
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF).ljust(16, b"\0")
    end = DUMP.format(at=KERNEL_DUMP_AT, size=size, si="esi", cx="ecx") + debug_exit(0x10) + SHUTDOWN + HALT
    code = header + assemble(work + end, MULTIBOOT_LOAD + 16, 32)
    return elf32([(MULTIBOOT_LOAD, code, len(code))], MULTIBOOT_LOAD + 16)


def elf32(segments: list[tuple[int, bytes, int]], entry: int) -> bytes:
    """An ELF32 for i386 of (physical address, bytes, size in memory) segments."""
    at = 52 + 32 * len(segments)
    out = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    out += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, len(segments), 40, 0, 0)
    for address, data, size in segments:
        out += struct.pack("<8I", 1, at, address, address, len(data), size, 7, 4)
        at += len(data)
    return out + b"".join(data for _, data, _ in segments)
