"""A boot sector that asks a CPU which VMCS fields and VMX MSRs it has: a judge of generator.arch besides the manual.

It enters 64-bit mode and VMX root operation, reads the VMX MSRs from 0x480 on, then tries VMWRITE of all ones and
VMREAD on every encoding from 0 to 0x7fff. It is assembled by GNU as, and holds no number from generator.arch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvtests.toolchain.gnu_as import as_bytes

_BASE = 0x7C00
_SECTOR = 512
_SOURCE = """
.code16
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x7c00
    in al, 0x92
    or al, 2
    out 0x92, al
    xor ax, ax
    mov di, 0x1000                  # PML4, PDPT, PD, VMXON region, VMCS: five pages of zeros
    mov cx, 0x2800
    rep stosw
    mov word ptr [0x1000], 0x2003
    mov word ptr [0x2000], 0x3003
    mov word ptr [0x3000], 0x0083
    mov eax, 0x2020                 # PAE, VMXE
    mov cr4, eax
    mov eax, 0x1000
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or ah, 1                        # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000021              # PG, NE, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                      # far jump to 64-bit code
    .word long_mode, 8

.balign 8
gdt:
    .quad 0, 0x00209b0000000000
gdt_pointer:
    .word 15
    .long gdt
vmxon_region:
    .quad 0x4000
vmcs_region:
    .quad 0x5000

.code64
long_mode:
    mov r14d, 0x480                 # lines "M address value"
each_msr:
    mov ecx, r14d
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov r13b, 'M'
    call line
    inc r14d
    cmp r14d, LAST_MSR
    jbe each_msr

    mov ecx, 0x480
    rdmsr
    mov dword ptr [0x4000], eax
    mov dword ptr [0x5000], eax
    vmxon [vmxon_region]
    vmclear [vmcs_region]
    vmptrld [vmcs_region]
    xor r14d, r14d                  # lines "W encoding value" and, where VMWRITE failed, "R encoding value"
each_field:
    mov r13b, 'W'
    mov rax, -1
    vmwrite r14, rax
    ja written
    mov r13b, 'R'
written:
    vmread rax, r14
    jbe next
    call line
next:
    inc r14d
    cmp r14d, 0x8000
    jb each_field

    lea rsi, [rip + shutdown]
    mov edx, 0x8900
    mov ecx, 8
    rep outsb
    hlt

line:
    push rax
    mov al, r13b
    out 0xe9, al
    movzx rax, r14w
    call hexadecimal
    pop rax
    call hexadecimal
    mov al, 10
    out 0xe9, al
    ret

hexadecimal:                        # a space and RAX in 16 digits
    mov rdx, rax
    mov al, 32
    out 0xe9, al
    mov ecx, 16
digit:
    rol rdx, 4
    mov al, dl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe decimal
    add al, 'a' - '0' - 10
decimal:
    out 0xe9, al
    dec ecx
    jnz digit
    ret

shutdown:
    .ascii "Shutdown"
"""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the CPU said. `fields`: encoding → (value read after VMWRITE of all ones, whether that VMWRITE worked)."""

    fields: Mapping[int, tuple[int, bool]]
    msrs: Mapping[int, int]


def make_probe(path: Path, work: Path, last_msr: int) -> Path:
    """Write the bootable disk image to `path`, with GNU as working in `work`. MSRs up to `last_msr` are read."""
    code = as_bytes(64, _BASE, f".set LAST_MSR, {last_msr}\n{_SOURCE}", work)
    if len(code) > _SECTOR - 2 - 64:
        raise AssertionError(f"the probe has {len(code)} bytes and would cover the partition table")
    path.write_bytes(code.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa")
    return path


def parse(output: bytes) -> Probed:
    """What the probe printed on port 0xE9."""
    fields: dict[int, tuple[int, bool]] = {}
    msrs: dict[int, int] = {}
    for line in output.decode("latin-1").splitlines():
        words = line.split()
        if len(words) != 3 or words[0] not in ("M", "W", "R") or not all(len(word) == 16 for word in words[1:]):
            continue
        key, value = (int(word, 16) for word in words[1:])
        if words[0] == "M":
            msrs[key] = value
        else:
            fields[key] = (value, words[0] == "W")
    return Probed(fields, msrs)
