"""Checks on the guest's descriptor-table registers, RIP, RFLAGS, SSP, non-register state and PDPTEs (SDM 3C 27.3.1.3 to
27.3.1.6); a failure is exit reason 33.
"""

from __future__ import annotations

from generator.arch import cr
from generator.arch import descriptors as d
from generator.arch import events as e
from generator.arch.events import ActivityState, EventType
from hvtests.vmx.checks import controlbits as c
from hvtests.vmx.checks.fields import ENTRY, INFO, PDPTES, PIN, PROC2
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import EntryState
from hvtests.vmx.msr_rules import ALL_ONES

TABLES = RuleSet(Stage.GUEST, "27.3.1.3")
FLOW = RuleSet(Stage.GUEST, "27.3.1.4")
OTHER = RuleSet(Stage.GUEST, "27.3.1.5")
PAGES = RuleSet(Stage.GUEST, "27.3.1.6")

# EXIT_QUALIFICATION of an entry that fails with reason 33 (SDM 3C 27.8)
QUALIFICATION_PDPTE = 2
QUALIFICATION_NMI = 3
QUALIFICATION_LINK = 4

FLAGS = "GUEST_RFLAGS"
ACTIVITY = "GUEST_ACTIVITY_STATE"
BLOCKING = "GUEST_INTERRUPTIBILITY_INFO"
PENDING = "GUEST_PENDING_DBG_EXCEPTIONS"
LINK = "VMCS_LINK_POINTER"
DEBUGCTL_BTF = 1 << 1
PDPTE_RESERVED = 0x1E6  # bits 8:5 and 2:1


# -- GDTR and IDTR -------------------------------------------------------------------------------------------------

@TABLES.each(("GDTR", "IDTR"), "guest.{r}.base_canonical", "GUEST_{r}_BASE")
def table_base(s: EntryState, r: str) -> bool:
    """GUEST_{r}_BASE must be a canonical address."""
    return s.cap.is_canonical(s.read(f"GUEST_{r}_BASE"))


@TABLES.each(("GDTR", "IDTR"), "guest.{r}.limit_upper", "GUEST_{r}_LIMIT")
def table_limit(s: EntryState, r: str) -> bool:
    """Bits 31:16 of GUEST_{r}_LIMIT must be 0."""
    return not s.read(f"GUEST_{r}_LIMIT") >> 16


# -- RIP, RFLAGS, SSP ----------------------------------------------------------------------------------------------

@FLOW.rule("guest.rip.upper", ENTRY, "GUEST_CS_AR_BYTES", "GUEST_RIP")
def rip_upper(s: EntryState) -> bool:
    """Bits 63:32 of GUEST_RIP must be 0 unless the guest will be in 64-bit mode ("IA-32e mode guest" and CS.L = 1)."""
    if not s.read("GUEST_RIP") >> 32:
        return True
    return s.ia32e and bool(s.read("GUEST_CS_AR_BYTES") & d.AR_L)


@FLOW.rule("guest.rip.canonical", ENTRY, "GUEST_CS_AR_BYTES", "GUEST_RIP")
def rip_canonical(s: EntryState) -> bool:
    """If the guest will be in 64-bit mode, the bits of GUEST_RIP at and above the linear-address width must be
    identical (the highest bit below them may differ)."""
    upper = s.read("GUEST_RIP") >> s.cap.linear_bits
    if not upper or upper == ALL_ONES >> s.cap.linear_bits:
        return True
    return not (s.ia32e and s.read("GUEST_CS_AR_BYTES") & d.AR_L)


@FLOW.rule("guest.rflags.reserved", FLAGS)
def rflags_reserved(s: EntryState) -> bool:
    """Bits 63:22, 15, 5 and 3 of GUEST_RFLAGS must be 0, bit 1 must be 1."""
    value = s.read(FLAGS)
    return not value & cr.RFLAGS_RESERVED_ZERO and bool(value & cr.RFLAGS_FIXED)


