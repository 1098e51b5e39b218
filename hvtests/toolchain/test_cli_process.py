"""The command line as a process: signals, a reader that goes away, output that cannot be written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generator.cli import BROKEN_PIPE, HUNG_UP, INTERRUPTED, TERMINATED
from generator.errors import ImageFileError, OutputError
from hvtests.runners.base import Verdict
from hvtests.toolchain.command import CHECKOUT, MINIMAL, one_vm

COMMAND = [sys.executable, "-m", "generator.cli"]


@pytest.mark.parametrize("arguments", [["run", str(MINIMAL)], ["inspect", str(MINIMAL)], ["doctor"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, *arguments], cwd=CHECKOUT, stdout=writing, stderr=subprocess.PIPE, check=False,
                              timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


def endless(directory: Path) -> Path:
    """An image whose only VM loops until the time limit."""
    path = directory / "image.toml"
    path.write_text(one_vm('template = "hostile"\nparams = { attack = "loop" }').replace(
        '[[vm]]', "watchdog_ticks = 4_000_000_000\n[[vm]]"))
    return path


@pytest.mark.parametrize(("number", "status", "word", "ignored"), [
    (signal.SIGINT, INTERRUPTED, b"interrupted", False), (signal.SIGTERM, TERMINATED, b"terminated", False),
    (signal.SIGHUP, HUNG_UP, b"hung up", False), (signal.SIGTERM, TERMINATED, b"terminated", True),
])
@pytest.mark.parametrize("emulator", ["unicorn", pytest.param("bochs", marks=pytest.mark.bochs)])
def test_signals_end_a_run_cleanly(
    emulator: str, number: signal.Signals, status: int, word: bytes, ignored: bool, tmp_path: Path
) -> None:
    """Also as a job that a script starts with &, which ignores SIGINT."""
    path = endless(tmp_path)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with subprocess.Popen([*COMMAND, "run", str(path), "--on", emulator, "--timeout", "50"], cwd=CHECKOUT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(scratch)},
                          preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
                          ) as process:
        assert process.stdout is not None and process.stderr is not None
        while b"trying: loop" not in process.stdout.readline():
            assert process.poll() is None
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == status
        assert time.monotonic() - begin < 10
        assert process.stderr.read() == b"hvforge: " + word + b"\n"
    assert list(scratch.iterdir()) == []


def test_nohup_goes_on_when_the_terminal_hangs_up(tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, "run", str(endless(tmp_path)), "--timeout", "3"], cwd=CHECKOUT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        assert process.stdout is not None
        while b"trying: loop" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == Verdict.TIMEOUT


# -- output that cannot be written -------------------------------------------------------------------------------------

COMMANDS = {
    "build": ["build", str(MINIMAL), "--format", "disk", "-o", "OUT"],
    "verify": ["verify", str(MINIMAL)],
    "run": ["run", str(MINIMAL)],
    "run in Bochs": ["run", str(MINIMAL), "--on", "bochs"],
    "doctor": ["doctor"],
    "version": ["--version"],
}


def ended(arguments: list[str], directory: Path, redirection: str, **environment: str) -> tuple[int, str]:
    """Status and standard error of the command in a shell, with ``redirection``."""
    words = [str(directory) if word == "OUT" else word for word in arguments]
    done = subprocess.run(["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *words], cwd=CHECKOUT, timeout=60,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, text=True,
                          env={**os.environ, **environment})
    return done.returncode, done.stderr


@pytest.mark.bochs
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_full_standard_output_is_one_line(name: str, unbuffered: str, tmp_path: Path) -> None:
    status, said = ended(COMMANDS[name], tmp_path, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert said == "hvforge: error: standard output: cannot be written: No space left on device\n"
    assert status == OutputError.status


@pytest.mark.parametrize("name", ["verify", "run", "version"])
def test_closed_standard_output_is_one_line(name: str, tmp_path: Path) -> None:
    assert ended(COMMANDS[name], tmp_path, ">&-") == (
        OutputError.status, "hvforge: error: standard output: is closed\n")


def test_standard_output_that_was_opened_for_reading_is_one_line(tmp_path: Path) -> None:
    assert ended(["--version"], tmp_path, "1</dev/null") == (
        OutputError.status, "hvforge: error: standard output: cannot be written: Bad file descriptor\n")


@pytest.mark.parametrize("emulator", ["unicorn", pytest.param("bochs", marks=pytest.mark.bochs)])
def test_full_serial_file_is_one_line(emulator: str, tmp_path: Path) -> None:
    status, said = ended(["run", str(MINIMAL), "--on", emulator, "--serial", "/dev/full"], tmp_path, "")
    assert said == "hvforge: error: /dev/full: cannot write this file: No space left on device\n"
    assert status == OutputError.status


def test_closed_standard_error_changes_no_status(tmp_path: Path) -> None:
    assert ended(["run", str(tmp_path / "nothing.img")], tmp_path, "2>&-") == (ImageFileError.status, "")


def test_the_statuses_of_signals_are_those_of_shells_and_listed() -> None:
    listed = (CHECKOUT / "docs" / "exit-codes.md").read_text().partition("Besides: ")[2]
    for name, status in (("SIGHUP", HUNG_UP), ("Ctrl-C", INTERRUPTED), ("SIGTERM", TERMINATED)):
        assert status == 128 + getattr(signal, name, signal.SIGINT)
        assert re.search(rf"\b{status} [a-z ]+[( ]{name}", listed), name
