"""The harness itself as a runner: the machine of :mod:`hvtests.machine` with the VMX of :mod:`hvtests.vmx`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hvtests.machine.stop import Limits, Stop, StopKind
from hvtests.places import Places
from hvtests.runners.base import (
    DEFAULT_TIMEOUT,
    RunResult,
    SerialSink,
    Verdict,
    emulator_missing,
    judge,
)

if TYPE_CHECKING:
    from hvtests.vmx.capabilities import CpuModel
    from hvtests.vmx.complaints import Complaints
    from hvtests.vmx.model import VmxMachine

INSTALL = "pip install unicorn==2.1.4"


@dataclass(frozen=True, slots=True)
class UnicornRunner:
    """Boots a disk, an ISO or a multiboot kernel in the harness.

    ``cpu`` is the modelled CPU, by default one with all that an image of ours wants; ``exits_kept`` how many VM exits
    (the last ones) the result holds: all of them if None.
    """

    name: ClassVar[str] = "unicorn"
    cpu: CpuModel | None = None
    memory_mib: int = 256
    exits_kept: int | None = None

    def missing(self) -> str | None:
        """See :class:`hvtests.runners.base.Runner`."""
        try:
            version("unicorn")
        except PackageNotFoundError:
            return f"the Python package unicorn is not installed; to install it: {INSTALL}"
        return None

    def run(self, image: Path, *, timeout: float = DEFAULT_TIMEOUT, on_serial: SerialSink | None = None) -> RunResult:
        """See :class:`hvtests.runners.base.Runner`. Raises EngineError for an engine of another version or layout."""
        lacking = self.missing()
        if lacking is not None:
            return emulator_missing(lacking)
        from hvtests.vmx.model import VmxMachine

        begin = time.monotonic()
        machine = VmxMachine(self.memory_mib << 20, self.cpu, on_serial, exits_kept=self.exits_kept)
        machine.vmx.complaints.place = Places.of_file(image)
        machine.boot(image)
        stop = machine.run(Limits(seconds=timeout))
        return result_of(machine, stop, time.monotonic() - begin)


def result_of(machine: VmxMachine, stop: Stop, seconds: float) -> RunResult:
    """What a machine that ran to ``stop`` has to tell, in the form that all runners share."""
    serial = bytes(machine.serial)
    outcome, verdict = judge(stop.code, serial)
    name = stop.kind.name.lower().replace("_", " ")
    detail = f"{name}: {stop.detail}" if stop.detail else name
    if stop.kind is StopKind.TIMEOUT:
        verdict, detail = Verdict.TIMEOUT, f"still running after {seconds:.1f} s"
    elif stop.kind is StopKind.DEBUG_EXIT:
        detail = f"debug exit with code {stop.code:#04x}"
    return RunResult(
        outcome, verdict, stop.code, serial, bytes(machine.debugcon), seconds, detail,
        machine.vmx.exits, machine.vmx.injections, _complaints(machine.vmx.complaints),
    )  # fmt: skip


def _complaints(found: Complaints) -> list[str]:
    lines = [line for entry in found.entries for line in entry]
    # A failed entry is an instruction that failed too: errors 7 and 8 have been explained as entries.
    return lines + [line for line in found.instructions if not any(f"error {number} (" in line for number in (7, 8))]
