"""VMX controls as data: each word, its VMCS field, its capability MSRs, and every bit of it.

SDM 3C 25.6 to 25.8 [24.6 to 24.8] name the bits, SDM 3D Appendix A.2 to A.5 the capability MSRs. A 32-bit word is
described by an MSR whose low half has 1 where a bit must be 1 and whose high half has 1 where it may be 1. Bits in
`default1` read as must-be-1 in the first MSR for the sake of old software; where IA32_VMX_BASIC[55] is 1 the TRUE
MSR tells which of them may really be 0. A 64-bit word's MSR holds only the may-be-1 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ControlBit:
    """One bit of a control word; `word` is the word's name. A name may stand in two words (LOAD_IA32_PAT)."""

    word: str
    bit: int
    name: str
    title: str
    section: str

    @property
    def mask(self) -> int:
        """The bit's value."""
        return 1 << self.bit


@dataclass(frozen=True, slots=True)
class ControlWord:
    """A word of controls: `field` is a VMCS field's name, `msr` and `true_msr` are names of MSRs."""

    name: str
    field: str
    msr: str
    true_msr: str | None
    width: int
    default1: int
    activated_by: tuple[str, str] | None  # (word, bit) without which the word counts as 0
    bits: tuple[ControlBit, ...]

    def bit(self, name: str) -> ControlBit:
        """The bit called `name`. KeyError if the word has none."""
        for control in self.bits:
            if control.name == name:
                return control
        raise KeyError(f"{self.name} has no control {name}")

    def mask(self, *names: str) -> int:
        """The bits called `names`, or-ed together. KeyError for a name that the word lacks."""
        value = 0
        for name in names:
            value |= self.bit(name).mask
        return value

    def names(self, value: int) -> tuple[str, ...]:
        """Names of the bits that are 1 in `value`, lowest first; bits without a name are left out."""
        return tuple(control.name for control in self.bits if value & control.mask)


def _bits(word: str, section: str, *rows: tuple[int, str, str]) -> tuple[ControlBit, ...]:
    return tuple(ControlBit(word, bit, name, title, f"SDM 3C {section}") for bit, name, title in rows)


PINBASED = ControlWord(
    "PINBASED", "PIN_BASED_VM_EXEC_CONTROL", "IA32_VMX_PINBASED_CTLS", "IA32_VMX_TRUE_PINBASED_CTLS",
    32, 0x0000_0016, None, _bits("PINBASED", "25.6.1",
        ( 0, "EXTERNAL_INTERRUPT_EXITING", "external interrupts cause VM exits"),
        ( 3, "NMI_EXITING",                "NMIs cause VM exits"),
        ( 5, "VIRTUAL_NMIS",               "NMIs are never blocked; blocking by NMI is the guest's virtual one"),
        ( 6, "ACTIVATE_PREEMPTION_TIMER",  "the VMX-preemption timer counts down in the guest"),
        ( 7, "PROCESS_POSTED_INTERRUPTS",  "interrupts with the notification vector are posted to the guest"),
    ))

