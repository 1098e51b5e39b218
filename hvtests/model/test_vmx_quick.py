"""The native path gives what the Python path gives: the same runs with it and without, compared in everything."""

from __future__ import annotations

import pytest

from hvtests.machine.stop import Limits, Stop, StopKind
from hvtests.model.asm import CODE32, HANDLER_AT, Lab, gate64
from hvtests.vmx import vmcs as v
from hvtests.vmx.records import ExitLog

# Handles CPUID (10) by CPUID, VMCALL, CR access, I/O and WRMSR by going on; anything else is a debug exit with the
# reason. R8D counts the exits.
HANDLER = """
    push rdx; push rcx; push rbx; push rax
    inc r8
    mov eax, 0x4402; vmread rdx, rax
    cmp edx, 10; je cpuid_exit
    cmp edx, 18; je next
    cmp edx, 30; je next
    cmp edx, 32; je next
    cmp edx, 28; je next
    cmp edx, 52; je again
    mov al, dl; out 0xf4, al
cpuid_exit:
    mov rax, [rsp]; mov rcx, [rsp + 16]; cpuid
    mov [rsp], rax; mov [rsp + 8], rbx; mov [rsp + 16], rcx; mov [rsp + 24], rdx
next:
    mov eax, 0x681e; vmread rbx, rax; mov eax, 0x440c; vmread rcx, rax; add rbx, rcx
    mov eax, 0x681e; vmwrite rax, rbx
    mov r9d, 0x681c; vmread r10, r9; vmwrite r9, r10
again:
    pop rax; pop rbx; pop rcx; pop rdx
    vmresume
    mov al, 0xee; out 0xf4, al
"""
LOOP64 = """
    mov esi, 300
again: mov eax, esi; and eax, 7; xor ecx, ecx; cpuid; vmcall
    add rdi, rax; rol rdi, 3; push rdi; pop rbp; mov [rsp - 8], rdi; std; stc
    dec esi; jnz again
    hlt
"""
LOOP = LOOP64.replace("rdi", "edi").replace("rax", "eax").replace("rbp", "ebp").replace("rsp", "esp")
TIMED = {"pin": ("ACTIVATE_PREEMPTION_TIMER",), "exit_": ("SAVE_PREEMPTION_TIMER",),
         "fields": {"VMX_PREEMPTION_TIMER_VALUE": 100_000}}
MSRS = {"exit_": ("SAVE_IA32_PAT", "LOAD_IA32_PAT", "SAVE_DEBUG_CONTROLS"),
        "entry": ("LOAD_IA32_PAT", "LOAD_DEBUG_CONTROLS"),
        "fields": {"GUEST_IA32_PAT": 0x0606060606060606, "HOST_IA32_PAT": 0x0007040600070406,
                   "GUEST_SYSENTER_CS": 0x30, "GUEST_SYSENTER_EIP": 0x4444, "HOST_IA32_SYSENTER_EIP": 0x5555}}


def snapshot(lab: Lab, stop: Stop) -> dict[str, object]:
    machine = lab.machine
    vmcs = machine.vmx.current
    assert vmcs is not None
    fields = bytes(vmcs.b[:v.WRITTEN_AT - 80])
    return {
        "stop": stop, "gprs": list(machine.cpu.gprs), "rip": machine.cpu.rip, "flags": machine.cpu.rflags,
        "ticks": machine.fabric.ticks, "exits": list(machine.vmx.exits), "total": machine.vmx.exits.total,
        "fields": {name: vmcs.read(name) for name in v.PLACES}, "dirty": vmcs.dirty(), "data": fields,
        "written": bytes(vmcs.b[v.WRITTEN_AT:v.DIRTY_AT]),
        "cr": (machine.cpu.cr0, machine.cpu.cr3, machine.cpu.cr4, machine.cpu.efer, machine.cpu.dr[7]),
        "msrs": [machine.msrs.read(index) for index in (0x174, 0x175, 0x176, 0x277, 0x1D9)],
        "memory": hash(machine.memory.read(0, machine.memory.size)), "failures": machine.vmx.failures,
    }


