"""Layouts of exit qualifications and of other information fields, bit by bit (SDM 3C 28.2.1 [27.2.1], 25.9 [24.9])."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from generator.arch.bits import BitField, fields

_NMI: Final = (12, 12, "NMI_UNBLOCKING", "IRET removed blocking by NMI before the exit")
_LINEAR: Final = fields((0, 63, "LINEAR_ADDRESS", "the operand's linear address"))
_DISPLACEMENT: Final = fields((0, 63, "DISPLACEMENT", "the displacement in the instruction, sign-extended"))

# By basic exit reason. Reason 0 is #DB's; for #PF the qualification is the linear address that faulted.
QUALIFICATIONS: Mapping[int, tuple[BitField, ...]] = MappingProxyType({
    0: fields(
        ( 0,  3, "B3_TO_B0",       "#DB only: conditions of breakpoints 3 to 0 met (#PF: this is the linear address)"),
        (11, 11, "BLD",            "#DB only: bus lock detected"),
        (13, 13, "BD",             "#DB only: debug-register access with DR7.GD"),
        (14, 14, "BS",             "#DB only: single step"),
        (16, 16, "RTM",            "#DB only: inside a transaction")),
    4: fields((0, 7, "VECTOR",     "start-up vector: the page where the CPU starts")),
    9: fields(
        ( 0, 15, "SELECTOR",       "selector of the task-state segment to switch to"),
        (30, 31, "SOURCE",         "0 CALL, 1 IRET, 2 JMP, 3 task gate in the IDT")),
    14: _LINEAR,
    28: fields(
        ( 0,  3, "CR",             "number of the control register (CLTS, LMSW: 0)"),
        ( 4,  5, "TYPE",           "0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW"),
        ( 6,  6, "LMSW_MEMORY",    "LMSW: operand in memory"),
        ( 8, 11, "GPR",            "MOV: number of the general-purpose register"),
        (16, 31, "LMSW_SOURCE",    "LMSW: source operand")),
    29: fields(
        ( 0,  2, "DR",             "number of the debug register"),
        ( 4,  4, "FROM",           "0 MOV to DR, 1 MOV from DR"),
        ( 8, 11, "GPR",            "number of the general-purpose register")),
    30: fields(
        ( 0,  2, "SIZE",           "size of the access: 0 = 1 byte, 1 = 2 bytes, 3 = 4 bytes"),
        ( 3,  3, "IN",             "0 OUT, 1 IN"),
        ( 4,  4, "STRING",         "INS or OUTS"),
        ( 5,  5, "REP",            "REP prefix"),
        ( 6,  6, "IMMEDIATE",      "0 port in DX, 1 port in the instruction"),
        (16, 31, "PORT",           "port number")),
    33: fields((0, 63, "CAUSE",    "0 most causes, 2 PDPTEs, 3 NMI injection, 4 VMCS link pointer")),
    34: fields((0, 63, "ENTRY",    "which entry of the VM-entry MSR-load area failed, counted from 1")),
    36: fields((0, 0, "ARMED",     "address-range monitoring was armed")),
    44: fields(
        ( 0, 11, "OFFSET",         "offset in the APIC page, for linear accesses"),
        (12, 15, "TYPE",           "0 read, 1 write, 2 fetch, 3 event delivery, 10 and 15 guest-physical"),
        (16, 16, "ASYNCHRONOUS",   "not by the instruction at RIP")),
    45: fields((0, 7, "VECTOR",    "vector of the virtual interrupt that ended")),
    48: fields(
        ( 0,  0, "READ",           "a data read"),
        ( 1,  1, "WRITE",          "a data write"),
        ( 2,  2, "FETCH",          "an instruction fetch"),
        ( 3,  3, "READABLE",       "the EPT entries allow reads"),
        ( 4,  4, "WRITABLE",       "the EPT entries allow writes"),
        ( 5,  5, "EXECUTABLE",     "the EPT entries allow execution (with mode-based control: by the supervisor)"),
        ( 6,  6, "USER_EXECUTABLE", "the EPT entries allow execution in user mode"),
        ( 7,  7, "LINEAR_VALID",   "GUEST_LINEAR_ADDRESS is valid"),
        ( 8,  8, "FINAL",          "0 access to a guest paging structure, 1 to the translation of a linear address"),
        ( 9,  9, "USER_LINEAR",    "advanced information: the linear address is a user-mode one"),
        (10, 10, "RW_LINEAR",      "advanced information: the linear address is writable"),
        (11, 11, "XD_LINEAR",      "advanced information: the linear address is execute-disabled"),
        _NMI,
        (13, 13, "SHADOW_STACK",   "a shadow-stack access"),
        (14, 14, "SUPERVISOR_SSS", "the EPT entries allow supervisor shadow-stack accesses"),
        (15, 15, "GUEST_PAGING",   "guest-paging verification caused it"),
        (16, 16, "ASYNCHRONOUS",   "not by the instruction at RIP")),
    56: fields((0, 11, "OFFSET",   "offset of the write in the virtual-APIC page")),
    62: fields(_NMI),
    66: fields((11, 11, "MISS",    "0 misconfiguration, 1 miss"), _NMI),
    75: fields((0, 0, "INVALID",   "the VM's context is corrupted: it must not go on"), _NMI),
    **dict.fromkeys((19, 21, 22, 23, 25, 27, 46, 47, 50, 53, 58, 63, 64), _DISPLACEMENT),
})

_EVENT: Final = (
    ( 0,  7, "VECTOR",          "vector of the interrupt or exception"),
    ( 8, 10, "TYPE",            "0 external interrupt, 2 NMI, 3 hardware exception, 4 software interrupt, 5 INT1, "
                                "6 software exception, 7 other event"),
    (11, 11, "ERROR_CODE",      "the error code is valid, or is to be delivered"),
)

# By name of a VMCS field, where the field is made of bits and is not a control word.
VMCS_LAYOUTS: Mapping[str, tuple[BitField, ...]] = MappingProxyType({
    "VM_EXIT_REASON": fields(
        ( 0, 15, "BASIC",             "basic exit reason"),
        (25, 25, "SHADOW_STACK_BUSY", "a supervisor shadow stack stays busy"),
        (26, 26, "BUS_LOCK",          "the processor asserted a bus lock"),
        (27, 27, "ENCLAVE",           "the exit was incident to enclave mode"),
        (28, 28, "PENDING_MTF",       "an MTF VM exit is pending"),
        (29, 29, "FROM_ROOT",         "an exit from VMX root operation, to the SMM monitor"),
        (31, 31, "ENTRY_FAILURE",     "the VM entry failed")),
    "VM_ENTRY_INTR_INFO_FIELD": fields(*_EVENT, (31, 31, "VALID", "an event is injected")),
    "VM_EXIT_INTR_INFO": fields(*_EVENT, _NMI, (31, 31, "VALID", "the exit was by an exception or interrupt")),
    "IDT_VECTORING_INFO_FIELD": fields(*_EVENT, (31, 31, "VALID", "the exit interrupted the delivery of an event")),
    # As VMX instructions fill it; LGDT and its kind, RDRAND and string I/O use some of these bits otherwise.
    "VMX_INSTRUCTION_INFO": fields(
        ( 0,  1, "SCALE",             "memory operand: the index is multiplied by 1, 2, 4, 8"),
        ( 3,  6, "REGISTER1",         "register operand, where the operand is no memory"),
        ( 7,  9, "ADDRESS_SIZE",      "0 16 bits, 1 32 bits, 2 64 bits"),
        (10, 10, "IS_REGISTER",       "0 memory operand, 1 register operand"),
        (15, 17, "SEGMENT",           "0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS"),
        (18, 21, "INDEX",             "memory operand: number of the index register"),
        (22, 22, "NO_INDEX",          "memory operand: there is no index register"),
        (23, 26, "BASE",              "memory operand: number of the base register"),
        (27, 27, "NO_BASE",           "memory operand: there is no base register"),
        (28, 31, "REGISTER2",         "number of the other register operand")),
    "GUEST_INTERRUPTIBILITY_INFO": fields(
        ( 0,  0, "STI",               "blocking by STI"),
        ( 1,  1, "MOV_SS",            "blocking by MOV SS"),
        ( 2,  2, "SMI",               "blocking by SMI"),
        ( 3,  3, "NMI",               "blocking by NMI"),
        ( 4,  4, "ENCLAVE",           "enclave interruption")),
    "GUEST_ACTIVITY_STATE": fields((0, 31, "STATE", "0 active, 1 HLT, 2 shutdown, 3 wait for SIPI")),
    "GUEST_PENDING_DBG_EXCEPTIONS": fields(
        ( 0,  3, "B3_TO_B0",          "conditions of breakpoints 3 to 0 met"),
        (11, 11, "BLD",               "bus lock detected"),
        (12, 12, "ENABLED",           "at least one met breakpoint is enabled"),
        (14, 14, "BS",                "single step"),
        (16, 16, "RTM",               "inside a transaction")),
    "EPT_POINTER": fields(
        ( 0,  2, "MEMORY_TYPE",       "of the EPT structures: 0 UC, 6 WB"),
        ( 3,  5, "LEVELS",            "page-walk length less 1"),
        ( 6,  6, "AD",                "accessed and dirty flags"),
        ( 7,  7, "SSS",               "access rights for supervisor shadow-stack pages"),
        (12, 51, "TABLE",             "physical address of the top table, in pages")),
    "GUEST_INTR_STATUS": fields((0, 7, "RVI", "requesting virtual interrupt"), (8, 15, "SVI", "servicing one")),
    **{f"GUEST_{segment}_AR_BYTES": fields(
        ( 0,  3, "TYPE",              "segment type"),
        ( 4,  4, "S",                 "0 system, 1 code or data"),
        ( 5,  6, "DPL",               "descriptor privilege level"),
        ( 7,  7, "P",                 "present"),
        (12, 12, "AVL",               "for software"),
        (13, 13, "L",                 "64-bit code (CS only)"),
        (14, 14, "DB",                "default operation size"),
        (15, 15, "G",                 "limit in units of 4 KiB"),
        (16, 16, "UNUSABLE",          "the segment is unusable"))
       for segment in ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")},
})
