"""Delivery of exceptions and interrupts through the IVT or the IDT: SDM 3A chapter 7 [6], SDM 1 21.1.4 (real mode).

:func:`deliver` makes one attempt and either completes it or raises what went wrong, with registers unchanged;
:func:`escalate` says what a fault during an attempt becomes. Root mode and the VMX model build on the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hvtests.machine import delivery
from hvtests.machine.cpu import Cpu, Mode
from hvtests.machine.decode import Instruction
from hvtests.machine.delivery import Fault, Frame
from hvtests.machine.stop import unmodelled

DEBUG, NMI, BREAKPOINT, OVERFLOW, DOUBLE_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 1, 2, 3, 4, 8, 13, 14
CONTRIBUTORY = frozenset((0, 10, 11, 12, 13, 21))     # SDM 3A table 7-4 [6-4]
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
_NOT_FAULTS = frozenset((1, 3, 4, 8, 18))             # traps and aborts: RF is pushed as it is


class EventKind(IntEnum):
    """What an event is, numbered as in interruption information (SDM 3C 25.8.3)."""

    EXTERNAL = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5   # INT1
    SOFTWARE_EXCEPTION = 6              # INT3, INTO


SOFTWARE = frozenset((EventKind.SOFTWARE_INTERRUPT, EventKind.PRIVILEGED_SOFTWARE_EXCEPTION,
                      EventKind.SOFTWARE_EXCEPTION))


@dataclass(frozen=True, slots=True)
class Event:
    """An event to deliver. `error_code` None: none is pushed. `length`: of the instruction, for software events."""

    vector: int
    kind: EventKind
    error_code: int | None = None
    length: int = 0
    injected: bool = False    # by VM entry: RFLAGS.RF is pushed as it is (SDM 3C 27.6.1.1)


class TripleFault(Exception):
    """A fault while a double fault was being delivered."""


class TaskGate(Exception):
    """The IDT entry is a task gate: `selector` of the new TSS. Root mode does not model it; a guest exits."""

    def __init__(self, selector: int) -> None:
        super().__init__(f"task gate to {selector:#x}")
        self.selector = selector


def exception(vector: int, error_code: int = 0) -> Event:
    """A hardware exception; the error code is dropped for vectors that have none."""
    return Event(vector, EventKind.EXCEPTION, error_code if vector in WITH_ERROR_CODE else None)


def escalate(first: Event, second: int) -> int:
    """Vector that exception `second` becomes when it is raised while `first` is delivered (SDM 3A table 7-5 [6-5]).

    Raises TripleFault.
    """
    if first.kind is EventKind.EXCEPTION:
        if first.vector == DOUBLE_FAULT:
            raise TripleFault
        if first.vector == PAGE_FAULT and (second == PAGE_FAULT or second in CONTRIBUTORY):
            return DOUBLE_FAULT
        if first.vector in CONTRIBUTORY and second in CONTRIBUTORY:
            return DOUBLE_FAULT
    return second


def deliver(cpu: Cpu, event: Event) -> None:
    """One attempt to deliver `event`: RIP is at the interrupted instruction, or at the software interrupt itself.

    Raises Fault or PageFault for what stops it, TaskGate, and whatever the memory behind the CPU raises.
    """
    software = event.kind in SOFTWARE
    external = not software or event.kind is EventKind.PRIVILEGED_SOFTWARE_EXCEPTION
    mode = cpu.mode()
    flags = cpu.rflags
    pushed = flags
    if event.kind is EventKind.EXCEPTION and event.vector not in _NOT_FAULTS and not event.injected:
        pushed |= 1 << 16
    elif software and not event.injected:
        pushed &= ~(1 << 16)
    rip = cpu.rip
    if software:
        rip = rip + event.length & ((1 << 64) - 1 if cpu.code_bits == 64 else 0xFFFF_FFFF)
    frame = Frame(rip, pushed, event.error_code)
    if mode is Mode.REAL:
        delivery.through_ivt(cpu, event.vector, frame)
    else:
        if mode is Mode.VIRTUAL_8086 and event.kind is EventKind.SOFTWARE_INTERRUPT:
            if cpu.cr4 & 1:
                raise unmodelled(f"INT {event.vector:#x} in virtual-8086 mode with CR4.VME = 1")
            if flags >> 12 & 3 < 3:
                raise Fault(GENERAL_PROTECTION, 0)
        gate = delivery.read_gate(cpu, event.vector, software and not external, external)
        if gate.task:
            raise TaskGate(gate.selector)
        if cpu.efer >> 10 & 1:
            delivery.through_idt64(cpu, gate, frame, external)
        else:
            delivery.through_idt32(cpu, gate, frame, external, mode is Mode.VIRTUAL_8086)
    cpu.interrupts_inhibited = False
    if event.kind is EventKind.NMI:
        cpu.nmi_blocked = True
    if event.vector == DEBUG and event.kind is EventKind.EXCEPTION:
        cpu.dr[7] &= ~(1 << 13)


def software_event(found: Instruction) -> Event | None:
    """The event of INT n, INT3, INTO or INT1; None for another instruction."""
    if found.opcode == 0xCD:
        return Event(found.immediate, EventKind.SOFTWARE_INTERRUPT, length=found.length)
    if found.opcode in (0xCC, 0xCE):
        vector = BREAKPOINT if found.opcode == 0xCC else OVERFLOW
        return Event(vector, EventKind.SOFTWARE_EXCEPTION, length=found.length)
    if found.opcode == 0xF1:
        return Event(DEBUG, EventKind.PRIVILEGED_SOFTWARE_EXCEPTION, length=found.length)
    return None
