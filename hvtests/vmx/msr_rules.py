"""Which MSRs the modelled CPU has, their values after reset, and what WRMSR accepts.

Sources: SDM 4 chapter 2 (each MSR), SDM 2B "WRMSR" (#GP conditions), SDM 3A 12.11 [11.11] (MTRRs), 12.12 [11.12] (PAT).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

PAT_TYPES = frozenset((0, 1, 4, 5, 6, 7))      # UC, WC, WT, WP, WB, UC-; SDM 3A 12.12.2
MTRR_TYPES = frozenset((0, 1, 4, 5, 6))        # SDM 3A 12.11.2.1


class Write(Enum):
    """What a WRMSR to the register may do."""

    READ_ONLY = auto()    # any write is #GP(0)
    IGNORED = auto()      # accepted, changes nothing
    MASKED = auto()       # bits outside `mask` are reserved: setting one is #GP(0)
    CANONICAL = auto()    # a linear address, canonical or #GP(0)
    PAT = auto()          # eight memory types, else #GP(0)
    MTRR_FIXED = auto()   # eight MTRR memory types
    MTRR_VARIABLE = auto()  # PHYSBASE/PHYSMASK: type or valid bit, and physical-address bits
    EFER = auto()         # reserved bits by CPUID, LMA ignored, LME fixed while CR0.PG = 1
    LOCKED = auto()       # IA32_FEATURE_CONTROL: #GP(0) while bit 0 is set


@dataclass(frozen=True, slots=True)
class MsrRule:
    """One MSR of the modelled CPU: its value after reset and what may be written."""

    address: int
    name: str
    reset: int
    write: Write
    mask: int = 0


ALL_ONES = (1 << 64) - 1

MSR_RULES: tuple[MsrRule, ...] = (
    MsrRule(0x0000_0010, "IA32_TIME_STAMP_COUNTER", 0,                     Write.MASKED, ALL_ONES),
    MsrRule(0x0000_0017, "IA32_PLATFORM_ID",        0,                     Write.READ_ONLY),
    MsrRule(0x0000_001B, "IA32_APIC_BASE",          0xFEE0_0100,           Write.MASKED, 0xFF_FFFF_F100),  # no EN
    MsrRule(0x0000_003A, "IA32_FEATURE_CONTROL",    0x5,                   Write.LOCKED, 0x7),
    MsrRule(0x0000_0079, "IA32_BIOS_UPDT_TRIG",     0,                     Write.IGNORED),
    MsrRule(0x0000_008B, "IA32_BIOS_SIGN_ID",       0,                     Write.MASKED, ALL_ONES),
    MsrRule(0x0000_00FE, "IA32_MTRRCAP",            0x508,                 Write.READ_ONLY),
    MsrRule(0x0000_0174, "IA32_SYSENTER_CS",        0,                     Write.MASKED, 0xFFFF_FFFF),
    MsrRule(0x0000_0175, "IA32_SYSENTER_ESP",       0,                     Write.CANONICAL),
    MsrRule(0x0000_0176, "IA32_SYSENTER_EIP",       0,                     Write.CANONICAL),
    MsrRule(0x0000_0179, "IA32_MCG_CAP",            0,                     Write.READ_ONLY),
    MsrRule(0x0000_017A, "IA32_MCG_STATUS",         0,                     Write.MASKED, 0x7),
    MsrRule(0x0000_01A0, "IA32_MISC_ENABLE",        0x1,                   Write.MASKED, 0x4_0084_0089),
    MsrRule(0x0000_01D9, "IA32_DEBUGCTL",           0,                     Write.MASKED, 0x3),
    MsrRule(0x0000_0277, "IA32_PAT",                0x0007_0406_0007_0406, Write.PAT),
    MsrRule(0x0000_02FF, "IA32_MTRR_DEF_TYPE",      0xC06,                 Write.MASKED, 0xCFF),
    *(MsrRule(0x200 + 2 * n, f"IA32_MTRR_PHYSBASE{n}", 0, Write.MTRR_VARIABLE, 0xFF) for n in range(8)),
    *(MsrRule(0x201 + 2 * n, f"IA32_MTRR_PHYSMASK{n}", 0, Write.MTRR_VARIABLE, 0x800) for n in range(8)),
    *(MsrRule(address, name, 0x0606_0606_0606_0606, Write.MTRR_FIXED) for address, name in (
        (0x250, "IA32_MTRR_FIX64K_00000"), (0x258, "IA32_MTRR_FIX16K_80000"), (0x259, "IA32_MTRR_FIX16K_A0000"),
        *((0x268 + n, f"IA32_MTRR_FIX4K_{0xC0000 + n * 0x8000:X}") for n in range(8)))),
    MsrRule(0xC000_0080, "IA32_EFER",               0,                     Write.EFER),
    MsrRule(0xC000_0081, "IA32_STAR",               0,                     Write.MASKED, ALL_ONES),
    MsrRule(0xC000_0082, "IA32_LSTAR",              0,                     Write.CANONICAL),
    MsrRule(0xC000_0083, "IA32_CSTAR",              0,                     Write.CANONICAL),
    MsrRule(0xC000_0084, "IA32_FMASK",              0,                     Write.MASKED, 0xFFFF_FFFF),
    MsrRule(0xC000_0100, "IA32_FS_BASE",            0,                     Write.CANONICAL),
    MsrRule(0xC000_0101, "IA32_GS_BASE",            0,                     Write.CANONICAL),
    MsrRule(0xC000_0102, "IA32_KERNEL_GS_BASE",     0,                     Write.CANONICAL),
    MsrRule(0xC000_0103, "IA32_TSC_AUX",            0,                     Write.MASKED, 0xFFFF_FFFF),
)


def canonical(address: int, bits: int = 48) -> bool:
    """Whether a 64-bit linear address is canonical for `bits` linear-address bits (SDM 1 3.3.7.1)."""
    return (address >> (bits - 1)) in (0, (1 << (65 - bits)) - 1)


def pat_valid(value: int) -> bool:
    """Whether each byte of a value for IA32_PAT is a memory type (0, 1, 4, 5, 6, 7)."""
    return all((value >> shift) & 0xFF in PAT_TYPES for shift in range(0, 64, 8))
