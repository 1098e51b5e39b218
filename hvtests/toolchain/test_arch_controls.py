"""Control words, MSRs and CPUID bits against SDM 3C 25.6 to 25.8, SDM 4 table 2-2 and SDM 2A CPUID."""

from __future__ import annotations

import pytest

from generator.arch import controls, cpuid, cr, msr_bits, msrs, vmcs
from generator.arch.bits import BitField, fields

BITS = {  # word → name → bit
    "PINBASED": {
        "EXTERNAL_INTERRUPT_EXITING": 0, "NMI_EXITING": 3, "VIRTUAL_NMIS": 5, "ACTIVATE_PREEMPTION_TIMER": 6,
        "PROCESS_POSTED_INTERRUPTS": 7,
    },
    "PROCBASED": {
        "INTERRUPT_WINDOW_EXITING": 2, "USE_TSC_OFFSETTING": 3, "HLT_EXITING": 7, "INVLPG_EXITING": 9,
        "MWAIT_EXITING": 10, "RDPMC_EXITING": 11, "RDTSC_EXITING": 12, "CR3_LOAD_EXITING": 15, "CR3_STORE_EXITING":
        16, "ACTIVATE_TERTIARY_CONTROLS": 17, "CR8_LOAD_EXITING": 19, "CR8_STORE_EXITING": 20, "USE_TPR_SHADOW": 21,
        "NMI_WINDOW_EXITING": 22, "MOV_DR_EXITING": 23, "UNCONDITIONAL_IO_EXITING": 24, "USE_IO_BITMAPS": 25,
        "MONITOR_TRAP_FLAG": 27, "USE_MSR_BITMAPS": 28, "MONITOR_EXITING": 29, "PAUSE_EXITING": 30,
        "ACTIVATE_SECONDARY_CONTROLS": 31,
    },
    "PROCBASED2": {
        "VIRTUALIZE_APIC_ACCESSES": 0, "ENABLE_EPT": 1, "ENABLE_RDTSCP": 3, "ENABLE_VPID": 5, "WBINVD_EXITING": 6,
        "UNRESTRICTED_GUEST": 7, "ENABLE_INVPCID": 12, "ENABLE_VM_FUNCTIONS": 13, "VMCS_SHADOWING": 14, "ENABLE_PML":
        17, "ENABLE_XSAVES": 20, "USE_TSC_SCALING": 25, "INSTRUCTION_TIMEOUT": 31,
    },
    "EXIT": {
        "SAVE_DEBUG_CONTROLS": 2, "HOST_ADDRESS_SPACE_SIZE": 9, "LOAD_IA32_PERF_GLOBAL_CTRL": 12,
        "ACKNOWLEDGE_INTERRUPT_ON_EXIT": 15, "SAVE_IA32_PAT": 18, "LOAD_IA32_PAT": 19, "SAVE_IA32_EFER": 20,
        "LOAD_IA32_EFER": 21, "SAVE_PREEMPTION_TIMER": 22, "ACTIVATE_SECONDARY_CONTROLS": 31,
    },
    "ENTRY": {
        "LOAD_DEBUG_CONTROLS": 2, "IA32E_MODE_GUEST": 9, "ENTRY_TO_SMM": 10, "DEACTIVATE_DUAL_MONITOR_TREATMENT": 11,
        "LOAD_IA32_PERF_GLOBAL_CTRL": 13, "LOAD_IA32_PAT": 14, "LOAD_IA32_EFER": 15, "LOAD_IA32_BNDCFGS": 16,
    },
}

TOTALS = {"PINBASED": 5, "PROCBASED": 22, "PROCBASED2": 31, "EXIT": 18, "ENTRY": 16}

