"""Model-specific registers as data: those that a hypervisor reads, sets, virtualizes or must refuse.

SDM 4 table 2-2 lists the architectural MSRs; SDM 3D Appendix A those of VMX, which msr_bits.py describes bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from generator.arch.bits import BitField
from generator.arch.msr_bits import BITS


@dataclass(frozen=True, slots=True)
class Msr:
    """One MSR; `bits` holds its fields where they matter here, lowest first."""

    name: str
    address: int
    title: str
    section: str
    bits: tuple[BitField, ...] = ()


def _table(*rows: tuple[int, str, str, str]) -> tuple[Msr, ...]:
    return tuple(Msr(name, address, title, f"SDM {section}", BITS.get(name, ()))
                 for address, name, title, section in rows)


_ARCHITECTURAL = _table(
    (0x0000_0010, "IA32_TIME_STAMP_COUNTER",      "time-stamp counter",                                 "3B 18.17"),
    (0x0000_001B, "IA32_APIC_BASE",               "address and mode of the local APIC",                 "3A 11.4.4"),
    (0x0000_003A, "IA32_FEATURE_CONTROL",         "enables VMX and SMX until the next reset",           "3C 24.7"),
    (0x0000_003B, "IA32_TSC_ADJUST",              "what was added to the time-stamp counter",           "3B 18.17.3"),
    (0x0000_0048, "IA32_SPEC_CTRL",               "speculation control",                                "4 2.1"),
    (0x0000_0049, "IA32_PRED_CMD",                "prediction command",                                 "4 2.1"),
    (0x0000_0079, "IA32_BIOS_UPDT_TRIG",          "loads a microcode update",                           "3A 10.11"),
    (0x0000_008B, "IA32_BIOS_SIGN_ID",            "revision of the microcode update",                   "3A 10.11"),
    (0x0000_009B, "IA32_SMM_MONITOR_CTL",         "SMM monitor: MSEG base and whether it is valid",     "3C 32.15.5"),
    (0x0000_00CF, "IA32_CORE_CAPABILITIES",       "core capabilities",                                  "4 2.1"),
    (0x0000_00E1, "IA32_UMWAIT_CONTROL",          "time limit of UMWAIT and TPAUSE",                    "4 2.1"),
    (0x0000_00E7, "IA32_MPERF",                   "maximum-frequency clock count",                      "3B 15.2"),
    (0x0000_00E8, "IA32_APERF",                   "actual-frequency clock count",                       "3B 15.2"),
    (0x0000_00FE, "IA32_MTRRCAP",                 "what MTRRs there are",                               "3A 12.11.1"),
    (0x0000_010A, "IA32_ARCH_CAPABILITIES",       "architectural capabilities",                         "4 2.1"),
    (0x0000_010B, "IA32_FLUSH_CMD",               "flush command",                                      "4 2.1"),
    (0x0000_0122, "IA32_TSX_CTRL",                "transactions off",                                   "4 2.1"),
    (0x0000_0174, "IA32_SYSENTER_CS",             "code segment of SYSENTER",                           "3A 5.8.7"),
    (0x0000_0175, "IA32_SYSENTER_ESP",            "stack pointer of SYSENTER",                          "3A 5.8.7"),
    (0x0000_0176, "IA32_SYSENTER_EIP",            "entry point of SYSENTER",                            "3A 5.8.7"),
    (0x0000_0179, "IA32_MCG_CAP",                 "machine check: capabilities",                        "3B 16.3.1"),
    (0x0000_017A, "IA32_MCG_STATUS",              "machine check: status",                              "3B 16.3.1"),
    (0x0000_017B, "IA32_MCG_CTL",                 "machine check: control",                             "3B 16.3.1"),
    (0x0000_0199, "IA32_PERF_CTL",                "performance state wanted",                           "3B 15.1"),
    (0x0000_019A, "IA32_CLOCK_MODULATION",        "clock modulation",                                   "3B 15.8.3"),
    (0x0000_01A0, "IA32_MISC_ENABLE",             "processor features on or off",                       "4 2.1"),
    (0x0000_01D9, "IA32_DEBUGCTL",                "debug control: last branches, single-step on branches", "3B 18.4.1"),
    (0x0000_01DB, "LASTBRANCHFROMIP",             "source of the last branch",                          "3B 18.13"),
    (0x0000_01DC, "LASTBRANCHTOIP",               "target of the last branch",                          "3B 18.13"),
    (0x0000_0277, "IA32_PAT",                     "page-attribute table",                               "3A 12.12.2"),
    (0x0000_02FF, "IA32_MTRR_DEF_TYPE",           "default memory type; MTRRs on or off",               "3A 12.11.2.1"),
    (0x0000_0345, "IA32_PERF_CAPABILITIES",       "performance monitoring: capabilities",               "3B 20.8"),
    (0x0000_038F, "IA32_PERF_GLOBAL_CTRL",        "performance counters on or off",                     "3B 20.2.2"),
    (0x0000_0400, "IA32_MC0_CTL",                 "machine check: control of bank 0",                   "3B 16.3.2"),
    (0x0000_0560, "IA32_RTIT_OUTPUT_BASE",        "Processor Trace: output base",                       "3C 33.2.7"),
    (0x0000_0570, "IA32_RTIT_CTL",                "Processor Trace: control",                           "3C 33.2.7"),
    (0x0000_06A0, "IA32_U_CET",                   "control-flow enforcement, user mode",                "1 17.2"),
    (0x0000_06A2, "IA32_S_CET",                   "control-flow enforcement, supervisor mode",          "1 17.2"),
    (0x0000_06A4, "IA32_PL0_SSP",                 "shadow-stack pointer of CPL 0",                      "1 17.2"),
    (0x0000_06A8, "IA32_INTERRUPT_SSP_TABLE_ADDR", "table of shadow stacks for IST",                    "1 17.2"),
    (0x0000_06E0, "IA32_TSC_DEADLINE",            "TSC value at which the APIC timer fires",            "3A 11.5.4.1"),
    (0x0000_06E1, "IA32_PKRS",                    "protection keys of supervisor pages",                "3A 4.6.2"),
    (0x0000_0D90, "IA32_BNDCFGS",                 "bound-register configuration, supervisor mode",      "1 E.3"),
    (0x0000_0DA0, "IA32_XSS",                     "state components that XSAVES manages",               "1 13.3"),
    (0x0000_14CE, "IA32_LBR_CTL",                 "last-branch records: control",                       "3B 19.1"),
    (0x0000_01C4, "IA32_XFD",                     "state components whose first use faults",            "1 13.14"),
    (0x0000_01CC, "IA32_FRED_RSP0",               "FRED: stack of level 0",                             "4 2.1"),
    (0x0000_01CD, "IA32_FRED_RSP1",               "FRED: stack of level 1",                             "4 2.1"),
    (0x0000_01CE, "IA32_FRED_RSP2",               "FRED: stack of level 2",                             "4 2.1"),
    (0x0000_01CF, "IA32_FRED_RSP3",               "FRED: stack of level 3",                             "4 2.1"),
    (0x0000_01D0, "IA32_FRED_STKLVLS",            "FRED: stack level of each exception",                "4 2.1"),
    (0x0000_01D4, "IA32_FRED_CONFIG",             "FRED: configuration",                                "4 2.1"),
)

_VMX = _table(
    (0x0000_0480, "IA32_VMX_BASIC",               "VMX: revision, region size, memory type",            "3D A.1"),
    (0x0000_0481, "IA32_VMX_PINBASED_CTLS",       "pin-based controls: must be 1, may be 1",            "3D A.3.1"),
    (0x0000_0482, "IA32_VMX_PROCBASED_CTLS",      "primary processor-based controls: must, may be 1",   "3D A.3.2"),
    (0x0000_0483, "IA32_VMX_EXIT_CTLS",           "primary VM-exit controls: must, may be 1",           "3D A.4.1"),
    (0x0000_0484, "IA32_VMX_ENTRY_CTLS",          "VM-entry controls: must, may be 1",                  "3D A.5"),
    (0x0000_0485, "IA32_VMX_MISC",                "VMX: miscellaneous",                                 "3D A.6"),
    (0x0000_0486, "IA32_VMX_CR0_FIXED0",          "bits of CR0 that must be 1 in VMX operation",        "3D A.7"),
    (0x0000_0487, "IA32_VMX_CR0_FIXED1",          "bits of CR0 that may be 1 in VMX operation",         "3D A.7"),
    (0x0000_0488, "IA32_VMX_CR4_FIXED0",          "bits of CR4 that must be 1 in VMX operation",        "3D A.8"),
    (0x0000_0489, "IA32_VMX_CR4_FIXED1",          "bits of CR4 that may be 1 in VMX operation",         "3D A.8"),
    (0x0000_048A, "IA32_VMX_VMCS_ENUM",           "highest index of a VMCS field",                      "3D A.9"),
    (0x0000_048B, "IA32_VMX_PROCBASED_CTLS2",     "secondary processor-based controls: may be 1",       "3D A.3.3"),
    (0x0000_048C, "IA32_VMX_EPT_VPID_CAP",        "EPT and VPID capabilities",                          "3D A.10"),
    (0x0000_048D, "IA32_VMX_TRUE_PINBASED_CTLS",  "pin-based controls, default-1 bits told truly",      "3D A.3.1"),
    (0x0000_048E, "IA32_VMX_TRUE_PROCBASED_CTLS", "primary processor-based controls, told truly",       "3D A.3.2"),
    (0x0000_048F, "IA32_VMX_TRUE_EXIT_CTLS",      "primary VM-exit controls, told truly",               "3D A.4.1"),
    (0x0000_0490, "IA32_VMX_TRUE_ENTRY_CTLS",     "VM-entry controls, told truly",                      "3D A.5"),
    (0x0000_0491, "IA32_VMX_VMFUNC",              "VM-function controls: may be 1",                     "3D A.11"),
    (0x0000_0492, "IA32_VMX_PROCBASED_CTLS3",     "tertiary processor-based controls: may be 1",        "3D A.3.4"),
    (0x0000_0493, "IA32_VMX_EXIT_CTLS2",          "secondary VM-exit controls: may be 1",               "3D A.4.2"),
)

# One row for each variable-range pair; how many there are is in IA32_MTRRCAP[7:0].
_MTRR_VARIABLE = _table(*(
    row for pair in range(10) for row in (
        (0x200 + 2 * pair, f"IA32_MTRR_PHYSBASE{pair}", f"variable-range MTRR {pair}: base and type", "3A 12.11.2.3"),
        (0x201 + 2 * pair, f"IA32_MTRR_PHYSMASK{pair}", f"variable-range MTRR {pair}: mask",          "3A 12.11.2.3"),
    )))

_MTRR_FIXED = _table(
    (0x0000_0250, "IA32_MTRR_FIX64K_00000",       "memory types of 00000 to 7ffff, 64 KiB a byte",      "3A 12.11.2.2"),
    (0x0000_0258, "IA32_MTRR_FIX16K_80000",       "memory types of 80000 to 9ffff, 16 KiB a byte",      "3A 12.11.2.2"),
    (0x0000_0259, "IA32_MTRR_FIX16K_A0000",       "memory types of a0000 to bffff, 16 KiB a byte",      "3A 12.11.2.2"),
    *((0x268 + part, f"IA32_MTRR_FIX4K_{0xC0000 + part * 0x8000:X}",
       f"memory types of {0xC0000 + part * 0x8000:x} to {0xC7FFF + part * 0x8000:x}, 4 KiB a byte", "3A 12.11.2.2")
      for part in range(8)),
)

_X2APIC = _table(
    (0x0000_0802, "IA32_X2APIC_APICID",           "x2APIC: ID",                                         "3A 11.12.1"),
    (0x0000_0803, "IA32_X2APIC_VERSION",          "x2APIC: version",                                    "3A 11.12.1"),
    (0x0000_0808, "IA32_X2APIC_TPR",              "x2APIC: task priority",                              "3A 11.12.1"),
    (0x0000_080A, "IA32_X2APIC_PPR",              "x2APIC: processor priority",                         "3A 11.12.1"),
    (0x0000_080B, "IA32_X2APIC_EOI",              "x2APIC: end of interrupt",                           "3A 11.12.1"),
    (0x0000_080D, "IA32_X2APIC_LDR",              "x2APIC: logical destination",                        "3A 11.12.1"),
    (0x0000_080F, "IA32_X2APIC_SIVR",             "x2APIC: spurious-interrupt vector",                  "3A 11.12.1"),
    *((first + part, f"IA32_X2APIC_{name}{part}", f"x2APIC: {what}, vectors {part * 32} up", "3A 11.12.1")
      for first, name, what in ((0x810, "ISR", "in service"), (0x818, "TMR", "trigger mode"),
                                (0x820, "IRR", "requested"))
      for part in range(8)),
    (0x0000_0828, "IA32_X2APIC_ESR",              "x2APIC: error status",                               "3A 11.12.1"),
    (0x0000_082F, "IA32_X2APIC_LVT_CMCI",         "x2APIC: corrected machine checks",                   "3A 11.12.1"),
    (0x0000_0830, "IA32_X2APIC_ICR",              "x2APIC: interrupt command",                          "3A 11.12.1"),
    (0x0000_0832, "IA32_X2APIC_LVT_TIMER",        "x2APIC: timer",                                      "3A 11.12.1"),
    (0x0000_0833, "IA32_X2APIC_LVT_THERMAL",      "x2APIC: thermal sensor",                             "3A 11.12.1"),
    (0x0000_0834, "IA32_X2APIC_LVT_PMI",          "x2APIC: performance counters",                       "3A 11.12.1"),
    (0x0000_0835, "IA32_X2APIC_LVT_LINT0",        "x2APIC: LINT0",                                      "3A 11.12.1"),
    (0x0000_0836, "IA32_X2APIC_LVT_LINT1",        "x2APIC: LINT1",                                      "3A 11.12.1"),
    (0x0000_0837, "IA32_X2APIC_LVT_ERROR",        "x2APIC: error",                                      "3A 11.12.1"),
    (0x0000_0838, "IA32_X2APIC_INIT_COUNT",       "x2APIC: timer's initial count",                      "3A 11.12.1"),
    (0x0000_0839, "IA32_X2APIC_CUR_COUNT",        "x2APIC: timer's current count",                      "3A 11.12.1"),
    (0x0000_083E, "IA32_X2APIC_DIV_CONF",         "x2APIC: timer's divisor",                            "3A 11.12.1"),
    (0x0000_083F, "IA32_X2APIC_SELF_IPI",         "x2APIC: IPI to itself",                              "3A 11.12.1"),
)

_LONG_MODE = _table(
    (0xC000_0080, "IA32_EFER",                    "extended features: long mode, SYSCALL, execute disable", "3A 2.2.1"),
    (0xC000_0081, "IA32_STAR",                    "SYSCALL and SYSRET: selectors",                      "3A 5.8.8"),
    (0xC000_0082, "IA32_LSTAR",                   "SYSCALL: entry point in 64-bit mode",                "3A 5.8.8"),
    (0xC000_0083, "IA32_CSTAR",                   "SYSCALL: entry point in compatibility mode",         "3A 5.8.8"),
    (0xC000_0084, "IA32_FMASK",                   "SYSCALL: bits of RFLAGS to clear",                   "3A 5.8.8"),
    (0xC000_0100, "IA32_FS_BASE",                 "base of FS",                                         "3A 3.4.4.1"),
    (0xC000_0101, "IA32_GS_BASE",                 "base of GS",                                         "3A 3.4.4.1"),
    (0xC000_0102, "IA32_KERNEL_GS_BASE",          "what SWAPGS exchanges with the base of GS",          "3A 5.8.8"),
    (0xC000_0103, "IA32_TSC_AUX",                 "what RDTSCP and RDPID give besides the TSC",         "3B 18.17.2"),
)

MSRS: tuple[Msr, ...] = tuple(sorted(
    (*_ARCHITECTURAL, *_VMX, *_MTRR_VARIABLE, *_MTRR_FIXED, *_X2APIC, *_LONG_MODE), key=lambda msr: msr.address))
BY_NAME: Mapping[str, Msr] = MappingProxyType({msr.name: msr for msr in MSRS})
BY_ADDRESS: Mapping[int, Msr] = MappingProxyType({msr.address: msr for msr in MSRS})

# The two ranges that an MSR bitmap covers (SDM 3C 25.6.9); an access outside them always causes a VM exit.
BITMAP_LOW = range(0x0000_0000, 0x0000_2000)
BITMAP_HIGH = range(0xC000_0000, 0xC000_2000)
BITMAP_READ_LOW, BITMAP_READ_HIGH, BITMAP_WRITE_LOW, BITMAP_WRITE_HIGH = 0, 1024, 2048, 3072  # byte offsets
