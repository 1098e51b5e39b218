"""The command ``hvforge`` as tests call it: in this process, with what it printed and its status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from generator.cli import main

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MINIMAL = CHECKOUT / "images" / "minimal.toml"


@dataclass(frozen=True, slots=True)
class Ran:
    """One call: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error, without its prefix; fails if there is anything else."""
        assert self.out == ""
        assert self.err.startswith("hvforge: error: ") and self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("hvforge: error: ").rstrip("\n")


def hvforge(capfd: pytest.CaptureFixture[str], *arguments: Any) -> Ran:
    """Call ``hvforge`` with ``arguments``."""
    capfd.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return Ran(status, out, err)


def one_vm(guest: str, memory: str = "2M") -> str:
    """An image.toml with one VM whose guest's table is ``guest``; the guest's keys begin in line 7."""
    return f'[image]\nname = "one"\n[[vm]]\nname = "only"\nmemory = "{memory}"\n[vm.guest]\n{guest}\n'
