"""What users read when a VM entry fails or a VM exit is shown."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hvtests.model.breaking import Break, broken, flip, put
from hvtests.model.breaks_controls import CONTROLS, event
from hvtests.model.breaks_guest import GUEST
from hvtests.model.breaks_guest_state import GUEST_STATE
from hvtests.model.breaks_host import HOST
from hvtests.model.valid_state import Mode
from hvtests.vmx.checks import RULES, Checker
from hvtests.vmx.diagnose import explain_exit, explain_failure, explain_instruction_error, rules
from hvtests.vmx.words import access_rights, field_line

ALL_BREAKS = CONTROLS + HOST + GUEST + GUEST_STATE


def lines(case: Break, **places: str) -> list[str]:
    state = case.state()
    failure = Checker().run(state)
    assert failure is not None
    return explain_failure(failure, state, places.get if places else None)


def test_a_guest_state_failure_in_full() -> None:
    told = lines(broken("guest.cs.db_with_l", put(GUEST_CS_AR_BYTES=0xE09B)),
                 GUEST_CS_AR_BYTES="templates/vmx/vmcs.asm.j2:41")
    assert told == [
        "VM entry failed (reason 33, qualification 0): guest.cs.db_with_l: In IA-32e mode, D/B (bit 14) of CS must be "
        "0 if L (bit 13) is 1. (SDM 3C 27.3.1.2)",
        "  VM_ENTRY_CONTROLS = 0x0000d3ff (LOAD_DEBUG_CONTROLS, IA32E_MODE_GUEST, LOAD_IA32_PAT, LOAD_IA32_EFER)",
        "  GUEST_RFLAGS = 0x2 (FIXED, IOPL 0)",
        "  GUEST_CS_AR_BYTES = 0x0000e09b (type 11: code, readable, accessed, DPL 0, present, L, D/B, G), last written "
        "at templates/vmx/vmcs.asm.j2:41",
        "  it would hold with GUEST_CS_AR_BYTES = 0xa09b: bit 14 = 0 (D/B)",
    ]


def test_controls_and_host_state_fail_with_their_error_numbers() -> None:
    first = lines(broken("", flip(VM_EXIT_CONTROLS=1)))[0]
    assert first.startswith("VM entry failed (VMfailValid, VM-instruction error 7: invalid control fields): ctl.exit.")
    first = lines(broken("", put(HOST_RIP=1 << 47)))[0]
    assert first.startswith("VM entry failed (VMfailValid, VM-instruction error 8: invalid host state): host.size.rip_")


def test_the_link_pointer_has_its_qualification() -> None:
    assert "(reason 33, qualification 4): guest.link.align" in lines(broken("", put(VMCS_LINK_POINTER=1)))[0]


@pytest.mark.parametrize("case", ALL_BREAKS, ids=lambda case: case.rule)
def test_a_value_is_named_that_satisfies_the_rule(case: Break) -> None:
    """What the last line proposes is applied to the state, and the rule then holds."""
    told = lines(case)
    name, _, rest = told[-1].removeprefix("  it would hold with ").partition(" = ")
    value = int(rest.split(":")[0].split(" ")[0], 16)
    state = case.state()
    rule = next(rule for rule in RULES if rule.id == case.expected[0])
    assert not rule.holds(state)
    original = state.read
    state.read = lambda field: value if field == name else original(field)
    assert rule.holds(state)


def test_rules_are_the_registry() -> None:
    assert rules() == list(RULES)


@pytest.mark.parametrize(("number", "text"), [
    (7, "VM-instruction error 7 (ENTRY_INVALID_CONTROLS): VM entry with control fields that are invalid (SDM 3C 31.4)"),
    (99, "VM-instruction error 99: the manual does not define it"),
])
def test_instruction_errors(number: int, text: str) -> None:
    assert explain_instruction_error(number) == text


@dataclass
class Exit:
    reason: int
    qualification: int = 0
    rip: int = 0x1234
    interruption_info: int = 0


@pytest.mark.parametrize(("record", "text"), [
    (Exit(10), "CPUID (reason 10) at RIP 0x1234"),
    (Exit(0, interruption_info=0x8000_0306), "EXCEPTION_NMI (reason 0) at RIP 0x1234: #UD (invalid opcode)"),
    (Exit(0, 0x5000, interruption_info=0x8000_0B0E),
     "EXCEPTION_NMI (reason 0) at RIP 0x1234: #PF (page fault) with error code; linear address 0x5000"),
    (Exit(0x8000_0021, 4), "VM entry failed: INVALID_GUEST_STATE (reason 33) at RIP 0x1234: the VMCS link pointer"),
    (Exit(77), "TDCALL (reason 77) at RIP 0x1234"),
])
def test_exits(record: Exit, text: str) -> None:
    assert explain_exit(record) == text


@pytest.mark.parametrize(("value", "text"), [
    (0x1_0000, "unusable"),
    (0xA09B, "type 11: code, readable, accessed, DPL 0, present, L, G"),
    (0xC0F3, "type 3: read/write data, accessed, DPL 3, present, D/B, G"),
    (0x008B, "system type 11 (busy TSS), DPL 0, present"),
    (0x0082, "system type 2 (LDT), DPL 0, present"),
    (0x019D, "type 13: conforming code, accessed, DPL 0, present, reserved bits 0x100"),
    (0x0014, "type 4: expand-down read-only data, not accessed, DPL 0, not present"),
])
def test_access_rights(value: int, text: str) -> None:
    assert access_rights(value) == text


@pytest.mark.parametrize(("name", "value", "text"), [
    ("GUEST_CR0", 0x8000_0031, "GUEST_CR0 = 0x80000031 (PE, ET, NE, PG)"),
    ("GUEST_CR4", 0x2020 | 1 << 50, "GUEST_CR4 = 0x4000000002020 (PAE, VMXE, bit 50)"),
    ("GUEST_IA32_PAT", 0x0207_0406_0007_0406, "GUEST_IA32_PAT = 0x207040600070406 (WB WT UC- UC WB WT UC- (0x2))"),
    ("EPT_POINTER", 0x31_005E, "EPT_POINTER = 0x31005e (WB, 4-level, accessed and dirty flags, table at 0x310000)"),
    ("HOST_CS_SELECTOR", 0x0B, "HOST_CS_SELECTOR = 0x000b (index 1, GDT, RPL 3)"),
    ("GUEST_ACTIVITY_STATE", 4, "GUEST_ACTIVITY_STATE = 0x00000004 (no such state)"),
    ("GUEST_INTERRUPTIBILITY_INFO", 3,
     "GUEST_INTERRUPTIBILITY_INFO = 0x00000003 (blocking by STI, blocking by MOV SS)"),
    ("VMCS_LINK_POINTER", (1 << 64) - 1, "VMCS_LINK_POINTER = 0xffffffffffffffff (none)"),
    ("VIRTUAL_PROCESSOR_ID", 1, "VIRTUAL_PROCESSOR_ID = 0x0001"),
])
def test_fields(name: str, value: int, text: str) -> None:
    assert field_line(name, value) == text


def test_an_event_is_told_in_words() -> None:
    told = lines(broken("", event(0x20, 0), mode=Mode.LONG))
    assert "  VM_ENTRY_INTR_INFO_FIELD = 0x80000020 (external interrupt, vector 0x20)" in told
