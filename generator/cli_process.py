"""What the command owes to the process it is: ends on signals, and standard output that cannot be written."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from generator.errors import OutputError

STANDARD_OUTPUT = "standard output"
ENDS = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}   # what their default action would leave behind stays
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Ends:
    """How signals ended the command: ``status`` and ``word``; those of Ctrl-C unless another came."""

    def __init__(self) -> None:
        self.signal = signal.SIGINT

    @property
    def status(self) -> int:
        """What shells report for the signal."""
        return 128 + self.signal

    @property
    def word(self) -> str:
        return ENDS.get(self.signal, "interrupted")

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handler: the same way out as Ctrl-C, so that everything temporary is removed; later signals wait for it."""
        self.signal = signal.Signals(number)
        for end in ENDS:
            signal.signal(end, signal.SIG_IGN)
        # Whoever must not be torn out of what it does (the CPU engine) has its own handler there.
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)


@contextmanager
def signals_that_end() -> Iterator[Ends]:
    """While the block runs, SIGTERM and SIGHUP raise KeyboardInterrupt; a signal that is ignored stays so (nohup)."""
    ends = Ends()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {end: signal.signal(end, ends) for end in ENDS if signal.getsignal(end) is signal.SIG_DFL}
    try:
        yield ends
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def require_output() -> None:
    """Raise OutputError if the process was started without standard output."""
    if sys.stdout is None:
        raise OutputError("is closed", STANDARD_OUTPUT)


def output_error(error: OSError) -> OutputError | None:
    """``error`` as one of the user's, if standard output or a disk cannot take more; None for any other."""
    if error.errno not in _UNWRITABLE:
        return None
    file = error.filename
    if file is None:
        # What failed is not said. Standard output fails again, even where nothing is left in its buffer.
        try:
            print(flush=True)
        except OSError:
            file = STANDARD_OUTPUT
            abandon_output()
    return OutputError(f"cannot be written: {error.strerror}", file or "a temporary file")


def abandon_output() -> None:
    """What is buffered for standard output must not fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def tell(line: str) -> None:
    """``line`` to standard error, if that is there."""
    if sys.stderr is not None:
        with suppress(OSError):   # a terminal that hung up
            print(line, file=sys.stderr, flush=True)
