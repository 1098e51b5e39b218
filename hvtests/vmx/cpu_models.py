"""Facts of the CPUs that the harness can model: capability MSRs, other MSRs, CPUID leaves. Data only.

``SKYLAKE_X`` is what Bochs 2.7 reports for ``cpu: model=corei7_skylake_x`` (RDMSR and CPUID in real mode after reset).
``UNICORN_CPUID`` is what CPUID returns in Unicorn 2.1.4 with its SKYLAKE_SERVER CPU: guest code runs natively on that
CPU, so the modelled CPU offers the features that both have. ``UNMODELLED`` and ``UNMODELLED_CPUID`` name what the
default model leaves out because nothing in ``hvtests`` implements it, ``BEYOND_BOCHS`` what it adds.

Sources: SDM 3D Appendix A (capability MSRs), SDM 4 chapter 2 (MSRs), SDM 2A "CPUID".
"""

from __future__ import annotations

Cpuid = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX

# Capability MSRs of corei7_skylake_x.
SKYLAKE_X_CAPABILITIES: dict[str, int] = {
    "IA32_VMX_BASIC":               0x00D8_1000_0000_002B,
    "IA32_VMX_PINBASED_CTLS":       0x0000_007F_0000_0016,
    "IA32_VMX_PROCBASED_CTLS":      0xF7F9_FFFE_0401_E172,
    "IA32_VMX_EXIT_CTLS":           0x007F_FFFF_0003_6DFF,
    "IA32_VMX_ENTRY_CTLS":          0x0000_FFFF_0000_11FF,
    "IA32_VMX_MISC":                0x0000_0000_6004_01E0,
    "IA32_VMX_CR0_FIXED0":          0x0000_0000_8000_0021,
    "IA32_VMX_CR0_FIXED1":          0x0000_0000_FFFF_FFFF,
    "IA32_VMX_CR4_FIXED0":          0x0000_0000_0000_2000,
    "IA32_VMX_CR4_FIXED1":          0x0000_0000_0037_27FF,
    "IA32_VMX_VMCS_ENUM":           0x0000_0000_0000_0034,
    "IA32_VMX_PROCBASED_CTLS2":     0x0217_7FFF_0000_0000,
    "IA32_VMX_EPT_VPID_CAP":        0x0000_0F01_0633_4141,
    "IA32_VMX_TRUE_PINBASED_CTLS":  0x0000_007F_0000_0016,
    "IA32_VMX_TRUE_PROCBASED_CTLS": 0xF7F9_FFFE_0400_6172,
    "IA32_VMX_TRUE_EXIT_CTLS":      0x007F_FFFF_0003_6DFB,
    "IA32_VMX_TRUE_ENTRY_CTLS":     0x0000_FFFF_0000_11FB,
    "IA32_VMX_VMFUNC":              0x0000_0000_0000_0001,
}

