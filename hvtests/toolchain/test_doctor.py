"""`hvforge doctor` on machines made up for it, and what KVM's answer means."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from generator import doctor
from generator.doctor import Finding, Machine, survey
from hvtests.runners import bochs, grub, kvm, qemu
from hvtests.runners.kvm import KvmOffer
from hvtests.toolchain.command import CHECKOUT

FULL = KvmOffer(True, True, True, "offers VMX and SVM to guests")
NONE = KvmOffer(False, False, False, "there is no /dev/kvm")


def machine(*, which: Callable[[str], str | None] = lambda command: f"/usr/bin/{command}", files: bool = True,
            version: str | None = "", offer: KvmOffer = FULL, python: str = "3.11.2") -> Machine:
    """A machine that has everything, but for what the arguments take away. Versions are those of this one."""
    def installed(package: str) -> str | None:
        return version or (doctor._installed(package) if version == "" else None)
    return Machine(which=which, is_file=lambda _: files, version_of=lambda _: "7.2", installed=installed,
                   kvm=lambda: offer, python=python)


def found(machine: Machine) -> dict[str, Finding]:
    return {finding.name: finding for finding in survey(machine)}


def test_a_machine_that_has_everything() -> None:
    findings = survey(machine())
    assert [finding.name for finding in findings if not finding.present] == []
    assert all(finding.detail and finding.enables for finding in findings)
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    for name in ("Python", "unicorn", "keystone-engine", "capstone", "bochs", "Bochs BIOS", "Bochs VGA BIOS",
                 "qemu-system-x86_64", "as", "grub-mkrescue", "/dev/kvm", "KVM with VMX", "KVM with SVM"):
        assert name in names


def test_what_nothing_uses_yet_is_not_promised() -> None:
    """No code of hvforge's has VMRUN in it, or boots by UEFI."""
    findings = {finding.name: finding for finding in survey(machine())}
    assert findings["KVM with SVM"].enables.startswith("nothing yet")
    assert not [name for name, finding in findings.items() if "UEFI" in finding.enables or "OVMF" in name]
    assert "ovmf" not in (CHECKOUT / "Makefile").read_text()


