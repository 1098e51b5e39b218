"""VMCS shadowing. SDM 3C 25.10, 25.6.15, 26.1.3 [25.1.3], 27.1, 31.3 [30.3] VMREAD, VMWRITE, VMPTRLD, VMLAUNCH."""

from __future__ import annotations

from typing import Any

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import (
    FAILED_AT,
    GUEST_CODE,
    HOST_CODE,
    VMCS_REGION,
    VMXON_REGION,
    Lab,
    gate64,
)
from hvtests.vmx.capabilities import CpuModel

SHADOW, READ_BITMAP, WRITE_BITMAP, HANDLER = 0x38000, 0x39000, 0x3A000, 0x5000
INDICATOR, ALL = 1 << 31, (1 << 64) - 1
RIP, RSP, REASON, ERROR = 0x681E, 0x681C, 0x4402, 0x4400
VMREAD_EXIT, VMWRITE_EXIT = 23, 25
# The host fills the shadow VMCS, by the way on which any VMCS is filled, before it goes on with the guest's own.
HOST = f"""
    mov rax, {VMXON_REGION}; push rax; vmxon [rsp]; jbe {FAILED_AT}
    mov rax, {SHADOW}; mov [rsp], rax; vmclear [rsp]; vmptrld [rsp]; jbe {FAILED_AT}
    mov eax, {RIP}; mov rbx, 0x123456789abc; vmwrite rax, rbx; jbe {FAILED_AT}
    mov eax, {REASON}; mov rbx, 48; vmwrite rax, rbx; jbe {FAILED_AT}
    vmclear [rsp]
    mov rax, {VMCS_REGION}; mov [rsp], rax; vmclear [rsp]; vmptrld [rsp]; jbe {FAILED_AT}
    out 0x77, al
    vmlaunch; jmp {FAILED_AT}
"""


def lab(code: str, *, link: int = SHADOW, exiting: tuple[int, ...] = (), **keywords: Any) -> Lab:
    """A guest with a shadow VMCS whose fields `exiting` (encodings) make VMREAD and VMWRITE exit."""
    made = Lab(code, proc2=("VMCS_SHADOWING",), fields={
        "VMCS_LINK_POINTER": link, "VMREAD_BITMAP": READ_BITMAP, "VMWRITE_BITMAP": WRITE_BITMAP}, **keywords)
    memory = made.machine.memory
    memory.set_u32(SHADOW, made.machine.vmx.model.vmcs_revision | INDICATOR)
    made.load(HOST_CODE, HOST)
    for encoding in exiting:
        for bitmap in (READ_BITMAP, WRITE_BITMAP):
            memory.write(bitmap + (encoding >> 3), bytes([memory.u8(bitmap + (encoding >> 3)) | 1 << (encoding & 7)]))
    return made


def flags(of: Lab) -> int:
    return of.read("GUEST_RFLAGS") & 0x8D5


def test_vmread_and_vmwrite_of_the_guest_go_to_the_shadow_vmcs() -> None:
    """Registers and memory; the guest's own VMCS is not touched."""
    one = lab(f"mov eax, {RIP}; vmread rsi, rax; mov eax, {RSP}; mov ebx, 0x7777; vmwrite rax, rbx;"
              f"vmread [rsp - 8], rax; mov eax, {REASON}; vmread rdi, rax; stc; vmwrite rax, [rsp - 8]; hlt")
    assert one.first_exit().reason == 12
    gprs = one.machine.cpu.gprs
    assert (gprs[L.Q_RSI], gprs[L.Q_RDI], one.guest_u64(0x8000 - 8)) == (0x123456789ABC, 48, 0x7777)
    assert one.read("GUEST_RSP") == 0x8000 and one.read("VM_EXIT_REASON") == 12 and flags(one) == 0


def test_the_host_finds_what_the_guest_wrote() -> None:
    """By VMPTRLD and VMREAD of the host."""
    one = lab(f"mov eax, {RSP}; mov ebx, 0x7777; vmwrite rax, rbx; hlt")
    one.load(0x20200, f"mov rax, {SHADOW}; push rax; vmptrld [rsp]; mov eax, {RSP}; vmread rcx, rax; vmclear [rsp];"
                      "vmptrld [rsp]; vmread rdx, rax; hlt")
    one.run()
    assert (one.machine.cpu.gprs[L.Q_RCX], one.machine.cpu.gprs[L.Q_RDX]) == (0x7777, 0x7777)


@pytest.mark.parametrize(("code", "reason"), [("vmread rsi, rax", VMREAD_EXIT), ("vmwrite rax, rsi", VMWRITE_EXIT)])
@pytest.mark.parametrize(("encoding", "exits"), [
    (RIP, True), (RSP, False), (0x8000, True), (1 << 32 | RSP, True), (0x10000 | RSP, True), (1 << 63 | RSP, True)])
