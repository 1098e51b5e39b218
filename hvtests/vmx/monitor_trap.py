"""The monitor trap flag: a VM exit after one instruction, or after the event that came instead (SDM 3C 26.5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine import native as n
from hvtests.machine.decode import ADDRESS_SIZE, REP, REPNE
from hvtests.vmx import bits as c

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

MTF = 37
_ALARM = "MTF"      # sorts before the alarms of lower priority, which are lower case
_STRING = frozenset((*range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, ADDRESS_SIZE, REP, REPNE))


def _repeat_count_size(code: bytes, bits: int) -> int:
    """Bits of the count of the repeated string instruction that `code` begins with; 0 if it is none."""
    at = next((at for at, byte in enumerate(code) if byte not in _PREFIXES), len(code))
    prefixes = code[:at]
    if bits == 64 and code[at:at + 1] and code[at] & 0xF0 == 0x40:
        at += 1
    if not (REP in prefixes or REPNE in prefixes) or at >= len(code) or code[at] not in _STRING:
        return 0
    if ADDRESS_SIZE not in prefixes:
        return bits
    return 16 if bits == 32 else 32


class MonitorTrap:
    """Armed at a VM entry with "monitor trap flag"; due once the guest's first instruction has been executed.

    The engine is told to make a block of that one instruction, and the first block behind it does not start. A fault
    of the shadow page tables, which no guest sees, starts the instruction again: so `again` does.
    """

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self._fabric = vmx.machine.fabric
        self.armed = False
        self._start = self._rip = 0

    def arm(self) -> None:
        """VM entry: the next instruction, or the next event that the guest gets, is followed by the exit."""
        self.armed = True
        self._fabric.box[n.BOX_STEP] = 1
        self.again()

    def again(self) -> None:
        """The instruction is about to start, for the first time or once more."""
        if self.armed:
            self._start, self._rip = self._fabric.ticks, self.machine.cpu.rip
            self._fabric.single_instruction()
            self.machine.set_alarm(_ALARM, self._start + 1, self._ended)

    def disarm(self) -> None:
        """A VM exit, whatever its reason."""
        if self.armed:
            self.armed = False
            self._fabric.box[n.BOX_STEP] = 0
            self.machine.cancel_alarm(_ALARM)

    @property
    def due(self) -> bool:
        """Whether the instruction has been executed, or has at least begun."""
        return self.armed and self._fabric.ticks > self._start

    def _ended(self) -> None:
        """The block is over. The engine takes one turn more to see that a repeated string instruction is at its end."""
        cpu = self.machine.cpu
        if cpu.rip == self._rip:
            size = _repeat_count_size(cpu.code(), cpu.code_bits)
            if size and not cpu.gprs[L.Q_RCX] & (1 << size) - 1:
                return self.again()
        self.exit()

    def exit(self, *, pending: int = 0, activity: int = c.ACTIVE) -> None:
        """The VM exit; `pending`: the debug exceptions that it is taken before."""
        self.vmx.exit.event(MTF, pending=pending, activity=activity)

    def first(self) -> bool:
        """Asked between instructions, when an event of lower priority is there: whether this exit came before it."""
        if self.due:
            self.exit()
            return True
        return False
