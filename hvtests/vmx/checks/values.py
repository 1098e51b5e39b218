"""Whether a value suits a register, where host and guest state are judged alike."""

from __future__ import annotations

from generator.arch import cr
from hvtests.vmx.capabilities import CpuModel

# SDM 4 table 2-2, IA32_DEBUGCTL: bits 5:3 and 63:16 are reserved; others by what the CPU has.
DEBUGCTL_DEFINED = 0xFFC7
DEBUGCTL_BLD = 1 << 2    # CPUID.7:ECX[24]
DEBUGCTL_RTM = 1 << 15   # CPUID.7:EBX[11]


def cr3_valid(cap: CpuModel, value: int) -> bool:
    """No bit of a CR3 beyond the physical-address width; bits 62:61 belong to LAM where the CPU has it (SDM 3A 4.4)."""
    lam = cr.CR3_LAM_U57 | cr.CR3_LAM_U48 if cap.cr4_valid & cr.CR4_LAM_SUP else 0
    return not value & cap.physical_reserved & ~lam


def debugctl_reserved(cap: CpuModel) -> int:
    """Bits of IA32_DEBUGCTL that must be 0 on this CPU."""
    reserved = ~DEBUGCTL_DEFINED & 0xFFFF_FFFF_FFFF_FFFF
    if not cap.has("BUS_LOCK_DETECT"):
        reserved |= DEBUGCTL_BLD
    return reserved if cap.has("RTM") else reserved | DEBUGCTL_RTM


def perf_global_ctrl_valid(cap: CpuModel, value: int) -> bool:
    """Only enable bits of counters that CPUID leaf 0AH reports: general-purpose from bit 0, fixed from bit 32."""
    eax, _, _, edx = cap.cpuid(0xA, 0)
    general, fixed = eax >> 8 & 0xFF, edx & 0x1F
    return not value & ~((1 << general) - 1 | (1 << fixed) - 1 << 32)


def s_cet_valid(cap: CpuModel, value: int) -> bool:
    """IA32_S_CET: canonical, bits 9:6 reserved, SUPPRESS and TRACKER not together (SDM 4 table 2-2)."""
    return not value & 0x3C0 and value & 0xC00 != 0xC00 and cap.is_canonical(value)