@FLOW.rule("guest.rflags.vm_in_ia32e", ENTRY, FLAGS)
def rflags_vm_ia32e(s: EntryState) -> bool:
    """RFLAGS.VM must be 0 if "IA-32e mode guest" is 1."""
    return not s.v8086 or not s.ia32e


@FLOW.rule("guest.rflags.vm_without_pe", "GUEST_CR0", FLAGS)
def rflags_vm_pe(s: EntryState) -> bool:
    """RFLAGS.VM must be 0 if CR0.PE is 0 in the guest."""
    return not s.v8086 or bool(s.read("GUEST_CR0") & cr.CR0_PE)


@FLOW.rule("guest.rflags.if_for_interrupt", INFO, FLAGS)
def rflags_if(s: EntryState) -> bool:
    """If an external interrupt is injected, RFLAGS.IF must be 1."""
    if not s.injects or s.event_type != EventType.EXTERNAL_INTERRUPT:
        return True
    return bool(s.read(FLAGS) & cr.RFLAGS_IF)


@FLOW.rule("guest.ssp.valid", ENTRY, "GUEST_SSP", "GUEST_CS_AR_BYTES")
def ssp(s: EntryState) -> bool:
    """If the VM-entry control "load CET state" is 1, bits 1:0 of GUEST_SSP must be 0; in 64-bit mode its bits at and
    above the linear-address width must be identical (the highest bit below them may differ), else bits 63:32 must
    be 0."""
    if not s.entry & c.ENTRY_LOAD_CET_STATE:
        return True
    value = s.read("GUEST_SSP")
    if s.ia32e and s.read("GUEST_CS_AR_BYTES") & d.AR_L:
        return not value & 3 and value >> s.cap.linear_bits in (0, ALL_ONES >> s.cap.linear_bits)
    return not value & 3 and not value >> 32


# -- activity state ------------------------------------------------------------------------------------------------

@OTHER.rule("guest.activity.supported", ACTIVITY)
def activity_supported(s: EntryState) -> bool:
    """GUEST_ACTIVITY_STATE must be 0 (active), or 1 (HLT), 2 (shutdown), 3 (wait-for-SIPI) where bit 6, 7 or 8 of
    IA32_VMX_MISC is 1."""
    state = s.read(ACTIVITY)
    return state == 0 or (state <= 3 and bool(s.cap.misc >> 5 + state & 1))


@OTHER.rule("guest.activity.hlt_cpl", ACTIVITY, "GUEST_SS_AR_BYTES")
def activity_hlt_cpl(s: EntryState) -> bool:
    """GUEST_ACTIVITY_STATE must not be 1 (HLT) if the DPL of SS is not 0."""
    return s.read(ACTIVITY) != ActivityState.HLT or not s.read("GUEST_SS_AR_BYTES") & d.AR_DPL_MASK


@OTHER.rule("guest.activity.with_blocking", ACTIVITY, BLOCKING)
def activity_with_blocking(s: EntryState) -> bool:
    """GUEST_ACTIVITY_STATE must be 0 (active) if GUEST_INTERRUPTIBILITY_INFO indicates blocking by STI or by MOV SS."""
    return s.read(ACTIVITY) == 0 or not s.read(BLOCKING) & (e.BLOCKING_BY_STI | e.BLOCKING_BY_MOV_SS)


@OTHER.rule("guest.activity.event_in_hlt", ACTIVITY, INFO)
def activity_event_hlt(s: EntryState) -> bool:
    """If GUEST_ACTIVITY_STATE is 1 (HLT), an injected event must be an external interrupt, an NMI, #DB, #MC, or a
    pending MTF VM exit."""
    if s.read(ACTIVITY) != ActivityState.HLT or not s.injects:
        return True
    if s.event_type == EventType.HARDWARE_EXCEPTION:
        return s.event_vector in (1, 18)
    return s.event_type in (EventType.EXTERNAL_INTERRUPT, EventType.NMI) or \
        (s.event_type == EventType.OTHER_EVENT and s.event_vector == 0)


