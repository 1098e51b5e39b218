"""The errors a user can cause: one line each, and a status of their own."""

from __future__ import annotations

import pytest

from generator import errors
from generator.arch.abi import Outcome
from generator.errors import HvforgeError, SpecError

KINDS = [kind for kind in vars(errors).values()
         if isinstance(kind, type) and issubclass(kind, HvforgeError) and kind is not HvforgeError]


def test_statuses_are_distinct() -> None:
    statuses = {kind.status for kind in KINDS}
    assert len(statuses) == len(KINDS)
    assert statuses.isdisjoint(range(7))  # the verdicts on a run
    assert statuses.isdisjoint(outcome.qemu_status for outcome in Outcome)
    assert all(64 <= status < 128 for status in statuses)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_one_line_with_its_place(kind: type[HvforgeError]) -> None:
    error = kind("first\n  second\tthird ", "file.toml:3: key")
    assert str(error) == "file.toml:3: key: first second third"
    assert (error.message, error.where) == ("first second third", "file.toml:3: key")
    assert str(kind("alone")) == "alone"
    assert isinstance(error, HvforgeError)


def test_it_is_raised_like_any_exception() -> None:
    with pytest.raises(HvforgeError, match=r"^here: what$"):
        raise SpecError("what", "here")
