"""The end of a run in one line, with the reason in the image's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from generator.arch.abi import CONSOLE_PREFIX, REFUSED_PREFIX
from hvtests.runners.base import RunResult, Verdict

_PREFIXES = {Verdict.PANIC: CONSOLE_PREFIX + "panic: ", Verdict.REFUSED: REFUSED_PREFIX}
_OTHERWISE = re.compile(re.escape(CONSOLE_PREFIX) + r"(vm \S+: ended: \S+, expected \S+)")


def verdict_line(result: RunResult, emulator: str) -> str:
    """``qemu: REFUSED after 0.41 s: CPUID.1:ECX[5] (VMX) is not offered by this CPU; debug exit with code 0x12``."""
    said = reason(result)
    how = f"{said}; {result.detail}" if said else result.detail
    return f"{emulator}: {result.verdict.name} after {result.seconds:.2f} s: {how}"


def reason(result: RunResult) -> str:
    """Why the image refused or panicked, or which VM ended wrongly, as it said on COM1; "" where it said nothing."""
    prefix = _PREFIXES.get(result.verdict)
    said = [line.removeprefix(prefix) for line in result.lines if prefix and line.startswith(prefix)]
    if result.verdict is Verdict.GUEST_FAILED:
        said = ended_otherwise(result.lines)
    if not said:
        return ""
    return said[0] if len(said) == 1 else f"{said[0]} (and {len(said) - 1} more)"


def ended_otherwise(lines: Sequence[str]) -> list[str]:
    """What ``lines`` of COM1 say of the VMs that ended otherwise than expected: ``vm a: ended: halted, expected …``."""
    return [match[1] for match in map(_OTHERWISE.fullmatch, lines) if match]
