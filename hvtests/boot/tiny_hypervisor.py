"""A whole hypervisor of a few hundred bytes that is not ours: what somebody who uses the harness brings along.

A multiboot1 kernel in 64-bit mode: it runs one guest in its own address space, without EPT, answers CPUID leaf
40000000h, prints the byte that a guest gives in BL with VMCALL, and ends at VMCALL with BL = 0.
Field encodings are written as numbers from the manual (SDM 3C Appendix B) on purpose.
"""

from __future__ import annotations

import struct

from keystone import KS_ARCH_X86, KS_MODE_32, KS_MODE_64, Ks

from hvtests.boot.images import elf32

BASE = 0x100000
PML4, PDPT, PD, VMXON, VMCS, TABLES, GDT, CODE64, GUEST = (BASE + 0x1000 * n for n in range(1, 10))
STACK, GUEST_STACK = BASE + 0xC000, BASE + 0xB000
NO_VMX, LAUNCH_FAILED, UNKNOWN_EXIT, DONE = 0x21, 0x22, 0x23, 0x20
CR0, CR4 = 0x80000031, 0x2020
EVERYTHING = (1 << 64) - 1

CONTROLS = (  # field, capability MSR, wanted bits
    (0x4000, 0x481, 0),
    (0x4002, 0x482, 1 << 7),   # HLT exiting
    (0x400C, 0x483, 1 << 9),   # host address-space size
    (0x4012, 0x484, 1 << 9),   # IA-32e mode guest
)
FIELDS = (
    (0x4004, 0), (0x4006, 0), (0x4008, 0), (0x400A, 0), (0x400E, 0), (0x4010, 0), (0x4014, 0), (0x4016, 0),
    (0x6000, 0), (0x6002, 0), (0x6004, 0), (0x6006, 0), (0x2800, EVERYTHING), (0x2802, 0),
    # guest: registers
    (0x6800, CR0), (0x6802, PML4), (0x6804, CR4), (0x681A, 0x400), (0x681C, GUEST_STACK), (0x681E, GUEST),
    (0x6820, 2), (0x6822, 0), (0x6824, 0), (0x6826, 0), (0x482A, 0), (0x4824, 0), (0x4826, 0),
    # guest: selectors, limits, access rights, bases of ES CS SS DS FS GS LDTR TR
    (0x800, 0x10), (0x802, 0x18), (0x804, 0x10), (0x806, 0x10), (0x808, 0x10), (0x80A, 0x10), (0x80C, 0), (0x80E, 0x20),
    *((0x4800 + 2 * n, 0xFFFFFFFF) for n in range(6)), (0x480C, 0), (0x480E, 0x67), (0x4810, 0x27), (0x4812, 0),
    (0x4814, 0xC093), (0x4816, 0xA09B), *((0x4818 + 2 * n, 0xC093) for n in range(4)),
    (0x4820, 0x10000), (0x4822, 0x8B),
    *((0x6806 + 2 * n, 0) for n in range(8)), (0x6816, GDT), (0x6818, 0),
    # host
    (0xC00, 0x10), (0xC02, 0x18), (0xC04, 0x10), (0xC06, 0x10), (0xC08, 0x10), (0xC0A, 0x10), (0xC0C, 0x20),
    (0x6C00, CR0), (0x6C02, PML4), (0x6C04, CR4), (0x6C06, 0), (0x6C08, 0), (0x6C0A, 0), (0x6C0C, GDT), (0x6C0E, 0),
    (0x6C10, 0), (0x6C12, 0), (0x4C00, 0), (0x6C14, STACK),
)  # fmt: skip
DESCRIPTORS = (0, 0, 0x00CF93000000FFFF, 0x00AF9B000000FFFF, 0)

