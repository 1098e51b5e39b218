"""The steps of event delivery: gates, stacks, frames. SDM 3A 7.11 to 7.14 [6.11 to 6.14]."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hvtests.machine import layout as L
from hvtests.machine.cpu import MASK64, Cpu, Segment

TS, NP, SS, GP = 10, 11, 12, 13
TF, IF, NT, RF, VM, AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18
CODE, CONFORMING, WRITABLE, ACCESSED = 8, 4, 2, 1
_UNUSABLE = 1 << 16


class Fault(Exception):
    """An exception that an operation raises: vector and error code (None where the vector has none)."""

    def __init__(self, vector: int, error_code: int | None = None) -> None:
        super().__init__(f"exception {vector}, error code {error_code}")
        self.vector = vector
        self.error_code = error_code


@dataclass(frozen=True, slots=True)
class Frame:
    """What is pushed besides CS and SS."""

    rip: int
    flags: int
    error_code: int | None


@dataclass(frozen=True, slots=True)
class Gate:
    """One IDT entry."""

    selector: int
    offset: int
    interrupt: bool   # clears IF
    wide: bool        # 32-bit or 64-bit, not 16-bit
    stack_table: int  # IST index; 0 = none
    task: bool = False


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A segment descriptor as read: `access` as in the VMCS."""

    address: int
    base: int
    limit: int
    access: int

    @property
    def dpl(self) -> int:
        return self.access >> 5 & 3

    @property
    def present(self) -> bool:
        return bool(self.access & 0x80)


def _system_read(cpu: Cpu, linear: int, size: int) -> bytes:
    mask = MASK64 if cpu.efer >> 10 & 1 else 0xFFFF_FFFF
    return cpu.read_linear(linear & mask, size, user=False)


def read_descriptor(cpu: Cpu, selector: int, vector: int, error_code: int) -> Descriptor:
    """The descriptor that a selector names; Fault(vector, error_code) beyond the table's limit."""
    if selector & 4:
        table = cpu.segment(L.LDTR)
        base, limit = table.base, table.limit if not table.access & _UNUSABLE else -1
    else:
        base, limit = cpu.table(L.GDTR)
    index = selector & 0xFFF8
    if index + 7 > limit:
        raise Fault(vector, error_code)
    low, high = struct.unpack("<II", _system_read(cpu, base + index, 8))
    size = high & 0xF0000 | low & 0xFFFF
    if high >> 23 & 1:
        size = size << 12 | 0xFFF
    return Descriptor(base + index, low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000, size, high >> 8 & 0xF0FF)


def set_accessed(cpu: Cpu, found: Descriptor) -> None:
    """Set the accessed bit of a code or data descriptor in its table."""
    if not found.access & ACCESSED:
        cpu.write_linear(found.address + 5 & MASK64, bytes([found.access & 0xFF | ACCESSED]), user=False)


def through_ivt(cpu: Cpu, vector: int, frame: Frame) -> None:
    """Real-address mode: SDM 1 21.1.4 [20.1.4]. No error code is pushed."""
    base, limit = cpu.table(L.IDTR)
    if vector * 4 + 3 > limit:
        raise Fault(GP, 0)
    offset, selector = struct.unpack("<HH", cpu.read_linear(base + vector * 4 & 0xFFFF_FFFF, 4))
    stack = cpu.segment(L.SS)
    sp = cpu.gprs[L.Q_RSP]
    mask = 0xFFFF_FFFF if stack.access >> 14 & 1 else 0xFFFF
    code = cpu.segment(L.CS)
    for value in (frame.flags, code.selector, frame.rip):
        sp = sp & ~mask | (sp - 2) & mask
        if sp & mask == mask:    # a word over the end of the segment
            raise Fault(SS, 0)
        cpu.write_linear(stack.base + (sp & mask) & 0xFFFF_FFFF, struct.pack("<H", value & 0xFFFF))
    cpu.gprs[L.Q_RSP] = sp
    cpu.set_segment(L.CS, Segment(selector, selector << 4, code.limit, code.access))
    cpu.rip = offset
    cpu.rflags = cpu.rflags & ~(IF | TF | AC | RF)


