"""Exceptions, interrupts and injected events in a guest. SDM 3C 25.6.3, 26.2, 27.6, 27.7, 28.2.2 to 28.2.4."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import (
    CODE32,
    DATA,
    GUEST_CODE,
    Lab,
    gate32,
    gate64,
)
from hvtests.vmx.records import ExitRecord

VALID = 1 << 31
HANDLER = 0x5000
RSI, RDI = L.Q_RSI, L.Q_RDI


def information(vector: int, kind: int, error: bool = False) -> int:
    return VALID | error << 11 | kind << 8 | vector


# -- the exception bitmap ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("code", "vector", "kind", "error", "length"), [
    ("ud2", 6, 3, None, 0), ("xor ecx, ecx; div ecx", 0, 3, None, 0), ("int3", 3, 6, None, 1),
    ("mov ax, 0x48; mov ds, ax", 13, 3, 0x48, 0), ("mov rax, 0x800000000000; mov rax, [rax]", 13, 3, 0, 0),
    ("mov eax, 0x10000000; mov [rax], eax", 14, 3, 2, 0), ("mov eax, 0x10000000; mov eax, [rax]", 14, 3, 0, 0),
    (b"\xf1", 1, 5, None, 1),
])
def test_exception_bitmap(code: str | bytes, vector: int, kind: int, error: int | None, length: int) -> None:
    lab = Lab(code, fields={"EXCEPTION_BITMAP": 0xFFFFFFFF})
    record = lab.first_exit()
    assert record.reason == 0
    assert record.interruption_info == information(vector, kind, error is not None)
    if error is not None:
        assert lab.read("VM_EXIT_INTR_ERROR_CODE") == error
    assert record.instruction_length == length
    assert record.qualification == (0x10000000 if vector == 14 else 0)
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0


def test_page_fault_leaves_cr2_alone_when_it_exits_and_sets_it_when_delivered() -> None:
    """SDM 3C 28.1: an exit happens before the event changes state."""
    code = "mov eax, 0x10000000; mov eax, [rax]"
    lab = Lab(code, fields={"EXCEPTION_BITMAP": 1 << 14})
    lab.machine.cpu.cr2 = 0x1234
    lab.first_exit()
    assert lab.machine.cpu.cr2 == 0x1234
    lab = Lab(code)
    lab.idt({14: gate64(HANDLER)})
    lab.guest_load(HANDLER, "mov rsi, cr2; pop rdi; hlt")
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == 0x10000000 and lab.machine.cpu.gprs[RDI] == 0


@pytest.mark.parametrize(("bitmap", "mask", "match", "exits"), [
    (1, 2, 2, True), (1, 2, 0, False), (0, 2, 2, False), (0, 2, 0, True), (1, 0, 0, True), (0, 0, 0, False),
    (0, 0, 1, True), (1, 0, 1, False)])
def test_page_fault_error_code_mask_and_match(bitmap: int, mask: int, match: int, exits: bool) -> None:
    """A write to an absent page: error code 2 (SDM 3C 25.6.3)."""
    lab = Lab("mov eax, 0x10000000; mov [rax], eax", fields={
        "EXCEPTION_BITMAP": bitmap << 14, "PAGE_FAULT_ERROR_CODE_MASK": mask, "PAGE_FAULT_ERROR_CODE_MATCH": match})
    lab.idt({14: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    assert lab.first_exit().reason == (0 if exits else 12)


def test_software_interrupts_do_not_look_at_the_bitmap_but_int3_does() -> None:
    lab = Lab(b"\xcc", fields={"EXCEPTION_BITMAP": 0xFFFFFFFF})
    assert lab.first_exit().interruption_info == information(3, 6)
    lab = Lab(b"\xcd\x0d", fields={"EXCEPTION_BITMAP": 0xFFFFFFFF})   # INT 13 is not #GP
    lab.idt({13: gate64(HANDLER)})
    lab.guest_load(HANDLER, "pop rsi; hlt")
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == GUEST_CODE + 2


def test_single_step_exits_with_bs_and_leaves_dr6_alone() -> None:
    lab = Lab("nop; nop; nop", fields={"EXCEPTION_BITMAP": 2, "GUEST_RFLAGS": 0x102})
    record = lab.first_exit()
    assert (record.interruption_info, record.qualification, record.rip) == (information(1, 3), 0x4000, GUEST_CODE + 1)
    assert not lab.machine.cpu.dr[6] & 0x4000


def test_rf_is_saved_as_1_for_faults_and_0_for_instructions() -> None:
    """SDM 3C 28.3.3."""
    lab = Lab("ud2", fields={"EXCEPTION_BITMAP": 1 << 6})
    lab.first_exit()
    assert lab.read("GUEST_RFLAGS") & 1 << 16
    lab = Lab("cpuid", fields={"GUEST_RFLAGS": 0x10002})
    lab.first_exit()
    assert not lab.read("GUEST_RFLAGS") & 1 << 16


# -- nested faults -------------------------------------------------------------------------------------------------

def test_a_fault_during_delivery_exits_with_idt_vectoring_information() -> None:
    """#UD whose gate is not present: #NP with the IDT bit; the bitmap holds only 11 (SDM 3C 28.2.4)."""
    lab = Lab("ud2", fields={"EXCEPTION_BITMAP": 1 << 11})
    lab.idt({6: bytes([*gate64(HANDLER)[:5], 0x0E, *gate64(HANDLER)[6:]])})
    record = lab.first_exit()
    assert record.interruption_info == information(11, 3, True)
    assert lab.read("VM_EXIT_INTR_ERROR_CODE") == 6 * 8 + 2 + 1
    assert lab.read("IDT_VECTORING_INFO_FIELD") == information(6, 3)


