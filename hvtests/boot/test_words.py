"""What is said of a run: the image's own reason in the verdict, and plain sentences in the report of `verify`."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.arch.abi import Outcome
from hvtests.runners.base import RunResult, Verdict
from hvtests.runners.words import ended_otherwise, verdict_line
from hvtests.toolchain.command import hvforge

TWO = b"""hvforge: vm a: ended: exited, expected halted\r
[b] hvforge: vm b: ended: exited, expected halted\r
hvforge: vm b: ended: exited\r
hvforge: vm c: ended: watchdog, expected exited\r
"""
TWO_VMS = """
[image]
name = "two"
[[vm]]
name = "good"
memory = "2M"
[vm.guest]
template = "long64"
[[vm]]
name = "bad"
memory = "2M"
expect = "halted"
[vm.guest]
template = "long64"
"""


def result(verdict: Verdict, serial: bytes) -> RunResult:
    return RunResult(Outcome.GUEST_FAILED, verdict, 0x11, serial, b"", 0.5, "how")


def test_the_verdict_names_the_first_vm_that_ended_wrongly() -> None:
    assert ended_otherwise(result(Verdict.GUEST_FAILED, TWO).lines) == [
        "vm a: ended: exited, expected halted", "vm c: ended: watchdog, expected exited"]
    assert verdict_line(result(Verdict.GUEST_FAILED, TWO), "bochs") == (
        "bochs: GUEST_FAILED after 0.50 s: vm a: ended: exited, expected halted (and 1 more); how")
    assert verdict_line(result(Verdict.FINISHED, TWO), "bochs") == "bochs: FINISHED after 0.50 s: how"


def test_run_and_verify_name_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.toml"
    path.write_text(TWO_VMS)
    wrong = "vm bad: ended: exited, expected halted"
    assert "GUEST_FAILED after " in hvforge(capfd, "run", path).err
    assert f" s: {wrong}; " in hvforge(capfd, "run", path).err
    out = hvforge(capfd, "verify", path).out
    assert f"NO  the run ended otherwise: debug exit with code 0x11\n      {wrong}\n" in out
    hvforge(capfd, "build", path, "-o", path.parent)
    (path.parent / "two.map.json").unlink()
    assert f"\n      {wrong}\n" in hvforge(capfd, "verify", path.parent / "two.iso").out


def test_verify_of_an_image_that_refuses_has_no_entry_to_speak_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.toml"
    path.write_text(TWO_VMS.replace('"2M"', '"32M"'))
    out = hvforge(capfd, "verify", path, "--memory", "32").out
    assert "NO  there was no VM entry to check\n" in out
    assert "NO  there was no VM exit\n" in out


def test_one_of_a_thing_is_no_plural(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A flat guest of one HLT: one entry, one exit."""
    path = tmp_path / "image.toml"
    path.write_text('[image]\nname = "one"\n[[vm]]\nname = "a"\nmemory = "2M"\nexpect = "halted"\n[vm.guest]\n'
                    'file = "guest.bin"\nformat = "flat"\nmode = "protected"\n')
    (path.parent / "guest.bin").write_bytes(b"\xf4")
    out = hvforge(capfd, "verify", path).out
    assert "at the 1 entry with" in out
    assert "ok  1 VM exit, counted alike by the image\n" in out
