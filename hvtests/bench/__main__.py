"""``python -m hvtests.bench``: one JSON line per figure.

Speeds are differences between a long and a short run of the same image, so that starting an emulator and booting cancel
out; where there is a peer, the figure is the ratio of both within this run, which holds on any machine.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from generator import resources
from generator.build import build, write
from generator.mapfile import sizes
from hvtests.bench.exit_path import PATHS, instructions
from hvtests.runners.base import Runner, RunResult, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

ROUNDS = 3
TRIES = 5                     # of one difference
TARGETS = {"cpuid": "harness at least 90000", "alu": "harness_mips at least 1000"}
INSTRUCTIONS_PER_ROUND = 10   # of the loop in guests/bench.asm.j2, kind "alu"
IMAGE = """
[image]
name = "bench"
watchdog_ticks = 4_000_000_000
[[vm]]
name = "bench"
memory = "2M"
[vm.guest]
template = "bench"
params = {{ kind = "{kind}", count = {count} }}
"""


def figure(name: str, value: float, unit: str, **more: object) -> None:
    """Print one figure."""
    print(json.dumps({"figure": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def _target(kind: str) -> dict[str, str]:
    return {"target": TARGETS[kind]} if kind in TARGETS else {}


def _image(directory: Path, kind: str, count: int) -> Path:
    path = directory / f"{kind}-{count}.toml"
    path.write_text(IMAGE.format(kind=kind, count=count))
    image = build(path, ["disk"])
    target = directory / f"{kind}-{count}"
    write(image, target)
    return target / "bench.img"


def _run(runner: Runner, image: Path) -> RunResult:
    result = runner.run(image, timeout=120)
    if result.verdict is not Verdict.FINISHED:
        raise RuntimeError(f"{runner.name}: {result.verdict.name}: {result.detail}\n{result.text}")
    return result


def _per_second(runner: Runner, directory: Path, kind: str, short: int, long: int) -> float:
    """Repetitions per second: the median of ROUNDS differences."""
    images = _image(directory, kind, short), _image(directory, kind, long)
    return statistics.median((long - short) / _difference(runner, *images) for _ in range(ROUNDS))


def _difference(runner: Runner, short: Path, long: Path) -> float:
    """Seconds that the long run takes more; on a busy machine a short run may take longer, and both are repeated."""
    for _ in range(TRIES):
        seconds = _run(runner, long).seconds - _run(runner, short).seconds
        if seconds > 0:
            return seconds
    raise RuntimeError(f"{runner.name}: {long} took no longer than {short}, {TRIES} times: this machine is too busy")


def _seconds(action: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """All figures."""
    minimal = resources.images() / "minimal.toml"
    core = build(minimal, formats=()).core
    size = sizes(core)
    figure("code and data of the minimal hypervisor", size["code"] + size["rodata"] + size["data"], "bytes",
           target="below 24576", **size)
    for path in PATHS:
        figure(f"instructions from VM exit to VM entry: {path}", instructions(core, path), "instructions",
               **({"target": "below 60"} if path == "cpuid" else {}))
    figure("build of images/minimal.toml, all formats, after import", _seconds(lambda: build(minimal)), "s",
           target="below 1")
    # The record of exits is kept short: a long run needs no memory for it.
    harness, bochs = UnicornRunner(exits_kept=16), BochsRunner()
    with tempfile.TemporaryDirectory(prefix="hvforge-bench-") as name:
        directory = Path(name)
        for kind in ("cpuid", "io", "rdmsr", "hypercall"):
            ours = _per_second(harness, directory, kind, 10_000, 210_000)
            theirs = _per_second(bochs, directory, kind, 50_000, 450_000)
            figure(f"{kind} exits per second, harness / Bochs", ours / theirs, "ratio", harness=round(ours),
                   bochs=round(theirs), **_target(kind))
        ours = _per_second(harness, directory, "alu", 1_000_000, 101_000_000) * INSTRUCTIONS_PER_ROUND
        theirs = _per_second(bochs, directory, "alu", 1_000_000, 31_000_000) * INSTRUCTIONS_PER_ROUND
        figure("guest instructions per second, harness / Bochs", ours / theirs, "ratio", harness_mips=round(ours / 1e6),
               bochs_mips=round(theirs / 1e6), **_target("alu"))


if __name__ == "__main__":
    main()