def test_software_interrupt_in_delivery_records_its_length() -> None:
    """INT 0x30 beyond the IDT: #GP(0x30*8+2), not external; length 2."""
    lab = Lab("int 0x30", fields={"EXCEPTION_BITMAP": 1 << 13, "GUEST_IDTR_LIMIT": 0x2FF})
    record = lab.first_exit()
    assert record.interruption_info == information(13, 3, True)
    assert lab.read("VM_EXIT_INTR_ERROR_CODE") == 0x30 * 8 + 2
    assert lab.read("IDT_VECTORING_INFO_FIELD") == information(0x30, 4) and record.instruction_length == 2


def test_double_fault_is_delivered_and_exits_by_its_own_bit() -> None:
    """#GP while delivering #GP: #DF; as an exit it has no IDT-vectoring information."""
    code = "mov ax, 0x48; mov ds, ax"
    broken = {13: gate64(HANDLER, 0x50)}     # selector beyond the GDT
    lab = Lab(code)
    lab.idt({**broken, 8: gate64(HANDLER)})
    lab.guest_load(HANDLER, "pop rsi; pop rdi; hlt")
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == 0 and lab.machine.cpu.gprs[RDI] == GUEST_CODE + 4
    lab = Lab(code, fields={"EXCEPTION_BITMAP": 1 << 8})
    lab.idt(broken)
    record = lab.first_exit()
    assert record.interruption_info == information(8, 3, True) and lab.read("IDT_VECTORING_INFO_FIELD") == 0


@pytest.mark.parametrize(("code", "vector", "becomes"), [
    # The code raises `vector`, whose gate raises #GP (SDM 3A table 7-5)
    ("mov eax, 0x10000000; mov eax, [rax]", 14, 8), ("ud2", 6, 13), ("xor ecx, ecx; div ecx", 0, 8),
])
def test_combination_of_exceptions(code: str, vector: int, becomes: int) -> None:
    lab = Lab(code)
    lab.idt({vector: gate64(HANDLER, 0x50), 13: gate64(HANDLER), 8: gate64(HANDLER + 0x10)})
    lab.guest_load(HANDLER, "mov esi, 13; hlt")
    lab.guest_load(HANDLER + 0x10, "mov esi, 8; hlt")
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == becomes


