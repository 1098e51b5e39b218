"""Checks on the host-state area and on the address-space size (SDM 3C 27.2.2 to 27.2.4); a failure is VMfailValid 8."""

from __future__ import annotations

from generator.arch import cr
from hvtests.vmx.checks import controlbits as c
from hvtests.vmx.checks.fields import ENTRY, EXIT, HOST_SEGMENTS
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import HOST_LMA, EntryState
from hvtests.vmx.checks.values import cr3_valid, perf_global_ctrl_valid, s_cet_valid
from hvtests.vmx.msr_rules import pat_valid

SET = RuleSet(Stage.HOST, "27.2.2")
SEGMENTS = RuleSet(Stage.HOST, "27.2.3")
SIZE = RuleSet(Stage.HOST, "27.2.4")
rule = SET.rule
LOW32 = 0xFFFF_FFFF


# -- control registers and MSRs ------------------------------------------------------------------------------------

@rule("host.cr0.fixed", "HOST_CR0")
def cr0_fixed(s: EntryState) -> bool:
    """HOST_CR0 must have the bits that are 1 in IA32_VMX_CR0_FIXED0, and none that are 0 in IA32_VMX_CR0_FIXED1."""
    value = s.read("HOST_CR0")
    return not (s.cap.cr0_fixed0 & ~value or value & ~s.cap.cr0_fixed1)


@rule("host.cr4.fixed", "HOST_CR4")
def cr4_fixed(s: EntryState) -> bool:
    """HOST_CR4 must have the bits that are 1 in IA32_VMX_CR4_FIXED0, and none that are 0 in IA32_VMX_CR4_FIXED1."""
    value = s.read("HOST_CR4")
    return not (s.cap.cr4_fixed0 & ~value or value & ~s.cap.cr4_fixed1)


@rule("host.cr4.cet_needs_wp", "HOST_CR0", "HOST_CR4")
def cet_needs_wp(s: EntryState) -> bool:
    """If CR4.CET is 1 in the host, CR0.WP must be 1."""
    return not s.read("HOST_CR4") & cr.CR4_CET or bool(s.read("HOST_CR0") & cr.CR0_WP)


@rule("host.cr3.width", "HOST_CR3")
def cr3_width(s: EntryState) -> bool:
    """HOST_CR3 must not set a bit beyond the processor's physical-address width."""
    return cr3_valid(s.cap, s.read("HOST_CR3"))


@rule("host.sysenter_esp.canonical", "HOST_IA32_SYSENTER_ESP")
def sysenter_esp(s: EntryState) -> bool:
    """HOST_IA32_SYSENTER_ESP must be a canonical address."""
    return s.cap.is_canonical(s.read("HOST_IA32_SYSENTER_ESP"))


@rule("host.sysenter_eip.canonical", "HOST_IA32_SYSENTER_EIP")
def sysenter_eip(s: EntryState) -> bool:
    """HOST_IA32_SYSENTER_EIP must be a canonical address."""
    return s.cap.is_canonical(s.read("HOST_IA32_SYSENTER_EIP"))


@rule("host.perf_global_ctrl.reserved", EXIT, "HOST_IA32_PERF_GLOBAL_CTRL")
def perf_global_ctrl(s: EntryState) -> bool:
    """If the VM-exit control "load IA32_PERF_GLOBAL_CTRL" is 1, reserved bits of HOST_IA32_PERF_GLOBAL_CTRL must
    be 0."""
    if not s.exit & c.EXIT_LOAD_IA32_PERF_GLOBAL_CTRL:
        return True
    return perf_global_ctrl_valid(s.cap, s.read("HOST_IA32_PERF_GLOBAL_CTRL"))


@rule("host.pat.types", EXIT, "HOST_IA32_PAT")
def pat_types(s: EntryState) -> bool:
    """If the VM-exit control "load IA32_PAT" is 1, each byte of HOST_IA32_PAT must be 0 (UC), 1 (WC), 4 (WT),
    5 (WP), 6 (WB) or 7 (UC-)."""
    return not s.exit & c.EXIT_LOAD_IA32_PAT or pat_valid(s.read("HOST_IA32_PAT"))


@rule("host.efer.reserved", EXIT, "HOST_IA32_EFER")
def efer_reserved(s: EntryState) -> bool:
    """If the VM-exit control "load IA32_EFER" is 1, reserved bits of HOST_IA32_EFER must be 0."""
    return not s.exit & c.EXIT_LOAD_IA32_EFER or not s.read("HOST_IA32_EFER") & s.cap.efer_reserved


@rule("host.efer.lma", EXIT, "HOST_IA32_EFER")
def efer_lma(s: EntryState) -> bool:
    """If the VM-exit control "load IA32_EFER" is 1, LMA in HOST_IA32_EFER must equal "host address-space size"."""
    if not s.exit & c.EXIT_LOAD_IA32_EFER:
        return True
    return bool(s.read("HOST_IA32_EFER") & cr.EFER_LMA) == bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE)


@rule("host.efer.lme", EXIT, "HOST_IA32_EFER")
def efer_lme(s: EntryState) -> bool:
    """If the VM-exit control "load IA32_EFER" is 1, LME in HOST_IA32_EFER must equal "host address-space size"."""
    if not s.exit & c.EXIT_LOAD_IA32_EFER:
        return True
    return bool(s.read("HOST_IA32_EFER") & cr.EFER_LME) == bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE)


