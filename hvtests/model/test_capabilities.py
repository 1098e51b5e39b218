"""The modelled CPU: its facts against Bochs' and Unicorn's, its variants, its MSRs."""

from __future__ import annotations

import pytest
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import (
    UC_CPU_X86_SKYLAKE_SERVER,
    UC_X86_REG_RAX,
    UC_X86_REG_RBX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDX,
)

from generator.arch import cr, msrs
from generator.arch.controls import BY_NAME, ENTRY, PINBASED, PROCBASED, PROCBASED2, WORDS
from generator.errors import UsageError
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.cpu_models import BEYOND_BOCHS, SKYLAKE_X_CAPABILITIES, UNICORN_CPUID, UNMODELLED
from hvtests.vmx.msr_rules import canonical, pat_valid

FULL, DEFAULT = CpuModel.skylake_x(), CpuModel.default()


def test_cr4_derived_from_cpuid_is_what_bochs_reports_as_fixed1() -> None:
    """Bochs' IA32_VMX_CR4_FIXED1 was read from the emulator; the mask comes from its CPUID leaves."""
    assert FULL.cr4_valid == SKYLAKE_X_CAPABILITIES["IA32_VMX_CR4_FIXED1"] == 0x3727FF


def test_default_offers_nothing_that_the_full_cpu_lacks_but_what_bochs_leaves_out() -> None:
    for word in WORDS:
        beyond = sum(word.mask(name) for word_name, name in BEYOND_BOCHS if word_name == word.name)
        assert DEFAULT.allowed1(word) & ~FULL.allowed1(word) == beyond
        assert DEFAULT.allowed0(word) == FULL.allowed0(word)
    assert not DEFAULT.cr4_valid & ~FULL.cr4_valid
    assert not DEFAULT.ept_vpid & ~FULL.ept_vpid


def test_what_is_not_modelled_is_offered_by_the_full_cpu_only() -> None:
    for word_name, control in UNMODELLED:
        mask = BY_NAME[word_name].mask(control)
        assert FULL.allowed1(BY_NAME[word_name]) & mask, control
        assert not DEFAULT.allowed1(BY_NAME[word_name]) & mask, control


@pytest.mark.parametrize("key", UNICORN_CPUID, ids=lambda key: f"{key[0]:#x}.{key[1]}")
def test_the_engine_has_every_feature_that_the_default_cpu_promises(key: tuple[int, int]) -> None:
    """CPUID in Unicorn itself; VMX, MONITOR and the invariant TSC are the harness' own."""
    if key == (0x8000_0007, 0):
        return
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(UC_CPU_X86_SKYLAKE_SERVER)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, b"\x0f\xa2")
    uc.reg_write(UC_X86_REG_RAX, key[0])
    uc.reg_write(UC_X86_REG_RCX, key[1])
    uc.emu_start(0x1000, 0x1002)
    engine = [uc.reg_read(register) for register in (UC_X86_REG_RAX, UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX)]
    promised = list(DEFAULT.leaves[key])
    if key == (1, 0):
        promised[:2] = 0, 0             # signature and topology
        promised[2] &= ~(1 << 5 | 1 << 3)
    assert [have & want for have, want in zip(engine, promised, strict=True)] == promised


def test_the_image_s_wishes_are_offered() -> None:
    for word, names in (
        (PINBASED,   ("EXTERNAL_INTERRUPT_EXITING", "NMI_EXITING", "ACTIVATE_PREEMPTION_TIMER")),
        (PROCBASED,  ("HLT_EXITING", "USE_TSC_OFFSETTING", "CR8_LOAD_EXITING", "CR8_STORE_EXITING", "USE_IO_BITMAPS",
                      "USE_MSR_BITMAPS", "RDTSC_EXITING", "ACTIVATE_SECONDARY_CONTROLS")),
        (PROCBASED2, ("ENABLE_EPT", "ENABLE_VPID", "UNRESTRICTED_GUEST", "ENABLE_RDTSCP")),
        (BY_NAME["EXIT"], ("HOST_ADDRESS_SPACE_SIZE", "SAVE_IA32_PAT", "LOAD_IA32_PAT", "SAVE_IA32_EFER",
                           "LOAD_IA32_EFER", "SAVE_DEBUG_CONTROLS", "SAVE_PREEMPTION_TIMER")),
        (ENTRY,      ("LOAD_IA32_PAT", "LOAD_IA32_EFER", "LOAD_DEBUG_CONTROLS", "IA32E_MODE_GUEST")),
    ):
        assert word.mask(*names) & ~DEFAULT.allowed1(word) == 0


