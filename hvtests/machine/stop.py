"""Why a run of the machine ended, and how far it may go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class StopKind(Enum):
    """What ended the run."""

    DEBUG_EXIT = auto()    # a byte to the debug-exit port: `code`
    SHUTDOWN = auto()      # power-off or reset asked for by a device
    HALT = auto()          # HLT with interrupts off, outside any guest
    TRIPLE_FAULT = auto()  # outside any guest
    TIMEOUT = auto()       # the limit was reached
    UNMODELLED = auto()    # the software did something that the model does not implement: `detail` says what


@dataclass(frozen=True, slots=True)
class Stop:
    """How a run ended: the kind, one line of detail, and the exit code where there is one."""

    kind: StopKind
    detail: str = ""
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a run may go: seconds of real time, ticks of virtual time; None is without limit."""

    seconds: float | None = 60.0
    ticks: int | None = None


class StopRun(Exception):
    """Raised inside the machine to end the run."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.detail)
        self.stop = stop


def unmodelled(detail: str) -> StopRun:
    """The exception that ends the run because `detail` is not modelled."""
    return StopRun(Stop(StopKind.UNMODELLED, detail))
