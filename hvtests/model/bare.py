"""For the tests of the machine without a guest: a machine ready to run a few instructions in one mode."""

from __future__ import annotations

from hvtests.machine import layout as L
from hvtests.machine.cpu import Segment
from hvtests.machine.stop import Limits, Stop, StopKind
from hvtests.model.asm import CODE32, DATA, HOST_CODE, HOST_GDT, HOST_STACK, RAM, assemble, gdt, long_mode
from hvtests.vmx.model import VmxMachine

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
IDT, HANDLER = 0x50000, 0x51000
TSS = HOST_GDT + 0x800


def real(code: str | bytes, at: int = 0x7C00) -> VmxMachine:
    """A machine in real mode at 0000:`at`, SP = 0x7000."""
    machine = VmxMachine(RAM)
    machine.memory.write(at, code if isinstance(code, bytes) else assemble(code, at, 16))
    machine.cpu.rip = at
    machine.cpu.gprs[RSP] = 0x7000
    return machine


def long(code: str | bytes, gates: dict[int, bytes] | None = None, handler: str = "hlt") -> VmxMachine:
    """A machine in 64-bit mode; the gates given, and `handler` at HANDLER."""
    machine = VmxMachine(RAM)
    long_mode(machine, HOST_CODE)
    machine.memory.write(HOST_CODE, code if isinstance(code, bytes) else assemble(code, HOST_CODE))
    machine.memory.write(HANDLER, assemble(handler, HANDLER))
    for vector, gate in (gates or {}).items():
        machine.memory.write(IDT + 16 * vector, gate)
    machine.cpu.set_table(L.IDTR, IDT, 0xFFF)
    return machine


def protected(code: str | bytes, gates: dict[int, bytes] | None = None, handler: str = "hlt") -> VmxMachine:
    """A machine in 32-bit protected mode without paging."""
    machine = VmxMachine(RAM)
    cpu = machine.cpu
    machine.memory.write(HOST_GDT, gdt(TSS))
    cpu.set_table(L.GDTR, HOST_GDT, 0x47)
    cpu.set_table(L.IDTR, IDT, 0x7FF)
    cpu.cr0 = 0x31
    cpu.set_segment(L.CS, Segment(CODE32, 0, 0xFFFFFFFF, 0xC09B))
    for number in (L.SS, L.DS, L.ES):
        cpu.set_segment(number, Segment(DATA, 0, 0xFFFFFFFF, 0xC093))
    cpu.set_segment(L.TR, Segment(0x28, TSS, 0x67, 0x8B))
    machine.memory.write(HOST_CODE, code if isinstance(code, bytes) else assemble(code, HOST_CODE, 32))
    machine.memory.write(HANDLER, assemble(handler, HANDLER, 32))
    for vector, gate in (gates or {}).items():
        machine.memory.write(IDT + 8 * vector, gate)
    cpu.gprs[RSP] = HOST_STACK
    cpu.rip = HOST_CODE
    return machine


def run(machine: VmxMachine, kind: StopKind = StopKind.HALT) -> Stop:
    stop = machine.run(Limits(seconds=10))
    assert stop.kind is kind, stop
    return stop