def test_true_capability_msrs_decide_where_they_exist() -> None:
    """CR3-load exiting (bit 15) is a default-1 control: only the TRUE MSR lets it be 0."""
    assert FULL.allowed0(PROCBASED) == 0x0400_6172
    assert FULL.without("TRUE_CTLS").allowed0(PROCBASED) == 0x0401_E172
    assert "IA32_VMX_TRUE_PROCBASED_CTLS" not in FULL.without("TRUE_CTLS").capabilities


def test_without_a_control() -> None:
    cpu = FULL.without("UNRESTRICTED_GUEST")
    assert cpu.allowed1(PROCBASED2) == FULL.allowed1(PROCBASED2) & ~(1 << 7)
    assert cpu.has("ENABLE_EPT") and not cpu.has("UNRESTRICTED_GUEST") and FULL.has("UNRESTRICTED_GUEST")


def test_without_ept_its_dependents_go_too() -> None:
    cpu = FULL.without("ENABLE_EPT")
    assert not cpu.has("UNRESTRICTED_GUEST") and not cpu.has("ENABLE_PML")
    assert cpu.ept_vpid & 0xFFFF_FFFF == 0 and cpu.ept_vpid >> 32  # VPID is still there
    assert "IA32_VMX_EPT_VPID_CAP" not in cpu.without("ENABLE_VPID").capabilities


def test_without_secondary_controls_their_msrs_do_not_exist() -> None:
    cpu = FULL.without("PROCBASED.ACTIVATE_SECONDARY_CONTROLS")
    assert not {"IA32_VMX_PROCBASED_CTLS2", "IA32_VMX_EPT_VPID_CAP", "IA32_VMX_VMFUNC"} & set(cpu.capabilities)
    assert cpu.allowed1(PROCBASED2) == 0


def test_without_vmx() -> None:
    cpu = DEFAULT.without("VMX")
    assert not cpu.cpuid(1, 0)[2] >> 5 & 1 and not cpu.cr4_valid & cr.CR4_VMXE
    assert not cpu.capabilities and 0x480 not in cpu.reset_msrs()


def test_without_a_cpuid_bit_cr4_follows() -> None:
    cpu = FULL.without("SMEP")
    assert not cpu.cr4_valid & cr.CR4_SMEP
    assert cpu.capability("IA32_VMX_CR4_FIXED1") == 0x3727FF & ~cr.CR4_SMEP


def test_one_word_only() -> None:
    cpu = FULL.without("EXIT.LOAD_IA32_PAT")
    assert not cpu.allowed1(BY_NAME["EXIT"]) & BY_NAME["EXIT"].mask("LOAD_IA32_PAT")
    assert cpu.allowed1(ENTRY) & ENTRY.mask("LOAD_IA32_PAT")


def test_an_unknown_feature_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"no CPU feature is named 'UNRESTRICTED_GUST'; near: UNRESTRICTED_GUEST"):
        FULL.without("UNRESTRICTED_GUST")


def test_models_are_values() -> None:
    assert CpuModel.default() == DEFAULT
    assert DEFAULT.without("ENABLE_VPID") != DEFAULT
    DEFAULT.reset_msrs()[0x480] = 0
    assert DEFAULT.reset_msrs()[0x480] == SKYLAKE_X_CAPABILITIES["IA32_VMX_BASIC"]


def test_sizes() -> None:
    assert (FULL.maxphyaddr, FULL.linear_bits) == (40, 48)
    assert FULL.physical_reserved == 0xFFFF_FF00_0000_0000
    assert FULL.with_cpuid(0x8000_0008, 0, (0x3024, 0, 0, 0)).physical_reserved == 0xFFFF_FFF0_0000_0000


