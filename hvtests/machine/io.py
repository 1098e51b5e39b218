"""IN, OUT, INS and OUTS: permission (SDM 1 19.5 [19.5]), the access, and the string forms one element at a time."""

from __future__ import annotations

from dataclasses import dataclass

from hvtests.machine import layout as L
from hvtests.machine.cpu import Cpu, Mode
from hvtests.machine.decode import REP, REPNE, Instruction
from hvtests.machine.delivery import GP, Fault
from hvtests.machine.ports import Ports

_STRING = frozenset((0x6C, 0x6D, 0x6E, 0x6F))
_IMMEDIATE = frozenset((0xE4, 0xE5, 0xE6, 0xE7))


@dataclass(frozen=True, slots=True)
class PortAccess:
    """One IN or OUT about to happen. `size` in bytes; `value` for output only."""

    instruction: Instruction
    port: int
    size: int
    value: int
    input: bool

    @property
    def string(self) -> bool:
        return self.instruction.opcode in _STRING

    @property
    def repeated(self) -> bool:
        return bool(self.instruction.prefixes & {REP, REPNE})

    @property
    def immediate(self) -> bool:
        """The port number stands in the instruction, not in DX."""
        return self.instruction.opcode in _IMMEDIATE


def check_permission(cpu: Cpu, port: int, size: int) -> None:
    """CPL against IOPL, then the I/O permission bit map of the TSS. Raises Fault #GP(0)."""
    virtual = cpu.mode() is Mode.VIRTUAL_8086
    if not virtual and (cpu.cpl == 0 or cpu.cpl <= cpu.rflags >> 12 & 3):
        return
    task = cpu.segment(L.TR)
    if task.access & 0xF not in (9, 11) or task.limit < 103:
        raise Fault(GP, 0)
    at = int.from_bytes(cpu.read_linear(task.base + 102, 2, user=False), "little") + (port >> 3)
    if at + 1 > task.limit:
        raise Fault(GP, 0)
    bits = int.from_bytes(cpu.read_linear(task.base + at, 2, user=False), "little") >> (port & 7)
    if bits & ((1 << size) - 1):
        raise Fault(GP, 0)


def string_address(cpu: Cpu, access: PortAccess) -> int:
    """Linear address of the element that INS stores or OUTS loads."""
    found = access.instruction
    segment = L.ES if access.input else found.segment if found.segment is not None else L.DS
    offset = cpu.gprs[L.Q_RDI if access.input else L.Q_RSI] & (1 << found.address_size) - 1
    return cpu.linear_address(segment, offset)


def perform(cpu: Cpu, ports: Ports, access: PortAccess) -> None:
    """Do the access and finish the instruction, or its iteration. Raises PageFault for the element of INS.

    RIP moves on before the device sees the access, so that a device may change it.
    """
    found, q = access.instruction, cpu.gprs
    if not access.string:
        cpu.advance(found.length)
        if not access.input:
            ports.write(access.port, access.size, access.value)
            return
        value = ports.read(access.port, access.size)
        if access.size == 4:
            q[0] = value
        else:
            mask = (1 << 8 * access.size) - 1
            q[0] = q[0] & ~mask | value
        return
    if access.input:
        linear = string_address(cpu, access)
        cpu.translate(linear, write=True)
        cpu.write_linear(linear, ports.read(access.port, access.size).to_bytes(access.size, "little"))
    else:
        ports.write(access.port, access.size, access.value)
    _step(cpu, access, L.Q_RDI if access.input else L.Q_RSI)


def _step(cpu: Cpu, access: PortAccess, pointer: int) -> None:
    size, q = access.instruction.address_size, cpu.gprs
    delta = -access.size if cpu.rflags & 0x400 else access.size

    def move(register: int, by: int) -> int:
        mask = (1 << size) - 1
        value = q[register] + by & mask
        q[register] = value if size >= 32 else q[register] & ~mask | value
        return value

    move(pointer, delta)
    if not access.repeated or move(L.Q_RCX, -1) == 0:
        cpu.advance(access.instruction.length)
