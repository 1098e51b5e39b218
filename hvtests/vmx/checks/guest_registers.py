"""Checks on the guest's control registers, debug registers and MSRs (SDM 3C 27.3.1.1); a failure is exit reason 33."""

from __future__ import annotations

from generator.arch import cr
from hvtests.vmx.checks import controlbits as c
from hvtests.vmx.checks.fields import ENTRY, PROC2
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import EntryState
from hvtests.vmx.checks.values import cr3_valid, debugctl_reserved, perf_global_ctrl_valid, s_cet_valid
from hvtests.vmx.msr_rules import pat_valid

SET = RuleSet(Stage.GUEST, "27.3.1.1")
rule = SET.rule

# SDM 3C 33.2.8.2 [32.2.8.2]; bits of features that CPUID leaf 14H does not report are let pass
RTIT_CTL_RESERVED = 0x7F << 57 | 0x7F << 48 | 7 << 28 | 1 << 23 | 1 << 18


@rule("guest.cr0.fixed", *PROC2, "GUEST_CR0")
def cr0_fixed(s: EntryState) -> bool:
    """GUEST_CR0 must have the bits that are 1 in IA32_VMX_CR0_FIXED0, and none that are 0 in IA32_VMX_CR0_FIXED1; CD
    and NW are not checked, nor are PE and PG if "unrestricted guest" is 1."""
    value = s.read("GUEST_CR0")
    ignored = cr.CR0_CD | cr.CR0_NW
    if s.unrestricted:
        ignored |= cr.CR0_PE | cr.CR0_PG
    return not (s.cap.cr0_fixed0 & ~value | value & ~s.cap.cr0_fixed1) & ~ignored


@rule("guest.cr0.pg_without_pe", "GUEST_CR0")
def cr0_pg_without_pe(s: EntryState) -> bool:
    """If CR0.PG is 1 in the guest, CR0.PE must be 1."""
    value = s.read("GUEST_CR0")
    return not value & cr.CR0_PG or bool(value & cr.CR0_PE)


@rule("guest.cr4.fixed", "GUEST_CR4")
def cr4_fixed(s: EntryState) -> bool:
    """GUEST_CR4 must have the bits that are 1 in IA32_VMX_CR4_FIXED0, and none that are 0 in IA32_VMX_CR4_FIXED1."""
    value = s.read("GUEST_CR4")
    return not (s.cap.cr4_fixed0 & ~value or value & ~s.cap.cr4_fixed1)


@rule("guest.cr4.cet_needs_wp", "GUEST_CR0", "GUEST_CR4")
def cet_needs_wp(s: EntryState) -> bool:
    """If CR4.CET is 1 in the guest, CR0.WP must be 1."""
    return not s.read("GUEST_CR4") & cr.CR4_CET or bool(s.read("GUEST_CR0") & cr.CR0_WP)


@rule("guest.debugctl.reserved", ENTRY, "GUEST_IA32_DEBUGCTL")
def debugctl(s: EntryState) -> bool:
    """If "load debug controls" is 1, reserved bits of GUEST_IA32_DEBUGCTL must be 0."""
    return not s.entry & c.LOAD_DEBUG_CONTROLS or not s.read("GUEST_IA32_DEBUGCTL") & debugctl_reserved(s.cap)


@rule("guest.ia32e.needs_paging", ENTRY, "GUEST_CR0")
def ia32e_needs_paging(s: EntryState) -> bool:
    """If "IA-32e mode guest" is 1, CR0.PG must be 1 in the guest."""
    return not s.ia32e or bool(s.read("GUEST_CR0") & cr.CR0_PG)


@rule("guest.ia32e.needs_pae", ENTRY, "GUEST_CR4")
def ia32e_needs_pae(s: EntryState) -> bool:
    """If "IA-32e mode guest" is 1, CR4.PAE must be 1 in the guest."""
    return not s.ia32e or bool(s.read("GUEST_CR4") & cr.CR4_PAE)


@rule("guest.cr4.pcide_needs_ia32e", ENTRY, "GUEST_CR4")
def pcide_needs_ia32e(s: EntryState) -> bool:
    """If "IA-32e mode guest" is 0, CR4.PCIDE must be 0 in the guest."""
    return s.ia32e or not s.read("GUEST_CR4") & cr.CR4_PCIDE


@rule("guest.cr3.width", "GUEST_CR3")
def cr3_width(s: EntryState) -> bool:
    """GUEST_CR3 must not set a bit beyond the processor's physical-address width."""
    return cr3_valid(s.cap, s.read("GUEST_CR3"))


@rule("guest.dr7.upper", ENTRY, "GUEST_DR7")
def dr7_upper(s: EntryState) -> bool:
    """If "load debug controls" is 1, bits 63:32 of GUEST_DR7 must be 0."""
    return not s.entry & c.LOAD_DEBUG_CONTROLS or not s.read("GUEST_DR7") >> 32


@rule("guest.sysenter_esp.canonical", "GUEST_SYSENTER_ESP")
def sysenter_esp(s: EntryState) -> bool:
    """GUEST_SYSENTER_ESP must be a canonical address."""
    return s.cap.is_canonical(s.read("GUEST_SYSENTER_ESP"))


@rule("guest.sysenter_eip.canonical", "GUEST_SYSENTER_EIP")
def sysenter_eip(s: EntryState) -> bool:
    """GUEST_SYSENTER_EIP must be a canonical address."""
    return s.cap.is_canonical(s.read("GUEST_SYSENTER_EIP"))


