"""Exit reasons, VM-instruction errors and qualifications: SDM 3D Appendix C, SDM 3C 31.4 and tables 28-1 to 28-7."""

from __future__ import annotations

import pytest

from generator.arch import exits, instruction_errors
from generator.arch.qualification_bits import QUALIFICATIONS, VMCS_LAYOUTS
from generator.arch.vmcs import BY_NAME as FIELDS

REASONS = {
    0: "EXCEPTION_NMI", 1: "EXTERNAL_INTERRUPT", 2: "TRIPLE_FAULT", 3: "INIT", 4: "SIPI", 5: "IO_SMI", 6: "OTHER_SMI",
    7: "INTERRUPT_WINDOW", 8: "NMI_WINDOW", 9: "TASK_SWITCH", 10: "CPUID", 11: "GETSEC", 12: "HLT", 13: "INVD",
    14: "INVLPG", 15: "RDPMC", 16: "RDTSC", 17: "RSM", 18: "VMCALL", 19: "VMCLEAR", 20: "VMLAUNCH", 21: "VMPTRLD",
    22: "VMPTRST", 23: "VMREAD", 24: "VMRESUME", 25: "VMWRITE", 26: "VMXOFF", 27: "VMXON", 28: "CR_ACCESS",
    29: "DR_ACCESS", 30: "IO_INSTRUCTION", 31: "RDMSR", 32: "WRMSR", 33: "INVALID_GUEST_STATE", 34: "MSR_LOADING",
    36: "MWAIT", 37: "MTF", 39: "MONITOR", 40: "PAUSE", 41: "MACHINE_CHECK", 43: "TPR_BELOW_THRESHOLD",
    44: "APIC_ACCESS", 45: "VIRTUALIZED_EOI", 46: "GDTR_IDTR", 47: "LDTR_TR", 48: "EPT_VIOLATION",
    49: "EPT_MISCONFIGURATION", 50: "INVEPT", 51: "RDTSCP", 52: "PREEMPTION_TIMER", 53: "INVVPID", 54: "WBINVD",
    55: "XSETBV", 56: "APIC_WRITE", 57: "RDRAND", 58: "INVPCID", 59: "VMFUNC", 60: "ENCLS", 61: "RDSEED",
    62: "PML_FULL", 63: "XSAVES", 64: "XRSTORS", 65: "PCONFIG", 66: "SPP_EVENT", 67: "UMWAIT", 68: "TPAUSE",
    69: "LOADIWKEY", 70: "ENCLV", 72: "ENQCMD_PASID", 73: "ENQCMDS_PASID", 74: "BUS_LOCK", 75: "INSTRUCTION_TIMEOUT",
    76: "SEAMCALL", 77: "TDCALL", 78: "RDMSRLIST", 79: "WRMSRLIST", 80: "URDMSR", 81: "UWRMSR",
    84: "RDMSR_IMMEDIATE", 85: "WRMSRNS_IMMEDIATE",
}


def test_every_reason_of_the_manual() -> None:
    assert {reason.number: reason.name for reason in exits.EXIT_REASONS} == REASONS


def test_reasons_are_unique_and_in_order() -> None:
    numbers = [reason.number for reason in exits.EXIT_REASONS]
    assert numbers == sorted(set(numbers))
    assert len(exits.BY_NAME) == len(numbers)


def test_name_of_a_reason() -> None:
    assert exits.name(48) == "EPT_VIOLATION"
    assert exits.name(0x8000_0021) == "INVALID_GUEST_STATE"
    assert exits.name(35) == "reason 35"


def test_entry_failure_bit() -> None:
    assert exits.ENTRY_FAILURE == 0x8000_0000


def test_every_instruction_error_of_the_manual() -> None:
    """The manual gives a meaning to each number from 1 to 28 but 14, 21 and 27."""
    numbers = [error.number for error in instruction_errors.INSTRUCTION_ERRORS]
    assert numbers == [number for number in range(1, 29) if number not in (14, 21, 27)]
    assert len(instruction_errors.BY_NAME) == 25
    assert frozenset({14, 21, 27}) == instruction_errors.UNASSIGNED


@pytest.mark.parametrize(("number", "word"), [
    (1, "VMCALL"), (2, "VMCLEAR"), (4, "VMLAUNCH"), (5, "VMRESUME"), (7, "control"), (8, "host"), (9, "VMPTRLD"),
    (11, "revision"), (12, "field"), (13, "only be read"), (15, "VMXON"), (26, "MOV SS"), (28, "INVEPT")])