MSRS = {
    "IA32_TIME_STAMP_COUNTER": 0x10, "IA32_APIC_BASE": 0x1B, "IA32_FEATURE_CONTROL": 0x3A, "IA32_MTRRCAP": 0xFE,
    "IA32_SYSENTER_CS": 0x174, "IA32_SYSENTER_ESP": 0x175, "IA32_SYSENTER_EIP": 0x176, "IA32_MISC_ENABLE": 0x1A0,
    "IA32_DEBUGCTL": 0x1D9, "IA32_MTRR_PHYSBASE0": 0x200, "IA32_MTRR_PHYSMASK0": 0x201, "IA32_MTRR_PHYSMASK9": 0x213,
    "IA32_MTRR_FIX64K_00000": 0x250, "IA32_MTRR_FIX16K_A0000": 0x259, "IA32_MTRR_FIX4K_C0000": 0x268,
    "IA32_MTRR_FIX4K_F8000": 0x26F, "IA32_PAT": 0x277, "IA32_MTRR_DEF_TYPE": 0x2FF, "IA32_PERF_GLOBAL_CTRL": 0x38F,
    "IA32_VMX_BASIC": 0x480, "IA32_VMX_PINBASED_CTLS": 0x481, "IA32_VMX_PROCBASED_CTLS": 0x482,
    "IA32_VMX_EXIT_CTLS": 0x483, "IA32_VMX_ENTRY_CTLS": 0x484, "IA32_VMX_MISC": 0x485, "IA32_VMX_CR0_FIXED0": 0x486,
    "IA32_VMX_CR0_FIXED1": 0x487, "IA32_VMX_CR4_FIXED0": 0x488, "IA32_VMX_CR4_FIXED1": 0x489,
    "IA32_VMX_VMCS_ENUM": 0x48A, "IA32_VMX_PROCBASED_CTLS2": 0x48B, "IA32_VMX_EPT_VPID_CAP": 0x48C,
    "IA32_VMX_TRUE_PINBASED_CTLS": 0x48D, "IA32_VMX_TRUE_PROCBASED_CTLS": 0x48E, "IA32_VMX_TRUE_EXIT_CTLS": 0x48F,
    "IA32_VMX_TRUE_ENTRY_CTLS": 0x490, "IA32_VMX_VMFUNC": 0x491, "IA32_VMX_PROCBASED_CTLS3": 0x492,
    "IA32_VMX_EXIT_CTLS2": 0x493, "IA32_TSC_DEADLINE": 0x6E0, "IA32_X2APIC_APICID": 0x802, "IA32_X2APIC_ISR7": 0x817,
    "IA32_X2APIC_TMR0": 0x818, "IA32_X2APIC_IRR7": 0x827, "IA32_X2APIC_SELF_IPI": 0x83F, "IA32_XSS": 0xDA0,
    "IA32_EFER": 0xC0000080, "IA32_STAR": 0xC0000081, "IA32_LSTAR": 0xC0000082, "IA32_CSTAR": 0xC0000083,
    "IA32_FMASK": 0xC0000084, "IA32_FS_BASE": 0xC0000100, "IA32_GS_BASE": 0xC0000101,
    "IA32_KERNEL_GS_BASE": 0xC0000102, "IA32_TSC_AUX": 0xC0000103,
}


@pytest.mark.parametrize(("word", "name", "bit"), [
    (word, name, bit) for word, names in BITS.items() for name, bit in names.items()])
def test_bit_as_the_manual_numbers_it(word: str, name: str, bit: int) -> None:
    control = controls.BY_NAME[word].bit(name)
    assert (control.bit, control.mask, control.word) == (bit, 2 ** bit, word)


@pytest.mark.parametrize("word", TOTALS)
def test_totals(word: str) -> None:
    assert len(controls.BY_NAME[word].bits) == TOTALS[word]


@pytest.mark.parametrize("word", controls.WORDS, ids=lambda word: str(word.name))
def test_words_are_consistent(word: controls.ControlWord) -> None:
    numbers = [control.bit for control in word.bits]
    assert numbers == sorted(set(numbers))
    assert max(numbers) < word.width
    assert len({control.name for control in word.bits}) == len(numbers)
    assert vmcs.BY_NAME[word.field].bits == word.width
    assert vmcs.BY_NAME[word.field].type is vmcs.FieldType.CONTROL
    assert word.msr in msrs.BY_NAME
    assert word.true_msr is None or word.true_msr in msrs.BY_NAME
    if word.activated_by:
        assert controls.BY_NAME[word.activated_by[0]].bit(word.activated_by[1]).name.startswith(("ACTIVATE", "ENABLE"))


def test_default1_classes() -> None:
    """SDM 3C 25.6.1, 25.6.2, 25.7.1 and 25.8.1 list the bits that the first processors had fixed to 1."""
    assert controls.PINBASED.default1 == sum(1 << bit for bit in (1, 2, 4))
    assert controls.PROCBASED.default1 == sum(1 << bit for bit in (1, 4, 5, 6, 8, 13, 14, 15, 16, 26))
    assert controls.EXIT.default1 == sum(1 << bit for bit in (*range(9), 10, 11, 13, 14, 16, 17))
    assert controls.ENTRY.default1 == sum(1 << bit for bit in (*range(9), 12))


def test_mask_and_names() -> None:
    word = controls.PROCBASED2
    assert word.mask("ENABLE_EPT", "ENABLE_VPID", "UNRESTRICTED_GUEST") == 0xA2
    assert word.names(0xA2) == ("ENABLE_EPT", "ENABLE_VPID", "UNRESTRICTED_GUEST")
    with pytest.raises(KeyError, match="PROCBASED2 has no control HLT_EXITING"):
        word.mask("HLT_EXITING")


def test_find_gives_each_word_that_has_the_name() -> None:
    assert [control.word for control in controls.find("LOAD_IA32_PAT")] == ["EXIT", "ENTRY"]
    assert controls.find("NO_SUCH_CONTROL") == ()


@pytest.mark.parametrize("name", MSRS)
def test_msr_address(name: str) -> None:
    assert msrs.BY_NAME[name].address == MSRS[name]


def test_msrs_are_unique_and_in_order() -> None:
    addresses = [msr.address for msr in msrs.MSRS]
    assert addresses == sorted(set(addresses))
    assert len(msrs.BY_NAME) == len(addresses)


def test_every_described_msr_exists() -> None:
    assert set(msr_bits.BITS) <= set(msrs.BY_NAME)


