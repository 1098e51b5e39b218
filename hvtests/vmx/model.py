"""The machine with VMX."""

from __future__ import annotations

from collections.abc import Callable

from hvtests.machine.machine import Machine
from hvtests.vmx.capabilities import CpuModel


class VmxMachine(Machine):
    """A PC whose CPU has VMX as `cpu` describes it (CpuModel.default() if not given)."""

    def __init__(self, ram: int = 256 << 20, cpu: CpuModel | None = None,
                 console: Callable[[bytes], None] | None = None) -> None:
        super().__init__(ram, cpu or CpuModel.default(), console)