def read_gate(cpu: Cpu, vector: int, checked: bool, external: bool) -> Gate:
    """The gate of `vector`; `checked`: its DPL is (INT n, INT3, INTO). Raises Fault."""
    long = cpu.efer >> 10 & 1
    size = 16 if long else 8
    base, limit = cpu.table(L.IDTR)
    error_code = vector * 8 + 2 + external
    if vector * size + size - 1 > limit:
        raise Fault(GP, error_code)
    raw = _system_read(cpu, base + vector * size, size)
    low, selector, kind, high = struct.unpack_from("<HHHH", raw)
    type_ = kind >> 8 & 0x1F
    if type_ not in ((14, 15) if long else (5, 6, 7, 14, 15)):
        raise Fault(GP, error_code)
    if checked and kind >> 13 & 3 < cpu.cpl:
        raise Fault(GP, error_code)
    if not kind >> 15:
        raise Fault(NP, error_code)
    offset = high << 16 | low
    if long:
        offset |= int.from_bytes(raw[8:12], "little") << 32
    wide = type_ >= 14
    return Gate(selector, offset if wide else low, not type_ & 1, wide, kind & 7 if long else 0, type_ == 5)


def _target(cpu: Cpu, gate: Gate, external: bool) -> tuple[Descriptor, int]:
    """The handler's code segment and the privilege level it runs at."""
    if gate.selector & 0xFFFC == 0:
        raise Fault(GP, int(external))
    error_code = gate.selector & 0xFFFC | external
    code = read_descriptor(cpu, gate.selector, GP, error_code)
    if not code.access & 0x10 or not code.access & CODE or code.dpl > cpu.cpl:
        raise Fault(GP, error_code)
    if cpu.efer >> 10 & 1 and code.access >> 13 & 3 != 1:   # L = 1 and D = 0
        raise Fault(GP, error_code)
    if not code.present:
        raise Fault(NP, error_code)
    return code, cpu.cpl if code.access & CONFORMING else code.dpl


def _enter(cpu: Cpu, gate: Gate, code: Descriptor, level: int, extra: int = 0) -> None:
    set_accessed(cpu, code)
    cpu.set_segment(L.CS, Segment(gate.selector & 0xFFFC | level, code.base, code.limit, code.access | ACCESSED))
    cpu.rip = gate.offset
    cpu.rflags = cpu.rflags & ~(TF | NT | RF | VM | extra | (IF if gate.interrupt else 0))


def through_idt64(cpu: Cpu, gate: Gate, frame: Frame, external: bool) -> None:
    """IA-32e mode: SDM 3A 7.14 [6.14]."""
    code, level = _target(cpu, gate, external)
    changes = level < cpu.cpl
    stack = cpu.segment(L.SS)
    if gate.stack_table:
        rsp = _task_stack(cpu, 0x24 + 8 * (gate.stack_table - 1), external)
    elif changes:
        rsp = _task_stack(cpu, 4 + 8 * level, external)
    else:
        rsp = cpu.gprs[L.Q_RSP]
        if cpu.code_bits != 64:
            rsp &= 0xFFFF_FFFF
    rsp &= ~15
    values = [stack.selector, cpu.gprs[L.Q_RSP], frame.flags, cpu.segment(L.CS).selector, frame.rip]
    if frame.error_code is not None:
        values.append(frame.error_code)
    rsp = rsp - 8 * len(values) & MASK64
    if not _canonical(rsp) or not _canonical(rsp + 8 * len(values) - 1):
        raise Fault(SS, int(external))
    if not _canonical(gate.offset):
        raise Fault(GP, int(external))
    _store_frame(cpu, rsp, struct.pack(f"<{len(values)}Q", *reversed(values)), 8, level == 3)
    cpu.gprs[L.Q_RSP] = rsp
    if changes:
        cpu.set_segment(L.SS, Segment(level, 0, 0, _UNUSABLE | level << 5))
    _enter(cpu, gate, code, level)


def _canonical(address: int) -> bool:
    return (address & MASK64) >> 47 in (0, 0x1FFFF)


def _task_stack(cpu: Cpu, offset: int, external: bool) -> int:
    task = cpu.segment(L.TR)
    if offset + 7 > task.limit:
        raise Fault(TS, task.selector & 0xFFFC | external)
    rsp = int.from_bytes(_system_read(cpu, task.base + offset, 8), "little")
    if not _canonical(rsp):
        raise Fault(SS, int(external))
    return rsp