@OTHER.rule("guest.activity.event_in_shutdown", ACTIVITY, INFO)
def activity_event_shutdown(s: EntryState) -> bool:
    """If GUEST_ACTIVITY_STATE is 2 (shutdown), an injected event must be an NMI or #MC."""
    if s.read(ACTIVITY) != ActivityState.SHUTDOWN or not s.injects:
        return True
    return s.event_type == EventType.NMI or (s.event_type == EventType.HARDWARE_EXCEPTION and s.event_vector == 18)


@OTHER.rule("guest.activity.event_in_wait_for_sipi", ACTIVITY, INFO)
def activity_event_sipi(s: EntryState) -> bool:
    """If GUEST_ACTIVITY_STATE is 3 (wait-for-SIPI), no event may be injected."""
    return s.read(ACTIVITY) != ActivityState.WAIT_FOR_SIPI or not s.injects


# -- interruptibility state ----------------------------------------------------------------------------------------

@OTHER.rule("guest.blocking.reserved", BLOCKING)
def blocking_reserved(s: EntryState) -> bool:
    """Bits 31:5 of GUEST_INTERRUPTIBILITY_INFO must be 0."""
    return not s.read(BLOCKING) & e.INTERRUPTIBILITY_RESERVED


@OTHER.rule("guest.blocking.sti_and_mov_ss", BLOCKING)
def blocking_both(s: EntryState) -> bool:
    """GUEST_INTERRUPTIBILITY_INFO must not indicate both blocking by STI and blocking by MOV SS."""
    both = e.BLOCKING_BY_STI | e.BLOCKING_BY_MOV_SS
    return s.read(BLOCKING) & both != both


@OTHER.rule("guest.blocking.sti_without_if", BLOCKING, FLAGS)
def blocking_sti(s: EntryState) -> bool:
    """GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by STI if RFLAGS.IF is 0."""
    return not s.read(BLOCKING) & e.BLOCKING_BY_STI or bool(s.read(FLAGS) & cr.RFLAGS_IF)


@OTHER.rule("guest.blocking.for_interrupt", BLOCKING, INFO)
def blocking_interrupt(s: EntryState) -> bool:
    """If an external interrupt is injected, GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by STI or by
    MOV SS."""
    if not s.injects or s.event_type != EventType.EXTERNAL_INTERRUPT:
        return True
    return not s.read(BLOCKING) & (e.BLOCKING_BY_STI | e.BLOCKING_BY_MOV_SS)


@OTHER.rule("guest.blocking.mov_ss_for_nmi", BLOCKING, INFO)
def blocking_mov_ss_nmi(s: EntryState) -> bool:
    """If an NMI is injected, GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by MOV SS."""
    return not s.injects or s.event_type != EventType.NMI or not s.read(BLOCKING) & e.BLOCKING_BY_MOV_SS


@OTHER.rule("guest.blocking.smi", BLOCKING)
def blocking_smi(s: EntryState) -> bool:
    """Outside SMM, GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by SMI."""
    return not s.read(BLOCKING) & e.BLOCKING_BY_SMI


@OTHER.rule("guest.blocking.sti_for_nmi", BLOCKING, INFO, qualification=QUALIFICATION_NMI)
def blocking_sti_nmi(s: EntryState) -> bool:
    """If an NMI is injected, GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by STI (a processor may demand
    this; this one does)."""
    return not s.injects or s.event_type != EventType.NMI or not s.read(BLOCKING) & e.BLOCKING_BY_STI


