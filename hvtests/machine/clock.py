"""Virtual time. Nothing in the harness reads a wall clock, so that two runs of one image see the same time stamps."""

from __future__ import annotations

from collections.abc import Callable

TSC_HZ = 1_000_000_000  # what one tick stands for where a device needs seconds


def _zero() -> int:
    return 0


class Clock:
    """The time-stamp counter, in ticks of 1 / TSC_HZ seconds.

    ``counter`` gives the ticks that running code took; the machine's block counter supplies one tick per byte of
    code executed. Time that passes otherwise (HLT, a wait in a BIOS service) is added with :meth:`add`.
    """

    def __init__(self, counter: Callable[[], int] = _zero) -> None:
        self._counter = counter
        self._extra = 0

    def now(self) -> int:
        """Ticks since reset; 64 bits, wraps around."""
        return (self._counter() + self._extra) & 0xFFFF_FFFF_FFFF_FFFF

    def add(self, ticks: int) -> None:
        """Let ``ticks`` pass."""
        self._extra += ticks

    def set(self, ticks: int) -> None:
        """Make :meth:`now` give ``ticks``: WRMSR to IA32_TIME_STAMP_COUNTER."""
        self._extra = ticks - self._counter()
