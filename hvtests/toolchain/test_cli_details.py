"""Small things of the command line: wordings, narrow terminals, files as editors and file systems leave them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from generator.errors import LayoutError, SpecError, UsageError
from hvtests.toolchain.command import CHECKOUT, MINIMAL, hvforge, one_vm

Capture = pytest.CaptureFixture[str]


def test_an_option_is_named_once(capfd: Capture) -> None:
    ran = hvforge(capfd, "run", "x.img", "--format", "iso")
    assert ran.error == "--format: goes with an image.toml; x.img has the format it has"


def test_output_directory_without_a_name_is_refused(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = hvforge(capfd, "build", MINIMAL, "-o", "")
    assert ran.status == UsageError.status
    assert '"" names no directory' in ran.error
    assert list(tmp_path.iterdir()) == []
    assert hvforge(capfd, "build", MINIMAL, "--format", "disk").status == 0
    assert (tmp_path / "build" / "minimal.img").is_file()


@pytest.mark.parametrize("columns", [20, 40, 80])
@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["build", "-o"]])
def test_narrow_terminals_fold_no_name_and_no_number(command: list[str], columns: int, tmp_path: Path) -> None:
    """As on a terminal of so many columns, without its colours."""
    words = [command[0], str(MINIMAL), *command[1:], *([str(tmp_path)] if command[1:] else [])]
    done = subprocess.run([sys.executable, "-m", "generator.cli", *words], cwd=CHECKOUT, check=True, timeout=60,
                          capture_output=True, text=True,
                          env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(columns)})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert re.search(r"^ *0x00100000 - 0x00106000 +24K\b", plain, re.MULTILINE)
    if command[0] == "build":
        size = (tmp_path / "minimal.map.json").stat().st_size
        assert re.search(rf"^{re.escape(str(tmp_path))}/minimal\.map\.json +{size} ", plain, re.MULTILINE)


def test_byte_order_mark_is_no_part_of_toml(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "image.toml"
    path.write_text(one_vm('template = "long64"'), "utf-8-sig")
    assert hvforge(capfd, "build", path, "-o", tmp_path, "--format", "multiboot").status == 0
    path.write_text(one_vm('template = "long46"'), "utf-8-sig")
    assert hvforge(capfd, "build", path, "-o", tmp_path).error.startswith(f"{path}:7: vm[0].guest.template")


def test_description_that_may_not_be_read_is_no_usage_error(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for a user who is not root, whom no mode keeps out."""
    path = tmp_path / "image.toml"
    path.write_text(one_vm('template = "long64"'))
    path.chmod(0)

    def denied(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("os.access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "read_bytes", denied)
    for command in ("build", "verify", "run", "inspect"):
        ran = hvforge(capfd, command, path)
        assert ran.status == SpecError.status
        assert ran.error == f"{path}: cannot be read: permission denied (give the path of an image.toml)"


def test_payload_too_large_for_a_medium_names_the_description(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "image.toml"
    path.write_text(one_vm('file = "guest.bin"\nformat = "flat"\nmode = "protected"', "128M"))
    with (tmp_path / "guest.bin").open("wb") as file:
        file.truncate(65 << 20)
    ran = hvforge(capfd, "build", path, "-o", tmp_path, "--format", "disk")
    assert ran.status == LayoutError.status
    assert re.match(rf"{re.escape(str(path))}: the payload has \d+ bytes; a BIOS medium carries .* 67108864", ran.error)