@OTHER.rule("guest.blocking.nmi_for_nmi", PIN, BLOCKING, INFO)
def blocking_nmi_nmi(s: EntryState) -> bool:
    """If "virtual NMIs" is 1 and an NMI is injected, GUEST_INTERRUPTIBILITY_INFO must not indicate blocking by NMI."""
    if not s.injects or s.event_type != EventType.NMI or not s.pin & c.VIRTUAL_NMIS:
        return True
    return not s.read(BLOCKING) & e.BLOCKING_BY_NMI


@OTHER.rule("guest.blocking.enclave", BLOCKING)
def blocking_enclave(s: EntryState) -> bool:
    """If bit 4 (enclave interruption) of GUEST_INTERRUPTIBILITY_INFO is 1, blocking by MOV SS must be 0 and the
    processor must have SGX."""
    value = s.read(BLOCKING)
    if not value & e.ENCLAVE_INTERRUPTION:
        return True
    return not value & e.BLOCKING_BY_MOV_SS and s.cap.has("SGX")


# -- pending debug exceptions --------------------------------------------------------------------------------------

@OTHER.rule("guest.pending_debug.reserved", PENDING)
def pending_reserved(s: EntryState) -> bool:
    """Bits 63:17, 15, 13 and 10:4 of GUEST_PENDING_DBG_EXCEPTIONS must be 0; bit 11 (bus lock) too where the
    processor has no bus-lock #DB."""
    reserved = ~(e.PENDING_B0_TO_B3 | e.PENDING_ENABLED_BREAKPOINT | e.PENDING_BS | e.PENDING_RTM)
    if s.cap.has("BUS_LOCK_DETECT"):
        reserved &= ~e.PENDING_BLD
    return not s.read(PENDING) & reserved


def _single_step_matters(s: EntryState) -> bool:
    return bool(s.read(BLOCKING) & (e.BLOCKING_BY_STI | e.BLOCKING_BY_MOV_SS)) or s.read(ACTIVITY) == ActivityState.HLT


def _single_stepping(s: EntryState) -> bool:
    return bool(s.read(FLAGS) & cr.RFLAGS_TF) and not s.read("GUEST_IA32_DEBUGCTL") & DEBUGCTL_BTF


@OTHER.rule("guest.pending_debug.bs_missing", PENDING, BLOCKING, ACTIVITY, FLAGS, "GUEST_IA32_DEBUGCTL")
def pending_bs_missing(s: EntryState) -> bool:
    """With blocking by STI or MOV SS, or in HLT, BS (bit 14) of GUEST_PENDING_DBG_EXCEPTIONS must be 1 if RFLAGS.TF
    is 1 and IA32_DEBUGCTL.BTF is 0."""
    return not _single_step_matters(s) or not _single_stepping(s) or bool(s.read(PENDING) & e.PENDING_BS)


@OTHER.rule("guest.pending_debug.bs_unexpected", PENDING, BLOCKING, ACTIVITY, FLAGS, "GUEST_IA32_DEBUGCTL")
def pending_bs_unexpected(s: EntryState) -> bool:
    """With blocking by STI or MOV SS, or in HLT, BS (bit 14) of GUEST_PENDING_DBG_EXCEPTIONS must be 0 if RFLAGS.TF
    is 0 or IA32_DEBUGCTL.BTF is 1."""
    return not _single_step_matters(s) or _single_stepping(s) or not s.read(PENDING) & e.PENDING_BS


@OTHER.rule("guest.pending_debug.rtm", PENDING, BLOCKING)
def pending_rtm(s: EntryState) -> bool:
    """If bit 16 (RTM) of GUEST_PENDING_DBG_EXCEPTIONS is 1, bits 63:17, 15:13 and 11:0 must be 0, bit 12 must be 1,
    the processor must have RTM, and blocking by MOV SS must be 0."""
    value = s.read(PENDING)
    if not value & e.PENDING_RTM:
        return True
    return value == e.PENDING_RTM | e.PENDING_ENABLED_BREAKPOINT and s.cap.has("RTM") \
        and not s.read(BLOCKING) & e.BLOCKING_BY_MOV_SS