def run(quick: bool, code: str | bytes, **keywords: object) -> dict[str, object]:
    lab = Lab(code, **keywords)  # type: ignore[arg-type]
    lab.load(HANDLER_AT, HANDLER)
    lab.machine.vmx.quick.enabled = quick
    stop = lab.machine.run(Limits(seconds=30))
    assert stop.kind is StopKind.DEBUG_EXIT, stop
    return snapshot(lab, stop)


def same(code: str | bytes, **keywords: object) -> dict[str, object]:
    """Run both ways and compare; the result."""
    fast, slow = run(True, code, **keywords), run(False, code, **keywords)
    for key, value in slow.items():
        assert fast[key] == value, key
    return fast


@pytest.mark.parametrize("mode", [64, 32, 16])
@pytest.mark.parametrize("keywords", [{}, TIMED, MSRS], ids=["plain", "timed", "msrs"])
def test_loops(mode: int, keywords: dict[str, object]) -> None:
    result = same(LOOP64 if mode == 64 else LOOP, mode=mode, **keywords)
    assert result["total"] == 601 and result["stop"].code == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_exits_that_python_decides_and_native_code_makes(mode: int) -> None:
    """I/O with and without a string, WRMSR, a control register with its qualification."""
    code = ("mov esi, 100; mov edx, 0x3f8; mov ecx, 0x174; again: out dx, al; in ax, dx; wrmsr; sti; out 0x21, al; cli;"
            "mov cr3, eax; std; outsb; cld; dec esi; jnz again; hlt")
    if mode == 64:
        code = code.replace("mov cr3, eax", "mov cr3, rax")
    result = same(code, mode=mode, proc=("UNCONDITIONAL_IO_EXITING", "CR3_LOAD_EXITING"))
    assert result["total"] == 601


def test_the_timer_expires_at_the_same_instruction() -> None:
    """Seven ticks from each entry: sometimes CPUID comes first, sometimes the timer."""
    code = "again: inc esi; jmp one; one: inc edi; jmp two; two: inc ebp; cpuid; cmp esi, 500; jne again; hlt"
    result = same(code, pin=("ACTIVATE_PREEMPTION_TIMER",), fields={"VMX_PREEMPTION_TIMER_VALUE": 7})
    reasons = {record.reason for record in result["exits"]}  # type: ignore[attr-defined]
    assert reasons == {10, 52, 12}


def test_reads_of_access_rights_and_unknown_fields_go_to_python() -> None:
    more = ("inc r8; mov eax, 0x4816; vmread r11, rax; mov eax, 0x2011; vmread r12, rax;"
            "mov eax, 0x7ffe; vmread r13, rax; mov eax, 0x6c16; vmwrite rax, r11; vmwrite rax, r14;"
            "mov eax, 0x4402; mov r14, 0x20000; vmread r15, rax")
    lab_handler = HANDLER.replace("inc r8", more)
    results = []
    for quick in (True, False):
        lab = Lab("cpuid; cpuid; hlt")
        lab.load(HANDLER_AT, lab_handler)
        lab.machine.vmx.quick.enabled = quick
        results.append(snapshot(lab, lab.machine.run(Limits(seconds=10))))
    assert results[0] == results[1]
    assert results[0]["gprs"][11] == 0xA09B  # type: ignore[index]


def test_a_change_that_must_be_checked_is_found() -> None:
    """RFLAGS = 0 after some quick round trips: reason 33."""
    for quick in (True, False):
        lab = Lab("again: cpuid; jmp again")
        lab.load(HANDLER_AT, HANDLER.replace("again:\n", "again: cmp r8, 20; jne fine; mov eax, 0x6820; xor ebx, ebx;"
                                             "vmwrite rax, rbx; fine:\n"))
        lab.machine.vmx.quick.enabled = quick
        stop = lab.machine.run(Limits(seconds=10))
        assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 33)
        assert lab.machine.vmx.exits.total == 21