@rule("host.s_cet.valid", EXIT, "HOST_S_CET")
def s_cet(s: EntryState) -> bool:
    """If the VM-exit control "load CET state" is 1, HOST_S_CET must be canonical, its bits 9:6 must be 0, and bits
    10 (SUPPRESS) and 11 (TRACKER) must not both be 1."""
    return not s.exit & c.EXIT_LOAD_CET_STATE or s_cet_valid(s.cap, s.read("HOST_S_CET"))


@rule("host.ssp_table.canonical", EXIT, "HOST_INTR_SSP_TABLE")
def ssp_table(s: EntryState) -> bool:
    """If the VM-exit control "load CET state" is 1, HOST_INTR_SSP_TABLE must be canonical."""
    return not s.exit & c.EXIT_LOAD_CET_STATE or s.cap.is_canonical(s.read("HOST_INTR_SSP_TABLE"))


@rule("host.ssp.valid", EXIT, "HOST_SSP")
def ssp(s: EntryState) -> bool:
    """If the VM-exit control "load CET state" is 1, HOST_SSP must be canonical and its bits 1:0 must be 0."""
    if not s.exit & c.EXIT_LOAD_CET_STATE:
        return True
    return not s.read("HOST_SSP") & 3 and s.cap.is_canonical(s.read("HOST_SSP"))


@rule("host.pkrs.upper", EXIT, "HOST_IA32_PKRS")
def pkrs(s: EntryState) -> bool:
    """If the VM-exit control "load PKRS" is 1, bits 63:32 of HOST_IA32_PKRS must be 0."""
    return not s.exit & c.EXIT_LOAD_PKRS or not s.read("HOST_IA32_PKRS") >> 32


# -- segment and descriptor-table registers ------------------------------------------------------------------------

@SEGMENTS.each(HOST_SEGMENTS, "host.{r}.rpl", "HOST_{r}_SELECTOR")
def selector_rpl(s: EntryState, r: str) -> bool:
    """Bits 1:0 (RPL) and 2 (TI) of HOST_{r}_SELECTOR must be 0."""
    return not s.read(f"HOST_{r}_SELECTOR") & 7


@SEGMENTS.each(("CS", "TR"), "host.{r}.null", "HOST_{r}_SELECTOR")
def selector_null(s: EntryState, r: str) -> bool:
    """HOST_{r}_SELECTOR must not be 0."""
    return s.read(f"HOST_{r}_SELECTOR") != 0


@SEGMENTS.rule("host.ss.null", EXIT, "HOST_SS_SELECTOR")
def ss_null(s: EntryState) -> bool:
    """If "host address-space size" is 0, HOST_SS_SELECTOR must not be 0."""
    return bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE) or s.read("HOST_SS_SELECTOR") != 0


@SEGMENTS.each(("FS", "GS", "GDTR", "IDTR", "TR"), "host.{r}.base", "HOST_{r}_BASE")
def base_canonical(s: EntryState, r: str) -> bool:
    """HOST_{r}_BASE must be a canonical address."""
    return s.cap.is_canonical(s.read(f"HOST_{r}_BASE"))


# -- address-space size --------------------------------------------------------------------------------------------

@SIZE.rule("host.size.ia32e_from_legacy", HOST_LMA, ENTRY)
def ia32e_from_legacy(s: EntryState) -> bool:
    """If the processor is outside IA-32e mode (EFER.LMA = 0), "IA-32e mode guest" must be 0."""
    return s.host_lma or not s.ia32e


@SIZE.rule("host.size.host64_from_legacy", HOST_LMA, EXIT)
def host64_from_legacy(s: EntryState) -> bool:
    """If the processor is outside IA-32e mode (EFER.LMA = 0), "host address-space size" must be 0."""
    return s.host_lma or not s.exit & c.HOST_ADDRESS_SPACE_SIZE


@SIZE.rule("host.size.host32_from_ia32e", HOST_LMA, EXIT)
def host32_from_ia32e(s: EntryState) -> bool:
    """If the processor is in IA-32e mode (EFER.LMA = 1), "host address-space size" must be 1."""
    return not s.host_lma or bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE)


@SIZE.rule("host.size.ia32e_guest", EXIT, ENTRY)
def ia32e_guest(s: EntryState) -> bool:
    """If "host address-space size" is 0, "IA-32e mode guest" must be 0."""
    return bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE) or not s.ia32e


@SIZE.rule("host.size.pcide", EXIT, "HOST_CR4")
def pcide(s: EntryState) -> bool:
    """If "host address-space size" is 0, CR4.PCIDE must be 0 in the host."""
    return bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE) or not s.read("HOST_CR4") & cr.CR4_PCIDE


@SIZE.rule("host.size.rip_upper", EXIT, "HOST_RIP")
def rip_upper(s: EntryState) -> bool:
    """If "host address-space size" is 0, bits 63:32 of HOST_RIP must be 0."""
    return bool(s.exit & c.HOST_ADDRESS_SPACE_SIZE) or not s.read("HOST_RIP") >> 32


@SIZE.rule("host.size.pae", EXIT, "HOST_CR4")
def pae(s: EntryState) -> bool:
    """If "host address-space size" is 1, CR4.PAE must be 1 in the host."""
    return not s.exit & c.HOST_ADDRESS_SPACE_SIZE or bool(s.read("HOST_CR4") & cr.CR4_PAE)


@SIZE.rule("host.size.rip_canonical", EXIT, "HOST_RIP")
def rip_canonical(s: EntryState) -> bool:
    """If "host address-space size" is 1, HOST_RIP must be a canonical address."""
    return not s.exit & c.HOST_ADDRESS_SPACE_SIZE or s.cap.is_canonical(s.read("HOST_RIP"))
