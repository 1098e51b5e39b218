"""VMCS fields as data: every field of the manual, its encoding computed from width, type and index.

SDM 3C 25.11.2 gives the layout of an encoding, SDM 3D Appendix B the fields' widths, types and indexes; the section
of each row is where chapter 25 [24 in older editions] says what the field means. Names are the widely known symbol
names; where those leave a field out, the manual's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class FieldType(IntEnum):
    """Bits 11:10 of an encoding (SDM 3C 25.11.2)."""

    CONTROL = 0
    READ_ONLY = 1  # VM-exit information
    GUEST = 2
    HOST = 3


class FieldWidth(IntEnum):
    """Bits 14:13 of an encoding (SDM 3C 25.11.2)."""

    W16 = 0
    W64 = 1
    W32 = 2
    NATURAL = 3  # 64 bits on a processor with Intel 64, else 32


_BITS = {FieldWidth.W16: 16, FieldWidth.W64: 64, FieldWidth.W32: 32, FieldWidth.NATURAL: 64}
_APPENDIX = {FieldWidth.W16: 1, FieldWidth.W64: 2, FieldWidth.W32: 3, FieldWidth.NATURAL: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """One VMCS field; `section` is where the manual says what it means."""

    name: str
    type: FieldType
    width: FieldWidth
    index: int
    title: str
    section: str

    @property
    def encoding(self) -> int:
        """The encoding for VMREAD and VMWRITE, full access."""
        return self.width << 13 | self.type << 10 | self.index << 1

    @property
    def high_encoding(self) -> int | None:
        """The encoding of bits 63:32 alone; only 64-bit fields have one."""
        return self.encoding | 1 if self.width is FieldWidth.W64 else None

    @property
    def bits(self) -> int:
        """Width in bits; natural width counts as 64."""
        return _BITS[self.width]

    @property
    def appendix(self) -> str:
        """The section of SDM 3D Appendix B that lists the field: by width, then by type (there is no 16-bit data)."""
        place = self.type + 1
        if self.width is FieldWidth.W16 and self.type > FieldType.READ_ONLY:
            place -= 1
        return f"B.{_APPENDIX[self.width]}.{place}"


def _table(width: FieldWidth, type_: FieldType, *rows: tuple[int, str, str, str]) -> tuple[Field, ...]:
    return tuple(Field(name, type_, width, index, title, f"SDM 3C {section}") for index, name, title, section in rows)

# B.1.1  16-bit control fields
_W16_CONTROL = _table(FieldWidth.W16, FieldType.CONTROL,
    ( 0, "VIRTUAL_PROCESSOR_ID",          "virtual-processor identifier (VPID)",                           "25.6.12"),
    ( 1, "POSTED_INTR_NV",                "posted-interrupt notification vector",                          "25.6.8"),
    ( 2, "EPTP_INDEX",                    "EPTP index",                                                    "25.6.20"),
    ( 3, "HLAT_PREFIX_SIZE",              "HLAT prefix size",                                              "25.6.23"),
    ( 4, "LAST_PID_POINTER_INDEX",        "last PID-pointer index",                                        "25.6.8"),
    ( 5, "VIRTUAL_TIMER_VECTOR",          "virtual timer vector",                                          "25.6.8"),
)

# B.1.2  16-bit guest-state fields
_W16_GUEST = _table(FieldWidth.W16, FieldType.GUEST,
    ( 0, "GUEST_ES_SELECTOR",             "guest ES selector",                                             "25.4.1"),
    ( 1, "GUEST_CS_SELECTOR",             "guest CS selector",                                             "25.4.1"),
    ( 2, "GUEST_SS_SELECTOR",             "guest SS selector",                                             "25.4.1"),
    ( 3, "GUEST_DS_SELECTOR",             "guest DS selector",                                             "25.4.1"),
    ( 4, "GUEST_FS_SELECTOR",             "guest FS selector",                                             "25.4.1"),
    ( 5, "GUEST_GS_SELECTOR",             "guest GS selector",                                             "25.4.1"),
    ( 6, "GUEST_LDTR_SELECTOR",           "guest LDTR selector",                                           "25.4.1"),
    ( 7, "GUEST_TR_SELECTOR",             "guest TR selector",                                             "25.4.1"),
    ( 8, "GUEST_INTR_STATUS",             "guest interrupt status: RVI and SVI",                           "25.4.2"),
    ( 9, "GUEST_PML_INDEX",               "PML index",                                                     "25.4.2"),
    (10, "GUEST_UINV",                    "guest user-interrupt notification vector",                      "25.4.2"),
)

# B.1.3  16-bit host-state fields
_W16_HOST = _table(FieldWidth.W16, FieldType.HOST,
    ( 0, "HOST_ES_SELECTOR",              "host ES selector",                                              "25.5"),
    ( 1, "HOST_CS_SELECTOR",              "host CS selector",                                              "25.5"),
    ( 2, "HOST_SS_SELECTOR",              "host SS selector",                                              "25.5"),
    ( 3, "HOST_DS_SELECTOR",              "host DS selector",                                              "25.5"),
    ( 4, "HOST_FS_SELECTOR",              "host FS selector",                                              "25.5"),
    ( 5, "HOST_GS_SELECTOR",              "host GS selector",                                              "25.5"),
    ( 6, "HOST_TR_SELECTOR",              "host TR selector",                                              "25.5"),
)

# B.2.1  64-bit control fields
_W64_CONTROL = _table(FieldWidth.W64, FieldType.CONTROL,
    ( 0, "IO_BITMAP_A",                   "address of I/O bitmap A",                                       "25.6.4"),
    ( 1, "IO_BITMAP_B",                   "address of I/O bitmap B",                                       "25.6.4"),
    ( 2, "MSR_BITMAP",                    "address of the MSR bitmaps",                                    "25.6.9"),
    ( 3, "VM_EXIT_MSR_STORE_ADDR",        "VM-exit MSR-store address",                                     "25.7.2"),
    ( 4, "VM_EXIT_MSR_LOAD_ADDR",         "VM-exit MSR-load address",                                      "25.7.2"),
    ( 5, "VM_ENTRY_MSR_LOAD_ADDR",        "VM-entry MSR-load address",                                     "25.8.2"),
    ( 6, "EXECUTIVE_VMCS_POINTER",        "executive-VMCS pointer",                                        "25.6.10"),
    ( 7, "PML_ADDRESS",                   "page-modification log address",                                 "25.6.19"),
    ( 8, "TSC_OFFSET",                    "TSC offset",                                                    "25.6.5"),
    ( 9, "VIRTUAL_APIC_PAGE_ADDR",        "virtual-APIC address",                                          "25.6.8"),
    (10, "APIC_ACCESS_ADDR",              "APIC-access address",                                           "25.6.8"),
    (11, "POSTED_INTR_DESC_ADDR",         "posted-interrupt descriptor address",                           "25.6.8"),
    (12, "VM_FUNCTION_CONTROL",           "VM-function controls",                                          "25.6.14"),
    (13, "EPT_POINTER",                   "EPT pointer (EPTP)",                                            "25.6.11"),
    (14, "EOI_EXIT_BITMAP0",              "EOI-exit bitmap 0, vectors 0 to 63",                            "25.6.8"),
    (15, "EOI_EXIT_BITMAP1",              "EOI-exit bitmap 1, vectors 64 to 127",                          "25.6.8"),
    (16, "EOI_EXIT_BITMAP2",              "EOI-exit bitmap 2, vectors 128 to 191",                         "25.6.8"),
    (17, "EOI_EXIT_BITMAP3",              "EOI-exit bitmap 3, vectors 192 to 255",                         "25.6.8"),
    (18, "EPTP_LIST_ADDRESS",             "EPTP-list address",                                             "25.6.14"),
    (19, "VMREAD_BITMAP",                 "VMREAD-bitmap address",                                         "25.6.15"),
    (20, "VMWRITE_BITMAP",                "VMWRITE-bitmap address",                                        "25.6.15"),
    (21, "VE_INFORMATION_ADDRESS",        "virtualization-exception information address",                  "25.6.20"),
    (22, "XSS_EXIT_BITMAP",               "XSS-exiting bitmap",                                            "25.6.21"),
    (23, "ENCLS_EXITING_BITMAP",          "ENCLS-exiting bitmap",                                          "25.6.16"),
    (24, "SPP_TABLE_POINTER",             "sub-page-permission-table pointer (SPPTP)",                     "25.6.22"),
    (25, "TSC_MULTIPLIER",                "TSC multiplier",                                                "25.6.5"),
    (26, "TERTIARY_VM_EXEC_CONTROL",      "tertiary processor-based VM-execution controls",                "25.6.2"),
    (27, "ENCLV_EXITING_BITMAP",          "ENCLV-exiting bitmap",                                          "25.6.17"),
    (28, "LOW_PASID_DIRECTORY_ADDRESS",   "low PASID directory address",                                   "25.6.24"),
    (29, "HIGH_PASID_DIRECTORY_ADDRESS",  "high PASID directory address",                                  "25.6.24"),
    (30, "SHARED_EPT_POINTER",            "shared EPT pointer",                                            "25.6.11"),
    (31, "PCONFIG_EXITING_BITMAP",        "PCONFIG-exiting bitmap",                                        "25.6.18"),
    (32, "HLAT_POINTER",                  "hypervisor-managed linear-address translation pointer (HLATP)", "25.6.23"),
    (33, "PID_POINTER_TABLE",             "PID-pointer table address",                                     "25.6.8"),
    (34, "SECONDARY_VM_EXIT_CONTROLS",    "secondary VM-exit controls",                                    "25.7.1"),
    (37, "IA32_SPEC_CTRL_MASK",           "IA32_SPEC_CTRL mask",                                           "25.6.26"),
    (38, "IA32_SPEC_CTRL_SHADOW",         "IA32_SPEC_CTRL shadow",                                         "25.6.26"),
    (39, "GUEST_DEADLINE_SHADOW",         "guest deadline shadow",                                         "25.6.8"),
    (41, "INJECTED_EVENT_DATA",           "injected-event data (FRED)",                                    "25.8.3"),
)

# B.2.2  64-bit read-only data fields
_W64_READ_ONLY = _table(FieldWidth.W64, FieldType.READ_ONLY,
    ( 0, "GUEST_PHYSICAL_ADDRESS",        "guest-physical address",                                        "25.9.1"),
    ( 1, "MSR_DATA",                      "MSR data: the value that WRMSRLIST would write",                "25.9.4"),
    ( 2, "ORIGINAL_EVENT_DATA",           "original-event data (FRED)",                                    "25.9.3"),
)

# B.2.3  64-bit guest-state fields
_W64_GUEST = _table(FieldWidth.W64, FieldType.GUEST,
    ( 0, "VMCS_LINK_POINTER",             "VMCS link pointer",                                             "25.4.2"),
    ( 1, "GUEST_IA32_DEBUGCTL",           "guest IA32_DEBUGCTL",                                           "25.4.1"),
    ( 2, "GUEST_IA32_PAT",                "guest IA32_PAT",                                                "25.4.1"),
    ( 3, "GUEST_IA32_EFER",               "guest IA32_EFER",                                               "25.4.1"),
    ( 4, "GUEST_IA32_PERF_GLOBAL_CTRL",   "guest IA32_PERF_GLOBAL_CTRL",                                   "25.4.1"),
    ( 5, "GUEST_PDPTR0",                  "guest PDPTE 0",                                                 "25.4.2"),
    ( 6, "GUEST_PDPTR1",                  "guest PDPTE 1",                                                 "25.4.2"),
    ( 7, "GUEST_PDPTR2",                  "guest PDPTE 2",                                                 "25.4.2"),
    ( 8, "GUEST_PDPTR3",                  "guest PDPTE 3",                                                 "25.4.2"),
    ( 9, "GUEST_BNDCFGS",                 "guest IA32_BNDCFGS",                                            "25.4.1"),
    (10, "GUEST_IA32_RTIT_CTL",           "guest IA32_RTIT_CTL",                                           "25.4.1"),
    (11, "GUEST_IA32_LBR_CTL",            "guest IA32_LBR_CTL",                                            "25.4.1"),
    (12, "GUEST_IA32_PKRS",               "guest IA32_PKRS",                                               "25.4.1"),
    (13, "GUEST_IA32_FRED_CONFIG",        "guest IA32_FRED_CONFIG",                                        "25.4.1"),
    (14, "GUEST_IA32_FRED_RSP1",          "guest IA32_FRED_RSP1",                                          "25.4.1"),
    (15, "GUEST_IA32_FRED_RSP2",          "guest IA32_FRED_RSP2",                                          "25.4.1"),
    (16, "GUEST_IA32_FRED_RSP3",          "guest IA32_FRED_RSP3",                                          "25.4.1"),
    (17, "GUEST_IA32_FRED_STKLVLS",       "guest IA32_FRED_STKLVLS",                                       "25.4.1"),
    (18, "GUEST_IA32_FRED_SSP1",          "guest IA32_FRED_SSP1",                                          "25.4.1"),
    (19, "GUEST_IA32_FRED_SSP2",          "guest IA32_FRED_SSP2",                                          "25.4.1"),
    (20, "GUEST_IA32_FRED_SSP3",          "guest IA32_FRED_SSP3",                                          "25.4.1"),
    (23, "GUEST_IA32_SPEC_CTRL",          "guest IA32_SPEC_CTRL",                                          "25.4.1"),
    (24, "GUEST_DEADLINE",                "guest deadline",                                                "25.4.2"),
)

# B.2.4  64-bit host-state fields
_W64_HOST = _table(FieldWidth.W64, FieldType.HOST,
    ( 0, "HOST_IA32_PAT",                 "host IA32_PAT",                                                 "25.5"),
    ( 1, "HOST_IA32_EFER",                "host IA32_EFER",                                                "25.5"),
    ( 2, "HOST_IA32_PERF_GLOBAL_CTRL",    "host IA32_PERF_GLOBAL_CTRL",                                    "25.5"),
    ( 3, "HOST_IA32_PKRS",                "host IA32_PKRS",                                                "25.5"),
    ( 4, "HOST_IA32_FRED_CONFIG",         "host IA32_FRED_CONFIG",                                         "25.5"),
    ( 5, "HOST_IA32_FRED_RSP1",           "host IA32_FRED_RSP1",                                           "25.5"),
    ( 6, "HOST_IA32_FRED_RSP2",           "host IA32_FRED_RSP2",                                           "25.5"),
    ( 7, "HOST_IA32_FRED_RSP3",           "host IA32_FRED_RSP3",                                           "25.5"),
    ( 8, "HOST_IA32_FRED_STKLVLS",        "host IA32_FRED_STKLVLS",                                        "25.5"),
    ( 9, "HOST_IA32_FRED_SSP1",           "host IA32_FRED_SSP1",                                           "25.5"),
    (10, "HOST_IA32_FRED_SSP2",           "host IA32_FRED_SSP2",                                           "25.5"),
    (11, "HOST_IA32_FRED_SSP3",           "host IA32_FRED_SSP3",                                           "25.5"),
    (13, "HOST_IA32_SPEC_CTRL",           "host IA32_SPEC_CTRL",                                           "25.5"),
)

# B.3.1  32-bit control fields
_W32_CONTROL = _table(FieldWidth.W32, FieldType.CONTROL,
    ( 0, "PIN_BASED_VM_EXEC_CONTROL",     "pin-based VM-execution controls",                               "25.6.1"),
    ( 1, "CPU_BASED_VM_EXEC_CONTROL",     "primary processor-based VM-execution controls",                 "25.6.2"),
    ( 2, "EXCEPTION_BITMAP",              "exception bitmap",                                              "25.6.3"),
    ( 3, "PAGE_FAULT_ERROR_CODE_MASK",    "page-fault error-code mask",                                    "25.6.3"),
    ( 4, "PAGE_FAULT_ERROR_CODE_MATCH",   "page-fault error-code match",                                   "25.6.3"),
    ( 5, "CR3_TARGET_COUNT",              "CR3-target count",                                              "25.6.7"),
    ( 6, "VM_EXIT_CONTROLS",              "primary VM-exit controls",                                      "25.7.1"),
    ( 7, "VM_EXIT_MSR_STORE_COUNT",       "VM-exit MSR-store count",                                       "25.7.2"),
    ( 8, "VM_EXIT_MSR_LOAD_COUNT",        "VM-exit MSR-load count",                                        "25.7.2"),
    ( 9, "VM_ENTRY_CONTROLS",             "VM-entry controls",                                             "25.8.1"),
    (10, "VM_ENTRY_MSR_LOAD_COUNT",       "VM-entry MSR-load count",                                       "25.8.2"),
    (11, "VM_ENTRY_INTR_INFO_FIELD",      "VM-entry interruption-information field",                       "25.8.3"),
    (12, "VM_ENTRY_EXCEPTION_ERROR_CODE", "VM-entry exception error code",                                 "25.8.3"),
    (13, "VM_ENTRY_INSTRUCTION_LEN",      "VM-entry instruction length",                                   "25.8.3"),
    (14, "TPR_THRESHOLD",                 "TPR threshold",                                                 "25.6.8"),
    (15, "SECONDARY_VM_EXEC_CONTROL",     "secondary processor-based VM-execution controls",               "25.6.2"),
    (16, "PLE_GAP",                       "pause-loop exiting: PLE_Gap",                                   "25.6.13"),
    (17, "PLE_WINDOW",                    "pause-loop exiting: PLE_Window",                                "25.6.13"),
    (18, "NOTIFY_WINDOW",                 "instruction-timeout control",                                   "25.6.25"),
)

# B.3.2  32-bit read-only data fields
_W32_READ_ONLY = _table(FieldWidth.W32, FieldType.READ_ONLY,
    ( 0, "VM_INSTRUCTION_ERROR",          "VM-instruction error",                                          "25.9.5"),
    ( 1, "VM_EXIT_REASON",                "exit reason",                                                   "25.9.1"),
    ( 2, "VM_EXIT_INTR_INFO",             "VM-exit interruption information",                              "25.9.2"),
    ( 3, "VM_EXIT_INTR_ERROR_CODE",       "VM-exit interruption error code",                               "25.9.2"),
    ( 4, "IDT_VECTORING_INFO_FIELD",      "IDT-vectoring information field",                               "25.9.3"),
    ( 5, "IDT_VECTORING_ERROR_CODE",      "IDT-vectoring error code",                                      "25.9.3"),
    ( 6, "VM_EXIT_INSTRUCTION_LEN",       "VM-exit instruction length",                                    "25.9.4"),
    ( 7, "VMX_INSTRUCTION_INFO",          "VM-exit instruction information",                               "25.9.4"),
)

# B.3.3  32-bit guest-state fields
_W32_GUEST = _table(FieldWidth.W32, FieldType.GUEST,
    ( 0, "GUEST_ES_LIMIT",                "guest ES limit",                                                "25.4.1"),
    ( 1, "GUEST_CS_LIMIT",                "guest CS limit",                                                "25.4.1"),
    ( 2, "GUEST_SS_LIMIT",                "guest SS limit",                                                "25.4.1"),
    ( 3, "GUEST_DS_LIMIT",                "guest DS limit",                                                "25.4.1"),
    ( 4, "GUEST_FS_LIMIT",                "guest FS limit",                                                "25.4.1"),
    ( 5, "GUEST_GS_LIMIT",                "guest GS limit",                                                "25.4.1"),
    ( 6, "GUEST_LDTR_LIMIT",              "guest LDTR limit",                                              "25.4.1"),
    ( 7, "GUEST_TR_LIMIT",                "guest TR limit",                                                "25.4.1"),
    ( 8, "GUEST_GDTR_LIMIT",              "guest GDTR limit",                                              "25.4.1"),
    ( 9, "GUEST_IDTR_LIMIT",              "guest IDTR limit",                                              "25.4.1"),
    (10, "GUEST_ES_AR_BYTES",             "guest ES access rights",                                        "25.4.1"),
    (11, "GUEST_CS_AR_BYTES",             "guest CS access rights",                                        "25.4.1"),
    (12, "GUEST_SS_AR_BYTES",             "guest SS access rights",                                        "25.4.1"),
    (13, "GUEST_DS_AR_BYTES",             "guest DS access rights",                                        "25.4.1"),
    (14, "GUEST_FS_AR_BYTES",             "guest FS access rights",                                        "25.4.1"),
    (15, "GUEST_GS_AR_BYTES",             "guest GS access rights",                                        "25.4.1"),
    (16, "GUEST_LDTR_AR_BYTES",           "guest LDTR access rights",                                      "25.4.1"),
    (17, "GUEST_TR_AR_BYTES",             "guest TR access rights",                                        "25.4.1"),
    (18, "GUEST_INTERRUPTIBILITY_INFO",   "guest interruptibility state",                                  "25.4.2"),
    (19, "GUEST_ACTIVITY_STATE",          "guest activity state",                                          "25.4.2"),
    (20, "GUEST_SMBASE",                  "guest SMBASE",                                                  "25.4.1"),
    (21, "GUEST_SYSENTER_CS",             "guest IA32_SYSENTER_CS",                                        "25.4.1"),
    (23, "VMX_PREEMPTION_TIMER_VALUE",    "VMX-preemption timer value",                                    "25.4.2"),
)

# B.3.4  32-bit host-state field
_W32_HOST = _table(FieldWidth.W32, FieldType.HOST,
    ( 0, "HOST_IA32_SYSENTER_CS",         "host IA32_SYSENTER_CS",                                         "25.5"),
)

# B.4.1  natural-width control fields
_NATURAL_CONTROL = _table(FieldWidth.NATURAL, FieldType.CONTROL,
    ( 0, "CR0_GUEST_HOST_MASK",           "CR0 guest/host mask",                                           "25.6.6"),
    ( 1, "CR4_GUEST_HOST_MASK",           "CR4 guest/host mask",                                           "25.6.6"),
    ( 2, "CR0_READ_SHADOW",               "CR0 read shadow",                                               "25.6.6"),
    ( 3, "CR4_READ_SHADOW",               "CR4 read shadow",                                               "25.6.6"),
    ( 4, "CR3_TARGET_VALUE0",             "CR3-target value 0",                                            "25.6.7"),
    ( 5, "CR3_TARGET_VALUE1",             "CR3-target value 1",                                            "25.6.7"),
    ( 6, "CR3_TARGET_VALUE2",             "CR3-target value 2",                                            "25.6.7"),
    ( 7, "CR3_TARGET_VALUE3",             "CR3-target value 3",                                            "25.6.7"),
)

# B.4.2  natural-width read-only data fields
_NATURAL_READ_ONLY = _table(FieldWidth.NATURAL, FieldType.READ_ONLY,
    ( 0, "EXIT_QUALIFICATION",            "exit qualification",                                            "25.9.1"),
    ( 1, "IO_RCX",                        "I/O RCX: of an interrupted string instruction, for SMM",        "25.9.4"),
    ( 2, "IO_RSI",                        "I/O RSI: of an interrupted string instruction, for SMM",        "25.9.4"),
    ( 3, "IO_RDI",                        "I/O RDI: of an interrupted string instruction, for SMM",        "25.9.4"),
    ( 4, "IO_RIP",                        "I/O RIP: of an interrupted string instruction, for SMM",        "25.9.4"),
    ( 5, "GUEST_LINEAR_ADDRESS",          "guest-linear address",                                          "25.9.1"),
)

# B.4.3  natural-width guest-state fields
_NATURAL_GUEST = _table(FieldWidth.NATURAL, FieldType.GUEST,
    ( 0, "GUEST_CR0",                     "guest CR0",                                                     "25.4.1"),
    ( 1, "GUEST_CR3",                     "guest CR3",                                                     "25.4.1"),
    ( 2, "GUEST_CR4",                     "guest CR4",                                                     "25.4.1"),
    ( 3, "GUEST_ES_BASE",                 "guest ES base",                                                 "25.4.1"),
    ( 4, "GUEST_CS_BASE",                 "guest CS base",                                                 "25.4.1"),
    ( 5, "GUEST_SS_BASE",                 "guest SS base",                                                 "25.4.1"),
    ( 6, "GUEST_DS_BASE",                 "guest DS base",                                                 "25.4.1"),
    ( 7, "GUEST_FS_BASE",                 "guest FS base",                                                 "25.4.1"),
    ( 8, "GUEST_GS_BASE",                 "guest GS base",                                                 "25.4.1"),
    ( 9, "GUEST_LDTR_BASE",               "guest LDTR base",                                               "25.4.1"),
    (10, "GUEST_TR_BASE",                 "guest TR base",                                                 "25.4.1"),
    (11, "GUEST_GDTR_BASE",               "guest GDTR base",                                               "25.4.1"),
    (12, "GUEST_IDTR_BASE",               "guest IDTR base",                                               "25.4.1"),
    (13, "GUEST_DR7",                     "guest DR7",                                                     "25.4.1"),
    (14, "GUEST_RSP",                     "guest RSP",                                                     "25.4.1"),
    (15, "GUEST_RIP",                     "guest RIP",                                                     "25.4.1"),
    (16, "GUEST_RFLAGS",                  "guest RFLAGS",                                                  "25.4.1"),
    (17, "GUEST_PENDING_DBG_EXCEPTIONS",  "guest pending debug exceptions",                                "25.4.2"),
    (18, "GUEST_SYSENTER_ESP",            "guest IA32_SYSENTER_ESP",                                       "25.4.1"),
    (19, "GUEST_SYSENTER_EIP",            "guest IA32_SYSENTER_EIP",                                       "25.4.1"),
    (20, "GUEST_S_CET",                   "guest IA32_S_CET",                                              "25.4.1"),
    (21, "GUEST_SSP",                     "guest SSP",                                                     "25.4.1"),
    (22, "GUEST_INTR_SSP_TABLE",          "guest IA32_INTERRUPT_SSP_TABLE_ADDR",                           "25.4.1"),
)

# B.4.4  natural-width host-state fields
_NATURAL_HOST = _table(FieldWidth.NATURAL, FieldType.HOST,
    ( 0, "HOST_CR0",                      "host CR0",                                                      "25.5"),
    ( 1, "HOST_CR3",                      "host CR3",                                                      "25.5"),
    ( 2, "HOST_CR4",                      "host CR4",                                                      "25.5"),
    ( 3, "HOST_FS_BASE",                  "host FS base",                                                  "25.5"),
    ( 4, "HOST_GS_BASE",                  "host GS base",                                                  "25.5"),
    ( 5, "HOST_TR_BASE",                  "host TR base",                                                  "25.5"),
    ( 6, "HOST_GDTR_BASE",                "host GDTR base",                                                "25.5"),
    ( 7, "HOST_IDTR_BASE",                "host IDTR base",                                                "25.5"),
    ( 8, "HOST_IA32_SYSENTER_ESP",        "host IA32_SYSENTER_ESP",                                        "25.5"),
    ( 9, "HOST_IA32_SYSENTER_EIP",        "host IA32_SYSENTER_EIP",                                        "25.5"),
    (10, "HOST_RSP",                      "host RSP",                                                      "25.5"),
    (11, "HOST_RIP",                      "host RIP",                                                      "25.5"),
    (12, "HOST_S_CET",                    "host IA32_S_CET",                                               "25.5"),
    (13, "HOST_SSP",                      "host SSP",                                                      "25.5"),
    (14, "HOST_INTR_SSP_TABLE",           "host IA32_INTERRUPT_SSP_TABLE_ADDR",                            "25.5"),
)

FIELDS: tuple[Field, ...] = (
    *_W16_CONTROL, *_W16_GUEST, *_W16_HOST, *_W64_CONTROL,
    *_W64_READ_ONLY, *_W64_GUEST, *_W64_HOST, *_W32_CONTROL,
    *_W32_READ_ONLY, *_W32_GUEST, *_W32_HOST, *_NATURAL_CONTROL,
    *_NATURAL_READ_ONLY, *_NATURAL_GUEST, *_NATURAL_HOST,
)
BY_NAME: Mapping[str, Field] = MappingProxyType({field.name: field for field in FIELDS})
BY_ENCODING: Mapping[int, Field] = MappingProxyType({field.encoding: field for field in FIELDS})

HIGHEST_INDEX = max(field.index for field in FIELDS)  # what IA32_VMX_VMCS_ENUM reports in bits 9:1 (SDM 3D A.9)


def decode(encoding: int) -> tuple[Field, bool] | None:
    """The field that `encoding` names and whether it names its high half; None if it names no field."""
    field = BY_ENCODING.get(encoding & ~1)
    if field is None or (encoding & 1 and field.width is not FieldWidth.W64):
        return None
    return field, bool(encoding & 1)