@rule("guest.s_cet.valid", ENTRY, "GUEST_S_CET")
def s_cet(s: EntryState) -> bool:
    """If the VM-entry control "load CET state" is 1, GUEST_S_CET must be canonical, its bits 9:6 must be 0, and bits
    10 (SUPPRESS) and 11 (TRACKER) must not both be 1."""
    return not s.entry & c.ENTRY_LOAD_CET_STATE or s_cet_valid(s.cap, s.read("GUEST_S_CET"))


@rule("guest.ssp_table.canonical", ENTRY, "GUEST_INTR_SSP_TABLE")
def ssp_table(s: EntryState) -> bool:
    """If the VM-entry control "load CET state" is 1, GUEST_INTR_SSP_TABLE must be canonical."""
    return not s.entry & c.ENTRY_LOAD_CET_STATE or s.cap.is_canonical(s.read("GUEST_INTR_SSP_TABLE"))


@rule("guest.perf_global_ctrl.reserved", ENTRY, "GUEST_IA32_PERF_GLOBAL_CTRL")
def perf_global_ctrl(s: EntryState) -> bool:
    """If the VM-entry control "load IA32_PERF_GLOBAL_CTRL" is 1, reserved bits of GUEST_IA32_PERF_GLOBAL_CTRL must
    be 0."""
    if not s.entry & c.ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL:
        return True
    return perf_global_ctrl_valid(s.cap, s.read("GUEST_IA32_PERF_GLOBAL_CTRL"))


@rule("guest.pat.types", ENTRY, "GUEST_IA32_PAT")
def pat_types(s: EntryState) -> bool:
    """If the VM-entry control "load IA32_PAT" is 1, each byte of GUEST_IA32_PAT must be 0 (UC), 1 (WC), 4 (WT),
    5 (WP), 6 (WB) or 7 (UC-)."""
    return not s.entry & c.ENTRY_LOAD_IA32_PAT or pat_valid(s.read("GUEST_IA32_PAT"))


@rule("guest.efer.reserved", ENTRY, "GUEST_IA32_EFER")
def efer_reserved(s: EntryState) -> bool:
    """If the VM-entry control "load IA32_EFER" is 1, reserved bits of GUEST_IA32_EFER must be 0."""
    return not s.entry & c.ENTRY_LOAD_IA32_EFER or not s.read("GUEST_IA32_EFER") & s.cap.efer_reserved


@rule("guest.efer.lma", ENTRY, "GUEST_IA32_EFER")
def efer_lma(s: EntryState) -> bool:
    """If the VM-entry control "load IA32_EFER" is 1, LMA in GUEST_IA32_EFER must equal "IA-32e mode guest"."""
    if not s.entry & c.ENTRY_LOAD_IA32_EFER:
        return True
    return bool(s.read("GUEST_IA32_EFER") & cr.EFER_LMA) == s.ia32e


@rule("guest.efer.lme", ENTRY, "GUEST_IA32_EFER", "GUEST_CR0")
def efer_lme(s: EntryState) -> bool:
    """If the VM-entry control "load IA32_EFER" is 1 and CR0.PG is 1 in the guest, LME in GUEST_IA32_EFER must equal
    LMA."""
    if not s.entry & c.ENTRY_LOAD_IA32_EFER or not s.read("GUEST_CR0") & cr.CR0_PG:
        return True
    value = s.read("GUEST_IA32_EFER")
    return bool(value & cr.EFER_LME) == bool(value & cr.EFER_LMA)


@rule("guest.bndcfgs.valid", ENTRY, "GUEST_BNDCFGS")
def bndcfgs(s: EntryState) -> bool:
    """If "load IA32_BNDCFGS" is 1, bits 11:2 of GUEST_BNDCFGS must be 0 and its base address (bits 63:12) must be
    canonical."""
    if not s.entry & c.LOAD_IA32_BNDCFGS:
        return True
    value = s.read("GUEST_BNDCFGS")
    return not value & 0xFFC and s.cap.is_canonical(value & ~0xFFF)


@rule("guest.rtit_ctl.reserved", ENTRY, "GUEST_IA32_RTIT_CTL")
def rtit_ctl(s: EntryState) -> bool:
    """If "load IA32_RTIT_CTL" is 1, bits 63:57, 54:48, 30:28, 23 and 18 of GUEST_IA32_RTIT_CTL must be 0."""
    return not s.entry & c.LOAD_IA32_RTIT_CTL or not s.read("GUEST_IA32_RTIT_CTL") & RTIT_CTL_RESERVED


@rule("guest.lbr_ctl.reserved", ENTRY, "GUEST_IA32_LBR_CTL")
def lbr_ctl(s: EntryState) -> bool:
    """If "load guest IA32_LBR_CTL" is 1, bits 63:23 and 15:4 of GUEST_IA32_LBR_CTL must be 0."""
    return not s.entry & c.LOAD_IA32_LBR_CTL or not s.read("GUEST_IA32_LBR_CTL") & ~0x7F_000F


@rule("guest.pkrs.upper", ENTRY, "GUEST_IA32_PKRS")
def pkrs(s: EntryState) -> bool:
    """If the VM-entry control "load PKRS" is 1, bits 63:32 of GUEST_IA32_PKRS must be 0."""
    return not s.entry & c.ENTRY_LOAD_PKRS or not s.read("GUEST_IA32_PKRS") >> 32


@rule("guest.uinv.upper", ENTRY, "GUEST_UINV")
def uinv(s: EntryState) -> bool:
    """If "load UINV" is 1, bits 15:8 of GUEST_UINV must be 0."""
    return not s.entry & c.LOAD_UINV or not s.read("GUEST_UINV") >> 8
