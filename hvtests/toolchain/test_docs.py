"""The pages under docs/ say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from generator import errors, layout
from generator.arch import abi
from hvtests.runners import kvm
from hvtests.runners.base import Verdict
from hvtests.toolchain.command import MINIMAL, hvforge

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def _hex(text: str) -> int:
    return int(text.rstrip("H").replace("_", ""), 16)


def test_hypercalls_and_their_statuses() -> None:
    rows = _rows("hypercalls.md")
    assert [(row[0], row[1]) for row in rows if row[1] in abi.Hypercall.__members__] == [
        (str(int(item)), item.name) for item in abi.Hypercall]
    statuses = {row[1]: _hex(row[0]) for row in rows if row[1] in abi.HypercallStatus.__members__}
    assert statuses == {item.name: int(item) for item in abi.HypercallStatus}
    text = (DOCS / "hypercalls.md").read_text()
    assert f"version {abi.ABI_VERSION}" in text and abi.CPUID_SIGNATURE.decode() in text
    assert f"at most {abi.PRINT_LIMIT}" in text and f"reaches {abi.LINE_LIMIT} characters" in text


def test_outcomes_and_statuses() -> None:
    rows = {row[0]: row for row in _rows("exit-codes.md")}
    for outcome in abi.Outcome:
        assert rows[outcome.name][1] == f"{int(outcome):#x}"
        assert rows[outcome.name][3] == str(outcome.qemu_status)
        assert rows[outcome.name][4] == str(int(Verdict[outcome.name]))
    text = (DOCS / "exit-codes.md").read_text()
    statuses = {int(number) for number in re.findall(r"\b(6[4-9]|7[0-9])\b", text.split("## Errors")[1])}
    kinds = {kind.status for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.HvforgeError) and kind is not errors.HvforgeError}
    assert statuses == kinds


def test_boot_protocol_addresses() -> None:
    text = (DOCS / "boot-protocol.md").read_text()
    for address in (layout.LOADER, layout.LOADER_TABLE, layout.LOADER_BUFFER):
        assert f"{address:X}H" in text
    assert f"{layout.LOADER_BUFFER_SIZE >> 10} KiB" in text


def test_the_readme_s_transcript_is_what_the_commands_print(capfd: pytest.CaptureFixture[str]) -> None:
    """Each line of output in the first console block stands in what its command prints now, in that order."""
    block = (DOCS.parent / "README.md").read_text().split("```console\n")[1].split("```")[0]
    expected: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("$ "):
            command = line.removeprefix("$ ").split("#")[0].strip()
            expected[command] = []
        elif line not in ("...", ""):
            expected[command].append(line)
    assert list(expected) == ["cat images/minimal.toml", "hvforge verify images/minimal.toml",
                              "hvforge run images/minimal.toml --on bochs", "hvforge run images/minimal.toml --on qemu"]
    printed = {
        "cat images/minimal.toml": MINIMAL.read_text(),
        "hvforge verify images/minimal.toml": hvforge(capfd, "verify", MINIMAL).out,
    }
    if not kvm.probe().vmx:  # where KVM offers VMX, the guests run in QEMU too
        printed["hvforge run images/minimal.toml --on qemu"] = hvforge(capfd, "run", MINIMAL, "--on", "qemu").out
    for command, text in printed.items():
        lines = iter(text.splitlines())
        for line in expected[command]:
            assert any(line == other.rstrip() for other in lines), f"{command}: {line!r} is not there (in this order)"