PROCBASED = ControlWord(
    "PROCBASED", "CPU_BASED_VM_EXEC_CONTROL", "IA32_VMX_PROCBASED_CTLS", "IA32_VMX_TRUE_PROCBASED_CTLS",
    32, 0x0401_E172, None, _bits("PROCBASED", "25.6.2",
        ( 2, "INTERRUPT_WINDOW_EXITING",    "VM exit as soon as the guest can take an external interrupt"),
        ( 3, "USE_TSC_OFFSETTING",          "the guest's TSC has the TSC offset added"),
        ( 7, "HLT_EXITING",                 "HLT causes VM exits"),
        ( 9, "INVLPG_EXITING",              "INVLPG causes VM exits"),
        (10, "MWAIT_EXITING",               "MWAIT causes VM exits"),
        (11, "RDPMC_EXITING",               "RDPMC causes VM exits"),
        (12, "RDTSC_EXITING",               "RDTSC and RDTSCP cause VM exits"),
        (15, "CR3_LOAD_EXITING",            "MOV to CR3 causes VM exits, CR3-target values aside"),
        (16, "CR3_STORE_EXITING",           "MOV from CR3 causes VM exits"),
        (17, "ACTIVATE_TERTIARY_CONTROLS",  "the tertiary controls count; else they are 0"),
        (19, "CR8_LOAD_EXITING",            "MOV to CR8 causes VM exits"),
        (20, "CR8_STORE_EXITING",           "MOV from CR8 causes VM exits"),
        (21, "USE_TPR_SHADOW",              "TPR accesses go to the virtual-APIC page"),
        (22, "NMI_WINDOW_EXITING",          "VM exit as soon as the guest can take an NMI"),
        (23, "MOV_DR_EXITING",              "MOV to and from DR causes VM exits"),
        (24, "UNCONDITIONAL_IO_EXITING",    "I/O instructions cause VM exits, unless I/O bitmaps are used"),
        (25, "USE_IO_BITMAPS",              "I/O bitmaps decide which ports cause VM exits"),
        (27, "MONITOR_TRAP_FLAG",           "VM exit after one instruction"),
        (28, "USE_MSR_BITMAPS",             "MSR bitmaps decide which RDMSR and WRMSR cause VM exits; else all do"),
        (29, "MONITOR_EXITING",             "MONITOR causes VM exits"),
        (30, "PAUSE_EXITING",               "PAUSE causes VM exits"),
        (31, "ACTIVATE_SECONDARY_CONTROLS", "the secondary controls count; else they are 0"),
    ))

PROCBASED2 = ControlWord(
    "PROCBASED2", "SECONDARY_VM_EXEC_CONTROL", "IA32_VMX_PROCBASED_CTLS2", None,
    32, 0, ("PROCBASED", "ACTIVATE_SECONDARY_CONTROLS"), _bits("PROCBASED2", "25.6.2",
        ( 0, "VIRTUALIZE_APIC_ACCESSES",      "accesses to the APIC-access page are virtualized"),
        ( 1, "ENABLE_EPT",                    "extended page tables"),
        ( 2, "DESCRIPTOR_TABLE_EXITING",      "LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT, STR cause VM exits"),
        ( 3, "ENABLE_RDTSCP",                 "RDTSCP works in the guest; else #UD"),
        ( 4, "VIRTUALIZE_X2APIC_MODE",        "accesses to x2APIC MSRs are virtualized"),
        ( 5, "ENABLE_VPID",                   "cached translations are tagged with the VPID"),
        ( 6, "WBINVD_EXITING",                "WBINVD and WBNOINVD cause VM exits"),
        ( 7, "UNRESTRICTED_GUEST",            "the guest may run unpaged and in real mode"),
        ( 8, "APIC_REGISTER_VIRTUALIZATION",  "reads of APIC registers come from the virtual-APIC page"),
        ( 9, "VIRTUAL_INTERRUPT_DELIVERY",    "virtual interrupts are evaluated and delivered"),
        (10, "PAUSE_LOOP_EXITING",            "a loop of PAUSE causes a VM exit"),
        (11, "RDRAND_EXITING",                "RDRAND causes VM exits"),
        (12, "ENABLE_INVPCID",                "INVPCID works in the guest; else #UD"),
        (13, "ENABLE_VM_FUNCTIONS",           "VMFUNC works in the guest; else #UD"),
        (14, "VMCS_SHADOWING",                "VMREAD and VMWRITE of the guest may access a shadow VMCS"),
        (15, "ENABLE_ENCLS_EXITING",          "the ENCLS-exiting bitmap counts"),
        (16, "RDSEED_EXITING",                "RDSEED causes VM exits"),
        (17, "ENABLE_PML",                    "writes that set an EPT dirty flag are logged"),
        (18, "EPT_VIOLATION_VE",              "EPT violations may cause #VE instead of VM exits"),
        (19, "CONCEAL_VMX_FROM_PT",           "Processor Trace does not show VMX non-root operation"),
        (20, "ENABLE_XSAVES",                 "XSAVES and XRSTORS work in the guest; else #UD"),
        (21, "PASID_TRANSLATION",             "ENQCMD and ENQCMDS translate PASIDs"),
        (22, "MODE_BASED_EXECUTE_CONTROL",    "EPT has execute bits for user and for supervisor mode"),
        (23, "SUB_PAGE_WRITE_PERMISSIONS",    "EPT write permission for each 128 bytes"),
        (24, "PT_USES_GUEST_PHYSICAL",        "Processor Trace output addresses go through EPT"),
        (25, "USE_TSC_SCALING",               "the guest's TSC is multiplied by the TSC multiplier"),
        (26, "ENABLE_USER_WAIT_PAUSE",        "TPAUSE, UMONITOR and UMWAIT work in the guest; else #UD"),
        (27, "ENABLE_PCONFIG",                "PCONFIG works in the guest; else #UD"),
        (28, "ENABLE_ENCLV_EXITING",          "the ENCLV-exiting bitmap counts"),
        (30, "VMM_BUS_LOCK_DETECTION",        "bus locks cause VM exits"),
        (31, "INSTRUCTION_TIMEOUT",           "VM exit when no instruction boundary comes in time"),
    ))

