"""Exceptions and interrupts as data: vectors, classes, interruption information, interruptibility and activity.

SDM 3A 6.3.1 and 6.15 (exceptions), table 6-4 and 6-5 (double faults); SDM 3C 25.8.3 [24.8.3] (injection), 25.9.2 and
25.9.3 (exits), 25.4.2 (interruptibility and activity state).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType


class EventType(IntEnum):
    """Bits 10:8 of an interruption-information field (SDM 3C tables 25-17, 25-19, 25-20)."""

    EXTERNAL_INTERRUPT = 0
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5  # INT1
    SOFTWARE_EXCEPTION = 6             # INT3, INTO
    OTHER_EVENT = 7                    # pending MTF VM exit (injection); SYSCALL, SYSENTER (FRED)


INFO_VECTOR_MASK = 0xFF
INFO_TYPE_SHIFT = 8
INFO_TYPE_MASK = 7 << INFO_TYPE_SHIFT
INFO_DELIVER_ERROR_CODE = 1 << 11      # in an exit's information: the error code is valid
INFO_NMI_UNBLOCKING = 1 << 12          # in an exit's information: unblocking by IRET; undefined in IDT-vectoring
INFO_NESTED_EXCEPTION = 1 << 13
INFO_VALID = 1 << 31
INFO_INJECTION_RESERVED = 0x7FFF_F000  # bits 30:12 of the VM-entry field (bit 13 aside where FRED exists)

# Guest interruptibility state, SDM 3C table 25-3
BLOCKING_BY_STI = 1 << 0
BLOCKING_BY_MOV_SS = 1 << 1
BLOCKING_BY_SMI = 1 << 2
BLOCKING_BY_NMI = 1 << 3
ENCLAVE_INTERRUPTION = 1 << 4
INTERRUPTIBILITY_RESERVED = 0xFFFF_FFE0

# Guest pending debug exceptions, SDM 3C table 25-4
PENDING_B0_TO_B3 = 0xF
PENDING_BLD = 1 << 11
PENDING_ENABLED_BREAKPOINT = 1 << 12
PENDING_BS = 1 << 14
PENDING_RTM = 1 << 16

# Exception error codes that are selectors, SDM 3A 6.13
ERROR_EXT = 1 << 0
ERROR_IDT = 1 << 1
ERROR_TI = 1 << 2


class ActivityState(IntEnum):
    """Guest activity state (SDM 3C 25.4.2)."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class FaultClass(Enum):
    """What an exception counts as when another one follows while it is delivered (SDM 3A table 6-4)."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    PAGE_FAULT = "page fault"
    DOUBLE_FAULT = "double fault"


@dataclass(frozen=True, slots=True)
class ExceptionVector:
    """One of the vectors 0 to 31 that the architecture defines."""

    number: int
    mnemonic: str
    title: str
    has_error_code: bool
    fault_class: FaultClass
    section: str


_B, _C, _P, _D = FaultClass.BENIGN, FaultClass.CONTRIBUTORY, FaultClass.PAGE_FAULT, FaultClass.DOUBLE_FAULT

EXCEPTIONS: tuple[ExceptionVector, ...] = tuple(
    ExceptionVector(number, mnemonic, title, has_code, fault_class, "SDM 3A 6.15")
    for number, mnemonic, title, has_code, fault_class in (
        ( 0, "#DE", "divide error",                       False, _C),
        ( 1, "#DB", "debug exception",                    False, _B),
        ( 2, "NMI", "non-maskable interrupt",             False, _B),
        ( 3, "#BP", "breakpoint",                         False, _B),
        ( 4, "#OF", "overflow",                           False, _B),
        ( 5, "#BR", "BOUND range exceeded",               False, _B),
        ( 6, "#UD", "invalid opcode",                     False, _B),
        ( 7, "#NM", "device not available",               False, _B),
        ( 8, "#DF", "double fault",                       True,  _D),
        (10, "#TS", "invalid TSS",                        True,  _C),
        (11, "#NP", "segment not present",                True,  _C),
        (12, "#SS", "stack-segment fault",                True,  _C),
        (13, "#GP", "general protection",                 True,  _C),
        (14, "#PF", "page fault",                         True,  _P),
        (16, "#MF", "x87 floating-point error",           False, _B),
        (17, "#AC", "alignment check",                    True,  _B),
        (18, "#MC", "machine check",                      False, _B),
        (19, "#XM", "SIMD floating-point exception",      False, _B),
        (20, "#VE", "virtualization exception",           False, _P),
        (21, "#CP", "control-protection exception",       True,  _C),
    ))

BY_NUMBER: Mapping[int, ExceptionVector] = MappingProxyType({vector.number: vector for vector in EXCEPTIONS})
BY_MNEMONIC: Mapping[str, ExceptionVector] = MappingProxyType({vector.mnemonic: vector for vector in EXCEPTIONS})
WITH_ERROR_CODE = frozenset(vector.number for vector in EXCEPTIONS if vector.has_error_code)

DE, DB, NMI, BP, OF, BR, UD, NM, DF = 0, 1, 2, 3, 4, 5, 6, 7, 8
TS, NP, SS, GP, PF, MF, AC, MC, XM, VE, CP = 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21


def makes_double_fault(first: int, second: int) -> bool:
    """Whether exception `second`, raised while `first` is delivered, becomes #DF (SDM 3A table 6-5)."""
    one = BY_NUMBER[first].fault_class if first in BY_NUMBER else _B
    two = BY_NUMBER[second].fault_class if second in BY_NUMBER else _B
    if one is _C:
        return two is _C
    if one is _P:
        return two in (_C, _P)
    return False


def interruption_info(vector: int, type_: EventType, *, error_code: bool = False) -> int:
    """A valid interruption-information field."""
    return INFO_VALID | type_ << INFO_TYPE_SHIFT | vector | (INFO_DELIVER_ERROR_CODE if error_code else 0)


def describe(info: int) -> str:
    """An interruption-information field in words; "none" where it is not valid."""
    if not info & INFO_VALID:
        return "none"
    vector, kind = info & INFO_VECTOR_MASK, (info & INFO_TYPE_MASK) >> INFO_TYPE_SHIFT
    if kind == EventType.NMI:
        words = "NMI"
    elif kind in (EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION,
                  EventType.PRIVILEGED_SOFTWARE_EXCEPTION) and vector in BY_NUMBER:
        words = f"{BY_NUMBER[vector].mnemonic} ({BY_NUMBER[vector].title})"
    elif kind == 1:
        words = f"reserved type, vector {vector:#04x}"
    else:
        words = f"{EventType(kind).name.lower().replace('_', ' ')}, vector {vector:#04x}"
    return words + (" with error code" if info & INFO_DELIVER_ERROR_CODE else "")