ENTRY = f"""
    cli
    mov esp, {STACK:#x}
    mov eax, 1
    cpuid
    mov bl, {NO_VMX:#x}
    bt ecx, 5
    jnc end
    mov eax, {CR4:#x}
    mov cr4, eax
    mov eax, {PML4:#x}
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, {CR0:#x}
    mov cr0, eax
"""
END = """
end:
    mov al, bl
    out 0xf4, al
    mov dx, 0x8900
""" + "".join(f"    mov al, {byte}\n    out dx, al\n" for byte in b"Shutdown") + """
halt:
    hlt
    jmp halt
"""
START64 = f"""
    mov dx, 0x3fb
    mov al, 3
    out dx, al
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ecx, 0x480
    rdmsr
    mov rbx, {VMXON:#x}
    mov dword ptr [rbx], eax
    mov rbx, {VMCS:#x}
    mov dword ptr [rbx], eax
    mov rbx, {TABLES:#x}
    vmxon qword ptr [rbx]
    jbe failed
    vmclear qword ptr [rbx + 8]
    jbe failed
    vmptrld qword ptr [rbx + 8]
    jbe failed
    lea rsi, [rbx + 16]
    mov edi, {len(CONTROLS)}
next_control:
    mov ecx, dword ptr [rsi + 4]
    rdmsr
    or eax, dword ptr [rsi + 8]
    and eax, edx
    mov ecx, dword ptr [rsi]
    vmwrite rcx, rax
    jbe failed
    add rsi, 12
    dec edi
    jnz next_control
    mov edi, {len(FIELDS) + 1}
next_field:
    mov rcx, qword ptr [rsi]
    mov rax, qword ptr [rsi + 8]
    vmwrite rcx, rax
    jbe failed
    add rsi, 16
    dec edi
    jnz next_field
    vmlaunch
failed:
    mov bl, {LAUNCH_FAILED:#x}
    jmp end
vm_exit:
    push rax
    push rcx
    push rdx
    mov eax, 0x4402
    vmread rcx, rax
    cmp ecx, 18
    je hypercall
    mov bl, {UNKNOWN_EXIT:#x}
    cmp ecx, 10
    jne end
    pop rdx
    pop rcx
    pop rax
    cmp eax, 0x40000000
    je our_leaf
    cpuid
    jmp advance
our_leaf:
    mov ebx, 0x796e6974
    xor ecx, ecx
    xor edx, edx
    jmp advance
hypercall:
    mov al, bl
    test al, al
    jz done
    out 0xe9, al
    mov dx, 0x3f8
    out dx, al
    mov dx, 0x3fd
sending:
    in al, dx
    test al, 0x40
    jz sending
    pop rdx
    pop rcx
    pop rax
advance:
    push rax
    push rcx
    push rdx
    mov eax, 0x681e
    vmread rcx, rax
    mov edx, 0x440c
    vmread rdx, rdx
    add rcx, rdx
    vmwrite rax, rcx
    pop rdx
    pop rcx
    pop rax
    vmresume
    jmp failed
done:
    mov bl, {DONE:#x}
"""
# Prints the EBX of its hypervisor's CPUID leaf byte by byte, a line end, and stops.
GUEST_CODE = """
    mov eax, 0x40000000
    cpuid
next_byte:
    test bl, bl
    jz stop
    vmcall
    shr ebx, 8
    jmp next_byte
stop:
    mov bl, 10
    vmcall
    xor ebx, ebx
    vmcall
    hlt
"""


def _assemble(source: str, address: int, bits: int) -> bytes:
    return bytes(Ks(KS_ARCH_X86, {32: KS_MODE_32, 64: KS_MODE_64}[bits]).asm(source, address)[0])


def build(guest: str = GUEST_CODE) -> bytes:
    """The kernel's ELF file, with ``guest`` (64-bit assembly) as its guest."""
    # lgdt [GDT + 28h] and a jump to 18h:CODE64, by their encodings: Keystone gets both wrong.
    switch = b"\x0f\x01\x15" + struct.pack("<I", GDT + 0x28) + b"\xea" + struct.pack("<IH", CODE64, 0x18)
    entry = _assemble(ENTRY + f".byte {', '.join(map(str, switch))}\n" + END, BASE + 16, 32)
    host = _assemble(START64 + END + ".quad vm_exit\n", CODE64, 64)
    (exit_at,) = struct.unpack("<Q", host[-8:])
    tables = struct.pack("<2Q", VMXON, VMCS)
    tables += b"".join(struct.pack("<3I", *row) for row in CONTROLS)
    tables += b"".join(struct.pack("<2Q", *row) for row in (*FIELDS, (0x6C16, exit_at)))
    image = bytearray(0xC000)
    for address, data in (
        (BASE, struct.pack("<4I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF, 0) + entry),
        (PML4, struct.pack("<Q", PDPT | 3)),
        (PDPT, struct.pack("<Q", PD | 3)),
        (PD, b"".join(struct.pack("<Q", n << 21 | 0x83) for n in range(512))),
        (TABLES, tables),
        (GDT, struct.pack("<5Q", *DESCRIPTORS) + struct.pack("<HI", 0x27, GDT)),
        (CODE64, host),
        (GUEST, _assemble(guest, GUEST, 64)),
    ):
        image[address - BASE : address - BASE + len(data)] = data
    return elf32([(BASE, bytes(image), len(image))], BASE + 16)
