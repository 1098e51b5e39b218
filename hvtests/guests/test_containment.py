"""What a guest may see and do, at the edges: nothing of another VM, no endless loop in the CPU, no bit that is not its
own, and the architecture as on a processor without VMX. Every case runs in the harness and in Bochs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvtests.guests.flat import EXIT, GDT, Guest, run, status, with_handler
from hvtests.runners.base import Runner, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

Make = Callable[[], Runner]
both = pytest.mark.parametrize("runner", [
    pytest.param(UnicornRunner, id="harness"), pytest.param(BochsRunner, id="bochs", marks=pytest.mark.bochs)])


@both
def test_a_vm_does_not_see_the_registers_of_the_one_before(runner: Make, tmp_path: Path) -> None:
    """CR2, debug registers, SSE, SYSCALL MSRs: what the first leaves there, the second finds as after reset."""
    leave = """
        mov rax, 0x5ec12e70
        mov cr2, rax
        mov dr0, rax
        mov dr3, rax
        mov rcx, cr4
        or ecx, 0x200
        mov cr4, rcx
        movq xmm5, rax
        mov ecx, 0xc0000082
        xor edx, edx
        wrmsr
        xor ebx, ebx
    """
    find = """
        mov rcx, cr4
        or ecx, 0x200
        mov cr4, rcx
        mov rbx, cr2
        mov rax, dr0
        or rbx, rax
        mov rax, dr3
        or rbx, rax
        movq rax, xmm5
        or rbx, rax
        mov ecx, 0xc0000082
        rdmsr
        or ebx, eax
    """
    result = run([Guest("first", leave + EXIT), Guest("second", find + EXIT)], tmp_path, runner())
    assert status(result, "second") == 0


@both
def test_cr2_keeps_its_value_over_turns_of_other_vms(runner: Make, tmp_path: Path) -> None:
    code = """
        mov eax, 3
        vmcall
        lea r12, [rbx + 0x1000]
        mov cr2, r12
        mov ecx, 3000000
    spin:
        dec ecx
        jnz spin
        mov rbx, cr2
        sub rbx, r12
    """ + EXIT
    result = run([Guest("a", code), Guest("b", code)], tmp_path, runner(),
                 'schedule = "round-robin"\nslice_ticks = 100000')
    assert result.verdict is Verdict.FINISHED, result.text
    assert any("vm a: exits PREEMPTION_TIMER" in line for line in result.lines)


@both
def test_a_vm_cannot_take_anothers_turn_by_making_the_hypervisor_work(runner: Make, tmp_path: Path) -> None:
    """One VM prints as much as it can in each hypercall; the other counts its pauses of 300,000 TSC ticks and more."""
    hog = """
        mov edi, 0x100000
        mov ecx, 1024
        mov al, 10
        rep stosb
        mov r12d, 2
    again:
        mov eax, 1
        mov ebx, 0x100000
        mov ecx, 1024
        vmcall
        dec r12d
        jnz again
        xor ebx, ebx
    """
    victim = """
        mov r12d, 400000
        xor r13d, r13d
        mov r15d, 4
        rdtsc
        mov r14d, eax
    measure:
        rdtsc
        mov ecx, eax
        sub ecx, r14d
        mov r14d, eax
        cmp ecx, 300000
        jb short_pause
        inc r13d
    short_pause:
        dec r12d
        jnz measure
        mov ebx, r13d
    """
    result = run([Guest("victim", victim + EXIT), Guest("hog", hog + EXIT)], tmp_path, runner(),
                 'schedule = "round-robin"\nslice_ticks = 100000')
    # Two calls, two long pauses: between them the victim had its turn.
    assert "hvforge: vm victim: ended: failed, status 0x02, expected exited" in result.lines, result.lines[-6:]


ENDLESS_AC = """
    lgdt [gdtr]
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov edi, 0x8000
    xor eax, eax
    mov ecx, 512
    rep stosd
    mov eax, offset handler
    mov word ptr [0x8000 + 17 * 8], ax
    mov word ptr [0x8000 + 17 * 8 + 2], 0x1b
    mov word ptr [0x8000 + 17 * 8 + 4], 0xee00
    lidt [idtr]
    mov eax, cr0
    or eax, 0x40000
    mov cr0, eax
    mov eax, 0x23
    mov ds, ax
    mov es, ax
    push 0x23
    push 0x6001          # a misaligned stack in user mode, where the handler is too
    push 0x40002         # EFLAGS.AC
    push 0x1b
    push offset user
    iretd
user:
    mov eax, dword ptr [0x5001]
handler:
    jmp handler
    .align 8
gdt:  .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
gdtr: .word 39
      .long gdt
idtr: .word 0x7ff
      .long 0x8000
"""


@pytest.mark.parametrize("keys", ["", 'intercept_exceptions = ["#AC"]'])
@both
def test_an_exception_that_raises_itself_for_ever_is_stopped(runner: Make, keys: str, tmp_path: Path) -> None:
    """Delivering #AC onto a misaligned stack raises #AC: an endless loop inside the CPU, without a boundary at which a
    timer could fire (CVE-2015-5307)."""
    result = run([
        Guest("loop", ENDLESS_AC, "protected", keys=f'expect = "watchdog"\n{keys}'), Guest("next", template="long64"),
    ], tmp_path, runner(), "watchdog_ticks = 1_000_000")
    assert result.verdict is Verdict.FINISHED, result.text
    assert "hvforge: vm next: ended: exited" in result.lines


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
def test_user_code_does_not_keep_the_io_privilege_that_the_kernel_had(runner: Make, tmp_path: Path) -> None:
    """The kernel runs with IOPL 3 for a while, over a VM exit, then enters user mode with IOPL 0: CLI is #GP there."""
    code = with_handler(13) + """
        push 0x3002
        popfq
        xor eax, eax
        cpuid
        lea rax, [rip + user_gdtr]
        lgdt [rax]
        lea rax, [rip + tss]
        mov word ptr [rip + tss_base], ax
        mov ax, 0x28
        ltr ax
        push 0x23
        push 0x7000
        push 0x0002
        push 0x1b
        lea rax, [rip + user]
        push rax
        iretq
    user:
        cli
        ud2                                # not reached: without its gate the VM would triple-fault
    handler:
        xor ebx, ebx
    """ + EXIT + """
        .align 8
    user_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff
              .word 0x67
    tss_base: .word 0
              .byte 0, 0x89, 0, 0
              .quad 0
    user_gdtr: .word 0x37
               .quad user_gdt
    tss: .long 0
         .quad 0x6000
         .space 92
    """ + GDT
    assert status(run([Guest("vm", code)], tmp_path, runner()), "vm") == 0


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
