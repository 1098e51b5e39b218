"""VM-instruction errors as data: what VM_INSTRUCTION_ERROR holds after VMfailValid (SDM 3C 31.4 [30.4])."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class InstructionError:
    """One VM-instruction error number."""

    number: int
    name: str
    title: str
    section: str = "SDM 3C 31.4"


INSTRUCTION_ERRORS: tuple[InstructionError, ...] = tuple(InstructionError(*row) for row in (
    ( 1, "VMCALL_IN_ROOT",                 "VMCALL in VMX root operation"),
    ( 2, "VMCLEAR_INVALID_ADDRESS",        "VMCLEAR of an address that is misaligned or too wide"),
    ( 3, "VMCLEAR_VMXON_POINTER",          "VMCLEAR of the VMXON region"),
    ( 4, "VMLAUNCH_NOT_CLEAR",             "VMLAUNCH of a VMCS whose launch state is not clear"),
    ( 5, "VMRESUME_NOT_LAUNCHED",          "VMRESUME of a VMCS whose launch state is not launched"),
    ( 6, "VMRESUME_AFTER_VMXOFF",          "VMRESUME after VMXOFF, or VMXOFF and VMXON, since VMLAUNCH"),
    ( 7, "ENTRY_INVALID_CONTROLS",         "VM entry with control fields that are invalid"),
    ( 8, "ENTRY_INVALID_HOST_STATE",       "VM entry with host-state fields that are invalid"),
    ( 9, "VMPTRLD_INVALID_ADDRESS",        "VMPTRLD of an address that is misaligned or too wide"),
    (10, "VMPTRLD_VMXON_POINTER",          "VMPTRLD of the VMXON region"),
    (11, "VMPTRLD_WRONG_REVISION",         "VMPTRLD of a region with another VMCS revision identifier"),
    (12, "UNSUPPORTED_FIELD",              "VMREAD or VMWRITE of a field that the processor does not have"),
    (13, "VMWRITE_READ_ONLY",              "VMWRITE of a field that can only be read"),
    (15, "VMXON_IN_ROOT",                  "VMXON in VMX root operation"),
    (16, "ENTRY_INVALID_EXECUTIVE_VMCS",   "VM entry with an executive-VMCS pointer that is invalid"),
    (17, "ENTRY_EXECUTIVE_NOT_LAUNCHED",   "VM entry with an executive VMCS that is not launched"),
    (18, "ENTRY_EXECUTIVE_NOT_VMXON",      "VM entry to deactivate dual-monitor treatment with an executive-VMCS "
                                           "pointer that is not the VMXON pointer"),
    (19, "VMCALL_NOT_CLEAR",               "VMCALL to activate dual-monitor treatment with a VMCS that is not clear"),
    (20, "VMCALL_INVALID_EXIT_CONTROLS",   "VMCALL to activate dual-monitor treatment with VM-exit controls that "
                                           "are invalid"),
    (22, "VMCALL_WRONG_MSEG_REVISION",     "VMCALL to activate dual-monitor treatment with another MSEG revision "
                                           "identifier"),
    (23, "VMXOFF_UNDER_DUAL_MONITOR",      "VMXOFF under dual-monitor treatment of SMIs and SMM"),
    (24, "VMCALL_INVALID_SMM_FEATURES",    "VMCALL to activate dual-monitor treatment with SMM-monitor features "
                                           "that are invalid"),
    (25, "ENTRY_INVALID_EXECUTIVE_CONTROLS", "VM entry to return from SMM with VM-execution controls in the "
                                           "executive VMCS that are invalid"),
    (26, "ENTRY_BLOCKED_BY_MOV_SS",        "VM entry while events are blocked by MOV SS"),
    (28, "INVALID_OPERAND_INVEPT_INVVPID", "INVEPT or INVVPID with an operand that is invalid"),
))

# Numbers between 1 and 28 that the manual gives no meaning to.
UNASSIGNED = frozenset({14, 21, 27})

BY_NUMBER: Mapping[int, InstructionError] = MappingProxyType({error.number: error for error in INSTRUCTION_ERRORS})
BY_NAME: Mapping[str, InstructionError] = MappingProxyType({error.name: error for error in INSTRUCTION_ERRORS})
