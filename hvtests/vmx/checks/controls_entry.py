"""Checks on the VM-exit and VM-entry control fields (SDM 3C 27.2.1.2, 27.2.1.3); a failure is VMfailValid 7."""

from __future__ import annotations

from generator.arch import controls as words
from generator.arch.events import INFO_DELIVER_ERROR_CODE, INFO_INJECTION_RESERVED, EventType
from hvtests.vmx.checks import controlbits as c
from hvtests.vmx.checks.controls_execution import addresses
from hvtests.vmx.checks.fields import ENTRY, EXIT, EXIT2, INFO, PIN
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import EntryState

EXIT_SET = RuleSet(Stage.CONTROLS, "27.2.1.2")
ENTRY_SET = RuleSet(Stage.CONTROLS, "27.2.1.3")

TYPE_RESERVED = 1
ERROR_CODE_VECTORS = frozenset((8, 10, 11, 12, 13, 14, 17))  # #DF #TS #NP #SS #GP #PF #AC
WITH_LENGTH = frozenset((EventType.SOFTWARE_INTERRUPT, EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
                         EventType.SOFTWARE_EXCEPTION))
ENTRY_BYTES = 16  # of an MSR area


def _msr_area(rules: RuleSet, id_: str, name: str) -> None:
    address, count = f"{name}_ADDR", f"{name}_COUNT"
    addresses(id_, address, 16, (count,), lambda s: s.read(count) != 0, f"{count} is not 0", rules)

    def last_byte(s: EntryState) -> bool:
        entries = s.read(count)
        last = s.read(address) + entries * ENTRY_BYTES - 1
        return not entries or not (last & s.cap.structure_reserved or last >> 64)

    last_byte.__doc__ = (f"If {count} is not 0, the last byte of the area ({address} + 16 x {count} - 1) must not lie "
                         "beyond the processor's physical-address width.")
    rules.rule(f"{id_}.last_byte", address, count)(last_byte)


# -- VM-exit controls ----------------------------------------------------------------------------------------------

@EXIT_SET.rule("ctl.exit.reserved", EXIT)
def exit_reserved(s: EntryState) -> bool:
    """VM-exit controls must be 1 where IA32_VMX_(TRUE_)EXIT_CTLS demands it, and 0 where it does not allow 1."""
    return s.cap.controls_valid(words.EXIT, s.exit)


@EXIT_SET.rule("ctl.exit2.reserved", *EXIT2)
def exit2_reserved(s: EntryState) -> bool:
    """If the VM-exit control "activate secondary controls" is 1, secondary VM-exit controls must be 0 where
    IA32_VMX_EXIT_CTLS2 does not allow 1."""
    if not s.exit & c.EXIT_ACTIVATE_SECONDARY_CONTROLS:
        return True
    return s.cap.controls_valid(words.EXIT2, s.read("SECONDARY_VM_EXIT_CONTROLS"))


@EXIT_SET.rule("ctl.exit.save_preemption_timer", PIN, EXIT)
def save_preemption_timer(s: EntryState) -> bool:
    """If "activate VMX-preemption timer" is 0, "save VMX-preemption timer value" must be 0."""
    return bool(s.pin & c.ACTIVATE_PREEMPTION_TIMER) or not s.exit & c.SAVE_PREEMPTION_TIMER


_msr_area(EXIT_SET, "ctl.exit_msr_store", "VM_EXIT_MSR_STORE")
_msr_area(EXIT_SET, "ctl.exit_msr_load", "VM_EXIT_MSR_LOAD")


# -- VM-entry controls ---------------------------------------------------------------------------------------------

@ENTRY_SET.rule("ctl.entry.reserved", ENTRY)
def entry_reserved(s: EntryState) -> bool:
    """VM-entry controls must be 1 where IA32_VMX_(TRUE_)ENTRY_CTLS demands it, and 0 where it does not allow 1."""
    return s.cap.controls_valid(words.ENTRY, s.entry)


@ENTRY_SET.rule("ctl.event.type", INFO)
def event_type(s: EntryState) -> bool:
    """The interruption type of an event to inject must not be 1, nor 7 (other event) unless "monitor trap flag" may
    be 1."""
    if not s.injects:
        return True
    offers_mtf = bool(s.cap.allowed1(words.PROCBASED) & words.PROCBASED.mask("MONITOR_TRAP_FLAG"))
    return s.event_type != TYPE_RESERVED and (s.event_type != EventType.OTHER_EVENT or offers_mtf)


@ENTRY_SET.rule("ctl.event.vector_nmi", INFO)
def event_vector_nmi(s: EntryState) -> bool:
    """If the interruption type is 2 (NMI), the vector must be 2."""
    return not s.injects or s.event_type != EventType.NMI or s.event_vector == 2