# -- VMCS link pointer ---------------------------------------------------------------------------------------------

@OTHER.rule("guest.link.align", LINK, qualification=QUALIFICATION_LINK)
def link_align(s: EntryState) -> bool:
    """If VMCS_LINK_POINTER is not all ones, its bits 11:0 must be 0."""
    value = s.read(LINK)
    return value == ALL_ONES or not value & 0xFFF


@OTHER.rule("guest.link.width", LINK, qualification=QUALIFICATION_LINK)
def link_width(s: EntryState) -> bool:
    """If VMCS_LINK_POINTER is not all ones, it must not set a bit beyond the processor's physical-address width."""
    value = s.read(LINK)
    return value == ALL_ONES or not value & s.cap.structure_reserved


def _linked(s: EntryState) -> bool:
    return s.read(LINK) != ALL_ONES


@OTHER.rule("guest.link.revision", LINK, qualification=QUALIFICATION_LINK, guard=_linked, guard_reads=(LINK,))
def link_revision(s: EntryState) -> bool:
    """If VMCS_LINK_POINTER is not all ones, bits 30:0 of the word it points to must be the VMCS revision identifier."""
    value = s.read(LINK)
    return value == ALL_ONES or s.memory.u32(value) & 0x7FFF_FFFF == s.cap.vmcs_revision


@OTHER.rule("guest.link.shadow", LINK, *PROC2, qualification=QUALIFICATION_LINK, guard=_linked, guard_reads=(LINK,))
def link_shadow(s: EntryState) -> bool:
    """If VMCS_LINK_POINTER is not all ones, bit 31 of the word it points to (shadow-VMCS indicator) must equal "VMCS
    shadowing"."""
    value = s.read(LINK)
    return value == ALL_ONES or s.memory.u32(value) >> 31 == bool(s.proc2 & c.VMCS_SHADOWING)


@OTHER.rule("guest.link.current", LINK, qualification=QUALIFICATION_LINK)
def link_current(s: EntryState) -> bool:
    """VMCS_LINK_POINTER must not be the current-VMCS pointer."""
    return s.read(LINK) != s.vmcs_pointer


# -- PDPTEs --------------------------------------------------------------------------------------------------------

def _pdpte_valid(s: EntryState, entry: int) -> bool:
    return not entry & 1 or not entry & (PDPTE_RESERVED | s.cap.physical_reserved)


@PAGES.each(PDPTES, "guest.{r}.reserved", "GUEST_CR0", "GUEST_CR4", ENTRY, *PROC2, "{r}",
            qualification=QUALIFICATION_PDPTE)
def pdpte_in_vmcs(s: EntryState, r: str) -> bool:
    """If the guest will use PAE paging and "enable EPT" is 1, {r} must not, when present (bit 0), set bits 2:1, 8:5 or
    those beyond the physical-address width."""
    if not s.pae_paging or not s.proc2 & c.ENABLE_EPT:
        return True
    return _pdpte_valid(s, s.read(r))


def _without_ept(s: EntryState) -> bool:
    return not s.proc2 & c.ENABLE_EPT


@PAGES.rule("guest.pdptes.memory", "GUEST_CR0", "GUEST_CR4", ENTRY, *PROC2, "GUEST_CR3",
            qualification=QUALIFICATION_PDPTE, guard=_without_ept, guard_reads=PROC2)
def pdptes_in_memory(s: EntryState) -> bool:
    """If the guest will use PAE paging and "enable EPT" is 0, none of the four PDPTEs in memory at GUEST_CR3 may, when
    present (bit 0), set bits 2:1, 8:5 or those beyond the physical-address width."""
    if not s.pae_paging or s.proc2 & c.ENABLE_EPT:
        return True
    table = s.read("GUEST_CR3") & 0xFFFF_FFE0
    return all(_pdpte_valid(s, s.memory.u64(table + offset)) for offset in (0, 8, 16, 24))
