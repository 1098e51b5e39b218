"""Ctrl-C, and signals that a program treats alike, while the engine runs.

Python raises KeyboardInterrupt between any two of its instructions. While the engine runs, those are in callbacks that
C code calls: an exception on a callback's first instruction, outside its ``try``, is printed and lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def sigint_calls(action: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGINT calls `action` where it would raise KeyboardInterrupt; so do SIGTERM and SIGHUP
    where a handler of the program's raises it.

    Other handlers of SIGINT, ignored signals, and threads that get no signals are left alone.
    """
    installed: list[tuple[signal.Signals, Any, Callable[..., None]]] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *_ENDS):
            before = signal.getsignal(number)
            if before is signal.default_int_handler or (number in _ENDS and callable(before)):
                handler = _without_raising(before, action)
                signal.signal(number, handler)
                installed.append((number, before, handler))
    try:
        yield
    finally:
        for number, before, handler in installed:
            if signal.getsignal(number) is handler:    # a handler may have changed it
                signal.signal(number, before)


def _without_raising(before: Callable[..., object], action: Callable[[], None]) -> Callable[..., None]:
    def handler(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except KeyboardInterrupt:
            action()
    return handler
