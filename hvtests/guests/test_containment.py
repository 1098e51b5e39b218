"""What a guest may see and do, at the edges: nothing of another VM, nobody else's time, no endless loop in the CPU, no
privilege that is not its own. Every case runs in the harness and in Bochs.
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