def through_idt32(cpu: Cpu, gate: Gate, frame: Frame, external: bool, virtual: bool) -> None:
    """Protected mode, and virtual-8086 mode: SDM 3A 7.12.1, 22.3 [6.12.1, 20.3]."""
    code, level = _target(cpu, gate, external)
    if virtual and level != 0:
        raise Fault(GP, gate.selector & 0xFFFC | external)
    size = 4 if gate.wide else 2
    old_stack, old_code = cpu.segment(L.SS), cpu.segment(L.CS)
    old_sp = cpu.gprs[L.Q_RSP]
    values: list[int] = []
    if level < cpu.cpl:
        stack, found, sp = _inner_stack(cpu, level, external)
        if virtual:
            values += [cpu.segment(number).selector for number in (L.GS, L.FS, L.DS, L.ES)]
        values += [old_stack.selector, old_sp & 0xFFFF_FFFF]
    else:
        stack, found, sp = old_stack, None, old_sp
    values += [frame.flags, old_code.selector, frame.rip]
    if frame.error_code is not None:
        values.append(frame.error_code)
    mask = 0xFFFF_FFFF if stack.access >> 14 & 1 else 0xFFFF
    new_sp = sp - size * len(values) & mask
    _check_stack(stack, new_sp, size * len(values), mask,
                 (stack.selector & 0xFFFC if found is not None else 0) | external)
    data = b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in reversed(values))
    _push(cpu, stack.base, new_sp, mask, data, size, level == 3)
    if found is not None:
        set_accessed(cpu, found)
        cpu.set_segment(L.SS, stack)
        sp = 0 if mask == 0xFFFF_FFFF else cpu.gprs[L.Q_RSP]
    cpu.gprs[L.Q_RSP] = (sp & ~mask | new_sp) & 0xFFFF_FFFF
    if virtual:
        for number in (L.GS, L.FS, L.DS, L.ES):
            cpu.set_segment(number, Segment(0, 0, 0, _UNUSABLE))
    _enter(cpu, gate, code, level)


def _inner_stack(cpu: Cpu, level: int, external: bool) -> tuple[Segment, Descriptor, int]:
    """Stack segment and pointer for privilege `level` from the TSS (SDM 3A 8.2.1 [7.2.1])."""
    task = cpu.segment(L.TR)
    task_error = task.selector & 0xFFFC | external
    if task.access & 8:    # 32-bit TSS
        if 8 * level + 9 > task.limit:
            raise Fault(TS, task_error)
        sp, selector = struct.unpack("<IH", _system_read(cpu, task.base + 4 + 8 * level, 6))
    else:
        if 4 * level + 5 > task.limit:
            raise Fault(TS, task_error)
        sp, selector = struct.unpack("<HH", _system_read(cpu, task.base + 2 + 4 * level, 4))
    if selector & 0xFFFC == 0:
        raise Fault(TS, int(external))
    error_code = selector & 0xFFFC | external
    found = read_descriptor(cpu, selector, TS, error_code)
    if selector & 3 != level or found.dpl != level or found.access & 0x1A != 0x12:   # writable data
        raise Fault(TS, error_code)
    if not found.present:
        raise Fault(SS, error_code)
    return Segment(selector, found.base, found.limit, found.access | ACCESSED), found, sp


def _check_stack(stack: Segment, low: int, size: int, mask: int, error_code: int) -> None:
    high = low + size - 1
    if high > mask and mask == 0xFFFF_FFFF:
        raise Fault(SS, error_code)
    if stack.access & 4:    # expand-down
        if low <= stack.limit or high > mask:
            raise Fault(SS, error_code)
    elif high > stack.limit and high <= mask:
        raise Fault(SS, error_code)


def _push(cpu: Cpu, base: int, sp: int, mask: int, data: bytes, size: int, user: bool) -> None:
    first = min(len(data), mask + 1 - sp)
    if first < len(data):    # a 16-bit stack wraps
        _store_frame(cpu, base & 0xFFFF_FFFF, data[first:], size, user)
    _store_frame(cpu, base + sp & 0xFFFF_FFFF, data[:first], size, user)


def _store_frame(cpu: Cpu, low: int, data: bytes, size: int, user: bool) -> None:
    """The CPU pushes values of `size` bytes from the top down: a fault has the highest address that it cannot write."""
    top = low + len(data) - size
    if low >> 12 == top >> 12:
        cpu.write_linear(top, data[-size:], user=user)
        cpu.write_linear(low, data, user=user)
    else:
        for at in range(len(data) - size, -1, -size):
            cpu.write_linear(low + at, data[at:at + size], user=user)