def test_what_doctor_and_the_runner_install_is_what_make_installs() -> None:
    listed = re.search(r"^DEBIAN := (.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    for command in (bochs.INSTALL, qemu.INSTALL, grub.INSTALL):
        assert set(command.removeprefix("apt-get install ").split()) <= set(listed[1].split())
    assert "bochs-term" in bochs.INSTALL.split()
    for finding in survey(machine(which=lambda _: None, files=False)):
        named = re.search(r"\(Debian: (.*)\)", finding.detail)
        assert named is None or set(named[1].split(", ")) <= set(listed[1].split()), finding


def test_a_machine_that_has_nothing() -> None:
    findings = survey(machine(which=lambda _: None, files=False, version=None, offer=NONE, python="3.9.1"))
    assert [finding.name for finding in findings if finding.present] == []
    assert all(finding.detail and finding.enables for finding in findings)


def test_package_of_another_version() -> None:
    unicorn = found(machine(version="2.0.0"))["unicorn"]
    assert (unicorn.present, unicorn.detail) == (
        False, '2.0.0, but ==2.1.4 is needed (pip install "unicorn==2.1.4")')


def test_package_that_is_missing() -> None:
    unicorn = found(machine(version=None))["unicorn"]
    assert (unicorn.present, unicorn.detail) == (False, 'not installed (pip install "unicorn==2.1.4")')


def test_python_too_old() -> None:
    python = found(machine(python="3.10.9"))["Python"]
    assert (python.present, python.detail) == (False, "3.10.9, but >=3.11 is needed")


def test_tool_that_is_missing_names_the_package() -> None:
    bochs = found(machine(which=lambda _: None))["bochs"]
    assert (bochs.present, bochs.detail) == (False, "bochs not found (Debian: bochs, bochs-term)")


def test_tool_that_lacks_another() -> None:
    grub = found(machine(which=lambda command: None if command == "xorriso" else "/usr/bin/x"))["grub-mkrescue"]
    assert not grub.present
    assert grub.detail.startswith("xorriso not found")


def test_tool_with_version_and_place() -> None:
    assert found(machine())["qemu-system-x86_64"].detail == "7.2 at /usr/bin/qemu-system-x86_64"


def test_firmware_that_is_missing() -> None:
    assert found(machine(files=False))["Bochs VGA BIOS"].detail == (
        "not at /usr/share/vgabios/vgabios.bin (Debian: vgabios)")


@pytest.mark.parametrize(("offer", "present"), [
    (FULL, (True, True, True)), (NONE, (False, False, False)),
    (KvmOffer(True, False, True, "offers SVM to guests"), (True, False, True))])
def test_kvm(offer: KvmOffer, present: tuple[bool, bool, bool]) -> None:
    findings = found(machine(offer=offer))
    assert (findings["/dev/kvm"].present, findings["KVM with VMX"].present, findings["KVM with SVM"].present) == present
    assert findings["/dev/kvm"].detail == offer.detail


def test_this_machine() -> None:
    """Against what the shell says: every command that `which` finds is present, and no other."""
    findings = {finding.name: finding for finding in survey()}
    for command in ("bochs", "qemu-system-x86_64", "as"):
        assert findings[command].present == (shutil.which(command) is not None)
    assert findings["Python"].detail.startswith(".".join(str(part) for part in sys.version_info[:3]))
    first_line = subprocess.run(["as", "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert findings["as"].detail.split(" at ")[0] in first_line.splitlines()[0]


def test_a_command_that_hangs_or_fails_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_VERSION_TIME_LIMIT", 0.2)
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nexec sleep 5\n")
    script.chmod(0o755)
    assert doctor._version_of(str(script)) == ""
    assert doctor._version_of(str(tmp_path / "none")) == ""


def cpuid_answer(*entries: tuple[int, int, int, int, int, int]) -> bytes:
    """A struct kvm_cpuid2 by the kernel's documentation: entries are (leaf, sub-leaf, eax, ebx, ecx, edx)."""
    data = struct.pack("<II", len(entries), 0)
    for leaf, subleaf, *registers in entries:
        data += struct.pack("<III", leaf, subleaf, 0) + struct.pack("<IIII", *registers) + bytes(12)
    return data


@pytest.mark.parametrize(("answer", "vmx", "svm", "detail"), [
    (cpuid_answer((0, 0, 13, 0, 0, 0), (1, 0, 0, 0, 1 << 5, 0)), True, False, "offers VMX to guests"),
    (cpuid_answer((0x8000_0001, 0, 0, 0, 1 << 2, 0), (1, 0, 0, 0, 0, 0)), False, True, "offers SVM to guests"),
    (cpuid_answer((1, 0, 0, 0, 0xFFFF_FFFF, 0), (0x8000_0001, 0, 0, 0, 4, 0)), True, True,
     "offers VMX and SVM to guests"),
    (cpuid_answer((1, 0, 0, 0, 0xFFFF_FFDF, 0xFFFF_FFFF), (0x8000_0001, 0, 4, 4, 0xFFFF_FFFB, 4)), False, False,
     "offers guests no VMX (CPUID.1:ECX[5] is 0) and no SVM (CPUID.80000001H:ECX[2] is 0)"),
    (cpuid_answer(), False, False,
     "offers guests no VMX (CPUID.1:ECX[5] is 0) and no SVM (CPUID.80000001H:ECX[2] is 0)"),
])
def test_what_kvm_answers(answer: bytes, vmx: bool, svm: bool, detail: str) -> None:
    assert kvm.offer_of(answer) == KvmOffer(True, vmx, svm, detail)


def test_probe_without_a_device(tmp_path: Path) -> None:
    assert kvm.probe(tmp_path / "kvm") == KvmOffer(False, False, False, f"there is no {tmp_path}/kvm")


def test_probe_of_something_else(tmp_path: Path) -> None:
    other = tmp_path / "kvm"
    other.touch()
    offer = kvm.probe(other)
    assert not offer.usable
    assert offer.detail == f"{other} refuses KVM_GET_SUPPORTED_CPUID (ENOTTY)"


def test_probe_of_a_directory(tmp_path: Path) -> None:
    assert kvm.probe(tmp_path).detail == f"{tmp_path} cannot be opened: is a directory"


def test_probe_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr("os.open", refuse)
    assert kvm.probe().detail == "no permission to open /dev/kvm (join the group kvm, or run as root)"


def test_requirements_are_those_of_the_package() -> None:
    python, packages = doctor.requirements()
    assert python.startswith(">=3.")
    assert {"unicorn", "keystone-engine", "pydantic"} <= {requirement.name for requirement in packages}
