"""A guest in a file that climbs from real mode as boot loaders do, and down again: each rung goes through the
hypervisor's control-register code, and each rung's mode is checked by what only works there.

    1000H real mode -> 1100H protected mode -> PAE paging -> paging off -> EFER.LME and paging -> 1300H long mode
    -> 1400H compatibility mode -> paging off (EFER.LMA falls) -> EXIT 0
"""

from __future__ import annotations

from generator.assemble import Unit, assemble
from generator.render import Line
from generator.render_helpers import far_jump16, far_jump32, lgdt

LOAD = 0x1000
_SIZE = 0x600

_REAL = f"""
    cli
    {lgdt("0x1500", 16)}
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    {far_jump16(8, 0x1100)}
"""

_PROTECTED = f"""
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x8000
    mov edi, 0x3000                     ; PDPT of PAE paging, PD, PML4 and PDPT of long mode
    mov ecx, 0x1000
    xor eax, eax
    rep stosd
    mov edi, 0x3000
    mov dword ptr [edi], 0x4001
    mov dword ptr [edi + 0x1000], 0x83
    mov dword ptr [edi + 0x2000], 0x6003
    mov dword ptr [edi + 0x3000], 0x4003
    mov dword ptr [edi + 0x1008], 0x83  ; linear 2 MiB is physical 0 as well: only paging makes it so
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, 0x3000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, dword ptr [edi]
    mov edx, 0x203000
    cmp eax, dword ptr [edx]
    jne failed
    xor eax, eax
    cpuid
    mov edi, 0x3000
    mov dword ptr [edi], 0x4003         ; a reserved bit (R/W) in a PDPTE: only the next load of CR3 sees it
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov dword ptr [edi], 0x4001
    mov ecx, 0xc0000080
    rdmsr
    test eax, 0x400
    jnz failed
    or eax, 0x100
    wrmsr
    mov eax, 0x5000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    {far_jump32(0x18, 0x1300)}
failed:
    mov eax, 2
    mov ebx, 1
    vmcall
"""

_LONG = """
    mov ecx, 0xc0000080
    rdmsr
    test eax, 0x400
    jz failed64
    mov rax, 0x123456789abcdef0
    mov rcx, rax
    shr rcx, 60
    cmp ecx, 1
    jne failed64
    cpuid
    push 0x08
    push 0x1400
    retfq
failed64:
    mov eax, 2
    mov ebx, 2
    vmcall
"""

_DOWN = """
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    mov ebx, 3
    test eax, 0x400
    jnz done
    xor ebx, ebx
done:
    mov eax, 2
    vmcall
"""

_GDT = """
    .word 39
    .long 0x1510
    .balign 16
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
"""


def climbing_guest() -> bytes:
    """A flat binary for ``load = 0x1000``, ``mode = "real"``."""
    parts = (
        (16, 0x1000, _REAL), (32, 0x1100, _PROTECTED), (64, 0x1300, _LONG), (32, 0x1400, _DOWN), (64, 0x1500, _GDT),
    )
    out = bytearray(_SIZE)
    for bits, base, text in parts:
        lines = [Line(line, "climb", number) for number, line in enumerate(text.splitlines(), 1)]
        code = assemble([Unit(f"climb{base:x}", bits, base, lines)])[0].code
        out[base - LOAD:base - LOAD + len(code)] = code
    return bytes(out)


IMAGE = """
[image]
name = "climb"
trace = true
[[vm]]
name = "climb"
memory = "2M"
[vm.guest]
file = "climb.bin"
format = "flat"
mode = "real"
"""