def test_meaning_of_an_instruction_error(number: int, word: str) -> None:
    assert word in instruction_errors.BY_NUMBER[number].title


@pytest.mark.parametrize(("reason", "qualification", "words"), [
    # Table 28-7: bit 1 write, bit 7 linear address valid, bit 8 final translation; bits 5:3 what EPT allows.
    (48, 0x182, "write; not mapped; of the translation of a linear address"),
    (48, 0x0A9, "read; the entries allow reads, execution; of a guest paging structure"),
    (48, 0x004, "instruction fetch; not mapped; no linear address"),
    # Table 28-5: size 1:0, bit 3 in, bit 4 string, bit 5 REP, bit 6 immediate, port 31:16.
    (30, 0x03F8_0000, "OUT, port 0x3f8, 1 byte (port in DX)"),
    (30, 0x0060_0048, "IN, port 0x60, 1 byte (port in the instruction)"),
    (30, 0x01F0_003B, "REP INS, port 0x1f0, 4 bytes"),
    (30, 0x0CF8_0001, "OUT, port 0xcf8, 2 bytes (port in DX)"),
    # Table 28-3: CR 3:0, type 5:4, LMSW operand 6, GPR 11:8, LMSW source 31:16.
    (28, 0x0000, "MOV to CR0 from RAX"),
    (28, 0x0314, "MOV from CR4 to RBX"),
    (28, 0x0F03, "MOV to CR3 from R15"),
    (28, 0x0020, "CLTS"),
    (28, 0xFFF1_0070, "LMSW of 0xfff1 from memory"),
    (28, 0x0000_0030, "LMSW of 0x0000 from a register"),
    # Table 28-4: DR 2:0, direction 4, GPR 11:8.
    (29, 0x0007, "MOV to DR7 from RAX"),
    (29, 0x0116, "MOV from DR6 to RCX"),
    # Table 28-2: selector 15:0, source 31:30.
    (9, 0xC000_0028, "to selector 0x0028 by task gate in the IDT"),
    (9, 0x4000_0030, "to selector 0x0030 by IRET"),
    (44, 0x1080, "linear write at offset 0x80"),
    (44, 0xF000, "guest-physical, fetch or execution"),
    (14, 0xFFFF_8000_0000_0000, "linear address 0xffff800000000000"),
    (19, 0xFFFF_FFFF_FFFF_FFF8, "displacement -0x8"),
    (33, 0, ""),
    (33, 2, "loading the PDPTEs"),
    (33, 4, "the VMCS link pointer"),
    (34, 3, "entry 3 of the VM-entry MSR-load area (counted from 1)"),
    (45, 0x31, "vector 0x31"),
    (4, 0x9A, "vector 0x9a: start at 0x9a000"),
    (10, 0, ""),
    (12, 0, ""),
])
def test_qualification_in_words(reason: int, qualification: int, words: str) -> None:
    assert exits.describe_qualification(reason, qualification) == words


def test_qualification_of_an_exception_needs_the_vector() -> None:
    assert exits.describe_qualification(0, 0x4001) == ""
    assert exits.describe_qualification(0, 0x4001, vector=1) == "breakpoint 0, single step"
    assert exits.describe_qualification(0, 0x4001, vector=14) == "linear address 0x4001"
    assert exits.describe_qualification(0, 0x4001, vector=6) == ""


def test_qualification_of_a_failed_entry_has_the_same_meaning() -> None:
    assert exits.describe_qualification(0x8000_0021, 3) == exits.describe_qualification(33, 3) != ""


@pytest.mark.parametrize("reason", range(128))
def test_qualification_never_fails(reason: int) -> None:
    for qualification in (0, 1, 0xFFFF_FFFF_FFFF_FFFF, 0x5555_5555_5555_5555):
        exits.describe_qualification(reason, qualification)


def test_layouts_do_not_overlap_and_belong_to_something() -> None:
    assert set(QUALIFICATIONS) <= set(REASONS)
    assert set(VMCS_LAYOUTS) <= set(FIELDS)
    for layout in (*QUALIFICATIONS.values(), *VMCS_LAYOUTS.values()):
        taken = 0
        for field in layout:
            assert field.low <= field.high < 64
            assert not taken & field.mask, field.name
            taken |= field.mask
