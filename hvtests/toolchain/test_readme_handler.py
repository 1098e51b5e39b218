"""The handler that README.md shows how to write, written as it says: the exit is handled, and counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from generator import build as pipeline
from generator import names, resources, vmcs_init
from generator.arch import controls
from hvtests.guests.flat import EXIT, Guest, make
from hvtests.runners.base import Verdict
from hvtests.runners.unicorn import UnicornRunner

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_handler_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.read_text().split("## A handler in ten lines\n")[1].split("\n## ")[0]
    snippet = section.split("```\n")[1]
    assert '`"PAUSE": "exit_pause"`' in section and '`"PAUSE_EXITING"`' in section
    overlay = tmp_path / "templates" / "exits"
    overlay.mkdir(parents=True)
    original = (resources.templates() / "exits" / "simple.asm.j2").read_text()
    (overlay / "simple.asm.j2").write_text(f"{original}\n{snippet}")
    monkeypatch.setitem(names.HANDLERS, "PAUSE", "exit_pause")
    before, bit = vmcs_init.wanted_controls, controls.PROCBASED.mask("PAUSE_EXITING")

    def wanted(*arguments: object) -> Sequence[vmcs_init.Wanted]:
        return tuple(
            dataclasses.replace(item, required=item.required | bit) if item.word is controls.PROCBASED else item
            for item in before(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(vmcs_init, "wanted_controls", wanted)
    plain, overlays = pipeline.build, [tmp_path / "templates"]
    monkeypatch.setattr("hvtests.guests.flat.build", lambda path, formats: plain(path, formats, overlays))
    image = make([Guest("spinner", "pause\npause\npause\nxor ebx, ebx\n" + EXIT)], tmp_path)
    result = UnicornRunner().run(image)
    assert result.verdict is Verdict.FINISHED, result.text
    assert "hvforge: vm spinner: exits PAUSE 3" in result.lines
