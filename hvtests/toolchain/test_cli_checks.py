"""`hvforge checks`: the list of rules, for people and for programs."""

from __future__ import annotations

import json

import pytest

from generator.arch.vmcs import BY_NAME
from generator.errors import UsageError
from hvtests.toolchain.command import hvforge

Capture = pytest.CaptureFixture[str]
PSEUDO_FIELDS = {"IA32_EFER.LMA"}   # it at VM entry is not a field, and rules depend on it


def test_every_rule_is_listed_with_what_a_program_needs(capfd: Capture) -> None:
    rules = [json.loads(line) for line in hvforge(capfd, "checks", "--json").out.splitlines()]
    identifiers = [rule["id"] for rule in rules]
    assert len(set(identifiers)) == len(identifiers) > 250
    # Controls before host state before guest state: the manual's order (SDM 3C 27.2, 27.3).
    stages = list(dict.fromkeys(rule["stage"] for rule in rules))
    assert len(stages) == 3 and stages[0].startswith("control") and stages[1].startswith("host")
    for rule in rules:
        assert set(rule["reads"]) <= BY_NAME.keys() | PSEUDO_FIELDS and rule["reads"]
        assert rule["section"].startswith("SDM 3") and rule["sentence"].endswith(".")


def test_words_narrow_the_list(capfd: Capture) -> None:
    out = hvforge(capfd, "checks", "guest.cs", "D/B").out
    assert "guest.cs.db_with_l" in out and out.splitlines()[-1] == "1 rule"


def test_nothing_found_is_said(capfd: Capture) -> None:
    ran = hvforge(capfd, "checks", "nonsense")
    assert (ran.status, ran.error) == (
        UsageError.status, "checks: no rule has nonsense in its ID, sentence or fields")