@pytest.mark.parametrize("msr", [msr for msr in msrs.MSRS if msr.bits], ids=lambda msr: str(msr.name))
def test_msr_fields_do_not_overlap(msr: msrs.Msr) -> None:
    taken = 0
    for field in msr.bits:
        assert 0 <= field.low <= field.high < 64
        assert not taken & field.mask, field.name
        taken |= field.mask


def test_values_of_fields() -> None:
    """IA32_VMX_BASIC of Bochs' corei7_skylake_x: revision 2bh, 4 KiB regions, write-back, TRUE MSRs."""
    basic = {field.name: field.value(0x00D8_1000_0000_002B) for field in msrs.BY_NAME["IA32_VMX_BASIC"].bits}
    assert (basic["REVISION"], basic["REGION_SIZE"], basic["MEMORY_TYPE"], basic["TRUE_CTLS"]) == (0x2B, 0x1000, 6, 1)
    assert fields((4, 7, "A", ""))[0] == BitField(4, 7, "A", "")
    assert BitField(4, 7, "A", "").mask == 0xF0
    assert (BitField(4, 7, "A", "").place, BitField(4, 4, "A", "").place) == ("7:4", "4")


def test_single_bit_constants_agree_with_the_tables() -> None:
    for prefix, msr in (("FEATURE_CONTROL_", "IA32_FEATURE_CONTROL"), ("APIC_BASE_", "IA32_APIC_BASE")):
        table = {field.name: field.mask for field in msrs.BY_NAME[msr].bits}
        for name in (name for name in dir(msr_bits) if name.startswith(prefix)):
            assert table[name.removeprefix(prefix)] == getattr(msr_bits, name)
    efer = {field.name: field.mask for field in msrs.BY_NAME["IA32_EFER"].bits}
    assert efer == {"SCE": cr.EFER_SCE, "LME": cr.EFER_LME, "LMA": cr.EFER_LMA, "NXE": cr.EFER_NXE}


@pytest.mark.parametrize(("name", "where"), [
    ("VMX", "CPUID.1:ECX[5]"), ("X2APIC", "CPUID.1:ECX[21]"), ("TSC_DEADLINE", "CPUID.1:ECX[24]"),
    ("XSAVE", "CPUID.1:ECX[26]"), ("OSXSAVE", "CPUID.1:ECX[27]"), ("HYPERVISOR", "CPUID.1:ECX[31]"),
    ("PAE", "CPUID.1:EDX[6]"), ("APIC", "CPUID.1:EDX[9]"), ("FXSR", "CPUID.1:EDX[24]"), ("SMEP", "CPUID.7,0:EBX[7]"),
    ("SMAP", "CPUID.7,0:EBX[20]"), ("INVPCID", "CPUID.7,0:EBX[10]"), ("UMIP", "CPUID.7,0:ECX[2]"),
    ("LA57", "CPUID.7,0:ECX[16]"), ("CET_IBT", "CPUID.7,0:EDX[20]"), ("XSAVES", "CPUID.DH,1:EAX[3]"),
    ("SVM", "CPUID.80000001H:ECX[2]"), ("NX", "CPUID.80000001H:EDX[20]"), ("RDTSCP", "CPUID.80000001H:EDX[27]"),
    ("LM", "CPUID.80000001H:EDX[29]"), ("PAGE1GB", "CPUID.80000001H:EDX[26]"),
    ("INVARIANT_TSC", "CPUID.80000007H:EDX[8]")])
def test_cpuid_bit(name: str, where: str) -> None:
    assert cpuid.BY_NAME[name].where == where


def test_cpuid_bits_are_unique() -> None:
    places = {(bit.leaf, bit.subleaf, bit.register, bit.bit) for bit in cpuid.CPUID_BITS}
    assert len(places) == len(cpuid.CPUID_BITS) == len(cpuid.BY_NAME)
    assert all(bit.bit < 32 and bit.mask == 2 ** bit.bit for bit in cpuid.CPUID_BITS)


@pytest.mark.parametrize(("name", "value"), [
    ("CR0_PE", 0x1), ("CR0_NE", 0x20), ("CR0_WP", 0x10000), ("CR0_PG", 0x80000000), ("CR4_PAE", 0x20),
    ("CR4_PGE", 0x80), ("CR4_OSFXSR", 0x200), ("CR4_VMXE", 0x2000), ("CR4_PCIDE", 0x20000), ("CR4_OSXSAVE", 0x40000),
    ("CR4_SMEP", 0x100000), ("CR4_SMAP", 0x200000), ("EFER_LME", 0x100), ("EFER_LMA", 0x400), ("EFER_NXE", 0x800),
    ("RFLAGS_TF", 0x100), ("RFLAGS_IF", 0x200), ("RFLAGS_IOPL", 0x3000), ("RFLAGS_VM", 0x20000),
    ("RFLAGS_ID", 0x200000), ("DR7_RESET", 0x400), ("RFLAGS_RESERVED_ZERO", 0xFFFFFFFFFFC08028),
    ("RFLAGS_STATUS", 0x8D5)])
def test_register_bit(name: str, value: int) -> None:
    assert getattr(cr, name) == value