def test_triple_fault() -> None:
    lab = Lab("ud2", fields={"GUEST_IDTR_LIMIT": 0})
    record = lab.first_exit()
    assert (record.reason, record.interruption_info, record.rip) == (2, 0, GUEST_CODE)
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0


def test_task_gate_exits_with_reason_9() -> None:
    """Selector and source 3, IDT-vectoring information (SDM 3C table 28-6)."""
    lab = Lab("int 0x40", mode=32)
    lab.idt({0x40: gate32(0, 0x28, kind=5)})
    record = lab.first_exit()
    assert (record.reason, record.qualification) == (9, 0x28 | 3 << 30)
    assert lab.read("IDT_VECTORING_INFO_FIELD") == information(0x40, 4) and record.instruction_length == 2


def test_a_task_switch_by_a_far_jump_is_not_modelled() -> None:
    """The engine switches by itself; the run ends at the next exit."""
    lab = Lab(b"\xea\x00\x00\x00\x00\x50\x00", mode=32, fields={"GUEST_GDTR_LIMIT": 0x57})
    lab.guest_load(0x108050, struct.pack("<HHBBBB", 0x67, 0xB000, 0x10, 0x89, 0, 0))      # TSS at 0x10B000
    tss = bytearray(104)
    struct.pack_into("<III", tss, 0x1C, 0x103000, 0x6000, 2)                               # CR3, EIP, EFLAGS
    struct.pack_into("<I", tss, 0x38, 0x8000)
    for at, selector in ((0x48, DATA), (0x4C, CODE32), (0x50, DATA), (0x54, DATA), (0x58, DATA), (0x5C, DATA)):
        struct.pack_into("<I", tss, at, selector)
    lab.guest_load(0x10B000, bytes(tss))
    lab.guest_load(0x6000, "cpuid; hlt", 32)
    stop = lab.run()
    assert stop.kind is StopKind.UNMODELLED and "task switch" in stop.detail


def test_ltr_in_a_guest() -> None:
    """No exit without descriptor-table exiting; the descriptor becomes busy, the base is 64 bits wide."""
    lab = Lab("mov ax, 0x48; ltr ax; str bx; cpuid; hlt", fields={"GUEST_GDTR_LIMIT": 0x57})
    lab.guest_load(0x108048, struct.pack("<HHBBBBII", 0x67, 0xB000, 0x10, 0x89, 0, 0, 0x1234, 0))
    lab.until_halt()
    assert lab.read("GUEST_TR_BASE") == 0x12340010B000 and lab.read("GUEST_TR_AR_BYTES") == 0x8B
    assert lab.guest_u64(0x108048) >> 40 & 0xFF == 0x8B and lab.machine.cpu.gprs[3] & 0xFFFF == 0x48
    for access, selector, vector in ((0x8B, 0x48, 13), (0x09, 0x48, 11), (0x89, 0, 13), (0x89, 0x58, 13)):
        lab = Lab(f"mov ax, {selector}; ltr ax", fields={"GUEST_GDTR_LIMIT": 0x57, "EXCEPTION_BITMAP": 0xFFFFFFFF})
        lab.guest_load(0x108048, struct.pack("<HHBBBBII", 0x67, 0xB000, 0x10, access, 0, 0, 0, 0))
        assert lab.first_exit().interruption_info & 0xFF == vector
        assert lab.read("VM_EXIT_INTR_ERROR_CODE") == selector


# -- interrupts ----------------------------------------------------------------------------------------------------

LOOP = "again: inc rsi; jmp again"


def test_external_interrupt_exits_whatever_if_is() -> None:
    for acknowledge in (False, True):
        exit_ = ("ACKNOWLEDGE_INTERRUPT_ON_EXIT",) if acknowledge else ()
        lab = Lab(LOOP, pin=("EXTERNAL_INTERRUPT_EXITING",), exit_=exit_)
        lab.machine.raise_interrupt(0x55)
        record = lab.first_exit()
        assert record.reason == 1
        assert record.interruption_info == (information(0x55, 0) if acknowledge else 0)
        assert lab.machine.interrupt_pending is not acknowledge


