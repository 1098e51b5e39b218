"""Ctrl-C while the engine runs.

Python raises KeyboardInterrupt between any two of its instructions. While the engine runs, those are in callbacks that
C code calls: an exception on a callback's first instruction, outside its ``try``, is printed and lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sigint_calls(action: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGINT calls `action` and raises nothing.

    Only where SIGINT would raise KeyboardInterrupt; a handler of somebody else's, or another thread, is left alone.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
