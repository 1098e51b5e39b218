"""The command line: what each command prints and returns when all is well."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from generator import __version__
from generator.resources import images
from hvtests.runners.base import Verdict
from hvtests.toolchain.command import CHECKOUT, MINIMAL, hvforge, one_vm
from hvtests.verification import NOT_VERIFIED

Capture = pytest.CaptureFixture[str]
COMMANDS = ("build", "verify", "run", "inspect", "doctor", "explain", "images")


def described(directory: Path, guest: str, memory: str = "2M") -> Path:
    path = directory / "image.toml"
    path.write_text(one_vm(guest, memory))
    return path


# -- what there is -----------------------------------------------------------------------------------------------------

def test_help_names_every_command(capfd: Capture) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        ran = hvforge(capfd, *arguments)
        assert (ran.status, ran.err) == (0, "")
        assert all(f" {command} " in ran.out for command in COMMANDS)
    for command in COMMANDS:
        assert hvforge(capfd, command, "--help").status == 0


def test_version(capfd: Capture) -> None:
    assert hvforge(capfd, "--version").out == f"hvforge {__version__}\n"


def test_help_and_version_load_nothing_heavy() -> None:
    code = ("import sys; from generator.cli import main; main(['--version']); "
            "sys.exit(bool({'keystone', 'unicorn', 'capstone', 'jinja2', 'pytest', 'hvtests'} & {*sys.modules}))")
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False, timeout=60).returncode == 0


def test_images_are_listed_with_what_they_are(capfd: Capture) -> None:
    out = hvforge(capfd, "images").out
    for path in images().glob("*.toml"):
        assert str(path) in out
    assert "The smallest useful image" in out


# -- build -------------------------------------------------------------------------------------------------------------

def test_build_writes_what_it_says(tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, "build", MINIMAL, "-o", tmp_path)
    assert (ran.status, ran.err) == (0, "")
    written = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(written) == {"minimal.img", "minimal.iso", "minimal.elf", "minimal.map.json", "minimal.lst"}
    for name, size in written.items():
        assert re.search(rf"{re.escape(str(tmp_path / name))} +{size} ", ran.out), name
    assert re.search(r"0x00100000 - 0x[0-9a-f]{8} +\d+K +r-x +text\n", ran.out)
    assert "memory of VM paged\n" in ran.out
    assert re.search(r"bytes used: code \d+, loader \d+, rodata \d+, data \d+, tables \d+, bss \d+\n", ran.out)


@pytest.mark.parametrize(("format_", "suffix"), [("disk", ".img"), ("iso", ".iso"), ("multiboot", ".elf")])
def test_build_writes_one_format_alone(format_: str, suffix: str, tmp_path: Path, capfd: Capture) -> None:
    assert hvforge(capfd, "build", MINIMAL, "-o", tmp_path, "--format", format_).status == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {suffix, ".json", ".lst"}


def test_own_templates_come_before_those_of_hvforge(tmp_path: Path, capfd: Capture) -> None:
    guests = tmp_path / "mine" / "guests"
    guests.mkdir(parents=True)
    (guests / "own.asm.j2").write_text('{{ starts_in("long") }}\n    hlt\n')
    ran = hvforge(capfd, "build", described(tmp_path, 'template = "own"'), "-o", tmp_path / "out",
                  "--templates", tmp_path / "mine")
    assert (ran.status, ran.err) == (0, "")
    assert "guests/own.asm.j2:2" in (tmp_path / "out" / "one.lst").read_text()


# -- verify ------------------------------------------------------------------------------------------------------------

def test_verify_reports_everything_and_returns_0(capfd: Capture) -> None:
    ran = hvforge(capfd, "verify", MINIMAL)
    assert (ran.status, ran.err) == (0, "")
    for words in ("memory of VM long", "[long] hello from 64-bit mode", "hvforge: end 0x10 FINISHED",
                  "ok  every VM ended as expected", ": all held", "counted alike by the image", "verified: FINISHED"):
        assert words in ran.out, words
    assert re.search(r"^real +HLT +1 +1$", ran.out, re.MULTILINE)


def test_verify_json_is_one_object_that_agrees_with_the_console(capfd: Capture) -> None:
    ran = hvforge(capfd, "verify", MINIMAL, "--json", "--format", "iso")
    assert ran.status == 0
    assert ran.out.count("\n") == 1
    found = json.loads(ran.out)
    assert (found["passed"], found["status"], found["verdict"]) == (True, 0, "FINISHED")
    said = [line.split()[2:] for line in found["console"] if re.match(r"hvforge: vm \S+ exits", line)]
    assert {(row["vm"], row["reason"], row["image"]) for row in found["exits"]} == {
        (vm.rstrip(":"), reason, int(count)) for vm, _, reason, count in said}
    assert all(row["harness"] == row["image"] for row in found["exits"])
    assert all(check["passed"] and check["details"] == [] for check in found["checks"])


def test_verify_takes_files_with_and_without_a_map(tmp_path: Path, capfd: Capture) -> None:
    hvforge(capfd, "build", MINIMAL, "-o", tmp_path)
    for suffix in (".img", ".iso", ".elf"):
        ran = hvforge(capfd, "verify", tmp_path / f"minimal{suffix}")
        assert ran.status == 0, ran.out
        assert "memory of VM long" in ran.out
    (tmp_path / "minimal.map.json").unlink()
    ran = hvforge(capfd, "verify", tmp_path / "minimal.img", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["regions"] is None
    assert {row["vm"] for row in json.loads(ran.out)["exits"]} == {"long", "paged", "real"}


def test_verify_of_a_guest_that_ends_otherwise_fails(tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, "verify", described(tmp_path, 'template = "long64"\nparams = { end = "halt" }'))
    assert ran.status == Verdict.GUEST_FAILED
    assert "NO  the run ended otherwise" in ran.out
    assert "NOT VERIFIED: GUEST_FAILED" in ran.out


def test_verify_sees_a_count_that_the_image_got_wrong(tmp_path: Path, capfd: Capture) -> None:
    """The image's own template with one line changed: it counts each exit twice."""
    stub = (CHECKOUT / "templates" / "vmx" / "exit.asm.j2").read_text()
    counting = re.findall(r"^ *inc +qword ptr .*vcpu\.exits.*$", stub, re.MULTILINE)
    assert len(counting) == 1
    (tmp_path / "vmx").mkdir()
    (tmp_path / "vmx" / "exit.asm.j2").write_text(stub.replace(counting[0], f"{counting[0]}\n{counting[0]}"))
    ran = hvforge(capfd, "verify", MINIMAL, "--templates", tmp_path)
    assert ran.status == NOT_VERIFIED
    assert "NO  " in ran.out and "but the image counted otherwise" in ran.out
    assert re.search(r"long CPUID: (\d+) in the harness, (\d+) by the image", ran.out)


