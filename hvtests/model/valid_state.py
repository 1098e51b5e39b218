"""VMCS contents that pass every check on VM entry, for each mode that a guest can start in. Values by field name.

The numbers are those of a plain machine: 64 MiB of memory, VMX structures below 16 MiB. `valid_state` is the ground
that tests of single rules start from, so each value is what the manual asks for, written out here and not computed by
the rules under test.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from generator.arch.controls import ENTRY, EXIT, PINBASED, PROCBASED, PROCBASED2, WORDS, ControlWord
from generator.arch.cr import CR4_CET
from hvtests.vmx.capabilities import CpuModel

VMCS_POINTER = 0x30_1000
ALL_ONES = (1 << 64) - 1

IO_BITMAP_A, IO_BITMAP_B, MSR_BITMAP = 0x30_2000, 0x30_3000, 0x30_4000
VIRTUAL_APIC_PAGE, APIC_ACCESS_PAGE, EPT_PML4 = 0x30_5000, 0x30_6000, 0x31_0000
PML_PAGE, EPTP_LIST, VMREAD_BITMAP, VMWRITE_BITMAP, VE_PAGE = 0x30_7000, 0x30_8000, 0x30_9000, 0x30_A000, 0x30_B000
GUEST_TABLES = 0x20_0000


class Mode(Enum):
    """What the guest is in at its first instruction."""

    LONG = "64-bit"
    COMPATIBILITY = "compatibility"
    PROTECTED = "32-bit paged"
    PAE = "32-bit with PAE paging"
    REAL = "real mode (unrestricted guest)"
    V8086 = "virtual-8086"


def control(cap: CpuModel, word: ControlWord, *names: str) -> int:
    """A control word with the named controls where the CPU allows them, and what must be 1."""
    return (word.mask(*names) | cap.allowed0(word)) & cap.allowed1(word)


def _segment(register: str, selector: int, base: int, limit: int, rights: int) -> dict[str, int]:
    prefix = f"GUEST_{register}_"
    return {f"{prefix}SELECTOR": selector, f"{prefix}BASE": base, f"{prefix}LIMIT": limit, f"{prefix}AR_BYTES": rights}


UNUSABLE = 0x1_0000
FLAT = 0xFFFF_FFFF

_DATA = ("SS", "DS", "ES", "FS", "GS")


def _flat(code_rights: int) -> dict[str, int]:
    values = _segment("CS", 0x08, 0, FLAT, code_rights)
    for register in _DATA:
        values |= _segment(register, 0x10, 0, FLAT, 0xC093)
    return values


def _real(rights: int) -> dict[str, int]:
    values: dict[str, int] = {}
    for number, register in enumerate(("CS", *_DATA)):
        selector = 0x1000 + 0x10 * number
        values |= _segment(register, selector, selector << 4, 0xFFFF, rights)
    return values


# mode -> (CR0, CR4, EFER, RFLAGS, RIP, segments)
_MODES: dict[Mode, tuple[int, int, int, int, int, dict[str, int]]] = {
    Mode.LONG:          (0x8000_0031, 0x2020, 0x500, 0x2,       0x40_0000, _flat(0xA09B)),
    Mode.COMPATIBILITY: (0x8000_0031, 0x2020, 0x500, 0x2,       0x40_0000, _flat(0xC09B)),
    Mode.PROTECTED:     (0x8000_0031, 0x2010, 0x000, 0x2,       0x40_0000, _flat(0xC09B)),
    Mode.PAE:           (0x8000_0031, 0x2020, 0x000, 0x2,       0x40_0000, _flat(0xC09B)),
    Mode.REAL:          (0x0000_0030, 0x2000, 0x000, 0x2,       0x0000_0100, _real(0x93)),
    Mode.V8086:         (0x8000_0031, 0x2010, 0x000, 0x2_0002,  0x0000_0100, _real(0xF3)),
}


def valid_state(mode: Mode, cap: CpuModel) -> dict[str, int]:
    """A VMCS of a 64-bit host that enters a guest in `mode` on `cap`; the fields left out are 0."""
    cr0, cr4, efer, rflags, rip, segments = _MODES[mode]
    entry = ["LOAD_DEBUG_CONTROLS", "LOAD_IA32_PAT", "LOAD_IA32_EFER"]
    if mode in (Mode.LONG, Mode.COMPATIBILITY):
        entry.append("IA32E_MODE_GUEST")
    return {
        "PIN_BASED_VM_EXEC_CONTROL": control(cap, PINBASED, "EXTERNAL_INTERRUPT_EXITING", "NMI_EXITING",
                                             "ACTIVATE_PREEMPTION_TIMER"),
        "CPU_BASED_VM_EXEC_CONTROL": control(cap, PROCBASED, "HLT_EXITING", "USE_TSC_OFFSETTING", "USE_IO_BITMAPS",
                                             "USE_MSR_BITMAPS", "ACTIVATE_SECONDARY_CONTROLS"),
        "SECONDARY_VM_EXEC_CONTROL": control(cap, PROCBASED2, "ENABLE_EPT", "ENABLE_VPID", "UNRESTRICTED_GUEST",
                                             "ENABLE_RDTSCP"),
        "VM_EXIT_CONTROLS": control(cap, EXIT, "HOST_ADDRESS_SPACE_SIZE", "SAVE_DEBUG_CONTROLS", "SAVE_IA32_PAT",
                                    "LOAD_IA32_PAT", "SAVE_IA32_EFER", "LOAD_IA32_EFER"),
        "VM_ENTRY_CONTROLS": control(cap, ENTRY, *entry),
        "VIRTUAL_PROCESSOR_ID": 1,
        "IO_BITMAP_A": IO_BITMAP_A, "IO_BITMAP_B": IO_BITMAP_B, "MSR_BITMAP": MSR_BITMAP,
        "EPT_POINTER": EPT_PML4 | 3 << 3 | 6,
        "HOST_CR0": 0x8000_0031, "HOST_CR3": 0x1_1000, "HOST_CR4": 0x2020,
        "HOST_CS_SELECTOR": 0x08, "HOST_SS_SELECTOR": 0x10, "HOST_DS_SELECTOR": 0x10, "HOST_ES_SELECTOR": 0x10,
        "HOST_FS_SELECTOR": 0x10, "HOST_GS_SELECTOR": 0x10, "HOST_TR_SELECTOR": 0x18,
        "HOST_GDTR_BASE": 0x1000, "HOST_IDTR_BASE": 0x2000, "HOST_TR_BASE": 0x3000,
        "HOST_RSP": 0x9000, "HOST_RIP": 0x8000,
        "HOST_IA32_PAT": 0x0007_0406_0007_0406, "HOST_IA32_EFER": 0x500,
        "GUEST_CR0": cr0, "GUEST_CR3": GUEST_TABLES, "GUEST_CR4": cr4, "GUEST_DR7": 0x400,
        "GUEST_IA32_EFER": efer, "GUEST_IA32_PAT": 0x0007_0406_0007_0406,
        "GUEST_RFLAGS": rflags, "GUEST_RIP": rip, "GUEST_RSP": 0x8000,
        **segments,
        **_segment("TR", 0x18, 0x3000, 0x67, 0x8B),
        **_segment("LDTR", 0, 0, 0, UNUSABLE),
        "GUEST_GDTR_BASE": 0x1000, "GUEST_GDTR_LIMIT": 0x27, "GUEST_IDTR_BASE": 0x2000, "GUEST_IDTR_LIMIT": 0xFFF,
        "VMCS_LINK_POINTER": ALL_ONES,
    }


def everything() -> CpuModel:
    """A CPU that offers every control the manual names, and the features some rules ask for: no such CPU exists."""
    full = CpuModel.skylake_x()
    capabilities = {**full.capabilities, "IA32_VMX_PROCBASED_CTLS3": 0, "IA32_VMX_EXIT_CTLS2": 0}
    for word in WORDS:
        for msr in (word.msr, word.true_msr):
            if msr is not None:
                capabilities[msr] |= sum(bit.mask for bit in word.bits) << (0 if word.width == 64 else 32)
    capabilities["IA32_VMX_CR4_FIXED1"] |= CR4_CET
    return replace(full, name="everything", capabilities=capabilities)
