"""What a fresh machine meets first: the Makefile's list of targets, the installer of packages, the smoke test."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from generator import errors
from hvtests import smoke
from hvtests.runners.base import RunResult, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.qemu import QemuRunner
from hvtests.toolchain.command import CHECKOUT, MINIMAL

TARGETS = ("help", "run", "test", "smoke", "image", "bench", "clean")


def stub(directory: Path, name: str, script: str) -> None:
    """A program ``name`` in ``directory`` that runs ``script``."""
    (directory / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / name).chmod(0o755)


def install(directory: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    """.ci/debian with ``directory``'s programs before the system's."""
    return subprocess.run([CHECKOUT / ".ci" / "debian", *packages], env={"PATH": f"{directory}:{os.environ['PATH']}"},
                          capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that has package `here` alone, and whose apt-get writes down how it is called."""
    stub(tmp_path, "dpkg-query", '[ "${@: -1}" = here ] && echo -n installed || exit 1')
    stub(tmp_path, "apt-get", f'echo "$@" >> {tmp_path}/called')
    stub(tmp_path, "id", "echo 0")
    return tmp_path


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", CHECKOUT, "--no-print-directory"], capture_output=True, text=True, timeout=30,
                          check=False)
    assert done.returncode == 0
    assert set(TARGETS) <= set(re.findall(r"^make (\w+) ", done.stdout, re.MULTILINE))


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert "set -eu" in lines
    assert lines[-1] == "make test"
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)


def test_nothing_is_done_when_all_is_there(machine: Path) -> None:
    done = install(machine, "here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (machine / "called").exists()


def test_root_installs_what_is_missing(machine: Path) -> None:
    assert install(machine, "here", "bochs", "make").returncode == 0
    assert (machine / "called").read_text() == "install -y -qq --no-install-recommends bochs make\n"


def test_lists_of_packages_are_fetched_only_when_installing_fails(machine: Path) -> None:
    stub(machine, "apt-get", f'echo "$1" >> {machine}/called; [ "$1" = update ] || [ -e {machine}/lists ] || exit 100\n'
                             f'[ "$1" != update ] || touch {machine}/lists')
    assert install(machine, "bochs").returncode == 0
    assert (machine / "called").read_text() == "install\nupdate\ninstall\n"
    (machine / "lists").unlink()
    stub(machine, "apt-get", "exit 100")
    assert install(machine, "bochs").returncode == 100


def test_others_are_told_the_one_command(machine: Path) -> None:
    stub(machine, "id", "echo 1000")
    done = install(machine, "here", "bochs", "xorriso")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["sudo apt-get install -y --no-install-recommends bochs xorriso"]
    assert not (machine / "called").exists()


@pytest.mark.bochs
@pytest.mark.qemu
def test_smoke_boots_every_format_on_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([str(MINIMAL)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["ok", format_, f"{emulator}:"] for format_ in ("disk", "iso", "multiboot") for emulator in ("bochs", "qemu")]


def test_smoke_knows_a_wrong_end() -> None:
    def ended(verdict: Verdict, serial: bytes = b"") -> RunResult:
        return RunResult(None, verdict, None, serial, b"", 0.1, "")

    tcg, kvm = QemuRunner(accelerator="tcg"), QemuRunner(accelerator="kvm")
    missing_vmx = ended(Verdict.REFUSED, b"hvforge: refused: CPUID.1:ECX[5] (VMX) is not offered by this CPU\r\n")
    assert smoke.as_it_should(tcg, missing_vmx)
    assert not smoke.as_it_should(tcg, ended(Verdict.REFUSED, b"hvforge: refused: no memory\r\n"))
    assert not smoke.as_it_should(tcg, ended(Verdict.FINISHED))
    assert smoke.as_it_should(kvm, ended(Verdict.FINISHED))
    assert not smoke.as_it_should(kvm, missing_vmx)
    assert smoke.as_it_should(BochsRunner(), ended(Verdict.FINISHED))
    assert not smoke.as_it_should(BochsRunner(), missing_vmx)


def test_smoke_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([str(tmp_path / "nothing.toml")]) == errors.SpecError.status
    assert capsys.readouterr().err.count("\n") == 1
