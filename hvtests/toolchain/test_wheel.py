"""The wheel, installed away from the checkout, does what the checkout does: templates and images come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from generator.build import build
from hvtests.toolchain.command import CHECKOUT, MINIMAL

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
TIME_LIMIT = 100.0


def call(*command: str | Path, directory: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``directory``; with ``site`` its packages come first."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    return subprocess.run([str(part) for part in command], cwd=directory, env=environment, capture_output=True,
                          text=True, timeout=TIME_LIMIT, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the build backend that is installed already."""
    directory = tmp_path_factory.mktemp("wheel")
    done = call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", directory, CHECKOUT, directory=directory)
    assert done.returncode == 0, done.stderr
    found, = directory.glob("hvforge-*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the wheel is installed; what it depends on is where this Python has it."""
    directory = tmp_path_factory.mktemp("site")
    done = call(*PIP, "install", "--no-deps", "--no-index", "--target", directory, wheel, directory=directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_wheel_holds_every_template_and_image(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, pattern in (("templates", "*.j2"), ("images", "*.toml")):
        files = list((CHECKOUT / kind).rglob(pattern))
        assert files
        for file in files:
            assert f"generator/_data/{file.relative_to(CHECKOUT).as_posix()}" in names
    for package in ("generator", "hvtests"):
        for file in (CHECKOUT / package).rglob("*.py"):
            assert file.relative_to(CHECKOUT).as_posix() in names


def test_installed_command_uses_nothing_of_the_checkout(site: Path, tmp_path: Path) -> None:
    where = call(sys.executable, "-c", "import generator, hvtests; print(generator.__file__, hvtests.__file__)",
                 directory=tmp_path, site=site)
    assert where.stdout.split() == [str(site / "generator" / "__init__.py"), str(site / "hvtests" / "__init__.py")]
    listed = call(site / "bin" / "hvforge", "images", directory=tmp_path, site=site)
    assert listed.returncode == 0, listed.stderr
    assert str(site / "generator" / "_data" / "images" / "minimal.toml") in listed.stdout
    assert str(CHECKOUT) not in listed.stdout


def test_installed_command_builds_the_same_bytes_and_verifies_them(site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "generator" / "_data" / "images" / "minimal.toml", tmp_path / "mine.toml")
    command = site / "bin" / "hvforge"
    done = call(command, "build", "mine.toml", directory=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    for format_, data in build(MINIMAL).files.items():
        suffix = {"disk": ".img", "iso": ".iso", "multiboot": ".elf"}[format_]
        assert (tmp_path / "build" / f"minimal{suffix}").read_bytes() == data, format_
    done = call(command, "verify", "mine.toml", directory=tmp_path, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: FINISHED" in done.stdout


def test_installed_pytest_plugin_is_found(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from pathlib import Path\n\n"
        "def test_finishes(hv_run):\n"
        "    assert hv_run(Path('build/minimal.elf')).verdict.name == 'FINISHED'\n")
    image = build(MINIMAL, ["multiboot"])
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "minimal.elf").write_bytes(image.files["multiboot"])
    done = call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", directory=tmp_path, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_wheel_tells_its_licence(wheel: Path) -> None:
    """PEP 639: an SPDX expression, and the text of the licence in the package."""
    archive = zipfile.ZipFile(wheel)
    metadata, = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().partition("\n\n")[0].splitlines()
    assert "License-Expression: GPL-2.0-or-later" in lines
    assert "License-File: LICENSE" in lines
    assert archive.read(metadata.replace("METADATA", "licenses/LICENSE")) == (CHECKOUT / "LICENSE").read_bytes()
