"""CPUs of Bochs 2.7 on which the rules are judged: what each reports of VMX, read with RDMSR and CPUID in Bochs itself.

tigerlake has what corei7_skylake_x lacks: CET, monitor trap flag, sub-page write permissions, error codes at will.
corei5_lynnfield_750 lacks unrestricted guest, accessed and dirty flags, and events of instruction length 0.
"""

from __future__ import annotations

from hvtests.vmx.capabilities import CpuModel

_NAMES = ("BASIC", "PINBASED_CTLS", "PROCBASED_CTLS", "EXIT_CTLS", "ENTRY_CTLS", "MISC", "CR0_FIXED0", "CR0_FIXED1",
          "CR4_FIXED0", "CR4_FIXED1", "VMCS_ENUM", "PROCBASED_CTLS2", "EPT_VPID_CAP", "TRUE_PINBASED_CTLS",
          "TRUE_PROCBASED_CTLS", "TRUE_EXIT_CTLS", "TRUE_ENTRY_CTLS", "VMFUNC")  # from MSR 480H on

_TIGERLAKE = (
    0x01D8_1000_0000_0004, 0x0000_007F_0000_0016, 0xFFF9_FFFE_0401_E172, 0x107F_FFFF_0003_6DFF, 0x0010_FFFF_0000_11FF,
    0x0000_0000_6004_01E0, 0x0000_0000_8000_0021, 0x0000_0000_FFFF_FFFF, 0x0000_0000_0000_2000, 0x0000_0000_00F7_2FFF,
    0x0000_0000_0000_0034, 0x0297_7FFF_0000_0000, 0x0000_0F01_06B3_4141, 0x0000_007F_0000_0016, 0xFFF9_FFFE_0400_6172,
    0x107F_FFFF_0003_6DFB, 0x0010_FFFF_0000_11FB, 0x0000_0000_0000_0001,
)
_TIGERLAKE_CPUID = {
    (0x0000_0001, 0): (0x0008_06C1, 0x0001_0800, 0x77FA_F3BF, 0xBFEB_FBFF),
    (0x0000_0007, 0): (0x0000_0000, 0xF1BF_27EB, 0x0040_5FCE, 0xFC10_0510),
    (0x0000_000A, 0): (0x0830_0805, 0x0000_0000, 0x0000_000F, 0x0000_8604),
    (0x8000_0001, 0): (0x0000_0000, 0x0000_0000, 0x0000_0121, 0x2C10_0800),
}

_LYNNFIELD = (
    0x00D8_1000_0000_002B, 0x0000_007F_0000_0016, 0xF7F9_FFFE_0401_E172, 0x007F_FFFF_0003_6DFF, 0x0000_FFFF_0000_11FF,
    0x0000_0000_0004_01E0, 0x0000_0000_8000_0021, 0x0000_0000_FFFF_FFFF, 0x0000_0000_0000_2000, 0x0000_0000_0000_67FF,
    0x0000_0000_0000_0034, 0x0000_007F_0000_0000, 0x0000_0F01_0611_4141, 0x0000_007F_0000_0016, 0xF7F9_FFFE_0400_6172,
    0x007F_FFFF_0003_6DFB, 0x0000_FFFF_0000_11FB,
)
_LYNNFIELD_CPUID = {
    (0x0000_0001, 0): (0x0001_06E5, 0x0001_0800, 0x0098_E3FD, 0xBFEB_FBFF),
    (0x0000_0007, 0): (0, 0, 0, 0),
    (0x0000_000A, 0): (0x0730_0403, 0x0000_0044, 0x0000_0000, 0x0000_0603),
    (0x8000_0001, 0): (0x0000_0000, 0x0000_0000, 0x0000_0001, 0x2810_0800),
}


def _cpu(name: str, msrs: tuple[int, ...], leaves: dict[tuple[int, int], tuple[int, int, int, int]]) -> CpuModel:
    full = CpuModel.skylake_x()
    capabilities = {f"IA32_VMX_{key}": value for key, value in zip(_NAMES, msrs, strict=False)}
    return CpuModel(name, capabilities, {**full.leaves, **leaves}, full.msr_rules)


SKYLAKE_X = CpuModel.skylake_x()
TIGERLAKE = _cpu("tigerlake", _TIGERLAKE, _TIGERLAKE_CPUID)
LYNNFIELD = _cpu("lynnfield", _LYNNFIELD, _LYNNFIELD_CPUID)

# Bochs' name of each.
BOCHS_NAMES = {"skylake-x": "corei7_skylake_x", "tigerlake": "tigerlake", "lynnfield": "corei5_lynnfield_750"}