def test_external_interrupt_goes_to_the_guest_without_exiting() -> None:
    lab = Lab("mov esi, 1; sti; mov esi, 2; mov esi, 3; hlt")
    lab.machine.raise_interrupt(0x55)
    lab.idt({0x55: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    record = lab.first_exit()
    # STI blocks for one more instruction (SDM 2B "STI")
    assert (record.rip, lab.machine.cpu.gprs[RSI]) == (HANDLER, 2)


def test_interrupt_window_exiting() -> None:
    lab = Lab("mov esi, 1; sti; mov esi, 2; mov esi, 3; hlt", proc=("INTERRUPT_WINDOW_EXITING",))
    record = lab.first_exit()
    assert (record.reason, lab.machine.cpu.gprs[RSI], record.instruction_length) == (7, 2, 0)


def test_interrupt_window_open_at_entry_exits_at_once() -> None:
    lab = Lab("mov esi, 1", proc=("INTERRUPT_WINDOW_EXITING",), fields={"GUEST_RFLAGS": 0x202})
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[RSI]) == (7, GUEST_CODE, 0)


def test_blocking_by_sti_and_mov_ss_is_saved() -> None:
    lab = Lab("sti; cpuid")
    lab.first_exit()
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == 1
    lab = Lab("mov ax, ss; mov ss, ax; cpuid")
    lab.first_exit()
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == 2
    lab = Lab("sti; nop; cpuid")
    lab.first_exit()
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == 0


def test_blocking_by_sti_is_loaded() -> None:
    lab = Lab("mov esi, 1; mov esi, 2", proc=("INTERRUPT_WINDOW_EXITING",),
              fields={"GUEST_RFLAGS": 0x202, "GUEST_INTERRUPTIBILITY_INFO": 1})
    lab.first_exit()
    assert lab.machine.cpu.gprs[RSI] == 1


class Line:
    """A device at port 0x78 that does something when the guest writes there."""

    def __init__(self, lab: Lab, action: Callable[[], None]) -> None:
        self.action = action
        lab.machine.ports.attach(0x78, 1, self)

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self.action()


def test_nmi_exiting_and_blocking_after_it() -> None:
    lab = Lab(f"out 0x78, al; {LOOP}", pin=("NMI_EXITING",))
    Line(lab, lab.machine.raise_nmi)
    record = lab.first_exit()
    assert (record.reason, record.interruption_info) == (0, information(2, 2))
    assert lab.machine.cpu.nmi_blocked


def test_nmi_is_delivered_to_the_guest_without_exiting_and_blocks_the_next() -> None:
    lab = Lab(f"out 0x78, al; {LOOP}")
    Line(lab, lab.machine.raise_nmi)
    lab.idt({2: gate64(HANDLER)})
    lab.guest_load(HANDLER, "mov edi, 7; out 0x78, al; nop; hlt")
    assert lab.first_exit().rip == HANDLER + 8 and lab.machine.nmi_pending
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == 8


def test_nmi_window() -> None:
    """Virtual NMIs: blocked by the injected NMI until IRET, then exit 8 (SDM 3C 26.2)."""
    lab = Lab("nop; hlt", pin=("NMI_EXITING", "VIRTUAL_NMIS"), proc=("NMI_WINDOW_EXITING",),
              fields={"VM_ENTRY_INTR_INFO_FIELD": information(2, 2)})
    lab.idt({2: gate64(HANDLER)})
    lab.guest_load(HANDLER, "mov esi, 1; iretq")
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[RSI]) == (8, GUEST_CODE, 1)
    lab = Lab("nop; hlt", pin=("NMI_EXITING", "VIRTUAL_NMIS"), proc=("NMI_WINDOW_EXITING",))
    record = lab.first_exit()
    assert (record.reason, record.rip) == (8, GUEST_CODE)


