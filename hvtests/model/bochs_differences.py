"""Where Bochs 2.7 and the manual disagree about VM entries, and the manual wins. Each row was found by comparison.

`LACKS`: rules of ours that Bochs does not check. `STRICTER`: what it refuses and the manual allows. `OTHERWISE`: what
it refuses in another way. `as_bochs` judges an entry as Bochs does, so that nothing but these rows is excused.
"""

from __future__ import annotations

from generator.arch import descriptors as d
from generator.arch.cr import CR0_WP, CR4_CET
from generator.arch.events import EventType
from hvtests.model.bochs_entry import ENTERED, LOST, Outcome
from hvtests.vmx.checks import RULES, Checker, EntryState, Failure, Rule
from hvtests.vmx.checks.controlbits import ENTRY_LOAD_CET_STATE, ENTRY_TO_SMM

# rule -> (section, what the manual says and Bochs does)
LACKS: dict[str, tuple[str, str]] = {
    "host.perf_global_ctrl.reserved": ("27.2.2", "reserved bits must be 0; Bochs has the control, not the MSR"),
    "guest.perf_global_ctrl.reserved": ("27.3.1.1", "reserved bits must be 0; Bochs has the control, not the MSR"),
    "guest.debugctl.reserved": ("27.3.1.1", "reserved bits must be 0 with \"load debug controls\"; not checked"),
    "guest.ia32e.needs_paging": ("27.3.1.1", "CR0.PG must be 1, unrestricted guest or not; Bochs lets the latter off"),
    "guest.cs.dpl_nonconforming": ("27.3.1.2", "DPL of CS must equal DPL of SS; Bochs compares RPL of CS instead"),
    "guest.cs.dpl_conforming": ("27.3.1.2", "DPL of CS must not exceed DPL of SS; Bochs compares RPL of CS instead"),
    "guest.rip.canonical": ("27.3.1.4", "bits 63:48 of RIP must be identical in 64-bit mode; Bochs looks at none"),
    "guest.rflags.vm_without_pe": ("27.3.1.4", "RFLAGS.VM must be 0 if CR0.PE is 0; Bochs allows both"),
    "guest.activity.event_in_hlt": ("27.3.1.5", "in HLT only some events may be injected; Bochs takes any"),
    "guest.blocking.nmi_for_nmi": ("27.3.1.5", "no NMI into blocking by NMI with virtual NMIs; Bochs takes it"),
    "guest.pending_debug.bs_missing": ("27.3.1.5", "BS must be 1 while TF is 1 and STI or MOV SS blocks; unchecked"),
    "guest.pending_debug.bs_unexpected": ("27.3.1.5", "BS must be 0 while TF is 0 and STI or MOV SS blocks; unchecked"),
}

STRICTER: dict[str, tuple[str, str]] = {
    "CS.RPL": ("27.3.1.2", "Bochs wants RPL of CS to equal (non-conforming) or not to be below (conforming) its DPL; "
                           "the manual compares DPL of CS with DPL of SS"),
    "SSP": ("27.3.1.4", "Bochs wants the guest's SSP canonical; by the manual bit 47 may differ from bits 63:48"),
}

OTHERWISE: dict[str, tuple[str, str]] = {
    "ctl.entry.smm": ("27.2.1.3", "\"entry to SMM\" outside SMM is an invalid control, error 7; Bochs: reason 33"),
    "ctl.event.type": ("27.2.1.3", "type 7 is reserved without monitor trap flag, error 7; Bochs goes on and panics"),
    "ctl.event.error_code_type": ("27.2.1.3", "an error code with exceptions only, IA32_VMX_BASIC[56] or not; Bochs "
                                              "does not look where that bit is 1"),
    "ctl.event.error_code_real_mode": ("27.2.1.3", "no error code while CR0.PE is 0, IA32_VMX_BASIC[56] or not; "
                                                   "Bochs does not look where that bit is 1"),
    "host.cr4.cet_needs_wp": ("27.2.2", "CR4.CET needs CR0.WP, error 8; Bochs enters, and panics at the VM exit"),
    "guest.blocking.sti_for_nmi": ("27.8", "qualification 3 for an NMI while STI blocks; Bochs gives 0"),
    "guest.pending_debug.reserved": ("27.3.1.5", "bits 63:32 are reserved too; Bochs reads 32 bits"),
}


