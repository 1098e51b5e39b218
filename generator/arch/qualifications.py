"""The exit qualification in words, by basic exit reason (SDM 3C 28.2.1 [27.2.1], tables 28-1 to 28-8).

`qualification` is always the 64-bit value of EXIT_QUALIFICATION.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

GPR_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
             "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15")

# EPT violations, table 28-7
EPT_READ = 1 << 0
EPT_WRITE = 1 << 1
EPT_FETCH = 1 << 2
EPT_READABLE = 1 << 3
EPT_WRITABLE = 1 << 4
EPT_EXECUTABLE = 1 << 5
EPT_USER_EXECUTABLE = 1 << 6
EPT_LINEAR_VALID = 1 << 7
EPT_FINAL_TRANSLATION = 1 << 8  # else: the access was to a paging structure
EPT_USER_LINEAR = 1 << 9
EPT_READ_WRITE_LINEAR = 1 << 10
EPT_EXECUTE_DISABLE_LINEAR = 1 << 11
EPT_NMI_UNBLOCKING = 1 << 12
EPT_SHADOW_STACK = 1 << 13
EPT_SUPERVISOR_SHADOW_STACK = 1 << 14
EPT_GUEST_PAGING_VERIFICATION = 1 << 15
EPT_ASYNCHRONOUS = 1 << 16

_EPT_ACCESSES = ((EPT_READ, "read"), (EPT_WRITE, "write"), (EPT_FETCH, "instruction fetch"))
_EPT_ALLOWED = ((EPT_READABLE, "reads"), (EPT_WRITABLE, "writes"), (EPT_EXECUTABLE, "execution"),
                (EPT_USER_EXECUTABLE, "user-mode execution"))

_CR_ACCESS_TYPES = ("MOV to CR", "MOV from CR", "CLTS", "LMSW")
_TASK_SWITCH_SOURCES = ("CALL", "IRET", "JMP", "task gate in the IDT")
_DEBUG_CAUSES = ((0, "breakpoint 0"), (1, "breakpoint 1"), (2, "breakpoint 2"), (3, "breakpoint 3"),
                 (11, "bus lock"), (13, "debug-register access"), (14, "single step"), (16, "inside a transaction"))
_APIC_ACCESS_TYPES = MappingProxyType({
    0: "linear read", 1: "linear write", 2: "linear instruction fetch", 3: "linear, during event delivery",
    4: "linear, for monitoring", 10: "guest-physical, during event delivery",
    11: "guest-physical, for monitoring or trace", 15: "guest-physical, fetch or execution",
})
_ENTRY_FAILURES = MappingProxyType({
    0: "", 2: "loading the PDPTEs", 3: "injecting an NMI with blocking by STI",
    4: "the VMCS link pointer",
})


def _words(table: tuple[tuple[int, str], ...], value: int) -> str:
    return ", ".join(word for mask, word in table if value & mask)


def _debug_exception(value: int) -> str:
        return ", ".join(word for bit, word in _DEBUG_CAUSES if value >> bit & 1)


def _task_switch(value: int) -> str:
    return f"to selector {value & 0xFFFF:#06x} by {_TASK_SWITCH_SOURCES[value >> 30 & 3]}"


def _cr_access(value: int) -> str:
    kind, register = value >> 4 & 3, GPR_NAMES[value >> 8 & 15]
    if kind == 0:
        return f"MOV to CR{value & 15} from {register}"
    if kind == 1:
        return f"MOV from CR{value & 15} to {register}"
    if kind == 2:
        return "CLTS"
    operand = "memory" if value >> 6 & 1 else "a register"
    return f"LMSW of {value >> 16 & 0xFFFF:#06x} from {operand}"


def _dr_access(value: int) -> str:
    register = GPR_NAMES[value >> 8 & 15]
    return f"MOV from DR{value & 7} to {register}" if value >> 4 & 1 else f"MOV to DR{value & 7} from {register}"


def _io(value: int) -> str:
    size = {0: 1, 1: 2, 3: 4}.get(value & 7, 0)
    incoming, string, repeated, immediate = value >> 3 & 1, value >> 4 & 1, value >> 5 & 1, value >> 6 & 1
    name = ("IN" if incoming else "OUT") + ("S" if string else "")
    unit = {0: "a size that is not used", 1: "1 byte"}.get(size, f"{size} bytes")
    where = "" if string else " (port in the instruction)" if immediate else " (port in DX)"
    return f"{'REP ' if repeated else ''}{name}, port {value >> 16 & 0xFFFF:#x}, {unit}{where}"


def _apic_access(value: int) -> str:
    kind = _APIC_ACCESS_TYPES.get(value >> 12 & 15, "unknown kind of access")
    return f"{kind} at offset {value & 0xFFF:#x}" if value >> 12 & 15 <= 4 else kind


def _ept_violation(value: int) -> str:
    accesses = _words(_EPT_ACCESSES, value) or "no access"
    allowed = _words(_EPT_ALLOWED, value)
    parts = [accesses, f"the entries allow {allowed}" if allowed else "not mapped"]
    if value & EPT_LINEAR_VALID:
        parts.append("of the translation of a linear address" if value & EPT_FINAL_TRANSLATION
                     else "of a guest paging structure")
    else:
        parts.append("no linear address")
    if value & EPT_NMI_UNBLOCKING:
        parts.append("NMI unblocking by IRET")
    if value & EPT_SHADOW_STACK:
        parts.append("shadow stack")
    if value & EPT_ASYNCHRONOUS:
        parts.append("asynchronous to instruction execution")
    return "; ".join(parts)


def _entry_failure(value: int) -> str:
    return _ENTRY_FAILURES.get(value, f"qualification {value:#x}")


def _msr_loading(value: int) -> str:
    return f"entry {value} of the VM-entry MSR-load area (counted from 1)"


def _linear(value: int) -> str:
    return f"linear address {value:#x}"


def _displacement(value: int) -> str:
    signed = value - (1 << 64) if value >> 63 else value
    return f"displacement {signed:#x}"


def _vector(value: int) -> str:
    return f"vector {value & 0xFF:#04x}"


def _sipi(value: int) -> str:
    return f"vector {value & 0xFF:#04x}: start at {(value & 0xFF) << 12:#x}"


def _apic_write(value: int) -> str:
    return f"at offset {value & 0xFFF:#x}"


def _nmi_unblocking(value: int) -> str:
    return "NMI unblocking by IRET" if value >> 12 & 1 else ""


def _spp(value: int) -> str:
    kind = "miss" if value >> 11 & 1 else "misconfiguration"
    return f"{kind}; {_nmi_unblocking(value)}".rstrip("; ")


def _timeout(value: int) -> str:
    return ("the VM's context is invalid" if value & 1 else "the VM can go on") + \
        ("; NMI unblocking by IRET" if value >> 12 & 1 else "")


def _mwait(value: int) -> str:
    return "the monitor is armed" if value & 1 else "the monitor is not armed"


_DESCRIBERS: Mapping[int, Callable[[int], str]] = MappingProxyType({
    4: _sipi, 9: _task_switch, 14: _linear, 19: _displacement, 21: _displacement,
    22: _displacement, 23: _displacement, 25: _displacement, 27: _displacement, 28: _cr_access, 29: _dr_access,
    30: _io, 33: _entry_failure, 34: _msr_loading, 36: _mwait, 44: _apic_access, 45: _vector, 46: _displacement,
    47: _displacement, 48: _ept_violation, 50: _displacement, 53: _displacement, 56: _apic_write, 58: _displacement,
    62: _nmi_unblocking, 63: _displacement, 64: _displacement, 66: _spp, 75: _timeout,
})

_EXCEPTION_DESCRIBERS: Mapping[int, Callable[[int], str]] = MappingProxyType({1: _debug_exception, 14: _linear})


def describe(reason_number: int, qualification: int, vector: int | None = None) -> str:
    """`qualification` of an exit with basic reason `reason_number` in words; "" where it says nothing.

    `vector` is needed for reason 0 alone, where #DB (1) and #PF (14) have a qualification and differ in its meaning.
    """
    basic = reason_number & 0xFFFF
    describer = _EXCEPTION_DESCRIBERS.get(-1 if vector is None else vector) if basic == 0 else _DESCRIBERS.get(basic)
    return describer(qualification & (1 << 64) - 1) if describer else ""
