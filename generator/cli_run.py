"""``hvforge run``: COM1 to standard output as it comes, and the verdict in one line."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from generator.errors import EmulatorMissingError, OutputError


class Console:
    """Takes COM1's bytes: to standard output with plain line ends, to ``file`` unchanged."""

    def __init__(self, file: FileIO | None) -> None:
        self._file = file
        self._return = False   # a CR came last: whether it is part of a line's end shows with the next byte

    def __call__(self, data: bytes) -> None:
        if self._file is not None:
            self._keep(self._file, data)
        if self._return:
            data = b"\r" + data
        self._return = data.endswith(b"\r")
        self._out(data[:-1] if self._return else data)

    def close(self) -> None:
        """Let out what is held back."""
        self._out(b"\r" if self._return else b"")

    @staticmethod
    def _keep(file: FileIO, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest):]
        except OSError as error:
            raise unwritable(error, file.name) from None

    @staticmethod
    def _out(data: bytes) -> None:
        sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
        sys.stdout.buffer.flush()


def unwritable(error: OSError, file: object) -> OutputError:
    """``error`` for the user."""
    return OutputError(f"cannot write this file: {error.strerror or error}", str(file))


Ending = tuple[int, str]   # process exit status, the last line on standard error


def emulator_missing(emulator: str) -> Ending | None:
    """How a run ends that cannot begin because ``emulator`` is not installed; None if it is."""
    from hvtests.runners import by_name
    from hvtests.runners.base import Verdict

    lacking = by_name(emulator).missing()
    return None if lacking is None else (int(Verdict.EMULATOR_MISSING), f"hvforge: error: {emulator}: {lacking}")


def run_streaming(image: Path, emulator: str, timeout: float, serial: Path | None, memory_mib: int) -> Ending:
    """Boot ``image`` on a machine with so much memory; the verdict.

    Raises OutputError if ``serial`` cannot be written, ImageFileError if ``image`` cannot boot.
    """
    from hvtests.runners import by_name
    from hvtests.runners.base import Verdict
    from hvtests.runners.words import verdict_line

    sys.stdout.flush()
    with ExitStack() as stack:
        file = None
        if serial is not None:
            try:
                file = stack.enter_context(FileIO(str(serial), "wb"))   # no buffer, so that closing it cannot fail
            except OSError as error:
                raise unwritable(error, serial) from None
        console = Console(file)
        try:
            result = by_name(emulator, memory_mib).run(image, timeout=timeout, on_serial=console)
        except EmulatorMissingError as error:
            return int(Verdict.EMULATOR_MISSING), f"hvforge: error: {emulator}: {error}"
        finally:
            console.close()
    if result.verdict is Verdict.EMULATOR_MISSING:
        return int(result.verdict), f"hvforge: error: {emulator}: {result.detail}"
    complaints = "".join(f"hvforge: {line}\n" for line in result.complaints)
    return int(result.verdict), f"{complaints}hvforge: {verdict_line(result, emulator)}"
