"""The arithmetic of the figures: differences that mean nothing are measured again, and targets stand beside figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hvtests.bench import __main__ as bench
from hvtests.runners.base import RunResult, SerialSink, Verdict


class Timed:
    """A runner whose runs take the times that it is given, in this order."""

    name = "timed"

    def __init__(self, seconds: Sequence[float]) -> None:
        self.left = list(seconds)

    def missing(self) -> str | None:
        return None

    def run(self, image: Path, *, timeout: float = 60, on_serial: SerialSink | None = None) -> RunResult:  # noqa: ARG002
        return RunResult(None, Verdict.FINISHED, None, b"", b"", self.left.pop(0), image.name)


@pytest.fixture(autouse=True)
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_image", lambda directory, kind, count: directory / f"{kind}-{count}")


def test_a_rate_is_the_median_of_differences(tmp_path: Path) -> None:
    """Each round is a long run and a short one: 400 repetitions in 2, 4 and 8 seconds."""
    runner = Timed([3, 1, 5, 1, 9, 1])
    assert bench._per_second(runner, tmp_path, "cpuid", 100, 500) == 100
    assert runner.left == []


def test_a_difference_that_is_not_positive_is_measured_again(tmp_path: Path) -> None:
    runner = Timed([1, 1, 1, 2, 3, 1, 5, 1, 9, 1])
    assert bench._per_second(runner, tmp_path, "cpuid", 100, 500) == 100
    assert runner.left == []


def test_a_machine_too_busy_to_measure_on_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="too busy"):
        bench._per_second(Timed([1, 1] * bench.TRIES), tmp_path, "alu", 100, 500)


def test_figures_of_speed_carry_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    bench.figure("exits", 2, "ratio", harness=91_000, **bench._target("cpuid"))
    assert json.loads(capsys.readouterr().out)["target"] == "harness at least 90000"
    assert bench._target("alu") == {"target": "harness_mips at least 1000"}
    assert bench._target("io") == {}
