"""Basic exit reasons as data.

SDM 3D Appendix C lists the numbers; the section of each row is where the manual says what causes the exit. What the
exit qualification means for each reason is in qualifications.py (SDM 3C 28.2.1 [27.2.1]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from generator.arch.qualifications import describe

ENTRY_FAILURE = 1 << 31        # the VM entry itself failed: the guest has not run
EXIT_FROM_ROOT = 1 << 29       # an SMM VM exit from VMX root operation
PENDING_MTF = 1 << 28          # an SMM VM exit with an MTF VM exit pending
ENCLAVE_MODE = 1 << 27         # the exit was incident to enclave mode
BUS_LOCK = 1 << 26             # the processor asserted a bus lock
SHADOW_STACK_BUSY = 1 << 25    # a supervisor shadow stack stays busy
BASIC_REASON = 0xFFFF


@dataclass(frozen=True, slots=True)
class ExitReason:
    """One basic exit reason (bits 15:0 of the exit-reason field)."""

    number: int
    name: str
    title: str
    section: str


def _row(number: int, name: str, title: str, section: str) -> ExitReason:
    return ExitReason(number, name, title, f"SDM 3C {section}")


EXIT_REASONS: tuple[ExitReason, ...] = (
    _row( 0, "EXCEPTION_NMI",         "exception that the exception bitmap selects, or NMI",       "26.2"),
    _row( 1, "EXTERNAL_INTERRUPT",    "external interrupt",                                        "26.2"),
    _row( 2, "TRIPLE_FAULT",          "triple fault",                                              "26.2"),
    _row( 3, "INIT",                  "INIT signal",                                               "26.2"),
    _row( 4, "SIPI",                  "start-up IPI, in the wait-for-SIPI activity state",         "26.2"),
    _row( 5, "IO_SMI",                "SMI right after an I/O instruction, to the SMM monitor",    "32.15.2"),
    _row( 6, "OTHER_SMI",             "SMI, to the SMM monitor",                                   "32.15.2"),
    _row( 7, "INTERRUPT_WINDOW",      "the guest can take an external interrupt now",              "26.2"),
    _row( 8, "NMI_WINDOW",            "the guest can take an NMI now",                             "26.2"),
    _row( 9, "TASK_SWITCH",           "task switch",                                               "26.2"),
    _row(10, "CPUID",                 "CPUID",                                                     "26.1.2"),
    _row(11, "GETSEC",                "GETSEC",                                                    "26.1.2"),
    _row(12, "HLT",                   "HLT",                                                       "26.1.3"),
    _row(13, "INVD",                  "INVD",                                                      "26.1.2"),
    _row(14, "INVLPG",                "INVLPG",                                                    "26.1.3"),
    _row(15, "RDPMC",                 "RDPMC",                                                     "26.1.3"),
    _row(16, "RDTSC",                 "RDTSC",                                                     "26.1.3"),
    _row(17, "RSM",                   "RSM in SMM",                                                "26.1.3"),
    _row(18, "VMCALL",                "VMCALL",                                                    "26.1.2"),
    _row(19, "VMCLEAR",               "VMCLEAR",                                                   "26.1.2"),
    _row(20, "VMLAUNCH",              "VMLAUNCH",                                                  "26.1.2"),
    _row(21, "VMPTRLD",               "VMPTRLD",                                                   "26.1.2"),
    _row(22, "VMPTRST",               "VMPTRST",                                                   "26.1.2"),
    _row(23, "VMREAD",                "VMREAD",                                                    "26.1.3"),
    _row(24, "VMRESUME",              "VMRESUME",                                                  "26.1.2"),
    _row(25, "VMWRITE",               "VMWRITE",                                                   "26.1.3"),
    _row(26, "VMXOFF",                "VMXOFF",                                                    "26.1.2"),
    _row(27, "VMXON",                 "VMXON",                                                     "26.1.2"),
    _row(28, "CR_ACCESS",             "access to a control register",                              "26.1.3"),
    _row(29, "DR_ACCESS",             "MOV to or from a debug register",                           "26.1.3"),
    _row(30, "IO_INSTRUCTION",        "IN, INS, OUT or OUTS",                                      "26.1.3"),
    _row(31, "RDMSR",                 "RDMSR",                                                     "26.1.3"),
    _row(32, "WRMSR",                 "WRMSR",                                                     "26.1.3"),
    _row(33, "INVALID_GUEST_STATE",   "VM entry failed: the guest state is invalid",               "27.3.1"),
    _row(34, "MSR_LOADING",           "VM entry failed: loading the MSRs",                         "27.4"),
    _row(36, "MWAIT",                 "MWAIT",                                                     "26.1.3"),
    _row(37, "MTF",                   "monitor trap flag",                                         "26.5.2"),
    _row(39, "MONITOR",               "MONITOR",                                                   "26.1.3"),
    _row(40, "PAUSE",                 "PAUSE",                                                     "26.1.3"),
    _row(41, "MACHINE_CHECK",         "VM entry failed: machine check while entering",             "27.9"),
    _row(43, "TPR_BELOW_THRESHOLD",   "virtual TPR fell below the TPR threshold",                  "30.1.2"),
    _row(44, "APIC_ACCESS",           "access to the APIC-access page",                            "30.4"),
    _row(45, "VIRTUALIZED_EOI",       "EOI of a vector that the EOI-exit bitmap selects",          "30.1.4"),
    _row(46, "GDTR_IDTR",             "LGDT, LIDT, SGDT or SIDT",                                  "26.1.3"),
    _row(47, "LDTR_TR",               "LLDT, LTR, SLDT or STR",                                    "26.1.3"),
    _row(48, "EPT_VIOLATION",         "EPT forbids the access, or does not map the address",       "29.3.3.2"),
    _row(49, "EPT_MISCONFIGURATION",  "an EPT entry has bits that make no sense",                  "29.3.3.1"),
    _row(50, "INVEPT",                "INVEPT",                                                    "26.1.2"),
    _row(51, "RDTSCP",                "RDTSCP",                                                    "26.1.3"),
    _row(52, "PREEMPTION_TIMER",      "the VMX-preemption timer counted down to zero",             "26.5.1"),
    _row(53, "INVVPID",               "INVVPID",                                                   "26.1.2"),
    _row(54, "WBINVD",                "WBINVD or WBNOINVD",                                        "26.1.3"),
    _row(55, "XSETBV",                "XSETBV",                                                    "26.1.2"),
    _row(56, "APIC_WRITE",            "write to the virtual-APIC page that software must emulate", "30.4.3.3"),
    _row(57, "RDRAND",                "RDRAND",                                                    "26.1.3"),
    _row(58, "INVPCID",               "INVPCID",                                                   "26.1.3"),
    _row(59, "VMFUNC",                "VMFUNC of a function that is not enabled, or that failed",  "26.5.6"),
    _row(60, "ENCLS",                 "ENCLS of a leaf that the ENCLS-exiting bitmap selects",     "26.1.3"),
    _row(61, "RDSEED",                "RDSEED",                                                    "26.1.3"),
    _row(62, "PML_FULL",              "the page-modification log is full",                         "29.3.6"),
    _row(63, "XSAVES",                "XSAVES of a component that the XSS-exiting bitmap selects", "26.1.3"),
    _row(64, "XRSTORS",               "XRSTORS of a component that bitmap selects",                "26.1.3"),
    _row(65, "PCONFIG",               "PCONFIG of a leaf that the PCONFIG-exiting bitmap selects", "26.1.3"),
    _row(66, "SPP_EVENT",             "sub-page permission: miss or misconfiguration",             "29.3.4"),
    _row(67, "UMWAIT",                "UMWAIT",                                                    "26.1.3"),
    _row(68, "TPAUSE",                "TPAUSE",                                                    "26.1.3"),
    _row(69, "LOADIWKEY",             "LOADIWKEY",                                                 "26.1.3"),
    _row(70, "ENCLV",                 "ENCLV of a leaf that the ENCLV-exiting bitmap selects",     "26.1.3"),
    _row(72, "ENQCMD_PASID",          "ENQCMD: its PASID could not be translated",                 "26.5.8"),
    _row(73, "ENQCMDS_PASID",         "ENQCMDS: its PASID could not be translated",                "26.5.8"),
    _row(74, "BUS_LOCK",              "bus lock",                                                  "26.2"),
    _row(75, "INSTRUCTION_TIMEOUT",   "an instruction boundary did not come in time",              "26.2"),
    _row(76, "SEAMCALL",              "SEAMCALL",                                                  "26.1.2"),
    _row(77, "TDCALL",                "TDCALL",                                                    "26.1.2"),
    _row(78, "RDMSRLIST",             "RDMSRLIST",                                                 "26.1.3"),
    _row(79, "WRMSRLIST",             "WRMSRLIST",                                                 "26.1.3"),
    _row(80, "URDMSR",                "URDMSR",                                                    "26.1.3"),
    _row(81, "UWRMSR",                "UWRMSR",                                                    "26.1.3"),
    _row(84, "RDMSR_IMMEDIATE",       "RDMSR with the address in the instruction",                 "26.1.3"),
    _row(85, "WRMSRNS_IMMEDIATE",     "WRMSRNS with the address in the instruction",               "26.1.3"),
)

BY_NUMBER: Mapping[int, ExitReason] = MappingProxyType({reason.number: reason for reason in EXIT_REASONS})
BY_NAME: Mapping[str, ExitReason] = MappingProxyType({reason.name: reason for reason in EXIT_REASONS})


def name(number: int) -> str:
    """The name of basic exit reason `number`, or "reason N" for one that the manual does not define."""
    reason = BY_NUMBER.get(number & BASIC_REASON)
    return reason.name if reason else f"reason {number & BASIC_REASON}"


def describe_qualification(reason_number: int, qualification: int, vector: int | None = None) -> str:
    """The exit qualification in words, or "" where it says nothing for that reason (SDM 3C 28.2.1 [27.2.1]).

    `vector` is the exception's for reason 0: only with it can #DB be told from #PF.
    """
    return describe(reason_number, qualification, vector)
