"""Mistakes of those who change the hypervisor: a handler or a control that does not exist is named at once."""

from __future__ import annotations

import pytest

from generator import names, resources, vmcs_init
from generator.arch import controls
from generator.build import build
from generator.errors import TemplateError

MINIMAL = resources.images() / "minimal.toml"


def test_a_handler_for_an_exit_reason_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.HANDLERS, "PAUZE", "exit_unexpected")
    with pytest.raises(TemplateError, match=r"names\.py: HANDLERS has 'PAUZE'.*did you mean \"PAUSE\"\?"):
        build(MINIMAL, formats=())


def test_a_handler_that_no_template_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.HANDLERS, "PAUSE", "exit_pauze")
    with pytest.raises(Exception, match=r"vmx/exit\.asm\.j2:\d+.*exit_pauze"):
        build(MINIMAL, formats=())


def test_a_control_that_does_not_exist() -> None:
    with pytest.raises(TemplateError, match=r"vmcs_init\.py: PROCBASED has no control .*\"PAUSE_EXITING\""):
        vmcs_init._mask(controls.PROCBASED, ["PAUS_EXITING"])
