"""Events that VM entry injects, delivered in every mode. SDM 3C 27.6 [26.6], SDM 3A 7.12, 7.14 [6.12, 6.14]."""

from __future__ import annotations

import struct

import pytest

from hvtests.model.asm import (
    CODE32,
    CODE64,
    DATA,
    GUEST_CODE,
    GUEST_STACK,
    GUEST_TSS,
    USER_CODE,
    USER_DATA,
    Lab,
    gate32,
    gate64,
)

VALID = 1 << 31
HANDLER = 0x5000


def information(vector: int, kind: int, error: bool = False) -> int:
    return VALID | error << 11 | kind << 8 | vector


@pytest.mark.parametrize(("vector", "kind", "error", "length"), [
    (0x40, 0, None, 0), (2, 2, None, 0), (13, 3, 0x123, 0), (14, 3, 5, 0), (6, 3, None, 0), (0x80, 4, None, 2),
    (3, 6, None, 1)])
def test_injection_in_64_bit_mode(vector: int, kind: int, error: int | None, length: int) -> None:
    """The frame of SDM 3A 7.14; software events push RIP + length. CR2 is not touched by an injected #PF."""
    fields = {"VM_ENTRY_INTR_INFO_FIELD": information(vector, kind, error is not None),
              "VM_ENTRY_EXCEPTION_ERROR_CODE": error or 0, "VM_ENTRY_INSTRUCTION_LEN": length,
              "GUEST_RFLAGS": 0x202, "GUEST_RSP": GUEST_STACK + 5, "EXCEPTION_BITMAP": 0xFFFFFFFF}
    lab = Lab("nop; nop; hlt", fields=fields)
    lab.machine.cpu.cr2 = 0x77
    lab.idt({vector: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    record = lab.first_exit()
    assert (record.reason, record.rip) == (12, HANDLER)
    frame = [lab.guest_u64(GUEST_STACK - 40 + 8 * n) for n in range(5)]
    assert frame == [GUEST_CODE + length, CODE64, 0x202, GUEST_STACK + 5, DATA]
    assert lab.read("GUEST_RSP") == GUEST_STACK - (48 if error is not None else 40)
    if error is not None:
        assert lab.guest_u64(GUEST_STACK - 48) == error
    assert lab.read("GUEST_RFLAGS") == 2 and lab.machine.cpu.cr2 == 0x77
    assert not lab.read("VM_ENTRY_INTR_INFO_FIELD") & VALID
    assert lab.machine.vmx.injections[0].interruption_info == information(vector, kind, error is not None)
    blocked = lab.read("GUEST_INTERRUPTIBILITY_INFO") & 8
    assert bool(blocked) is (kind == 2)


def test_injection_through_a_trap_gate_keeps_if() -> None:
    lab = Lab("hlt", fields={"VM_ENTRY_INTR_INFO_FIELD": information(0x41, 0), "GUEST_RFLAGS": 0x202})
    lab.idt({0x41: gate64(HANDLER, kind=15)})
    lab.guest_load(HANDLER, "hlt")
    lab.first_exit()
    assert lab.read("GUEST_RFLAGS") == 0x202


def test_injection_with_a_change_of_privilege_and_ist() -> None:
    user = {"GUEST_CS_SELECTOR": USER_CODE, "GUEST_CS_AR_BYTES": 0xA0FB, "GUEST_SS_SELECTOR": USER_DATA,
            "GUEST_SS_AR_BYTES": 0xC0F3, "GUEST_RFLAGS": 0x202, "VM_ENTRY_INTR_INFO_FIELD": information(0x42, 0)}
    for ist, stack in ((0, 0x9000), (3, 0xA000)):
        lab = Lab("nop", fields=user)
        lab.guest_load(GUEST_TSS + 4, struct.pack("<Q", 0x9000))
        lab.guest_load(GUEST_TSS + 0x24 + 16, struct.pack("<Q", 0xA007))
        lab.idt({0x42: gate64(HANDLER, ist=ist)})
        lab.guest_load(HANDLER, "hlt")
        assert lab.first_exit().rip == HANDLER
        assert [lab.guest_u64(stack - 40 + 8 * n) for n in range(5)] == [
            GUEST_CODE, USER_CODE, 0x202, GUEST_STACK, USER_DATA]
        assert lab.read("GUEST_SS_SELECTOR") == 0 and lab.read("GUEST_CS_SELECTOR") == CODE64
        assert lab.read("GUEST_SS_AR_BYTES") & 0x10060 == 0x10000


def test_injection_in_protected_mode() -> None:
    for kind, size in ((14, 4), (6, 2)):
        lab = Lab("hlt", mode=32, fields={
            "VM_ENTRY_INTR_INFO_FIELD": information(13, 3, True), "VM_ENTRY_EXCEPTION_ERROR_CODE": 0xABCD,
            "GUEST_RFLAGS": 0x202})
        lab.idt({13: gate32(HANDLER, kind=kind)})
        lab.guest_load(HANDLER, "hlt", 32)
        assert lab.first_exit().rip == HANDLER
        data = lab.machine.memory.read((4 << 20) + GUEST_STACK - 4 * size, 4 * size)
        assert struct.unpack("<4I" if size == 4 else "<4H", data) == (0xABCD, GUEST_CODE, CODE32, 0x202)


def test_injection_in_protected_mode_with_an_inner_stack() -> None:
    lab = Lab("nop", mode=32, fields={
        "GUEST_CS_SELECTOR": USER_CODE, "GUEST_CS_AR_BYTES": 0xC0FB, "GUEST_SS_SELECTOR": USER_DATA,
        "GUEST_SS_AR_BYTES": 0xC0F3, "GUEST_RFLAGS": 0x202, "VM_ENTRY_INTR_INFO_FIELD": information(0x42, 0)})
    lab.guest_load(GUEST_TSS + 4, struct.pack("<IH", 0x9000, DATA))
    lab.idt({0x42: gate32(HANDLER)})
    lab.guest_load(HANDLER, "hlt", 32)
    assert lab.first_exit().rip == HANDLER
    data = struct.unpack("<5I", lab.machine.memory.read((4 << 20) + 0x9000 - 20, 20))
    assert data == (GUEST_CODE, USER_CODE, 0x202, GUEST_STACK, USER_DATA)
    assert lab.read("GUEST_SS_SELECTOR") == DATA and lab.read("GUEST_CS_SELECTOR") == CODE32


def test_injection_in_real_mode() -> None:
    """Through the IVT, no error code, 16-bit frame (SDM 1 21.1.4)."""
    lab = Lab("nop; hlt", mode=16, fields={"VM_ENTRY_INTR_INFO_FIELD": information(0x21, 4),
                                           "VM_ENTRY_INSTRUCTION_LEN": 2, "GUEST_RFLAGS": 0x302})
    lab.guest_load(0x21 * 4, struct.pack("<HH", 0x10, HANDLER >> 4))
    lab.guest_load(HANDLER + 0x10, "hlt", 16)
    record = lab.first_exit()
    assert (record.reason, record.rip) == (12, 0x10) and lab.read("GUEST_CS_BASE") == HANDLER
    assert struct.unpack("<3H", lab.machine.memory.read((4 << 20) + GUEST_STACK - 6, 6)) == (GUEST_CODE + 2, 0, 0x302)
    assert lab.read("GUEST_RFLAGS") == 2


def test_injection_in_virtual_8086_mode() -> None:
    """To a 32-bit CPL 0 handler: the segment registers are pushed and zeroed (SDM 3A 22.3.1)."""
    fields = {"GUEST_RFLAGS": 0x23202, "VM_ENTRY_INTR_INFO_FIELD": information(0x21, 0), "GUEST_RIP": 0x10,
              "GUEST_RSP": 0x100}
    for name, selector in (("CS", 0x400), ("SS", 0x7F0), ("DS", 0x100), ("ES", 0x200), ("FS", 0x300), ("GS", 0x340)):
        fields |= {f"GUEST_{name}_SELECTOR": selector, f"GUEST_{name}_BASE": selector << 4,
                   f"GUEST_{name}_LIMIT": 0xFFFF, f"GUEST_{name}_AR_BYTES": 0xF3}
    lab = Lab("nop", mode=32, fields=fields)
    lab.guest_load(GUEST_TSS + 4, struct.pack("<IH", 0x9000, DATA))
    lab.idt({0x21: gate32(HANDLER)})
    lab.guest_load(HANDLER, "hlt", 32)
    assert lab.first_exit().rip == HANDLER
    assert struct.unpack("<9I", lab.machine.memory.read((4 << 20) + 0x9000 - 36, 36)) == (
        0x10, 0x400, 0x23202, 0x100, 0x7F0, 0x200, 0x100, 0x300, 0x340)
    assert lab.read("GUEST_DS_AR_BYTES") & 0x10000 and lab.read("GUEST_RFLAGS") & 0x20200 == 0


def test_a_fault_while_injecting_gives_idt_vectoring_information() -> None:
    lab = Lab("hlt", fields={"VM_ENTRY_INTR_INFO_FIELD": information(0x80, 4), "VM_ENTRY_INSTRUCTION_LEN": 2,
                             "GUEST_IDTR_LIMIT": 0x1FF, "EXCEPTION_BITMAP": 1 << 13})
    record = lab.first_exit()
    assert record.interruption_info == information(13, 3, True) and record.instruction_length == 2
    assert lab.read("IDT_VECTORING_INFO_FIELD") == information(0x80, 4)