PROCBASED3 = ControlWord(
    "PROCBASED3", "TERTIARY_VM_EXEC_CONTROL", "IA32_VMX_PROCBASED_CTLS3", None,
    64, 0, ("PROCBASED", "ACTIVATE_TERTIARY_CONTROLS"), _bits("PROCBASED3", "25.6.2",
        (0, "LOADIWKEY_EXITING",            "LOADIWKEY causes VM exits"),
        (1, "ENABLE_HLAT",                  "hypervisor-managed linear-address translation"),
        (2, "EPT_PAGING_WRITE_CONTROL",     "EPT entries can allow writes by paging alone"),
        (3, "GUEST_PAGING_VERIFICATION",    "EPT entries can demand that paging structures be protected"),
        (4, "IPI_VIRTUALIZATION",           "IPIs of the guest are posted"),
        (6, "ENABLE_MSRLIST_INSTRUCTIONS",  "RDMSRLIST and WRMSRLIST work in the guest; else #UD"),
        (7, "VIRTUALIZE_IA32_SPEC_CTRL",    "the guest's IA32_SPEC_CTRL has a mask and a shadow"),
        (8, "APIC_TIMER_VIRTUALIZATION",    "the guest's TSC deadline is virtualized"),
    ))

EXIT = ControlWord(
    "EXIT", "VM_EXIT_CONTROLS", "IA32_VMX_EXIT_CTLS", "IA32_VMX_TRUE_EXIT_CTLS",
    32, 0x0003_6DFF, None, _bits("EXIT", "25.7.1",
        ( 2, "SAVE_DEBUG_CONTROLS",           "DR7 and IA32_DEBUGCTL are saved"),
        ( 9, "HOST_ADDRESS_SPACE_SIZE",       "the host is in 64-bit mode after the exit"),
        (12, "LOAD_IA32_PERF_GLOBAL_CTRL",    "IA32_PERF_GLOBAL_CTRL is loaded"),
        (15, "ACKNOWLEDGE_INTERRUPT_ON_EXIT", "an external interrupt is acknowledged and its vector saved"),
        (18, "SAVE_IA32_PAT",                 "IA32_PAT is saved"),
        (19, "LOAD_IA32_PAT",                 "IA32_PAT is loaded"),
        (20, "SAVE_IA32_EFER",                "IA32_EFER is saved"),
        (21, "LOAD_IA32_EFER",                "IA32_EFER is loaded"),
        (22, "SAVE_PREEMPTION_TIMER",         "the VMX-preemption timer's value is saved"),
        (23, "CLEAR_IA32_BNDCFGS",            "IA32_BNDCFGS is cleared"),
        (24, "CONCEAL_VMX_FROM_PT",           "Processor Trace does not show the VM exit"),
        (25, "CLEAR_IA32_RTIT_CTL",           "IA32_RTIT_CTL is cleared"),
        (26, "CLEAR_IA32_LBR_CTL",            "IA32_LBR_CTL is cleared"),
        (27, "CLEAR_UINV",                    "UINV is cleared"),
        (28, "LOAD_CET_STATE",                "CET state is loaded"),
        (29, "LOAD_PKRS",                     "IA32_PKRS is loaded"),
        (30, "SAVE_IA32_PERF_GLOBAL_CTRL",    "IA32_PERF_GLOBAL_CTRL is saved"),
        (31, "ACTIVATE_SECONDARY_CONTROLS",   "the secondary VM-exit controls count; else they are 0"),
    ))