def test_bitmaps_and_wide_encodings(code: str, reason: int, encoding: int, exits: bool) -> None:
    """Bits 63:15 of the encoding set: always an exit, and no bitmap is looked at."""
    one = lab(f"mov rax, {encoding:#x}; {code}; hlt", exiting=(RIP,))
    record = one.first_exit()
    assert record.reason == (reason if exits else 12)
    if exits:
        assert one.read("VMX_INSTRUCTION_INFO") >> 28 == 0 and record.instruction_length == 3


def test_only_the_bit_of_the_instruction_counts() -> None:
    one = lab(f"mov eax, {RIP}; vmread rsi, rax; vmwrite rax, rsi; hlt")
    one.machine.memory.write(WRITE_BITMAP + (RIP >> 3), bytes([1 << (RIP & 7)]))
    assert one.first_exit().reason == VMWRITE_EXIT and one.machine.cpu.gprs[L.Q_RSI] == 0x123456789ABC


def test_without_the_control_both_exit() -> None:
    one = lab(f"mov eax, {RIP}; vmread rsi, rax; hlt", link=ALL)
    one.fields["SECONDARY_VM_EXEC_CONTROL"] &= ~(1 << 14)
    assert one.first_exit().reason == VMREAD_EXIT


@pytest.mark.parametrize("code", ["vmread rsi, rax", "vmwrite rax, rsi"])
def test_failures_in_the_guest(code: str) -> None:
    """No link pointer: CF. No such field: ZF and error 12 in the guest's own VMCS."""
    one = lab(f"mov eax, {RIP}; {code}; hlt", link=ALL)
    assert one.first_exit().reason == 12 and flags(one) == 1
    one = lab(f"mov eax, 0x6bfe; {code}; hlt")
    assert one.first_exit().reason == 12 and flags(one) == 1 << 6 and one.read("VM_INSTRUCTION_ERROR") == 12


def test_privilege_and_memory_faults() -> None:
    """CPL 3: #GP(0). An unmapped memory operand: #PF, the shadow VMCS unchanged."""
    one = lab(f"mov eax, {RIP}; mov ebx, 0x10000000; vmread [rbx], rax; hlt")
    one.idt({14: gate64(HANDLER)})
    one.guest_load(HANDLER, "hlt")
    record = one.first_exit()
    assert record.rip == HANDLER and one.machine.cpu.cr2 == 0x10000000
    code = f"push 0x3b; push 0x8000; pushfq; push 0x43; push {HANDLER + 0x100}; iretq"
    one = lab(code)
    one.fields["EXCEPTION_BITMAP"] = 1 << 13
    one.guest_load(HANDLER + 0x100, f"mov eax, {RIP}; vmread rsi, rax")
    record = one.first_exit()
    assert (record.reason, record.interruption_info & 0xFF, record.rip) == (0, 13, HANDLER + 0x105)


def test_a_shadow_vmcs_cannot_be_entered() -> None:
    """SDM 3C 27.1: VMfailInvalid."""
    one = lab("hlt")
    one.load(HOST_CODE, HOST.replace(f"vmclear [rsp]\n    mov rax, {VMCS_REGION}; mov [rsp], rax; vmclear [rsp];"
                                     " vmptrld [rsp]", "vmptrld [rsp]").replace("out 0x77, al", "nop"))
    stop = one.run()
    assert stop.kind is StopKind.HALT and not one.exits
    assert one.machine.cpu.rflags & 0x8D5 == 1 and one.machine.vmx.current is not None
    assert one.machine.vmx.current.address == SHADOW


@pytest.mark.parametrize(("word", "offered", "error"), [(0, True, 0), (1, True, 11), (0, False, 11)])
def test_vmptrld_of_a_shadow_vmcs(word: int, offered: bool, error: int) -> None:
    """The indicator is part of the revision identifier where shadowing is not offered."""
    cpu = None if offered else CpuModel.default().without("VMCS_SHADOWING")
    one = Lab("hlt", cpu=cpu)
    one.machine.memory.set_u32(SHADOW, (one.machine.vmx.model.vmcs_revision ^ word) | INDICATOR)
    one.load(0x20200, f"mov rax, {SHADOW}; push rax; vmptrld [rsp]; hlt")
    one.run()
    current = one.machine.vmx.current
    assert current is not None and (current.address == SHADOW) is (error == 0)
    assert error == 0 or current.read("VM_INSTRUCTION_ERROR") == error


@pytest.mark.parametrize(("indicator", "shadowing"), [(0, True), (INDICATOR, False)])
def test_the_link_pointer_s_indicator_must_agree_with_the_control(indicator: int, shadowing: bool) -> None:
    one = Lab("hlt", proc2=("VMCS_SHADOWING",) if shadowing else (), fields={
        "VMCS_LINK_POINTER": SHADOW, "VMREAD_BITMAP": READ_BITMAP, "VMWRITE_BITMAP": WRITE_BITMAP})
    one.machine.memory.set_u32(SHADOW, one.machine.vmx.model.vmcs_revision | indicator)
    record = one.first_exit()
    assert (record.reason, record.qualification, record.rip) == (1 << 31 | 33, 4, GUEST_CODE)
