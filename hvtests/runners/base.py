"""What every runner shares: the verdict on a run, its result, and the interface itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from generator.arch.abi import END_LINE, Outcome

if TYPE_CHECKING:
    from hvtests.vmx.records import ExitRecord, Injection

DEFAULT_TIMEOUT = 60.0  # seconds of real time
SerialSink = Callable[[bytes], None]


class Verdict(IntEnum):
    """How a run ended; the value is the exit status of the command that ran it."""

    FINISHED = 0          # every VM ended as expected
    GUEST_FAILED = 1
    REFUSED = 2           # the hypervisor said why it cannot run on this machine
    PANIC = 3
    TIMEOUT = 4
    EMULATOR_MISSING = 5
    NO_VERDICT = 6        # it ended, but said nothing that we know: a reset, a power-off, a code of its own


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of an image.

    ``code`` is the value written to the debug-exit port, where the emulator tells it; ``seconds`` is real time;
    ``detail`` says in one line how it ended; ``exits`` and ``injections`` are the records of VM exits and of events
    injected by VM entries, where the emulator keeps them; ``complaints`` are lines that explain failed VM entries and
    VMX instructions, where the emulator can tell.
    """

    outcome: Outcome | None
    verdict: Verdict
    code: int | None
    serial: bytes
    debugcon: bytes
    seconds: float
    detail: str
    exits: Sequence[ExitRecord] | None = None
    injections: Sequence[Injection] | None = None
    complaints: Sequence[str] = ()

    @property
    def text(self) -> str:
        """What came on COM1, with line ends made plain."""
        return self.serial.decode("latin-1").replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines that came on COM1."""
        return self.text.splitlines()


class Runner(Protocol):
    """Boots an image on something. A runner holds settings only; each run is on its own."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """None if the emulator is there; otherwise one line: what is missing and how to install it."""

    def run(self, image: Path, *, timeout: float = DEFAULT_TIMEOUT, on_serial: SerialSink | None = None) -> RunResult:
        """Boot ``image`` and wait for its end, for ``timeout`` seconds at most. COM1 goes to ``on_serial`` as it comes.

        A missing emulator is a verdict, not an exception. Raises ImageFileError for a file that cannot boot.
        """


_END_LINES = {END_LINE.format(code=int(outcome), name=outcome.name).encode(): outcome for outcome in Outcome}
_BY_CODE = {int(outcome): outcome for outcome in Outcome}


def outcome_on_serial(serial: bytes) -> Outcome | None:
    """The outcome that the last line on COM1 tells, or None. A guest cannot forge it: its lines carry its name."""
    tail = serial[-256:].rstrip(b"\r\n")
    return _END_LINES.get(tail[tail.rfind(b"\n") + 1 :].rstrip(b"\r"))


def judge(code: int | None, serial: bytes) -> tuple[Outcome | None, Verdict]:
    """Outcome and verdict of a run that ended by itself: by its exit code where there is one, else by COM1."""
    outcome = outcome_on_serial(serial) if code is None else _BY_CODE.get(code)
    return outcome, Verdict.NO_VERDICT if outcome is None else Verdict[outcome.name]


def emulator_missing(detail: str) -> RunResult:
    """The result of a run that could not begin."""
    return RunResult(None, Verdict.EMULATOR_MISSING, None, b"", b"", 0.0, detail)
