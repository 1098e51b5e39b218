"""The architecture as a guest sees it where the hypervisor has a hand in it: control registers, CPUID, single steps,
EIP, faults. As on a processor without VMX. Every case runs in the harness and in Bochs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvtests.guests.flat import EXIT, GDT, Guest, run, status, with_handler
from hvtests.runners.base import Runner
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

Make = Callable[[], Runner]
both = pytest.mark.parametrize("runner", [
    pytest.param(UnicornRunner, id="harness"), pytest.param(BochsRunner, id="bochs", marks=pytest.mark.bochs)])


@both
def test_reserved_bits_of_efer_are_refused_in_its_upper_half_too(runner: Make, tmp_path: Path) -> None:
    code = with_handler(13) + """
        mov ecx, 0xc0000080
        rdmsr
        mov edx, 0x80000000
        wrmsr
        mov ebx, 0xbad
    """ + EXIT + "handler:\nxor ebx, ebx\n" + EXIT + GDT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0


@both
def test_cr0_reads_as_a_cpu_without_vmx_would_have_it(runner: Make, tmp_path: Path) -> None:
    """ET is always 1, bit 6 is not defined and stays 0 (SDM 3A 2.5)."""
    code = "mov rax, cr0\nor eax, 0x40000040\nand eax, 0xffffffef\nmov cr0, rax\nmov rbx, cr0\n" + EXIT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0xC0000011


@both
def test_mov_to_cr0_takes_32_bits_outside_64_bit_mode(runner: Make, tmp_path: Path) -> None:
    code = """
        lea rax, [rip + gdtr]
        lgdt [rax]
        mov rbx, cr0
        mov rdx, 0xdeadbeef00000020
        or rbx, rdx
        push 0x18
        lea rax, [rip + compatibility]
        push rax
        lretq
        .code32
    compatibility:
        mov ax, 0x10
        mov ds, ax
        mov ss, ax
        mov cr0, ebx
        mov eax, 2
        xor ebx, ebx
        vmcall
    """ + GDT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0


@both
def test_cpuid_shows_no_leaf_that_a_vm_does_not_have(runner: Make, tmp_path: Path) -> None:
    """Highest leaves as shown, nothing above them or among our own, one processor, no CR4.MCE without CPUID's."""
    leaves = "".join(f"""
        mov eax, {leaf:#x}
        mov ecx, {subleaf}
        cpuid
        or r12d, eax
        or r12d, ebx
        or r12d, ecx
        or r12d, edx
    """ for leaf, subleaf in ((0xB, 0), (0xB, 1), (0xA, 0), (0x14, 0), (0x20, 0), (0x50000000, 0), (0x8000000A, 0),
                              (0x40000002, 0), (7, 1), (0xD, 9)))
    code = f"""
        xor r12d, r12d
        {leaves}
        xor eax, eax
        cpuid
        cmp eax, 0xd
        ja bad
        mov eax, 0x80000000
        cpuid
        cmp eax, 0x80000008
        ja bad
        mov eax, 4
        xor ecx, ecx
        cpuid
        shr eax, 14
        jnz bad
        mov eax, 1
        cpuid
        shr ebx, 16
        jnz bad
        mov ebx, r12d
        jmp done
    bad:
        mov ebx, 0xbad
    done:
    """ + EXIT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0


SINGLE_STEP = """
    pushfq
    or qword ptr [rsp], 0x100
    xor eax, eax
    popfq
    {instruction}
after:
    nop
    nop
    ud2
handler:
    mov rbx, [rsp]
    lea rax, [rip + after]
    sub rbx, rax
    mov rax, dr6
    and eax, 0x4000
    shl eax, 2
    or ebx, eax
"""


