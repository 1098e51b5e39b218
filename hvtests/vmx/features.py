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

from generator.arch import cr
from generator.arch.controls import WORDS, ControlWord
from generator.errors import UsageError

_REGISTERS = {"EAX": 0, "EBX": 1, "ECX": 2, "EDX": 3}


@dataclass(frozen=True, slots=True)
class FeatureBit:
    """Where one feature is enumerated: a bit of a CPUID register (0..3 = EAX..EDX) or of a capability MSR."""

    kind: Literal["cpuid", "msr"]
    bit: int
    msr: str = ""
    leaf: int = 0
    subleaf: int = 0
    register: int = 0


# Bits of IA32_VMX_BASIC, IA32_VMX_MISC and IA32_VMX_EPT_VPID_CAP (SDM 3D A.1, A.6, A.10).
CAPABILITY_BITS: dict[str, tuple[str, int]] = {
    "INS_OUTS_INFORMATION":     ("IA32_VMX_BASIC", 54),
    "TRUE_CONTROLS":            ("IA32_VMX_BASIC", 55),
    "INJECT_ERROR_CODE_ANY":    ("IA32_VMX_BASIC", 56),
    "STORE_LMA":                ("IA32_VMX_MISC", 5),
    "ACTIVITY_HLT":             ("IA32_VMX_MISC", 6),
    "ACTIVITY_SHUTDOWN":        ("IA32_VMX_MISC", 7),
    "ACTIVITY_WAIT_FOR_SIPI":   ("IA32_VMX_MISC", 8),
    "VMWRITE_ANY_FIELD":        ("IA32_VMX_MISC", 29),
    "INJECT_ZERO_LENGTH":       ("IA32_VMX_MISC", 30),
    "EPT_EXECUTE_ONLY":         ("IA32_VMX_EPT_VPID_CAP", 0),
    "EPT_WALK_4":               ("IA32_VMX_EPT_VPID_CAP", 6),
    "EPT_WALK_5":               ("IA32_VMX_EPT_VPID_CAP", 7),
    "EPT_UC":                   ("IA32_VMX_EPT_VPID_CAP", 8),
    "EPT_WB":                   ("IA32_VMX_EPT_VPID_CAP", 14),
    "EPT_2M":                   ("IA32_VMX_EPT_VPID_CAP", 16),
    "EPT_1G":                   ("IA32_VMX_EPT_VPID_CAP", 17),
    "INVEPT":                   ("IA32_VMX_EPT_VPID_CAP", 20),
    "EPT_AD":                   ("IA32_VMX_EPT_VPID_CAP", 21),
    "EPT_ADVANCED_EXIT_INFO":   ("IA32_VMX_EPT_VPID_CAP", 22),
    "EPT_SUPERVISOR_SHADOW_STACK": ("IA32_VMX_EPT_VPID_CAP", 23),
    "INVEPT_SINGLE_CONTEXT":    ("IA32_VMX_EPT_VPID_CAP", 25),
    "INVEPT_ALL_CONTEXT":       ("IA32_VMX_EPT_VPID_CAP", 26),
    "INVVPID":                  ("IA32_VMX_EPT_VPID_CAP", 32),
    "INVVPID_INDIVIDUAL":       ("IA32_VMX_EPT_VPID_CAP", 40),
    "INVVPID_SINGLE_CONTEXT":   ("IA32_VMX_EPT_VPID_CAP", 41),
    "INVVPID_ALL_CONTEXT":      ("IA32_VMX_EPT_VPID_CAP", 42),
    "INVVPID_SINGLE_RETAINING": ("IA32_VMX_EPT_VPID_CAP", 43),
}

_EPT = tuple(name for name, (msr, bit) in CAPABILITY_BITS.items() if msr.endswith("EPT_VPID_CAP") and bit < 32)
_VPID = tuple(name for name, (msr, bit) in CAPABILITY_BITS.items() if msr.endswith("EPT_VPID_CAP") and bit >= 32)

# Dropping the key drops these too.
DEPENDENTS: dict[str, tuple[str, ...]] = {
    "ENABLE_EPT":  ("UNRESTRICTED_GUEST", "ENABLE_PML", "EPT_VIOLATION_VE", "MODE_BASED_EXECUTE_CONTROL", "SUB_PAGE_WRITE_PERMISSIONS", *_EPT),
    "ENABLE_VPID": _VPID,
    "USE_TPR_SHADOW": ("VIRTUALIZE_X2APIC_MODE", "APIC_REGISTER_VIRTUALIZATION", "VIRTUAL_INTERRUPT_DELIVERY"),
    "NMI_EXITING": ("VIRTUAL_NMIS",),
    "VIRTUAL_NMIS": ("NMI_WINDOW_EXITING",),
    "ACTIVATE_PREEMPTION_TIMER": ("SAVE_PREEMPTION_TIMER",),
    "EPT_AD": ("ENABLE_PML",),
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


def is_64bit(word: ControlWord) -> bool:
    """Tertiary processor-based and secondary VM-exit controls: 64 bits, none must be 1 (SDM 3D A.3.4, A.4.2)."""
    return word.msr in ("IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_EXIT_CTLS2")


def resolve(name: str) -> tuple[FeatureBit, ...]:
    """The bits that enumerate a feature. Error: UsageError for an unknown name."""
    found: list[FeatureBit] = []
    only, _, short = name.rpartition(".")
    for word in WORDS:
        for bit in word.bits:
            if bit.name == short and only in ("", word.name):
                position = bit.bit if is_64bit(word) else bit.bit + 32
                found += [FeatureBit("msr", position, msr) for msr in (word.msr, word.true_msr) if msr]
    if only:
        pass
    elif name in CAPABILITY_BITS:
        found.append(FeatureBit("msr", CAPABILITY_BITS[name][1], CAPABILITY_BITS[name][0]))
    elif not found:
        from generator.arch import cpuid as cpuid_data
        found += [FeatureBit("cpuid", bit.bit, leaf=bit.leaf, subleaf=bit.subleaf, register=_REGISTERS[bit.register])
                  for bit in cpuid_data.BITS if bit.name == name]
    if not found:
        near = difflib.get_close_matches(name, all_names(), 3)
        raise UsageError(f"no CPU feature is named {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return tuple(found)


def all_names() -> list[str]:
    """Every name that `resolve` knows without a control word in front."""
    from generator.arch import cpuid as cpuid_data
    controls = [bit.name for word in WORDS for bit in word.bits]
    return sorted({*controls, *CAPABILITY_BITS, *(bit.name for bit in cpuid_data.BITS)})


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