def test_verify_explains_an_entry_that_fails(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """GUEST_RFLAGS bit 1 must be 1 (SDM 3C 27.3.1.4): an image whose rows say otherwise is told so in words."""
    from generator import vmcs_init

    right = vmcs_init.resolve

    def wrong(row: vmcs_init.Row, symbols: dict[str, int]) -> int:
        return 0 if row.field == "GUEST_RFLAGS" else right(row, symbols)

    monkeypatch.setattr(vmcs_init, "resolve", wrong)
    ran = hvforge(capfd, "verify", MINIMAL)
    assert ran.status != 0
    assert "3 entries failed" in ran.out
    assert "GUEST_RFLAGS" in ran.out
    assert "SDM 3C 27.3.1.4" in ran.out


# -- run ---------------------------------------------------------------------------------------------------------------

def test_run_streams_the_console_and_keeps_a_copy(tmp_path: Path, capfd: Capture) -> None:
    copy = tmp_path / "com1"
    ran = hvforge(capfd, "run", MINIMAL, "--serial", copy)
    assert ran.status == 0
    assert ran.out.splitlines()[-1] == "hvforge: end 0x10 FINISHED"
    assert "\r" not in ran.out
    assert copy.read_bytes().replace(b"\r\n", b"\n") == ran.out.encode()
    assert re.fullmatch(r"hvforge: unicorn: FINISHED after \d+\.\d\d s: .*\n", ran.err)


@pytest.mark.bochs
@pytest.mark.parametrize("format_", ["disk", "iso", "multiboot"])
def test_run_on_bochs(format_: str, capfd: Capture) -> None:
    ran = hvforge(capfd, "run", MINIMAL, "--on", "bochs", "--format", format_)
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "hvforge: end 0x10 FINISHED")
    assert ran.err.startswith("hvforge: bochs: FINISHED after ")