@pytest.mark.parametrize("instruction", ["nop", "cpuid", "in al, 0x80", "rdtsc"])
@both
def test_a_single_step_ends_behind_the_instruction_emulated_or_not(
    runner: Make, instruction: str, tmp_path: Path
) -> None:
    """The handler exits with (RIP - expected RIP) | DR6.BS << 2: #DB right behind the instruction, DR6.BS set."""
    code = with_handler(1) + SINGLE_STEP.format(instruction=instruction) + EXIT + GDT
    result = run([Guest("vm", code, keys="rdtsc_exiting = true")], tmp_path, runner())
    assert status(result, "vm") == 0x10000


@both
def test_eip_wraps_at_4_gib(runner: Make, tmp_path: Path) -> None:
    """CPUID in the last two bytes of the linear address space of a 32-bit guest, which goes on at 0."""
    code = """
        mov edi, 0x2000
        mov eax, 0x83
        mov ecx, 1024
    fill:
        mov [edi], eax
        add edi, 4
        add eax, 0x400000
        loop fill
        mov dword ptr [0x2ffc], 0x3003        # linear ffc00000H: a page table
        mov dword ptr [0x3ffc], 0x7003        # linear fffff000H is physical 7000H
        mov word ptr [0x7ffe], 0xa20f         # CPUID
        mov byte ptr [0], 0xbb                # at 0: mov ebx, 0; mov eax, 2; vmcall
        mov dword ptr [1], 0
        mov byte ptr [5], 0xb8
        mov dword ptr [6], 2
        mov dword ptr [10], 0xc1010f
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov eax, 0x2000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov eax, 0xfffffffe
        jmp eax
    """
    assert status(run([Guest("vm", code, "protected")], tmp_path, runner()), "vm") == 0


@both
def test_a_real_mode_guest_may_lie_above_64_kib(runner: Make, tmp_path: Path) -> None:
    code = "mov ax, cs\nmovzx ebx, ax\nsub ebx, 0x2000\n" + EXIT
    assert status(run([Guest("vm", code, "real", load=0x20000)], tmp_path, runner()), "vm") == 0


@both
def test_cr2_of_a_page_fault_that_makes_a_double_fault(runner: Make, tmp_path: Path) -> None:
    """#PF while #PF is delivered (the stack is not mapped), both intercepted: #DF, CR2 of the second."""
    code = with_handler(8) + """
        mov word ptr [0x8000 + 16 * 8 + 4], 0x8e01     # #DF has a stack
        mov word ptr [0x8000 + 16 * 14 + 2], 8
        mov word ptr [0x8000 + 16 * 14 + 4], 0x8e00
        lea rax, [rip + tss]
        mov word ptr [rip + tss_base], ax
        lea rax, [rip + wide_gdtr]
        lgdt [rax]
        mov ax, 0x18
        ltr ax
        mov rsp, 0x50000000
        mov rax, [0x40000008]
    handler:
        mov rbx, cr2
    """ + EXIT + """
        .align 8
    wide_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
              .word 0x67
    tss_base: .word 0
              .byte 0, 0x89, 0, 0
              .quad 0
    wide_gdtr: .word 39
              .quad wide_gdt
        .align 8
    tss: .long 0
         .quad 0x7000, 0, 0, 0, 0x7000
         .space 60
    """ + GDT
    result = run([Guest("vm", code, keys='intercept_exceptions = ["#PF"]')], tmp_path, runner())
    assert status(result, "vm") == 0x50000000 - 8


@both
def test_an_interrupt_instruction_is_no_single_step(runner: Make, tmp_path: Path) -> None:
    """INT3 with RFLAGS.TF: the handler begins with TF = 0, and no #DB comes before its first instruction."""
    code = with_handler(3) + """
        lea rax, [rip + debug]
        mov [0x8000 + 16], ax
        mov word ptr [0x8000 + 16 + 2], 8
        mov word ptr [0x8000 + 16 + 4], 0x8e00
        pushfq
        or qword ptr [rsp], 0x100
        popfq
        int3
    handler:
        nop
        xor ebx, ebx
    """ + EXIT + "debug:\nmov ebx, 0xbad\n" + EXIT + GDT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0
