"""``python -m hvtests.runners bochs FILE [SECONDS]``: boot a file, COM1 to standard output, the verdict as status."""

from __future__ import annotations

import sys
from pathlib import Path

from generator.errors import HvforgeError, UsageError
from hvtests.runners import by_name
from hvtests.runners.base import DEFAULT_TIMEOUT


def main(arguments: list[str]) -> int:
    """Exit status: that of the verdict, or of the error."""
    try:
        if len(arguments) not in (2, 3):
            raise UsageError("usage: python -m hvtests.runners unicorn|bochs|qemu FILE [SECONDS]")
        result = by_name(arguments[0]).run(
            Path(arguments[1]),
            timeout=float(arguments[2]) if len(arguments) == 3 else DEFAULT_TIMEOUT,
            on_serial=_to_stdout,
        )
    except HvforgeError as error:
        print(error, file=sys.stderr)
        return error.status
    print(f"{result.verdict.name} after {result.seconds:.2f} s: {result.detail}", file=sys.stderr)
    if result.debugcon:
        print(f"port 0xE9: {len(result.debugcon)} bytes, the last {result.debugcon[-200:]!r}", file=sys.stderr)
    return int(result.verdict)


def _to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