ORDER: dict[str, tuple[str, str]] = {
    "order": ("27.8", "checks on guest state may come in any order, and so a state that breaks two rules has either's "
                      "qualification; Bochs looks at the VMCS link pointer before most other non-register state"),
}
ALL = LACKS | STRICTER | OTHERWISE | ORDER

_LATE = ("guest.rflags.if_for_interrupt", "guest.activity.", "guest.blocking.", "guest.pending_debug.")
_EARLY = ("guest.activity.hlt_cpl",)


def _place(rule: Rule) -> int:
    """0 for rules that Bochs checks before the link pointer or with it, 1 for those after, 2 for PDPTEs."""
    if rule.id.startswith("guest.pdpt"):
        return 2
    return int(rule.id.startswith(_LATE) and rule.id not in _EARLY)


_IN_BOCHS_ORDER = sorted(RULES, key=_place)


def outcome_of(failure: Failure | None) -> Outcome:
    """A failure of ours in the form of an outcome."""
    if failure is None:
        return ENTERED
    if failure.instruction_error is not None:
        return Outcome("fail", failure.instruction_error)
    return Outcome("exit", 33, failure.qualification)


def as_bochs(state: EntryState) -> Outcome:
    """What Bochs makes of an entry: our rules, changed by the tables above and by nothing else."""
    info = state.read("VM_ENTRY_INTR_INFO_FIELD")
    panics = bool(info >> 31) and info >> 8 & 7 == EventType.OTHER_EVENT and not state.cap.has("MONITOR_TRAP_FLAG")
    skipped = {*LACKS, "host.cr4.cet_needs_wp"}
    if state.cap.any_error_code:
        skipped |= {"ctl.event.error_code_type", "ctl.event.error_code_real_mode"}
    if panics:
        skipped |= {"ctl.event.type", "ctl.event.vector_other"}
    if state.read("VM_ENTRY_CONTROLS") & ENTRY_TO_SMM:
        skipped.add("ctl.entry.smm")
    if not state.read("GUEST_PENDING_DBG_EXCEPTIONS") & 0xFFFF_FFFF:
        skipped.add("guest.pending_debug.reserved")
    outcome = outcome_of(Checker(rule for rule in _IN_BOCHS_ORDER if rule.id not in skipped).run(state))
    if outcome == Outcome("exit", 33, 3):
        outcome = Outcome("exit", 33, 0)
    if outcome.kind == "fail" or (outcome.kind == "exit" and outcome.qualification != 2):
        return outcome
    if _cs_rpl(state) or _ssp(state) or "ctl.entry.smm" in skipped:
        return Outcome("exit", 33, 0)
    cet_without_wp = state.read("HOST_CR4") & CR4_CET and not state.read("HOST_CR0") & CR0_WP
    return LOST if outcome == ENTERED and (panics or cet_without_wp) else outcome


def row_of(state: EntryState, failure: Failure | None, outcome: Outcome) -> str:
    """The row that explains why Bochs' outcome is not what our first failing rule says."""
    if failure is not None and outcome == Outcome("exit", 33, 4):
        return "order"
    if failure is not None and failure.rule.id in LACKS | OTHERWISE:
        return failure.rule.id
    return "CS.RPL" if _cs_rpl(state) else "SSP"


def _ssp(state: EntryState) -> bool:
    return bool(state.entry & ENTRY_LOAD_CET_STATE) and not state.cap.is_canonical(state.read("GUEST_SSP"))


def _cs_rpl(state: EntryState) -> bool:
    if state.v8086:
        return False
    rights, rpl = state.read("GUEST_CS_AR_BYTES"), state.read("GUEST_CS_SELECTOR") & 3
    kind, dpl = rights & d.AR_TYPE_MASK, rights >> d.AR_DPL_SHIFT & 3
    return (kind in (9, 11) and rpl != dpl) or (kind in (13, 15) and rpl < dpl)
