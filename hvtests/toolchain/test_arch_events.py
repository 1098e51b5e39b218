"""Exceptions and interruption information against SDM 3A 6.3.1 and tables 6-4, 6-5, and SDM 3C 25.8.3."""

from __future__ import annotations

import pytest

from generator.arch import events
from generator.arch.events import ActivityState, EventType


def test_vectors_of_the_manual() -> None:
    assert {vector.number: vector.mnemonic for vector in events.EXCEPTIONS} == {
        0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
        12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP"}


def test_vectors_with_an_error_code() -> None:
    """SDM 3A table 6-1."""
    assert frozenset({8, 10, 11, 12, 13, 14, 17, 21}) == events.WITH_ERROR_CODE


def test_double_faults_as_table_6_5_says() -> None:
    contributory, page_faults = {0, 10, 11, 12, 13, 21}, {14, 20}
    for first in range(32):
        for second in range(32):
            expected = (first in contributory and second in contributory) or (
                first in page_faults and second in contributory | page_faults)
            assert events.makes_double_fault(first, second) == expected, (first, second)


@pytest.mark.parametrize(("vector", "kind", "code", "value"), [
    (6, EventType.HARDWARE_EXCEPTION, False, 0x8000_0306), (13, EventType.HARDWARE_EXCEPTION, True, 0x8000_0B0D),
    (0x20, EventType.EXTERNAL_INTERRUPT, False, 0x8000_0020), (2, EventType.NMI, False, 0x8000_0202),
    (3, EventType.SOFTWARE_EXCEPTION, False, 0x8000_0603), (0x80, EventType.SOFTWARE_INTERRUPT, False, 0x8000_0480)])
def test_interruption_info(vector: int, kind: EventType, code: bool, value: int) -> None:
    assert events.interruption_info(vector, kind, error_code=code) == value


@pytest.mark.parametrize(("info", "words"), [
    (0, "none"), (0x0000_0B0D, "none"), (0x8000_0B0D, "#GP (general protection) with error code"),
    (0x8000_0306, "#UD (invalid opcode)"), (0x8000_0020, "external interrupt, vector 0x20"), (0x8000_0202, "NMI"),
    (0x8000_0480, "software interrupt, vector 0x80"), (0x8000_0603, "#BP (breakpoint)"),
    (0x8000_0501, "#DB (debug exception)"), (0x8000_0105, "reserved type, vector 0x05"),
    (0x8000_0700, "other event, vector 0x00")])
def test_describe(info: int, words: str) -> None:
    assert events.describe(info) == words


def test_activity_states() -> None:
    assert [(state.name, int(state)) for state in ActivityState] == [
        ("ACTIVE", 0), ("HLT", 1), ("SHUTDOWN", 2), ("WAIT_FOR_SIPI", 3)]


def test_masks() -> None:
    assert events.INFO_TYPE_MASK == 0x700
    assert events.INFO_INJECTION_RESERVED == 0x7FFF_F000
    assert events.INTERRUPTIBILITY_RESERVED == 0xFFFF_FFFF - 0x1F