@pytest.mark.qemu
def test_run_on_qemu_without_vmx_tells_what_is_missing(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvtests.runners.qemu.QemuRunner.uses_kvm", lambda _: False)
    ran = hvforge(capfd, "run", MINIMAL, "--on", "qemu")
    assert ran.status == Verdict.REFUSED
    assert "REFUSED" in ran.err and "CPUID.1:ECX[5] (VMX) is not offered by this CPU" in ran.err
    assert ran.err.count("\n") == 1


def test_run_tells_a_failed_guest_and_a_timeout_apart(tmp_path: Path, capfd: Capture) -> None:
    path = described(tmp_path, 'template = "long64"\nparams = { end = "halt" }')
    ran = hvforge(capfd, "run", path)
    assert ran.status == Verdict.GUEST_FAILED
    assert ran.err.startswith("hvforge: unicorn: GUEST_FAILED after ")
    path.write_text(path.read_text().replace('[[vm]]', "watchdog_ticks = 4_000_000_000\n[[vm]]")
                    .replace('"long64"', '"hostile"').replace('end = "halt"', 'attack = "loop"'))
    ran = hvforge(capfd, "run", path, "--timeout", "1")
    assert ran.status == Verdict.TIMEOUT
    assert ran.err.startswith("hvforge: unicorn: TIMEOUT after ")


def test_files_run_as_they_are(tmp_path: Path, capfd: Capture) -> None:
    hvforge(capfd, "build", MINIMAL, "-o", tmp_path, "--format", "iso")
    before = (tmp_path / "minimal.iso").read_bytes()
    assert hvforge(capfd, "run", tmp_path / "minimal.iso").status == 0
    assert (tmp_path / "minimal.iso").read_bytes() == before


def test_nothing_temporary_is_left(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for command in ("run", "verify", "inspect"):
        assert hvforge(capfd, command, MINIMAL).status == 0
    assert list(tmp_path.iterdir()) == []


# -- memory ------------------------------------------------------------------------------------------------------------

HALF_GIB = 'template = "long64"', "512M"   # the image ends at 2 MiB + 512 MiB, above the 256 MiB of an ordinary machine


@pytest.mark.bochs
@pytest.mark.parametrize("command", [["verify"], ["run"], ["run", "--on", "bochs"]])
def test_a_machine_is_as_large_as_its_image(command: list[str], tmp_path: Path, capfd: Capture) -> None:
    ran = hvforge(capfd, *command, described(tmp_path, *HALF_GIB))
    assert (ran.status, "hvforge: end 0x10 FINISHED" in ran.out) == (0, True), ran


def test_memory_is_what_the_option_says(tmp_path: Path, capfd: Capture) -> None:
    for command in ("run", "verify"):
        ran = hvforge(capfd, command, "--memory", "515", described(tmp_path, *HALF_GIB))
        assert ran.status == 0, ran
        ran = hvforge(capfd, command, "--memory", "514", described(tmp_path, *HALF_GIB))
        assert ran.status == Verdict.REFUSED
        assert "the image needs RAM up to 0x20200000" in ran.out


# -- doctor and explain ------------------------------------------------------------------------------------------------

def test_doctor_lists_what_is_here(capfd: Capture) -> None:
    ran = hvforge(capfd, "doctor")
    assert ran.status == 0
    for name in ("Python", "unicorn", "keystone-engine", "bochs", "qemu-system-x86_64", "/dev/kvm"):
        assert re.search(rf"^(yes|no) +{re.escape(name)} ", ran.out, re.MULTILINE), name


@pytest.mark.parametrize(("arguments", "words"), [
    (["vmcs", "0x681e"], ["GUEST_RIP", "natural", "SDM 3C 25.4.1"]),
    (["exit", "48"], ["EPT_VIOLATION", "qualification"]),
    (["error", "7"], ["ENTRY_INVALID_CONTROLS", "SDM 3C 31.4"]),
    (["msr", "0x48b"], ["IA32_VMX_PROCBASED_CTLS2"]),
    (["control", "ept"], ["ENABLE_EPT"]),
    (["control", "unrestricted", "guest"], ["UNRESTRICTED_GUEST", "IA32_VMX_PROCBASED_CTLS2"]),
    (["check", "guest.cs.db_with_l"], ["L (bit 13)", "GUEST_CS_AR_BYTES", "SDM 3C 27.3.1.2"]),
])
def test_explain(arguments: list[str], words: list[str], capfd: Capture) -> None:
    ran = hvforge(capfd, "explain", *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert all(word in ran.out for word in words), ran.out