@ENTRY_SET.rule("ctl.event.vector_exception", INFO)
def event_vector_exception(s: EntryState) -> bool:
    """If the interruption type is 3 (hardware exception), the vector must be at most 31."""
    return not s.injects or s.event_type != EventType.HARDWARE_EXCEPTION or s.event_vector <= 31


@ENTRY_SET.rule("ctl.event.vector_other", INFO)
def event_vector_other(s: EntryState) -> bool:
    """If the interruption type is 7 (other event), the vector must be 0 (pending MTF VM exit)."""
    return not s.injects or s.event_type != EventType.OTHER_EVENT or s.event_vector == 0


@ENTRY_SET.rule("ctl.event.error_code_missing", INFO, "GUEST_CR0")
def event_error_code_missing(s: EntryState) -> bool:
    """Bit 11 (deliver error code) of an event to inject must be 1 for the hardware exceptions 8, 10 to 14 and 17 if
    CR0.PE is 1 in the guest and IA32_VMX_BASIC bit 56 is 0."""
    if not s.injects or s.event_type != EventType.HARDWARE_EXCEPTION or s.event_vector not in ERROR_CODE_VECTORS:
        return True
    return bool(s.read(INFO) & INFO_DELIVER_ERROR_CODE or not s.read("GUEST_CR0") & 1 or s.cap.any_error_code)


@ENTRY_SET.rule("ctl.event.error_code_type", INFO)
def event_error_code_type(s: EntryState) -> bool:
    """Bit 11 (deliver error code) of an event to inject must be 0 unless the interruption type is 3 (hardware
    exception)."""
    return not s.injects or not s.read(INFO) & INFO_DELIVER_ERROR_CODE or s.event_type == EventType.HARDWARE_EXCEPTION


@ENTRY_SET.rule("ctl.event.error_code_real_mode", INFO, "GUEST_CR0")
def event_error_code_real_mode(s: EntryState) -> bool:
    """Bit 11 (deliver error code) of an event to inject must be 0 if CR0.PE is 0 in the guest."""
    return not s.injects or not s.read(INFO) & INFO_DELIVER_ERROR_CODE or bool(s.read("GUEST_CR0") & 1)


@ENTRY_SET.rule("ctl.event.error_code_vector", INFO)
def event_error_code_vector(s: EntryState) -> bool:
    """Bit 11 (deliver error code) of an event to inject must be 0 for vectors other than 8, 10 to 14 and 17, unless
    IA32_VMX_BASIC bit 56 is 1."""
    if not s.injects or not s.read(INFO) & INFO_DELIVER_ERROR_CODE:
        return True
    return s.event_vector in ERROR_CODE_VECTORS or s.cap.any_error_code


@ENTRY_SET.rule("ctl.event.reserved", INFO)
def event_reserved(s: EntryState) -> bool:
    """Bits 30:12 of the interruption information of an event to inject must be 0."""
    return not s.injects or not s.read(INFO) & INFO_INJECTION_RESERVED


@ENTRY_SET.rule("ctl.event.error_code_reserved", INFO, "VM_ENTRY_EXCEPTION_ERROR_CODE")
def event_error_code_reserved(s: EntryState) -> bool:
    """If an event is injected with an error code, bits 31:16 of VM_ENTRY_EXCEPTION_ERROR_CODE must be 0."""
    if not s.injects or not s.read(INFO) & INFO_DELIVER_ERROR_CODE:
        return True
    return not s.read("VM_ENTRY_EXCEPTION_ERROR_CODE") >> 16


def _has_length(s: EntryState) -> bool:
    return s.injects and s.event_type in WITH_LENGTH


@ENTRY_SET.rule("ctl.event.length", INFO, "VM_ENTRY_INSTRUCTION_LEN")
def event_length(s: EntryState) -> bool:
    """If a software interrupt or a software exception is injected (types 4 to 6), VM_ENTRY_INSTRUCTION_LEN must not
    be greater than 15."""
    return not _has_length(s) or s.read("VM_ENTRY_INSTRUCTION_LEN") <= 15


@ENTRY_SET.rule("ctl.event.length_zero", INFO, "VM_ENTRY_INSTRUCTION_LEN")
def event_length_zero(s: EntryState) -> bool:
    """If a software interrupt or a software exception is injected (types 4 to 6), VM_ENTRY_INSTRUCTION_LEN must not
    be 0 unless IA32_VMX_MISC bit 30 is 1."""
    return not _has_length(s) or s.read("VM_ENTRY_INSTRUCTION_LEN") != 0 or bool(s.cap.misc >> 30 & 1)


_msr_area(ENTRY_SET, "ctl.entry_msr_load", "VM_ENTRY_MSR_LOAD")


@ENTRY_SET.rule("ctl.entry.smm", ENTRY)
def entry_smm(s: EntryState) -> bool:
    """Outside SMM, "entry to SMM" and "deactivate dual-monitor treatment" must be 0."""
    return not s.entry & (c.ENTRY_TO_SMM | c.DEACTIVATE_DUAL_MONITOR_TREATMENT)
