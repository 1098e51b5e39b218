"""Fields of MSRs as data, for the MSRs in which single bits matter to a hypervisor.

SDM 3D Appendix A (VMX), SDM 4 table 2-2 (the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from generator.arch.bits import BitField, fields

_MUST_MAY: Final = fields(
    ( 0, 31, "ALLOWED_0", "1: the control must be 1"),
    (32, 63, "ALLOWED_1", "1: the control may be 1"),
)
_MAY: Final = fields((0, 63, "ALLOWED_1", "1: the control may be 1"))
_MUST_BE_ONE: Final = fields((0, 63, "FIXED_0", "1: the bit must be 1"))
_MAY_BE_ONE: Final = fields((0, 63, "FIXED_1", "1: the bit may be 1"))

BITS: Mapping[str, tuple[BitField, ...]] = MappingProxyType({
    "IA32_APIC_BASE": fields(
        ( 8,  8, "BSP",           "the bootstrap processor"),
        (10, 10, "EXTD",          "x2APIC mode"),
        (11, 11, "EN",            "the APIC is on"),
        (12, 51, "BASE",          "physical address, in pages")),
    "IA32_FEATURE_CONTROL": fields(
        ( 0,  0, "LOCK",          "locked: WRMSR faults until the next reset; VMXON needs it"),
        ( 1,  1, "VMX_IN_SMX",    "VMXON allowed in SMX operation"),
        ( 2,  2, "VMX",           "VMXON allowed outside SMX operation"),
        ( 8, 14, "SENTER_LOCAL",  "SENTER functions allowed"),
        (15, 15, "SENTER",        "SENTER allowed"),
        (17, 17, "SGX_LAUNCH",    "SGX launch control may be changed"),
        (18, 18, "SGX",           "SGX allowed"),
        (20, 20, "LMCE",          "local machine checks allowed")),
    "IA32_MTRRCAP": fields(
        ( 0,  7, "VCNT",          "number of variable ranges"),
        ( 8,  8, "FIX",           "fixed ranges exist"),
        (10, 10, "WC",            "write combining exists"),
        (11, 11, "SMRR",          "SMRR exists")),
    "IA32_MISC_ENABLE": fields(
        ( 0,  0, "FAST_STRINGS",  "fast string operations"),
        ( 3,  3, "TCC",           "automatic thermal control"),
        ( 7,  7, "PERFMON",       "performance monitoring exists"),
        (11, 11, "BTS_UNAVAIL",   "no branch-trace storage"),
        (12, 12, "PEBS_UNAVAIL",  "no processor-event-based sampling"),
        (16, 16, "EIST",          "SpeedStep"),
        (18, 18, "MONITOR_FSM",   "MONITOR and MWAIT"),
        (22, 22, "LIMIT_CPUID",   "CPUID leaves above 3 are hidden"),
        (23, 23, "XTPR_DISABLE",  "no xTPR messages"),
        (34, 34, "XD_DISABLE",    "no execute disable")),
    "IA32_DEBUGCTL": fields(
        ( 0,  0, "LBR",           "last branches are recorded"),
        ( 1,  1, "BTF",           "single step stops at branches"),
        ( 2,  2, "BLD",           "bus locks raise #DB"),
        ( 6,  6, "TR",            "branch trace messages"),
        ( 7,  7, "BTS",           "branch trace store"),
        ( 8,  8, "BTINT",         "an interrupt when the store is full"),
        ( 9,  9, "BTS_OFF_OS",    "not at CPL 0"),
        (10, 10, "BTS_OFF_USR",   "not above CPL 0"),
        (11, 11, "FREEZE_LBRS",   "records freeze on a PMI"),
        (12, 12, "FREEZE_PERFMON", "counters freeze on a PMI"),
        (13, 13, "UNCORE_PMI",    "PMIs of the uncore"),
        (14, 14, "FREEZE_IN_SMM", "counters and records freeze in SMM"),
        (15, 15, "RTM",           "debugging of transactions")),
    "IA32_PAT": fields(*((8 * entry, 8 * entry + 2, f"PA{entry}", f"memory type {entry}") for entry in range(8))),
    "IA32_MTRR_DEF_TYPE": fields(
        ( 0,  7, "TYPE",          "default memory type"),
        (10, 10, "FE",            "fixed ranges on"),
        (11, 11, "E",             "MTRRs on")),
    "IA32_EFER": fields(
        ( 0,  0, "SCE",           "SYSCALL and SYSRET"),
        ( 8,  8, "LME",           "IA-32e mode enable"),
        (10, 10, "LMA",           "IA-32e mode active"),
        (11, 11, "NXE",           "execute disable")),
    "IA32_STAR": fields(
        (32, 47, "SYSCALL_CS",    "CS of SYSCALL; SS is this plus 8"),
        (48, 63, "SYSRET_CS",     "CS of SYSRET less 16 (64-bit); SS is this plus 8")),
    "IA32_VMX_BASIC": fields(
        ( 0, 30, "REVISION",      "VMCS revision identifier"),
        (32, 44, "REGION_SIZE",   "bytes of a VMXON region or VMCS"),
        (48, 48, "PHYSICAL_32",   "addresses of VMX structures are limited to 32 bits"),
        (49, 49, "DUAL_MONITOR",  "dual-monitor treatment of SMIs exists"),
        (50, 53, "MEMORY_TYPE",   "memory type of VMX structures: 6 = WB"),
        (54, 54, "IO_INFORMATION", "exits by INS and OUTS have instruction information"),
        (55, 55, "TRUE_CTLS",     "the TRUE capability MSRs exist"),
        (56, 56, "NO_ERROR_CODE", "an injected hardware exception may lack or have an error code"),
        (58, 58, "NESTED_EXCEPTION", "nested exceptions are told")),
    "IA32_VMX_MISC": fields(
        ( 0,  4, "TIMER_SHIFT",   "the preemption timer counts each 2^N TSC ticks"),
        ( 5,  5, "STORE_LMA",     "VM exits store IA32_EFER.LMA into the control \"IA-32e mode guest\""),
        ( 6,  6, "ACTIVITY_HLT",  "activity state HLT exists"),
        ( 7,  7, "ACTIVITY_SHUTDOWN", "activity state shutdown exists"),
        ( 8,  8, "ACTIVITY_WAIT_SIPI", "activity state wait-for-SIPI exists"),
        (14, 14, "PT_IN_VMX",     "Processor Trace works in VMX operation"),
        (15, 15, "SMBASE_IN_SMM", "RDMSR of IA32_SMBASE works in SMM"),
        (16, 24, "CR3_TARGETS",   "number of CR3-target values"),
        (25, 27, "MSR_LIST_LIMIT", "an MSR list has at most 512 * (N + 1) entries"),
        (28, 28, "BLOCK_SMI",     "IA32_SMM_MONITOR_CTL[2] exists"),
        (29, 29, "VMWRITE_ANY",   "VMWRITE works on read-only fields"),
        (30, 30, "ZERO_LENGTH",   "events can be injected with instruction length 0"),
        (32, 63, "MSEG_REVISION", "MSEG revision identifier")),
    "IA32_VMX_VMCS_ENUM": fields(
        ( 1,  9, "HIGHEST_INDEX", "highest index of any field's encoding")),
    "IA32_VMX_EPT_VPID_CAP": fields(
        ( 0,  0, "EXECUTE_ONLY",  "EPT entries may allow execution alone"),
        ( 6,  6, "WALK_4",        "4-level EPT"),
        ( 7,  7, "WALK_5",        "5-level EPT"),
        ( 8,  8, "EPT_UC",        "EPT structures may be uncacheable"),
        (14, 14, "EPT_WB",        "EPT structures may be write-back"),
        (16, 16, "PAGE_2M",       "EPT maps 2 MiB pages"),
        (17, 17, "PAGE_1G",       "EPT maps 1 GiB pages"),
        (20, 20, "INVEPT",        "INVEPT exists"),
        (21, 21, "ACCESSED_DIRTY", "EPT has accessed and dirty flags"),
        (22, 22, "ADVANCED_EXIT", "EPT violations tell more"),
        (23, 23, "SHADOW_STACK",  "EPT controls supervisor shadow stacks"),
        (25, 25, "INVEPT_SINGLE", "INVEPT type 1: one context"),
        (26, 26, "INVEPT_ALL",    "INVEPT type 2: all contexts"),
        (32, 32, "INVVPID",       "INVVPID exists"),
        (40, 40, "INVVPID_ADDRESS", "INVVPID type 0: one address"),
        (41, 41, "INVVPID_SINGLE", "INVVPID type 1: one context"),
        (42, 42, "INVVPID_ALL",   "INVVPID type 2: all contexts"),
        (43, 43, "INVVPID_SINGLE_GLOBALS", "INVVPID type 3: one context, global pages kept"),
        (48, 53, "HLAT_PREFIX",   "largest HLAT prefix size")),
    "IA32_VMX_PINBASED_CTLS": _MUST_MAY,
    "IA32_VMX_PROCBASED_CTLS": _MUST_MAY,
    "IA32_VMX_PROCBASED_CTLS2": _MUST_MAY,
    "IA32_VMX_EXIT_CTLS": _MUST_MAY,
    "IA32_VMX_ENTRY_CTLS": _MUST_MAY,
    "IA32_VMX_TRUE_PINBASED_CTLS": _MUST_MAY,
    "IA32_VMX_TRUE_PROCBASED_CTLS": _MUST_MAY,
    "IA32_VMX_TRUE_EXIT_CTLS": _MUST_MAY,
    "IA32_VMX_TRUE_ENTRY_CTLS": _MUST_MAY,
    "IA32_VMX_PROCBASED_CTLS3": _MAY,
    "IA32_VMX_EXIT_CTLS2": _MAY,
    "IA32_VMX_VMFUNC": _MAY,
    "IA32_VMX_CR0_FIXED0": _MUST_BE_ONE,
    "IA32_VMX_CR4_FIXED0": _MUST_BE_ONE,
    "IA32_VMX_CR0_FIXED1": _MAY_BE_ONE,
    "IA32_VMX_CR4_FIXED1": _MAY_BE_ONE,
})

# The bits that code tests by name
FEATURE_CONTROL_LOCK: Final = 1 << 0
FEATURE_CONTROL_VMX_IN_SMX: Final = 1 << 1
FEATURE_CONTROL_VMX: Final = 1 << 2
VMX_BASIC_TRUE_CTLS: Final = 1 << 55
APIC_BASE_BSP: Final = 1 << 8
APIC_BASE_EXTD: Final = 1 << 10
APIC_BASE_EN: Final = 1 << 11
EPT_CAP_EXECUTE_ONLY: Final = 1 << 0
EPT_CAP_WALK_4: Final = 1 << 6
EPT_CAP_WALK_5: Final = 1 << 7
EPT_CAP_UC: Final = 1 << 8
EPT_CAP_WB: Final = 1 << 14
EPT_CAP_2M: Final = 1 << 16
EPT_CAP_1G: Final = 1 << 17
EPT_CAP_INVEPT: Final = 1 << 20
EPT_CAP_AD: Final = 1 << 21
EPT_CAP_ADVANCED_EXIT: Final = 1 << 22
EPT_CAP_INVEPT_SINGLE: Final = 1 << 25
EPT_CAP_INVEPT_ALL: Final = 1 << 26
EPT_CAP_INVVPID: Final = 1 << 32
EPT_CAP_INVVPID_ADDRESS: Final = 1 << 40
EPT_CAP_INVVPID_SINGLE: Final = 1 << 41
EPT_CAP_INVVPID_ALL: Final = 1 << 42
EPT_CAP_INVVPID_SINGLE_GLOBALS: Final = 1 << 43
MISC_ACTIVITY_HLT: Final = 1 << 6
MISC_ACTIVITY_SHUTDOWN: Final = 1 << 7
MISC_ACTIVITY_WAIT_SIPI: Final = 1 << 8
MISC_VMWRITE_ANY: Final = 1 << 29
MISC_ZERO_LENGTH: Final = 1 << 30