@pytest.mark.parametrize(("address", "expected"), [
    (0, True), (0x7FFF_FFFF_FFFF, True), (0x8000_0000_0000, False), (0xFFFF_7FFF_FFFF_FFFF, False),
    (0xFFFF_8000_0000_0000, True), (0xFFFF_FFFF_FFFF_FFFF, True),
])
def test_canonical(address: int, expected: bool) -> None:
    assert canonical(address) is expected


def test_canonical_57() -> None:
    assert canonical(0x8000_0000_0000, 57) and not canonical(1 << 56, 57)


def test_pat() -> None:
    """The six memory types of SDM 3A 12.12.2, in any place; none other."""
    for place in range(0, 64, 8):
        assert [kind for kind in range(256) if pat_valid(kind << place)] == [0, 1, 4, 5, 6, 7]


def test_cpuid_dynamic_bits_and_range() -> None:
    assert not DEFAULT.cpuid(1, 0)[2] >> 27 & 1
    assert DEFAULT.cpuid(1, 0, cr4=cr.CR4_OSXSAVE)[2] >> 27 & 1
    assert DEFAULT.cpuid(0x8000_0001, 0)[3] >> 11 & 1
    assert not DEFAULT.cpuid(0x8000_0001, 0, long_mode=False)[3] >> 11 & 1
    highest = DEFAULT.cpuid(0, 0)[0]
    assert DEFAULT.cpuid(0x4000_0000, 0) == DEFAULT.cpuid(highest + 1, 0) == DEFAULT.cpuid(highest, 0)
    assert DEFAULT.cpuid(0x8000_0002, 0)[0].to_bytes(4, "little") == b"Inte"
    assert DEFAULT.cpuid(4, 9) == (0, 0, 0, 0)
    assert DEFAULT.cpuid(2, 77) == DEFAULT.cpuid(2, 0)


EFER = msrs.BY_NAME["IA32_EFER"].address


@pytest.mark.parametrize(("name", "current", "value", "result"), [
    ("IA32_VMX_BASIC", 0, 0, None),                                   # read-only
    ("IA32_FEATURE_CONTROL", 5, 5, None),                             # locked
    ("IA32_FEATURE_CONTROL", 0, 5, 5),
    ("IA32_EFER", 0, 0x100, 0x100),
    ("IA32_EFER", 0x500, 0x900, 0xD00),                               # LMA is not written
    ("IA32_EFER", 0, 0x2, None),
    ("IA32_PAT", 0, 0x0606_0606_0606_0606, 0x0606_0606_0606_0606),
    ("IA32_PAT", 0, 2, None),
    ("IA32_LSTAR", 0, 0x8000_0000_0000, None),
    ("IA32_LSTAR", 0, 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_0000),
    ("IA32_MTRRCAP", 0x508, 0x508, None),
    ("IA32_MTRR_PHYSBASE0", 0, 0xFFF0_0006, 0xFFF0_0006),
    ("IA32_MTRR_PHYSBASE0", 0, 0xFFF0_0002, None),
    ("IA32_MTRR_PHYSMASK0", 0, 0xFF_F000_0800, 0xFF_F000_0800),
    ("IA32_MTRR_PHYSMASK0", 0, 1 << 40, None),
    ("IA32_TSC_AUX", 0, 1 << 32, None),
])
def test_write_msr(name: str, current: int, value: int, result: int | None) -> None:
    assert FULL.write_msr(msrs.BY_NAME[name].address, current, value) == result


def test_efer_lme_cannot_change_while_paging() -> None:
    assert FULL.write_msr(EFER, 0x500, 0x400, paging=True) is None
    assert FULL.write_msr(EFER, 0x500, 0xD01, paging=True) == 0xD01


def test_an_msr_that_does_not_exist() -> None:
    assert 0x1234_5678 not in DEFAULT.reset_msrs()
    assert DEFAULT.write_msr(0x1234_5678, 0, 0) is None


def test_reset_values() -> None:
    reset = DEFAULT.with_msr("IA32_FEATURE_CONTROL", 0).reset_msrs()
    assert reset[0x3A] == 0 and DEFAULT.reset_msrs()[0x3A] == 5
    assert reset[0x277] == 0x0007_0406_0007_0406  # SDM 3A 12.12.4
    assert all(address in msrs.BY_ADDRESS or address == 0x17 for address in reset)