# CPUID of corei7_skylake_x. Leaf 1 ECX without OSXSAVE, which follows CR4; leaf 4, 0xB and 0xD by subleaf.
SKYLAKE_X_CPUID: dict[tuple[int, int], Cpuid] = {
    (0x0000_0000, 0): (0x0000_0016, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    (0x0000_0001, 0): (0x0005_0654, 0x0001_0800, 0x77FA_F3BF, 0xBFEB_FBFF),
    (0x0000_0002, 0): (0x7603_6301, 0x00F0_B5FF, 0x0000_0000, 0x00C3_0000),
    (0x0000_0004, 0): (0x1C00_4121, 0x01C0_003F, 0x0000_003F, 0x0000_0000),
    (0x0000_0004, 1): (0x1C00_4122, 0x01C0_003F, 0x0000_003F, 0x0000_0000),
    (0x0000_0004, 2): (0x1C00_4143, 0x03C0_003F, 0x0000_03FF, 0x0000_0000),
    (0x0000_0004, 3): (0x1C03_C163, 0x0280_003F, 0x0000_2FFF, 0x0000_0004),
    (0x0000_0005, 0): (0x0000_0040, 0x0000_0040, 0x0000_0003, 0x0000_2020),
    (0x0000_0006, 0): (0x0000_0075, 0x0000_0002, 0x0000_0009, 0x0000_0000),
    (0x0000_0007, 0): (0x0000_0000, 0xD19F_27EB, 0x0000_0000, 0x0000_0000),
    (0x0000_000A, 0): (0x0730_0404, 0x0000_0000, 0x0000_0000, 0x0000_0603),
    (0x0000_000B, 0): (0x0000_0001, 0x0000_0001, 0x0000_0000, 0x0000_0000),
    (0x0000_000B, 1): (0x0000_0000, 0x0000_0000, 0x0000_0001, 0x0000_0000),
    (0x0000_000D, 0): (0x0000_00E7, 0x0000_0240, 0x0000_0A80, 0x0000_0000),
    (0x0000_000D, 1): (0x0000_000F, 0x0000_0000, 0x0000_0000, 0x0000_0000),
    (0x0000_000D, 2): (0x0000_0100, 0x0000_0240, 0x0000_0000, 0x0000_0000),
    (0x0000_000D, 5): (0x0000_0040, 0x0000_0440, 0x0000_0000, 0x0000_0000),
    (0x0000_000D, 6): (0x0000_0200, 0x0000_0480, 0x0000_0000, 0x0000_0000),
    (0x0000_000D, 7): (0x0000_0400, 0x0000_0680, 0x0000_0000, 0x0000_0000),
    (0x0000_0015, 0): (0x0000_0002, 0x0000_0124, 0x0000_0000, 0x0000_0000),
    (0x0000_0016, 0): (0x0000_0DAC, 0x0000_0FA0, 0x0000_0064, 0x0000_0000),
    (0x8000_0000, 0): (0x8000_0008, 0x0000_0000, 0x0000_0000, 0x0000_0000),
    (0x8000_0001, 0): (0x0000_0000, 0x0000_0000, 0x0000_0121, 0x2C10_0800),
    (0x8000_0002, 0): (0x6574_6E49, 0x2952_286C, 0x726F_4320, 0x4D54_2865),
    (0x8000_0003, 0): (0x3769_2029, 0x3038_372D, 0x4320_5830, 0x4020_5550),
    (0x8000_0004, 0): (0x352E_3320, 0x7A48_4730, 0x0000_0000, 0x0000_0000),
    (0x8000_0006, 0): (0x0000_0000, 0x0000_0000, 0x0100_6040, 0x0000_0000),
    (0x8000_0007, 0): (0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0100),
    (0x8000_0008, 0): (0x0000_3028, 0x0000_0000, 0x0000_0000, 0x0000_0000),
}

# The feature words of Unicorn's SKYLAKE_SERVER; the default model's words are the intersection with the above.
UNICORN_CPUID: dict[tuple[int, int], Cpuid] = {
    (0x0000_0001, 0): (0x0005_0654, 0x0000_0800, 0xCED8_2203, 0x078B_FBFD),
    (0x0000_0007, 0): (0x0000_0000, 0x0198_0389, 0x0000_0008, 0x0000_0000),
    (0x0000_000D, 1): (0x0000_0005, 0x0000_0000, 0x0000_0000, 0x0000_0000),
    (0x8000_0001, 0): (0x0005_0654, 0x0000_0000, 0x0000_0021, 0x2C10_0800),
    (0x8000_0007, 0): (0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0100),  # the harness' TSC is invariant
}

# Leaves of which the modelled machine has nothing to tell: no power management, no performance counters.
EMPTY_LEAVES = (0x6, 0xA)

# XSAVE without AVX: x87 and SSE only (512-byte legacy area and 64-byte header), XSAVEOPT and XGETBV with ECX = 1.
MODELLED_XSAVE_LEAVES: dict[tuple[int, int], Cpuid] = {
    (0xD, 0): (0x0000_0003, 0x0000_0240, 0x0000_0240, 0x0000_0000),
    (0xD, 1): (0x0000_0005, 0x0000_0000, 0x0000_0000, 0x0000_0000),
}

# Controls that corei7_skylake_x offers and hvtests.vmx does not implement; (control word, name).
UNMODELLED: tuple[tuple[str, str], ...] = (
    ("PROCBASED2", "VIRTUALIZE_APIC_ACCESSES"),
    ("PROCBASED2", "VIRTUALIZE_X2APIC_MODE"),
    ("PROCBASED2", "APIC_REGISTER_VIRTUALIZATION"),
    ("PROCBASED2", "VIRTUAL_INTERRUPT_DELIVERY"),
    ("PROCBASED2", "PAUSE_LOOP_EXITING"),
    ("PROCBASED2", "RDRAND_EXITING"),
    ("PROCBASED2", "ENABLE_INVPCID"),
    ("PROCBASED2", "RDSEED_EXITING"),
    ("PROCBASED2", "EPT_VIOLATION_VE"),
    ("PROCBASED2", "ENABLE_XSAVES"),
    ("EXIT",       "LOAD_IA32_PERF_GLOBAL_CTRL"),
    ("ENTRY",      "LOAD_IA32_PERF_GLOBAL_CTRL"),
)

# Controls that hvtests.vmx implements and Bochs' corei7_skylake_x does not offer, though the processor does.
BEYOND_BOCHS: tuple[tuple[str, str], ...] = (
    ("PROCBASED", "MONITOR_TRAP_FLAG"),
)

# CPUID features of Unicorn's CPU that the machine around it cannot honour: (leaf, register 0..3 = EAX..EDX, bit).
UNMODELLED_CPUID: tuple[tuple[int, int, int, str], ...] = (
    (0x1, 3, 9,  "APIC: the machine has none, as if IA32_APIC_BASE bit 11 were 0"),
    (0x1, 2, 30, "RDRAND: Unicorn would return the host's random numbers, and runs would differ"),
    (0x1, 2, 31, "hypervisor present: bare metal says 0"),
)