def test_nmi_window_opens_after_the_instruction_behind_mov_ss() -> None:
    """Blocking by MOV SS delays the exit by one instruction (SDM 3C 26.2)."""
    lab = Lab("mov esi, 1; mov esi, 2; hlt", pin=("NMI_EXITING", "VIRTUAL_NMIS"), proc=("NMI_WINDOW_EXITING",),
              fields={"GUEST_INTERRUPTIBILITY_INFO": 2})
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[RSI]) == (8, GUEST_CODE + 5, 1)


def test_virtual_nmi_blocking_is_the_guest_s_alone() -> None:
    """With virtual NMIs a physical NMI exits though bit 3 of the interruptibility state is 1, which stays; the host's
    NMIs are blocked by that exit alone (SDM 3C table 25-3, 28.5.5)."""
    lab = Lab(f"out 0x78, al; {LOOP}", pin=("NMI_EXITING", "VIRTUAL_NMIS"), fields={"GUEST_INTERRUPTIBILITY_INFO": 8})
    Line(lab, lab.machine.raise_nmi)
    record = lab.first_exit()
    assert (record.reason, record.interruption_info) == (0, information(2, 2))
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == 8 and lab.machine.cpu.nmi_blocked
    lab = Lab("hlt", pin=("NMI_EXITING", "VIRTUAL_NMIS"), fields={"GUEST_INTERRUPTIBILITY_INFO": 8})
    assert lab.first_exit().reason == 12 and not lab.machine.cpu.nmi_blocked


def test_an_interrupt_raised_while_the_guest_runs() -> None:
    """Raised from a port access of the guest, as a device would."""
    lab = Lab(f"out 0x78, al; {LOOP}", pin=("EXTERNAL_INTERRUPT_EXITING",))

    Line(lab, lambda: lab.machine.raise_interrupt(0x31))
    assert lab.first_exit() == ExitRecord(0x31000, 1, 0, GUEST_CODE + 2, 0, 0)


# -- activity states, pending debug exceptions ---------------------------------------------------------------------

def test_hlt_activity_state_is_left_by_an_interrupt() -> None:
    lab = Lab("nop", pin=("EXTERNAL_INTERRUPT_EXITING",), fields={"GUEST_ACTIVITY_STATE": 1, "GUEST_RFLAGS": 0x202})
    lab.machine.raise_interrupt(0x60)
    assert lab.first_exit().reason == 1
    assert lab.read("GUEST_ACTIVITY_STATE") == 1 and lab.read("GUEST_RIP") == GUEST_CODE


def test_hlt_activity_state_with_an_injected_event_runs() -> None:
    lab = Lab("nop", fields={"GUEST_ACTIVITY_STATE": 1, "VM_ENTRY_INTR_INFO_FIELD": information(0x50, 0),
                             "GUEST_RFLAGS": 0x202})
    lab.idt({0x50: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    assert lab.first_exit().rip == HANDLER and lab.read("GUEST_ACTIVITY_STATE") == 0


def test_hlt_activity_state_and_nothing_to_come_ends_the_run() -> None:
    stop = Lab("nop", fields={"GUEST_ACTIVITY_STATE": 1}).run()
    assert stop.kind is StopKind.HALT


def test_pending_debug_exception_at_entry() -> None:
    fields = {"GUEST_PENDING_DBG_EXCEPTIONS": 0x4000, "GUEST_RFLAGS": 0x102, "GUEST_INTERRUPTIBILITY_INFO": 0}
    lab = Lab("nop", fields={**fields, "EXCEPTION_BITMAP": 2})
    record = lab.first_exit()
    assert (record.interruption_info, record.qualification, record.rip) == (information(1, 3), 0x4000, GUEST_CODE)
    lab = Lab("nop", fields=fields)
    lab.idt({1: gate64(HANDLER)})
    lab.guest_load(HANDLER, "mov rsi, dr6; hlt")
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] & 0x4000
