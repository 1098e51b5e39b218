"""A software interrupt as a BIOS service sees it: the caller's registers, and its flags on the stack."""

from __future__ import annotations

from hvtests.machine import layout as L
from hvtests.machine.cpu import Cpu
from hvtests.machine.memory import Memory

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CF, ZF = 0x0001, 0x0040


def _part(register: int, shift: int, bits: int) -> property:
    mask = (1 << bits) - 1

    def get(self: Call) -> int:
        return self.cpu.gprs[register] >> shift & mask

    def put(self: Call, value: int) -> None:
        old = self.cpu.gprs[register]
        self.cpu.gprs[register] = old & ~(mask << shift) | (value & mask) << shift

    return property(get, put)


class Call:
    """The state at a service's stub, in real mode: registers by name, and the frame IP, CS, FLAGS at SS:SP."""

    eax, ebx, ecx, edx = (_part(n, 0, 32) for n in (RAX, RBX, RCX, RDX))
    ax, bx, cx, dx, si, di = (_part(n, 0, 16) for n in (RAX, RBX, RCX, RDX, RSI, RDI))
    al, bl, cl, dl = (_part(n, 0, 8) for n in (RAX, RBX, RCX, RDX))
    ah, bh, ch, dh = (_part(n, 8, 8) for n in (RAX, RBX, RCX, RDX))

    def __init__(self, cpu: Cpu, memory: Memory) -> None:
        self.cpu = cpu
        self.memory = memory
        self._frame = cpu.segment(L.SS).base + (cpu.gprs[RSP] & 0xFFFF)

    @property
    def es(self) -> int:
        """Linear base of ES."""
        return self.cpu.segment(L.ES).base

    @property
    def ds(self) -> int:
        """Linear base of DS."""
        return self.cpu.segment(L.DS).base

    @property
    def caller(self) -> tuple[int, int]:
        """CS and IP to which the service returns."""
        return self.memory.u16(self._frame + 2), self.memory.u16(self._frame)

    def set_flag(self, flag: int, value: bool) -> None:
        """Change ``flag`` (CF, ZF) in the FLAGS that the caller gets back."""
        flags = self.memory.u16(self._frame + 4)
        self.memory.set_u16(self._frame + 4, flags & ~flag | (flag if value else 0))

    def succeed(self) -> None:
        """Return with CF clear."""
        self.set_flag(CF, False)

    def fail(self, status: int) -> None:
        """Return with CF set and ``status`` in AH."""
        self.ah = status
        self.set_flag(CF, True)