def test_a_rip_that_is_not_canonical_is_found() -> None:
    for quick in (True, False):
        lab = Lab("again: cpuid; jmp again")
        lab.load(HANDLER_AT, HANDLER.replace("vmwrite rax, rbx\n", "cmp r8, 20; jne fine; mov rbx, 0x8000000000000;"
                                             "fine: vmwrite rax, rbx\n"))
        lab.machine.vmx.quick.enabled = quick
        stop = lab.machine.run(Limits(seconds=10))
        assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 33)


def test_injection_between_quick_round_trips() -> None:
    for quick in (True, False):
        lab = Lab("again: cpuid; jmp again", fields={"GUEST_RFLAGS": 0x202})
        lab.idt({0x40: gate64(0x5000)})
        lab.guest_load(0x5000, "cpuid; hlt")
        lab.load(HANDLER_AT, HANDLER.replace("again:\n", "again: cmp r8, 20; jne fine; mov eax, 0x4016;"
                                             "mov ebx, 0x80000040; vmwrite rax, rbx; fine:\n"))
        lab.machine.vmx.quick.enabled = quick
        stop = lab.machine.run(Limits(seconds=10))
        assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 12)
        assert [record.rip for record in lab.machine.vmx.exits][-2:] == [0x5000, 0x5002]
        assert len(lab.machine.vmx.injections) == 1


def test_invept_between_quick_round_trips() -> None:
    """The shadow of the EPT is thrown away: the next entry must not use it."""
    for quick in (True, False):
        lab = Lab("again: cpuid; mov ebx, 0x150000; mov [rbx], esi; cmp r8, 40; jb again; hlt")
        lab.load(HANDLER_AT, HANDLER.replace("again:\n", "again: cmp r8, 20; jne fine; mov eax, 2; push 0; push 0;"
                                             "invept rax, [rsp]; pop rax; pop rax; fine:\n"))
        lab.machine.vmx.quick.enabled = quick
        stop = lab.machine.run(Limits(seconds=10))
        assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 12)
        assert lab.machine.vmx.exits.total == 41


def test_guest_that_changes_its_mode_between_exits() -> None:
    """64-bit to compatibility mode and back by far returns, an exit in each."""
    code = (f"mov esi, 30; again: cpuid; push {CODE32}; lea rax, [rip + 4]; push rax; retfq;"
            "nop; nop; nop; nop; cpuid; hlt")
    result = same(code)
    assert result["total"] == 3


def test_host_code_at_the_end_of_a_page_and_with_prefixes_goes_to_python() -> None:
    for quick in (True, False):
        lab = Lab("cpuid; cpuid; hlt")
        text = "nop;" * (0x1000 - (HANDLER_AT & 0xFFF) - 17) + HANDLER
        lab.load(HANDLER_AT, text)
        lab.machine.vmx.quick.enabled = quick
        stop = lab.machine.run(Limits(seconds=10))
        assert stop.code == 12 and lab.machine.vmx.exits.total == 3


def test_log_keeps_the_last_exits_and_counts_all() -> None:
    log = ExitLog(5)
    for number in range(12):
        log.add(1, number, 0, 0, 0, 0)
    assert [record.reason for record in log] == [7, 8, 9, 10, 11] and log.total == 12 and log[-1].reason == 11
    assert log[1:3] == [log[1], log[2]] and len(log) == 5
    empty = ExitLog(0)
    empty.add(1, 2, 3, 4, 5, 6)
    assert list(empty) == [] and empty.total == 1


def test_native_code_takes_part_at_all() -> None:
    """The comparison above would be empty if the quick path never ran."""
    lab = Lab(LOOP64)
    lab.load(HANDLER_AT, HANDLER)
    seen: list[int] = []
    leave = lab.machine.vmx.exit._leave

    def counted(*arguments: object, **keywords: object) -> None:
        seen.append(1)
        leave(*arguments, **keywords)  # type: ignore[arg-type]

    lab.machine.vmx.exit._leave = counted  # type: ignore[method-assign]
    lab.machine.run(Limits(seconds=10))
    assert lab.machine.vmx.exits.total == 601 and len(seen) < 20
