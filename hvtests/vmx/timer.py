"""The VMX-preemption timer in virtual time: SDM 3C 26.5.1 [25.5.1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine.fabric import NEVER

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx


class PreemptionTimer:
    """Counts down by one each time bit X of the TSC changes by counting, X from IA32_VMX_MISC; exits at 0.

    With X = 0, the modelled CPU's own, the fabric's deadline is all the state there is: native code uses it too.
    """

    def __init__(self, vmx: Vmx) -> None:
        self._fabric, self._clock = vmx.machine.fabric, vmx.machine.clock
        self.shift = vmx.model.preemption_timer_shift
        self._phase = 0     # of the TSC below bit X, when the timer was loaded

    def start(self, value: int) -> None:
        """Load the timer at VM entry."""
        self._phase = self._clock.now() & (1 << self.shift) - 1
        self._fabric.guest_deadline = self._fabric.ticks + max((value << self.shift) - self._phase, 0)

    def stop(self) -> int:
        """What is left at VM exit: 0 if it has expired."""
        if self._fabric.guest_deadline == NEVER:
            return 0
        ticks = self._fabric.guest_deadline - self._fabric.ticks
        self._fabric.guest_deadline = NEVER
        return max(ticks + (1 << self.shift) - 1 >> self.shift, 0)

    def expire(self) -> None:
        """Let virtual time pass until the timer is 0: nothing runs before."""
        self._clock.add(max(self._fabric.guest_deadline - self._fabric.ticks, 0))
        self._fabric.guest_deadline = self._fabric.ticks
