"""VMCS encodings against the values that SDM 3D Appendix B prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.arch import vmcs
from generator.arch.vmcs import FieldType, FieldWidth

# Copied by hand from the manual's tables B-1 to B-17: first and last of each, and what an image uses.
MANUAL = {
    "VIRTUAL_PROCESSOR_ID": 0x0000, "POSTED_INTR_NV": 0x0002, "EPTP_INDEX": 0x0004, "HLAT_PREFIX_SIZE": 0x0006,
    "LAST_PID_POINTER_INDEX": 0x0008,
    "GUEST_ES_SELECTOR": 0x0800, "GUEST_CS_SELECTOR": 0x0802, "GUEST_TR_SELECTOR": 0x080E, "GUEST_INTR_STATUS": 0x0810,
    "GUEST_PML_INDEX": 0x0812, "GUEST_UINV": 0x0814,
    "HOST_ES_SELECTOR": 0x0C00, "HOST_CS_SELECTOR": 0x0C02, "HOST_GS_SELECTOR": 0x0C0A, "HOST_TR_SELECTOR": 0x0C0C,
    "IO_BITMAP_A": 0x2000, "IO_BITMAP_B": 0x2002, "MSR_BITMAP": 0x2004, "VM_EXIT_MSR_STORE_ADDR": 0x2006,
    "VM_EXIT_MSR_LOAD_ADDR": 0x2008, "VM_ENTRY_MSR_LOAD_ADDR": 0x200A, "EXECUTIVE_VMCS_POINTER": 0x200C,
    "PML_ADDRESS": 0x200E, "TSC_OFFSET": 0x2010, "VIRTUAL_APIC_PAGE_ADDR": 0x2012, "APIC_ACCESS_ADDR": 0x2014,
    "POSTED_INTR_DESC_ADDR": 0x2016, "VM_FUNCTION_CONTROL": 0x2018, "EPT_POINTER": 0x201A, "EOI_EXIT_BITMAP0": 0x201C,
    "EOI_EXIT_BITMAP3": 0x2022, "EPTP_LIST_ADDRESS": 0x2024, "VMREAD_BITMAP": 0x2026, "VMWRITE_BITMAP": 0x2028,
    "VE_INFORMATION_ADDRESS": 0x202A, "XSS_EXIT_BITMAP": 0x202C, "ENCLS_EXITING_BITMAP": 0x202E,
    "SPP_TABLE_POINTER": 0x2030, "TSC_MULTIPLIER": 0x2032, "TERTIARY_VM_EXEC_CONTROL": 0x2034,
    "ENCLV_EXITING_BITMAP": 0x2036, "LOW_PASID_DIRECTORY_ADDRESS": 0x2038, "HIGH_PASID_DIRECTORY_ADDRESS": 0x203A,
    "SHARED_EPT_POINTER": 0x203C, "PCONFIG_EXITING_BITMAP": 0x203E, "HLAT_POINTER": 0x2040,
    "PID_POINTER_TABLE": 0x2042, "SECONDARY_VM_EXIT_CONTROLS": 0x2044, "IA32_SPEC_CTRL_MASK": 0x204A,
    "IA32_SPEC_CTRL_SHADOW": 0x204C, "INJECTED_EVENT_DATA": 0x2052,
    "GUEST_PHYSICAL_ADDRESS": 0x2400, "ORIGINAL_EVENT_DATA": 0x2404,
    "VMCS_LINK_POINTER": 0x2800, "GUEST_IA32_DEBUGCTL": 0x2802, "GUEST_IA32_PAT": 0x2804, "GUEST_IA32_EFER": 0x2806,
    "GUEST_IA32_PERF_GLOBAL_CTRL": 0x2808, "GUEST_PDPTR0": 0x280A, "GUEST_PDPTR3": 0x2810, "GUEST_BNDCFGS": 0x2812,
    "GUEST_IA32_RTIT_CTL": 0x2814, "GUEST_IA32_LBR_CTL": 0x2816, "GUEST_IA32_PKRS": 0x2818,
    "GUEST_IA32_FRED_CONFIG": 0x281A, "GUEST_IA32_FRED_SSP3": 0x2828,
    "HOST_IA32_PAT": 0x2C00, "HOST_IA32_EFER": 0x2C02, "HOST_IA32_PERF_GLOBAL_CTRL": 0x2C04, "HOST_IA32_PKRS": 0x2C06,
    "HOST_IA32_FRED_CONFIG": 0x2C08, "HOST_IA32_FRED_SSP3": 0x2C16,
    "PIN_BASED_VM_EXEC_CONTROL": 0x4000, "CPU_BASED_VM_EXEC_CONTROL": 0x4002, "EXCEPTION_BITMAP": 0x4004,
    "PAGE_FAULT_ERROR_CODE_MASK": 0x4006, "PAGE_FAULT_ERROR_CODE_MATCH": 0x4008, "CR3_TARGET_COUNT": 0x400A,
    "VM_EXIT_CONTROLS": 0x400C, "VM_EXIT_MSR_STORE_COUNT": 0x400E, "VM_EXIT_MSR_LOAD_COUNT": 0x4010,
    "VM_ENTRY_CONTROLS": 0x4012, "VM_ENTRY_MSR_LOAD_COUNT": 0x4014, "VM_ENTRY_INTR_INFO_FIELD": 0x4016,
    "VM_ENTRY_EXCEPTION_ERROR_CODE": 0x4018, "VM_ENTRY_INSTRUCTION_LEN": 0x401A, "TPR_THRESHOLD": 0x401C,
    "SECONDARY_VM_EXEC_CONTROL": 0x401E, "PLE_GAP": 0x4020, "PLE_WINDOW": 0x4022, "NOTIFY_WINDOW": 0x4024,
    "VM_INSTRUCTION_ERROR": 0x4400, "VM_EXIT_REASON": 0x4402, "VM_EXIT_INTR_INFO": 0x4404,
    "VM_EXIT_INTR_ERROR_CODE": 0x4406, "IDT_VECTORING_INFO_FIELD": 0x4408, "IDT_VECTORING_ERROR_CODE": 0x440A,
    "VM_EXIT_INSTRUCTION_LEN": 0x440C, "VMX_INSTRUCTION_INFO": 0x440E,
    "GUEST_ES_LIMIT": 0x4800, "GUEST_TR_LIMIT": 0x480E, "GUEST_GDTR_LIMIT": 0x4810, "GUEST_IDTR_LIMIT": 0x4812,
    "GUEST_ES_AR_BYTES": 0x4814, "GUEST_CS_AR_BYTES": 0x4816, "GUEST_TR_AR_BYTES": 0x4822,
    "GUEST_INTERRUPTIBILITY_INFO": 0x4824, "GUEST_ACTIVITY_STATE": 0x4826, "GUEST_SMBASE": 0x4828,
    "GUEST_SYSENTER_CS": 0x482A, "VMX_PREEMPTION_TIMER_VALUE": 0x482E,
    "HOST_IA32_SYSENTER_CS": 0x4C00,
    "CR0_GUEST_HOST_MASK": 0x6000, "CR4_GUEST_HOST_MASK": 0x6002, "CR0_READ_SHADOW": 0x6004, "CR4_READ_SHADOW": 0x6006,
    "CR3_TARGET_VALUE0": 0x6008, "CR3_TARGET_VALUE3": 0x600E,
    "EXIT_QUALIFICATION": 0x6400, "IO_RCX": 0x6402, "IO_RSI": 0x6404, "IO_RDI": 0x6406, "IO_RIP": 0x6408,
    "GUEST_LINEAR_ADDRESS": 0x640A,
    "GUEST_CR0": 0x6800, "GUEST_CR3": 0x6802, "GUEST_CR4": 0x6804, "GUEST_ES_BASE": 0x6806, "GUEST_TR_BASE": 0x6814,
    "GUEST_GDTR_BASE": 0x6816, "GUEST_IDTR_BASE": 0x6818, "GUEST_DR7": 0x681A, "GUEST_RSP": 0x681C,
    "GUEST_RIP": 0x681E, "GUEST_RFLAGS": 0x6820, "GUEST_PENDING_DBG_EXCEPTIONS": 0x6822, "GUEST_SYSENTER_ESP": 0x6824,
    "GUEST_SYSENTER_EIP": 0x6826, "GUEST_S_CET": 0x6828, "GUEST_SSP": 0x682A, "GUEST_INTR_SSP_TABLE": 0x682C,
    "HOST_CR0": 0x6C00, "HOST_CR3": 0x6C02, "HOST_CR4": 0x6C04, "HOST_FS_BASE": 0x6C06, "HOST_GS_BASE": 0x6C08,
    "HOST_TR_BASE": 0x6C0A, "HOST_GDTR_BASE": 0x6C0C, "HOST_IDTR_BASE": 0x6C0E, "HOST_IA32_SYSENTER_ESP": 0x6C10,
    "HOST_IA32_SYSENTER_EIP": 0x6C12, "HOST_RSP": 0x6C14, "HOST_RIP": 0x6C16, "HOST_S_CET": 0x6C18, "HOST_SSP": 0x6C1A,
    "HOST_INTR_SSP_TABLE": 0x6C1C,
}

# How many fields the manual's tables list: (width, type) → rows.
TOTALS = {
    (FieldWidth.W16, FieldType.CONTROL): 6, (FieldWidth.W16, FieldType.GUEST): 11, (FieldWidth.W16, FieldType.HOST): 7,
    (FieldWidth.W32, FieldType.CONTROL): 19, (FieldWidth.W32, FieldType.READ_ONLY): 8,
    (FieldWidth.W32, FieldType.GUEST): 23, (FieldWidth.W32, FieldType.HOST): 1,
    (FieldWidth.NATURAL, FieldType.CONTROL): 8, (FieldWidth.NATURAL, FieldType.READ_ONLY): 6,
    (FieldWidth.NATURAL, FieldType.GUEST): 23, (FieldWidth.NATURAL, FieldType.HOST): 15,
}


@pytest.mark.parametrize("name", MANUAL)
def test_encoding_as_the_manual_prints_it(name: str) -> None:
    assert vmcs.BY_NAME[name].encoding == MANUAL[name]


@pytest.mark.parametrize("kind", TOTALS, ids=lambda kind: f"{kind[0].name}-{kind[1].name}")
def test_totals(kind: tuple[FieldWidth, FieldType]) -> None:
    assert sum((field.width, field.type) == kind for field in vmcs.FIELDS) == TOTALS[kind]


def test_names_and_encodings_are_unique() -> None:
    assert len(vmcs.BY_NAME) == len(vmcs.BY_ENCODING) == len(vmcs.FIELDS)


def test_fields_stand_in_manual_order() -> None:
    encodings = [field.encoding for field in vmcs.FIELDS]
    assert encodings == sorted(encodings)


def test_only_64_bit_fields_have_a_high_half() -> None:
    for field in vmcs.FIELDS:
        if 0x2000 <= field.encoding < 0x4000:
            assert field.high_encoding == field.encoding + 1
            assert field.bits == 64
        else:
            assert field.high_encoding is None


@pytest.mark.parametrize(("name", "bits"), [
    ("VIRTUAL_PROCESSOR_ID", 16), ("EPT_POINTER", 64), ("EXCEPTION_BITMAP", 32), ("GUEST_RIP", 64)])
def test_bits(name: str, bits: int) -> None:
    assert vmcs.BY_NAME[name].bits == bits


@pytest.mark.parametrize(("name", "appendix"), [
    ("VIRTUAL_PROCESSOR_ID", "B.1.1"), ("GUEST_ES_SELECTOR", "B.1.2"), ("HOST_ES_SELECTOR", "B.1.3"),
    ("IO_BITMAP_A", "B.2.1"), ("GUEST_PHYSICAL_ADDRESS", "B.2.2"), ("VMCS_LINK_POINTER", "B.2.3"),
    ("HOST_IA32_PAT", "B.2.4"), ("VM_EXIT_REASON", "B.3.2"), ("HOST_RIP", "B.4.4")])
def test_appendix(name: str, appendix: str) -> None:
    assert vmcs.BY_NAME[name].appendix == appendix


def test_decode() -> None:
    rip, link = vmcs.BY_NAME["GUEST_RIP"], vmcs.BY_NAME["VMCS_LINK_POINTER"]
    assert vmcs.decode(0x681E) == (rip, False)
    assert vmcs.decode(0x2800) == (link, False)
    assert vmcs.decode(0x2801) == (link, True)


@pytest.mark.parametrize("encoding", [0x681F, 0x0001, 0x4001, 0x482C, 0x7800, 0x1000, 0x12000, -1, 1 << 63])
def test_decode_refuses_what_names_no_field(encoding: int) -> None:
    assert vmcs.decode(encoding) is None


@given(st.integers(0, 0xFFFF))
def test_decode_and_encode_agree(encoding: int) -> None:
    decoded = vmcs.decode(encoding)
    if decoded is not None:
        field, high = decoded
        assert (field.high_encoding if high else field.encoding) == encoding


def test_sections() -> None:
    for field in vmcs.FIELDS:
        assert field.section.startswith("SDM 3C 25."), field.name
        assert field.title, field.name
