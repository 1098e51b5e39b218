"""Running Keystone in a child process, and finding the line when it refuses, hangs or dies."""

from __future__ import annotations

import importlib.util
import io
import marshal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.assemble_source import Kind, Statement
from generator.errors import AssemblerError

_LIBRARIES = ("libkeystone.so", "libkeystone.so.0", "libkeystone.dylib", "keystone.dll")
_LOCATE_LIMIT = 5.0  # seconds for trying every line alone; all of a large hypervisor takes less than one


@dataclass(frozen=True, slots=True)
class Program:
    """One text for Keystone, and its single statements for finding the guilty one."""

    bits: int
    base: int
    text: str
    texts: Sequence[str]            # what Keystone sees of each statement
    needs: Sequence[Sequence[str]]  # labels that each statement uses
    statements: Sequence[Statement]


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


def _run(work: list[tuple[int, int, str]], time_limit: float) -> list[Outcome]:
    worker = Path(__file__).with_name("assemble_worker.py")
    # -I -S: nothing of the user's environment, and no search for packages: a quick start.
    command = [sys.executable, "-I", "-S", str(worker), _library()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            output, _ = child.communicate(marshal.dumps(work), timeout=time_limit)
            end = f"the assembler died (status {child.returncode})"
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
            end = f"the assembler did not finish within {time_limit:g} s"
    outcomes: list[Outcome] = []
    stream = io.BytesIO(output)
    while True:
        try:
            marshal.load(stream)
            error, code = marshal.load(stream)
        except (EOFError, ValueError, TypeError):
            break
        outcomes.append(Outcome(error, code))
    if len(outcomes) < len(work):
        outcomes.append(Outcome(end, b"", died=True))
    return outcomes


def run_child(programs: Sequence[Program], time_limit: float) -> list[Outcome]:
    """One outcome for each program; after one in which the child died, the others are run in another child."""
    work = [(program.bits, program.base, program.text) for program in programs]
    outcomes: list[Outcome] = []
    while len(outcomes) < len(work):
        outcomes += _run(work[len(outcomes) :], time_limit)
    return outcomes


def locate(unit: str, program: Program, outcome: Outcome | None) -> AssemblerError:
    """The error for a program that Keystone did not assemble: each statement is tried alone to find the line."""
    indices = [i for i, s in enumerate(program.statements) if s.kind is Kind.INSTRUCTION]
    work = []
    for index in indices:
        # Any place will do for a label here: only whether the statement can be assembled is asked.
        labels = "".join(f"{name}:\n" for name in dict.fromkeys(program.needs[index]))
        work.append((program.bits, program.base, f"{program.texts[index]}\n{labels}"))
    results = _run(work, _LOCATE_LIMIT) if work else []
    for index, result in zip(indices, results, strict=False):
        if result.error or not result.code:
            statement = program.statements[index]
            reason = result.error or "the assembler gave no code and no error"
            return AssemblerError(f"{statement.text!r}: {reason}", statement.where)
    reason = outcome.error if outcome is not None and outcome.error else "the assembler gave too little code"
    first = program.statements[0].where if program.statements else None
    return AssemblerError(f"unit {unit!r}: {reason}; each line alone is accepted", first)
