"""Running Keystone in a child process, and finding the line when it refuses, hangs or dies."""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from generator.assemble_source import Kind, Statement
from generator.errors import AssemblerError

_LIBRARIES = ("libkeystone.so", "libkeystone.so.0", "libkeystone.dylib", "keystone.dll")
_MARK = "hvforge.line."
LENGTH = struct.Struct("<I")  # before each answer, as assemble_worker.py writes it
_LOCATE_LIMIT = 5.0  # seconds for trying every line alone; all of a large hypervisor takes less than one


@dataclass(frozen=True, slots=True)
class Program:
    """One unit as Keystone sees it: what its statements became, and which labels each of them uses."""

    bits: int
    base: int
    statements: Sequence[Statement]
    texts: Sequence[str]
    needs: Sequence[Sequence[str]]

    def text(self, without: Collection[int] = ()) -> str:
        """The whole text: a label of ours for every statement, and behind the code the table of those labels.

        The statements ``without`` are left out, their labels stay.
        """
        out: list[str] = []
        for index, statement in enumerate(self.statements):
            out.append(f"{_MARK}{index}:")
            out += [f"{name}:" for name in statement.labels]
            if self.texts[index] and index not in without:
                out.append(self.texts[index])
        count = len(self.statements)
        out.append(f"{_MARK}{count}:")
        out += [f".long {_MARK}{index} - {_MARK}0" for index in range(count + 1)]
        return "\n".join(out) + "\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program. ``error`` is empty for success; ``died`` when the child hung or was killed there."""

    error: str
    code: bytes
    died: bool = False


def _library() -> str:
    spec = importlib.util.find_spec("keystone")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _LIBRARIES:
            if (Path(place) / name).is_file():
                return str(Path(place) / name)
    raise AssemblerError("keystone-engine 0.9.2 is not installed: pip install keystone-engine==0.9.2")


class Keystone:
    """A child process that assembles, for as long as the ``with`` statement lasts.

    ``time_limit`` is in seconds, for everything together. A child that hangs is killed; after that, or when it died of
    a text, the next text gets a new one.
    """

    def __init__(self, time_limit: float) -> None:
        self.time_limit = time_limit
        self._deadline = time.monotonic() + time_limit
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, work: Sequence[tuple[int, int, str]]) -> list[Outcome]:
        """Keystone's bare answers to (bits, base, text) rows; the last one may tell that the child died, and of what.

        Rows after that one have no answer.
        """
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        # A thread of its own, because both pipes can fill up.
        writer = threading.Thread(target=_send, args=(child.stdin, marshal.dumps(list(work))), daemon=True)
        writer.start()
        outcomes: list[Outcome] = []
        data = b""
        end = ""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while len(outcomes) < len(work) and not end:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    end = f"the assembler did not finish within {self.time_limit:g} s"
                elif piece := os.read(child.stdout.fileno(), 1 << 16):
                    answers, data = _answers(data + piece)
                    outcomes += answers
                else:
                    end = f"the assembler died (status {child.wait()})"
        if end:
            child.kill()
        writer.join()
        if end:
            self._stop()
            outcomes.append(Outcome(end, b"", died=True))
        return outcomes

    def _start(self) -> subprocess.Popen[bytes]:
        worker = Path(__file__).with_name("assemble_worker.py")
        # -I -S: nothing of the user's environment, and no search for packages: a quick start.
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(worker), _library()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self._child

    def _stop(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            # Closing flushes, and nobody reads any more.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _send(stream: IO[bytes], data: bytes) -> None:
    # The reader's side finds out by itself that the child is gone.
    with contextlib.suppress(OSError, ValueError):
        stream.write(data)
        stream.flush()


def _answers(data: bytes) -> tuple[list[Outcome], bytes]:
    """The whole answers at the beginning of ``data``, and the rest."""
    found: list[Outcome] = []
    while len(data) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(data)
        if len(data) < LENGTH.size + length:
            break
        error, code = marshal.loads(data[LENGTH.size : LENGTH.size + length])
        found.append(Outcome(error, code))
        data = data[LENGTH.size + length :]
    return found, data


def run_texts(work: Sequence[tuple[int, int, str]], time_limit: float) -> list[Outcome]:
    """:meth:`Keystone.run` in a child for this one call."""
    with Keystone(time_limit) as keystone:
        return keystone.run(work)


def run_programs(keystone: Keystone, programs: Sequence[Program]) -> list[Outcome]:
    """One outcome for each program, whatever became of those before it."""
    work = [(program.bits, program.base, program.text()) for program in programs]
    outcomes: list[Outcome] = []
    while len(outcomes) < len(work):
        outcomes += keystone.run(work[len(outcomes) :])
    return outcomes


def locate(unit: str, program: Program, outcome: Outcome | None) -> AssemblerError:
    """The error for a program that Keystone did not assemble: each statement is tried alone to find the line."""
    indices = [i for i, statement in enumerate(program.statements) if statement.kind is Kind.INSTRUCTION]
    work = []
    for index in indices:
        # Any place will do for a label here: only whether the statement can be assembled is asked.
        labels = "".join(f"{name}:\n" for name in dict.fromkeys(program.needs[index]))
        work.append((program.bits, program.base, f"{program.texts[index]}\n{labels}"))
    with Keystone(_LOCATE_LIMIT) as keystone:
        results = keystone.run(work) if work else []
        for index, result in zip(indices, results, strict=False):
            if result.error or not result.code:
                statement = program.statements[index]
                reason = result.error or "the assembler gave no code and no error"
                return AssemblerError(f"{statement.text!r}: {_explained(reason)}", statement.where)
        reason = outcome.error if outcome is not None and outcome.error else "the assembler gave too little code"
        if outcome is not None and outcome.error and not outcome.died:
            guilty = _bisect(keystone, program, [index for index in indices if program.needs[index]])
            if guilty is not None:
                return AssemblerError(f"{guilty.text!r}: {_explained(reason)}", guilty.where)
    first = program.statements[0].where if program.statements else None
    return AssemblerError(f"unit {unit!r}: {reason}; each line alone is accepted", first)


def _explained(reason: str) -> str:
    return f"the target is out of this form's reach: {reason}" if "FIXUP" in reason else reason


def _bisect(keystone: Keystone, program: Program, suspects: list[int]) -> Statement | None:
    """The statement with which the program fails although each one alone does not: a jump too far, say."""
    everyone = frozenset(suspects)

    def fails(kept: Sequence[int]) -> bool:
        text = program.text(everyone - frozenset(kept))
        return bool(keystone.run([(program.bits, program.base, text)])[0].error)

    if not suspects or not fails(suspects):
        return None
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if fails(half) else suspects[len(half) :]
    return program.statements[suspects[0]] if fails(suspects) else None
