"""The harness and Bochs agree on every exit of every guest: reason, qualification, guest RIP, injected events.

The image itself prints its exits (``trace = true``); nothing of the harness' own records is used here, except in the
one test that compares them with what the image saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generator import resources
from generator.arch import exits
from hvtests.guests import climb
from hvtests.guests.crosscheck import Event, build_traced, first_difference, parse_trace
from hvtests.runners.base import Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

SEQUENTIAL = ("minimal", "tour", "hostile")
TIMER = exits.BY_NAME["PREEMPTION_TIMER"].number


def _image(name: str, directory: Path) -> Path:
    if name == "climb":
        (directory / "climb.bin").write_bytes(climb.climbing_guest())
        (directory / "climb.toml").write_text(climb.IMAGE)
        return build_traced(directory / "climb.toml", directory)
    return build_traced(resources.images() / f"{name}.toml", directory)


def _both(image: Path) -> tuple[list[Event], list[Event]]:
    traces = []
    for runner in (UnicornRunner(), BochsRunner()):
        result = runner.run(image)
        assert result.verdict is Verdict.FINISHED, result.text
        traces.append(parse_trace(result.debugcon))
    assert len(traces[0]) > 0
    return traces[0], traces[1]


@pytest.mark.bochs
@pytest.mark.parametrize("name", [*SEQUENTIAL, "climb"])
def test_harness_and_bochs_agree_event_by_event(name: str, tmp_path: Path) -> None:
    ours, theirs = _both(_image(name, tmp_path))
    assert first_difference(ours, theirs) is None


@pytest.mark.bochs
def test_in_round_robin_each_vm_has_the_same_events(tmp_path: Path) -> None:
    """When a turn ends depends on how fast time runs, which differs; what each VM does between turns does not."""
    ours, theirs = _both(_image("round-robin", tmp_path))
    for vm in range(3):
        mine, other = (
            [event for event in trace if event.vm == vm and event.reason != TIMER] for trace in (ours, theirs))
        assert first_difference(mine, other) is None
    assert any(event.reason == TIMER for event in ours) and any(event.reason == TIMER for event in theirs)


@pytest.mark.parametrize("name", [*SEQUENTIAL, "round-robin", "climb"])
def test_the_model_recorded_what_the_image_saw(name: str, tmp_path: Path) -> None:
    """The same exits, seen from both sides of the VMCS: by the model that made them, by VMREAD in the image."""
    result = UnicornRunner().run(_image(name, tmp_path))
    assert result.exits is not None
    seen = [event.values[1:] for event in parse_trace(result.debugcon) if event.letter == "X"]
    made = [(record.reason, record.qualification, record.rip) for record in result.exits]
    assert made == seen


def test_a_difference_is_found() -> None:
    same = Event("X", (0, 10, 0, 0x1000))
    other = Event("X", (0, 10, 0, 0x1002))
    check: Callable[[list[Event], list[Event]], str | None] = first_difference
    assert check([same], [same]) is None
    assert "event 1" in (check([same, same], [same, other]) or "")
    assert "only Bochs" in (check([same], [same, same]) or "")