EXIT2 = ControlWord(
    "EXIT2", "SECONDARY_VM_EXIT_CONTROLS", "IA32_VMX_EXIT_CTLS2", None,
    64, 0, ("EXIT", "ACTIVATE_SECONDARY_CONTROLS"), _bits("EXIT2", "25.7.1",
        (0, "SAVE_IA32_FRED",                "FRED MSRs are saved"),
        (1, "LOAD_IA32_FRED",                "FRED MSRs are loaded"),
        (2, "LOAD_IA32_SPEC_CTRL",           "IA32_SPEC_CTRL is loaded"),
        (3, "PREMATURELY_BUSY_SHADOW_STACK", "a shadow stack made busy too early is reported"),
    ))

ENTRY = ControlWord(
    "ENTRY", "VM_ENTRY_CONTROLS", "IA32_VMX_ENTRY_CTLS", "IA32_VMX_TRUE_ENTRY_CTLS",
    32, 0x0000_11FF, None, _bits("ENTRY", "25.8.1",
        ( 2, "LOAD_DEBUG_CONTROLS",               "DR7 and IA32_DEBUGCTL are loaded"),
        ( 9, "IA32E_MODE_GUEST",                  "the guest is in IA-32e mode after the entry"),
        (10, "ENTRY_TO_SMM",                      "the guest is in SMM after the entry"),
        (11, "DEACTIVATE_DUAL_MONITOR_TREATMENT", "SMIs are treated in the default way after the entry"),
        (13, "LOAD_IA32_PERF_GLOBAL_CTRL",        "IA32_PERF_GLOBAL_CTRL is loaded"),
        (14, "LOAD_IA32_PAT",                     "IA32_PAT is loaded"),
        (15, "LOAD_IA32_EFER",                    "IA32_EFER is loaded"),
        (16, "LOAD_IA32_BNDCFGS",                 "IA32_BNDCFGS is loaded"),
        (17, "CONCEAL_VMX_FROM_PT",               "Processor Trace does not show the VM entry"),
        (18, "LOAD_IA32_RTIT_CTL",                "IA32_RTIT_CTL is loaded"),
        (19, "LOAD_UINV",                         "UINV is loaded"),
        (20, "LOAD_CET_STATE",                    "CET state is loaded"),
        (21, "LOAD_IA32_LBR_CTL",                 "IA32_LBR_CTL is loaded"),
        (22, "LOAD_PKRS",                         "IA32_PKRS is loaded"),
        (23, "LOAD_IA32_FRED",                    "FRED MSRs are loaded"),
        (24, "LOAD_IA32_SPEC_CTRL",               "IA32_SPEC_CTRL is loaded"),
    ))

VMFUNC = ControlWord(
    "VMFUNC", "VM_FUNCTION_CONTROL", "IA32_VMX_VMFUNC", None,
    64, 0, ("PROCBASED2", "ENABLE_VM_FUNCTIONS"), _bits("VMFUNC", "25.6.14",
        (0, "EPTP_SWITCHING", "VMFUNC 0 takes another EPTP from the list"),
    ))

WORDS: tuple[ControlWord, ...] = (PINBASED, PROCBASED, PROCBASED2, PROCBASED3, EXIT, EXIT2, ENTRY, VMFUNC)
BY_NAME: Mapping[str, ControlWord] = MappingProxyType({word.name: word for word in WORDS})
BITS: tuple[ControlBit, ...] = tuple(control for word in WORDS for control in word.bits)


def find(name: str) -> tuple[ControlBit, ...]:
    """Every control called `name`: none, one, or one in each of two words."""
    return tuple(control for control in BITS if control.name == name)
