"""An emulator as a child process: time limit, serial output as it comes, no network, and nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtests.runners.base import SerialSink, outcome_on_serial

POLL = 0.01
GRACE = 2.0  # seconds an emulator may go on after the image's last line: some ends (HLT) leave it spinning
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the child ended. ``status`` is None if it was killed; it was killed at the time limit or after the grace."""

    status: int | None
    timed_out: bool
    serial: bytes
    stdout: bytes
    stderr: bytes
    seconds: float


def _prepare_child() -> None:
    """In the child: be killed when the parent is, even by SIGKILL, and be on no network (Linux; elsewhere neither).

    Bochs opens its screen to the network as a VNC server, and has no other way to do without one. Where a network
    namespace of its own is not permitted, it stays as it is. System calls only: safe between fork and exec.
    """
    with contextlib.suppress(AttributeError):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if _libc.unshare(_CLONE_NEWNET):
            _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


class _Tail:
    """Reads what a growing file has got since the last look and hands it on."""

    def __init__(self, path: Path, sink: SerialSink | None) -> None:
        self._path = path
        self._sink = sink
        self.data = bytearray()

    def poll(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(len(self.data))
                new = file.read()
        except FileNotFoundError:
            return
        if new:
            self.data += new
            if self._sink is not None:
                self._sink(new)


def supervise(
    argv: Sequence[str],
    *,
    directory: Path,
    serial: str,
    timeout: float,
    on_serial: SerialSink | None = None,
) -> Ended:
    """Run ``argv`` in ``directory`` in a process group of its own, which is killed in every case before returning.

    ``serial`` is the file in ``directory`` to which the emulator writes COM1; standard output and error are kept.
    """
    out, err = directory / "stdout", directory / "stderr"
    tail = _Tail(directory / serial, on_serial)
    begin = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        child = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_prepare_child,
        )
    try:
        status, timed_out = _wait(child, tail, begin + timeout)
    finally:
        # The child is not reaped yet, so its process group still is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    seconds = time.monotonic() - begin
    tail.poll()
    return Ended(status, timed_out, bytes(tail.data), out.read_bytes(), err.read_bytes(), seconds)


def _wait(child: subprocess.Popen[bytes], tail: _Tail, deadline: float) -> tuple[int | None, bool]:
    """(status or None if it must be killed, whether that is for the time limit)."""
    kill_at: float | None = None
    seen = -1
    while True:
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, False
        tail.poll()
        now = time.monotonic()
        if len(tail.data) != seen:
            seen = len(tail.data)
            kill_at = now + GRACE if outcome_on_serial(bytes(tail.data[-256:])) is not None else None
        if kill_at is not None and now >= kill_at:
            return None, False
        if now >= deadline:
            return None, True
        time.sleep(POLL)
