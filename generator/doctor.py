"""`hvforge doctor`: what this machine has of what hvforge can use, and what each missing piece would enable."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if TYPE_CHECKING:
    from hvtests.runners.kvm import KvmOffer

_DISTRIBUTION = "hvforge"
_VERSION_TIME_LIMIT = 5.0  # seconds
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")

BOCHS_TO = "the same image on an independent VMX: `hvforge run --on bochs`, exit traces compared"
QEMU_TO = "`hvforge run --on qemu`: nested VMX where KVM offers it, a clean refusal elsewhere"

# What each Python package is for: all of them are needed, but a user should know what breaks.
_PACKAGES = {
    "unicorn": "the harness: `hvforge verify`",
    "keystone-engine": "assembling: `hvforge build`",
    "setuptools": "pkg_resources, which keystone-engine imports",
    "capstone": "the check of every assembled instruction",
    "jinja2": "the templates: `hvforge build`",
    "pydantic": "reading image.toml",
    "typer": "the command line",
    "rich": "the command line",
    "pycdlib": "ISO images",
    "pyelftools": "guests from ELF files",
    "packaging": "`hvforge doctor`",
    "pytest": "the pytest plugin",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is here or not. `detail` is its version or place, or what is wrong; `enables` what it is for."""

    name: str
    present: bool
    detail: str
    enables: str


@dataclass(frozen=True, slots=True)
class _Tool:
    command: str
    package: str  # Debian's
    enables: str
    prints_version: bool = True
    also: tuple[str, ...] = ()  # commands that it cannot work without


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    places: tuple[str, ...]
    package: str
    enables: str


_TOOLS = (
    _Tool("bochs",              "bochs, bochs-term", BOCHS_TO, prints_version=False),
    _Tool("qemu-system-x86_64", "qemu-system-x86", QEMU_TO),
    _Tool("as",                 "binutils",        "tests that compare Keystone's bytes with GNU as"),
    _Tool("grub-mkrescue",      "grub-common, grub-pc-bin, xorriso, mtools", "booting the multiboot image by GRUB",
          also=("xorriso", "mformat")),
)

_FILES = (
    _File("Bochs BIOS",     ("/usr/share/bochs/BIOS-bochs-latest",), "bochsbios", BOCHS_TO),
    _File("Bochs VGA BIOS", ("/usr/share/vgabios/vgabios.bin",),     "vgabios",   BOCHS_TO),
)


def _version_of(command: str) -> str:
    """The version that ``command --version`` prints on its first line, or "" if it prints none in time."""
    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=_VERSION_TIME_LIMIT,
                              stdin=subprocess.DEVNULL, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = _VERSION.search(done.stdout.partition("\n")[0])
    return match[0] if match else ""


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ask_kvm() -> KvmOffer:
    from hvtests.runners.kvm import probe

    return probe()


@dataclass(frozen=True, slots=True)
class Machine:
    """How the survey looks at a machine; each part can be replaced, so that any machine can be described."""

    which: Callable[[str], str | None] = shutil.which
    is_file: Callable[[Path], bool] = Path.is_file
    version_of: Callable[[str], str] = _version_of
    installed: Callable[[str], str | None] = _installed
    kvm: Callable[[], KvmOffer] = _ask_kvm
    python: str = field(default_factory=platform.python_version)


def requirements() -> tuple[str, list[Requirement]]:
    """(what Python version, which packages) hvforge asks for: from its metadata, or in a checkout pyproject.toml."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text()).get("project", {}) if pyproject.is_file() else {}
    if project.get("name") == _DISTRIBUTION:
        return project["requires-python"], [Requirement(line) for line in project["dependencies"]]
    metadata = importlib.metadata.metadata(_DISTRIBUTION)
    needed = [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION) or ()]
    return metadata["Requires-Python"], [requirement for requirement in needed if requirement.marker is None]


def survey(machine: Machine | None = None) -> list[Finding]:
    """What `machine` (this one, unless given) has: Python, packages, emulators, firmware, tools, KVM."""
    machine = machine or Machine()
    python, needed = requirements()
    findings = [_python(machine, python)]
    findings += [_package(machine, requirement) for requirement in needed]
    findings += [_tool(machine, tool) for tool in _TOOLS]
    findings += [_file(machine, file) for file in _FILES]
    return findings + _kvm(machine.kvm())


def _python(machine: Machine, wanted: str) -> Finding:
    fits = SpecifierSet(wanted).contains(machine.python, prereleases=True)
    detail = machine.python if fits else f"{machine.python}, but {wanted} is needed"
    return Finding("Python", fits, detail, "everything")


def _package(machine: Machine, requirement: Requirement) -> Finding:
    enables = _PACKAGES.get(requirement.name, "hvforge")
    version = machine.installed(requirement.name)
    if version is None:
        return Finding(requirement.name, False, f'not installed (pip install "{requirement}")', enables)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, False, f'{version}, but {requirement.specifier} is needed (pip install '
                       f'"{requirement}")', enables)
    return Finding(requirement.name, True, version, enables)


def _tool(machine: Machine, tool: _Tool) -> Finding:
    path = machine.which(tool.command)
    missing = [command for command in (tool.command, *tool.also) if machine.which(command) is None]
    if path is None or missing:
        return Finding(tool.command, False, f"{', '.join(missing)} not found (Debian: {tool.package})", tool.enables)
    version = machine.version_of(path) if tool.prints_version else ""
    return Finding(tool.command, True, f"{version} at {path}" if version else path, tool.enables)


def _file(machine: Machine, file: _File) -> Finding:
    for place in file.places:
        if machine.is_file(Path(place)):
            return Finding(file.name, True, place, file.enables)
    return Finding(file.name, False, f"not at {' or '.join(file.places)} (Debian: {file.package})", file.enables)


def _kvm(offer: KvmOffer) -> list[Finding]:
    """/dev/kvm itself, and the two things that it may or may not offer."""
    return [
        Finding("/dev/kvm", offer.usable, offer.detail, "fast runs in QEMU"),
        Finding("KVM with VMX", offer.vmx, "offered" if offer.vmx else "not offered",
                "the VMX hypervisor on real VMX, in QEMU under nested KVM"),
        Finding("KVM with SVM", offer.svm, "offered" if offer.svm else "not offered",
                "nothing yet: hvforge has no SVM hypervisor"),
    ]
