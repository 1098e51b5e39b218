"""Names for what a CPU may offer, where each is enumerated, and what depends on what.

A feature is a control bit (named as in `generator.arch.controls`), a CPUID bit (as in `generator.arch.cpuid`), or a bit
of a capability MSR (`CAPABILITY_BITS`). Sources: SDM 3D Appendix A, SDM 2A "CPUID", SDM 3C 27.2.1.1 (which controls
need which others).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from generator.arch import cpuid, cr, msr_bits
from generator.arch.controls import WORDS
from generator.errors import UsageError

_REGISTERS = {"eax": 0, "ebx": 1, "ecx": 2, "edx": 3}


@dataclass(frozen=True, slots=True)
class FeatureBit:
    """Where one feature is enumerated: a bit of a CPUID register (0..3 = EAX..EDX) or of a capability MSR."""

    kind: Literal["cpuid", "msr"]
    bit: int
    msr: str = ""
    leaf: int = 0
    subleaf: int = 0
    register: int = 0


# Single bits of these MSRs have names in `generator.arch.msr_bits`: name -> (MSR, bit). SDM 3D A.1, A.6, A.10.
CAPABILITY_BITS: dict[str, tuple[str, int]] = {
    field.name: (msr, field.low)
    for msr in ("IA32_VMX_BASIC", "IA32_VMX_MISC", "IA32_VMX_EPT_VPID_CAP")
    for field in msr_bits.BITS[msr] if field.low == field.high
}

_EPT = tuple(name for name, (msr, bit) in CAPABILITY_BITS.items() if msr.endswith("EPT_VPID_CAP") and bit < 32)
_VPID = tuple(name for name, (msr, bit) in CAPABILITY_BITS.items() if msr.endswith("EPT_VPID_CAP") and bit >= 32)

# Dropping the key drops these too.
DEPENDENTS: dict[str, tuple[str, ...]] = {
    "ENABLE_EPT":  ("UNRESTRICTED_GUEST", "ENABLE_PML", "EPT_VIOLATION_VE", "MODE_BASED_EXECUTE_CONTROL",
                    "SUB_PAGE_WRITE_PERMISSIONS", *_EPT),
    "ENABLE_VPID": _VPID,
    "USE_TPR_SHADOW": ("VIRTUALIZE_X2APIC_MODE", "APIC_REGISTER_VIRTUALIZATION", "VIRTUAL_INTERRUPT_DELIVERY"),
    "NMI_EXITING": ("VIRTUAL_NMIS",),
    "VIRTUAL_NMIS": ("NMI_WINDOW_EXITING",),
    "ACTIVATE_PREEMPTION_TIMER": ("SAVE_PREEMPTION_TIMER",),
    "ACCESSED_DIRTY": ("ENABLE_PML",),
    "RDTSCP": ("ENABLE_RDTSCP",),
    "INVPCID": ("ENABLE_INVPCID",),
    "RDRAND": ("RDRAND_EXITING",),
    "RDSEED": ("RDSEED_EXITING",),
    "XSAVES": ("ENABLE_XSAVES",),
}

# (CR4 bit, leaf, subleaf, register, bit): the CPUID bit that makes a bit of CR4 valid (SDM 3A 2.5, SDM 2A "CPUID").
CR4_ENUMERATION: tuple[tuple[int, int, int, int, int], ...] = (
    (cr.CR4_VME,        0x1, 0, 3, 1),
    (cr.CR4_PVI,        0x1, 0, 3, 1),
    (cr.CR4_TSD,        0x1, 0, 3, 4),
    (cr.CR4_DE,         0x1, 0, 3, 2),
    (cr.CR4_PSE,        0x1, 0, 3, 3),
    (cr.CR4_PAE,        0x1, 0, 3, 6),
    (cr.CR4_MCE,        0x1, 0, 3, 7),
    (cr.CR4_PGE,        0x1, 0, 3, 13),
    (cr.CR4_OSFXSR,     0x1, 0, 3, 24),
    (cr.CR4_OSXMMEXCPT, 0x1, 0, 3, 25),
    (cr.CR4_UMIP,       0x7, 0, 2, 2),
    (cr.CR4_LA57,       0x7, 0, 2, 16),
    (cr.CR4_VMXE,       0x1, 0, 2, 5),
    (cr.CR4_SMXE,       0x1, 0, 2, 6),
    (cr.CR4_FSGSBASE,   0x7, 0, 1, 0),
    (cr.CR4_PCIDE,      0x1, 0, 2, 17),
    (cr.CR4_OSXSAVE,    0x1, 0, 2, 26),
    (cr.CR4_KL,         0x7, 0, 2, 23),
    (cr.CR4_SMEP,       0x7, 0, 1, 7),
    (cr.CR4_SMAP,       0x7, 0, 1, 20),
    (cr.CR4_PKE,        0x7, 0, 2, 3),
    (cr.CR4_CET,        0x7, 0, 2, 7),
    (cr.CR4_CET,        0x7, 0, 3, 20),
    (cr.CR4_PKS,        0x7, 0, 2, 31),
    (cr.CR4_UINTR,      0x7, 0, 3, 5),
    (cr.CR4_LASS,       0x7, 1, 0, 6),
    (cr.CR4_LAM_SUP,    0x7, 1, 0, 26),
    (cr.CR4_FRED,       0x7, 1, 0, 17),
)


def resolve(name: str) -> tuple[FeatureBit, ...]:
    """The bits that enumerate a feature. Error: UsageError for an unknown name."""
    found: list[FeatureBit] = []
    only, _, short = name.rpartition(".")
    for word in WORDS:
        for bit in word.bits:
            if bit.name == short and only in ("", word.name):
                position = bit.bit if word.width == 64 else bit.bit + 32
                found += [FeatureBit("msr", position, msr) for msr in (word.msr, word.true_msr) if msr]
    if found or only:
        pass
    elif name in CAPABILITY_BITS:
        found.append(FeatureBit("msr", CAPABILITY_BITS[name][1], CAPABILITY_BITS[name][0]))
    else:
        found += [FeatureBit("cpuid", bit.bit, leaf=bit.leaf, subleaf=bit.subleaf, register=_REGISTERS[bit.register])
                  for bit in cpuid.CPUID_BITS if bit.name == name]
    if not found:
        near = difflib.get_close_matches(name, all_names(), 3)
        raise UsageError(f"no CPU feature is named {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return tuple(found)


def all_names() -> list[str]:
    """Every name that `resolve` knows without a control word in front."""
    controls = [bit.name for word in WORDS for bit in word.bits]
    return sorted({*controls, *CAPABILITY_BITS, *(bit.name for bit in cpuid.CPUID_BITS)})


def closure(names: Iterable[str]) -> list[FeatureBit]:
    """The bits of the named features and of all that depend on them."""
    pending, seen, bits = list(names), set[str](), list[FeatureBit]()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            bits += resolve(name)
            pending += DEPENDENTS.get(name.rpartition(".")[2], ())
    return bits


def existence(capabilities: Mapping[str, int]) -> dict[str, bool]:
    """Which optional capability MSRs exist, by what the others say (SDM 3D A.3.3, A.10, A.11)."""
    secondary = capabilities.get("IA32_VMX_PROCBASED_CTLS", 0) >> 63 & 1
    offered = capabilities.get("IA32_VMX_PROCBASED_CTLS2", 0) >> 32 if secondary else 0
    return {
        "IA32_VMX_PROCBASED_CTLS2": bool(secondary),
        "IA32_VMX_EPT_VPID_CAP":    bool(offered & (1 << 1 | 1 << 5)),
        "IA32_VMX_VMFUNC":          bool(offered & 1 << 13),
    }
