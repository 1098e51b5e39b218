"""The VMX-preemption timer in virtual time: SDM 3C 26.5.1 [25.5.1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine.fabric import NEVER

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx


class PreemptionTimer:
    """Counts down by one each time bit X of the TSC changes, X from IA32_VMX_MISC; exits when it reaches 0."""

    def __init__(self, vmx: Vmx) -> None:
        self._machine = vmx.machine
        self._clock = vmx.machine.clock
        self._shift = vmx.model.preemption_timer_shift
        self._end = 0       # value of TSC >> shift at which the timer is 0

    def start(self, value: int) -> None:
        """Load the timer at VM entry."""
        now = self._clock.now()
        self._end = (now >> self._shift) + value
        self._machine.set_guest_deadline(self._machine.fabric.ticks + max((self._end << self._shift) - now, 0))

    def stop(self) -> int:
        """What is left at VM exit."""
        self._machine.set_guest_deadline(NEVER)
        return max(self._end - (self._clock.now() >> self._shift), 0)

    def expire(self) -> None:
        """Let virtual time pass until the timer is 0: nothing runs before."""
        self._clock.add(max((self._end << self._shift) - self._clock.now(), 0))
