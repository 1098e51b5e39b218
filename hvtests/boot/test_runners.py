"""The harness, Bochs and QEMU behind one interface: every verdict, every format, and nothing left behind."""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generator.arch.abi import Outcome
from generator.errors import ImageFileError, UsageError
from hvtests import CpuModel
from hvtests.boot import images, tiny_hypervisor
from hvtests.runners import NAMES, by_name, grub, kvm
from hvtests.runners.__main__ import main
from hvtests.runners.base import Runner, RunResult, Verdict, judge, outcome_on_serial
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.qemu import QemuRunner
from hvtests.runners.unicorn import UnicornRunner

LIMIT = 60.0
ALL = pytest.mark.parametrize(
    "runner",
    [
        pytest.param(UnicornRunner(), id="unicorn"),
        pytest.param(BochsRunner(), marks=pytest.mark.bochs, id="bochs"),
        pytest.param(QemuRunner(accelerator="tcg"), marks=pytest.mark.qemu, id="qemu"),
    ],
)
FORMATS = {"disk": images.disk, "iso": images.iso, "multiboot": images.multiboot_elf}


def end_line(outcome: Outcome) -> bytes:
    return f"hvforge: end 0x{int(outcome):02x} {outcome.name}\r\n".encode()


def ending(outcome: Outcome) -> str:
    return images.debug_exit(outcome) + images.SHUTDOWN


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs put their temporary files; it must be empty again after each."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return scratch


def write(tmp_path: Path, data: bytes, name: str = "image") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def children() -> set[int]:
    """Processes whose parent is this one, by /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@ALL
@pytest.mark.parametrize("kind", FORMATS)
def test_boots_every_format(runner: Runner, kind: str, tmp_path: Path, tmp: Path) -> None:
    text = b"[vm] hello\r\n" + end_line(Outcome.FINISHED)
    image = write(tmp_path, FORMATS[kind](text, ending(Outcome.FINISHED)))
    before = image.read_bytes()
    chunks: list[bytes] = []
    result = runner.run(image, timeout=LIMIT, on_serial=chunks.append)
    assert (result.verdict, result.outcome) == (Verdict.FINISHED, Outcome.FINISHED), result.detail
    assert result.serial == text == b"".join(chunks)
    assert result.debugcon == text
    assert result.lines[-1] == "hvforge: end 0x10 FINISHED"
    assert result.seconds < LIMIT
    assert list(tmp.iterdir()) == []
    assert image.read_bytes() == before


@ALL
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_verdict(
    runner: Runner, outcome: Outcome, tmp_path: Path, tmp: Path
) -> None:
    result = runner.run(write(tmp_path, images.disk(end_line(outcome), ending(outcome))), timeout=LIMIT)
    assert (result.verdict.name, result.outcome) == (outcome.name, outcome)
    assert list(tmp.iterdir()) == []


@ALL
def test_time_limit_kills_and_keeps_what_was_said(
    runner: Runner, tmp_path: Path, tmp: Path
) -> None:
    image = write(tmp_path, images.disk(b"going round\r\n", images.SPIN))
    before = children()
    begin = time.monotonic()
    result = runner.run(image, timeout=4.0)
    assert result.verdict is Verdict.TIMEOUT
    assert "still running after 4." in result.detail
    assert result.serial == result.debugcon == b"going round\r\n"
    assert time.monotonic() - begin < 20
    assert children() <= before
    assert list(tmp.iterdir()) == []


@ALL
def test_halt_after_the_last_line_does_not_wait_for_the_limit(
    runner: Runner, tmp_path: Path, tmp: Path
) -> None:
    result = runner.run(write(tmp_path, images.disk(end_line(Outcome.PANIC), images.HALT)), timeout=LIMIT)
    assert result.verdict is Verdict.PANIC
    assert result.seconds < LIMIT / 2
    assert list(tmp.iterdir()) == []


@ALL
def test_triple_fault_is_told_and_is_no_verdict(runner: Runner, tmp_path: Path, tmp: Path) -> None:
    # A protected-mode kernel with an IDT of limit 0: #UD, #DF and the third all fail.
    crash = "push 0\npush 0\nlidt [esp]\nud2\n"
    elf = images.multiboot_elf(b"about to crash\r\n", crash, first="mov esp, 0x90000\n")
    result = runner.run(write(tmp_path, elf), timeout=LIMIT)
    assert (result.verdict, result.outcome) == (Verdict.NO_VERDICT, None)
    assert "triple fault" in result.detail
    assert result.serial.endswith(b"about to crash\r\n")
    assert list(tmp.iterdir()) == []


@pytest.mark.qemu
def test_qemu_code_wins_over_the_console_and_unknown_codes_are_kept(tmp_path: Path) -> None:
    forged = write(tmp_path, images.disk(end_line(Outcome.FINISHED), images.debug_exit(0x13)))
    result = QemuRunner(accelerator="tcg").run(forged, timeout=LIMIT)
    assert (result.verdict, result.code) == (Verdict.PANIC, 0x13)
    own = write(tmp_path, images.disk(b"mine\r\n", images.debug_exit(0x55)), "own")
    result = QemuRunner(accelerator="tcg").run(own, timeout=LIMIT)
    assert (result.verdict, result.outcome, result.code) == (Verdict.NO_VERDICT, None, 0x55)


@pytest.mark.qemu
def test_qemu_says_why_it_cannot_start(tmp_path: Path) -> None:
    result = QemuRunner(accelerator="tcg", cpu="nonsense").run(write(tmp_path, images.disk(b"x", "")), timeout=LIMIT)
    assert result.verdict is Verdict.NO_VERDICT
    assert "nonsense" in result.detail


@pytest.mark.bochs
def test_bochs_says_why_it_cannot_start(tmp_path: Path) -> None:
    result = BochsRunner(cpu="nonsense").run(write(tmp_path, images.disk(b"x", "")), timeout=LIMIT)
    assert result.verdict is Verdict.NO_VERDICT
    assert "cpu directive malformed" in result.detail


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["a,b.img", "with space.img", "file=x.img"])
def test_paths_may_hold_any_character(tmp_path: Path, name: str) -> None:
    image = write(tmp_path, images.disk(end_line(Outcome.FINISHED), ending(Outcome.FINISHED)), name)
    assert QemuRunner(accelerator="tcg").run(image, timeout=LIMIT).verdict is Verdict.FINISHED


@ALL
def test_two_runs_are_alike(runner: Runner, tmp_path: Path) -> None:
    # The program stores the low byte of the time-stamp counter in place of the text's first byte.
    stamp = "rdtsc\nand al, 0x7f\nor al, 0x40\nmov byte ptr [{text:#x}], al\n"
    text = b"?\r\n" + end_line(Outcome.FINISHED)
    if runner.name == "qemu":  # how long a disk takes is the host's affair there: a kernel that needs none
        at = images.MULTIBOOT_LOAD + 16 + images.TEXT_AT
        data = images.multiboot_elf(text, ending(Outcome.FINISHED), stamp.format(text=at))
    else:
        data = images.disk(text, ending(Outcome.FINISHED), stamp.format(text=0x7C00 + images.TEXT_AT))
    image = write(tmp_path, data)
    runs = [runner.run(image, timeout=LIMIT) for _ in range(3)]
    assert runs[0].serial[:1] != b"?"
    assert {run.serial for run in runs} == {runs[0].serial}


@pytest.mark.parametrize("name", ["bochs", "qemu"])
def test_missing_emulator_is_a_verdict_with_the_way_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = by_name(name).run(write(tmp_path, images.disk(b"x", "")))
    assert result.verdict is Verdict.EMULATOR_MISSING
    assert "not installed" in result.detail
    assert "apt-get install" in result.detail


def test_missing_engine_is_a_verdict_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("hvtests.runners.unicorn.version", absent)
    result = by_name("unicorn").run(write(tmp_path, images.disk(b"x", "")))
    assert result.verdict is Verdict.EMULATOR_MISSING
    assert "pip install unicorn==2.1.4" in result.detail


def test_the_harness_keeps_records_of_exits_and_the_others_do_not(tmp_path: Path) -> None:
    result = UnicornRunner(memory_mib=64).run(write(tmp_path, tiny_hypervisor.build()), timeout=LIMIT)
    assert result.exits is not None
    assert [record.reason for record in result.exits] == [10] + [18] * 6
    assert result.injections == []
    assert len(UnicornRunner(exits_kept=2).run(tmp_path / "image", timeout=LIMIT).exits or ()) == 2


@pytest.mark.qemu
def test_without_vmx_the_other_hypervisor_refuses_too(tmp_path: Path) -> None:
    image = write(tmp_path, tiny_hypervisor.build())
    results = [runner.run(image, timeout=LIMIT) for runner in (
        UnicornRunner(cpu=CpuModel.default().without("VMX")), QemuRunner(accelerator="tcg"))]  # fmt: skip
    assert [result.code for result in results] == [tiny_hypervisor.NO_VMX] * 2
    assert [result.exits for result in results][1] is None


def test_bochs_without_its_roms_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr("hvtests.runners.bochs.VGA_BIOS", Path("/nowhere/vgabios.bin"))
    monkeypatch.setattr("hvtests.runners.bochs.BIOS", Path("/dev/null"))
    missing = BochsRunner().missing()
    assert missing is not None and "vgabios" in missing


def test_bochs_boots_no_bare_kernel_without_grub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grub, "MODULE", tmp_path / "multiboot.mod")
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    result = BochsRunner().run(write(tmp_path, images.multiboot_elf(b"x", "")))
    assert result.verdict is Verdict.EMULATOR_MISSING
    assert "grub-pc-bin" in result.detail


@pytest.mark.parametrize("name", ["bochs", "qemu"])
def test_a_file_that_cannot_boot_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="not a bootable image"):
        by_name(name).run(write(tmp_path, b"\0" * 512))


def test_unknown_runner_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unicorn, bochs, qemu"):
        by_name("vmware")


def test_kvm_is_asked_not_guessed(tmp_path: Path) -> None:
    offer = kvm.probe(tmp_path / "kvm")
    assert (offer.usable, offer.vmx, offer.svm) == (False, False, False)
    assert "there is no " in offer.detail
    assert not kvm.probe(Path("/dev/null")).usable
    assert QemuRunner().uses_kvm() is kvm.probe().vmx


@pytest.mark.parametrize(
    ("serial", "expected"),
    [
        (b"hvforge: end 0x10 FINISHED\r\n", Outcome.FINISHED),
        (b"x\nhvforge: end 0x13 PANIC\n", Outcome.PANIC),
        (b"hvforge: end 0x12 REFUSED", Outcome.REFUSED),
        (b"[evil] hvforge: end 0x10 FINISHED\r\n", None),
        (b"hvforge: end 0x10 FINISHED\r\nmore\r\n", None),
        (b"hvforge: end 0x10 PANIC\r\n", None),
        (b"", None),
    ],
)
def test_outcome_by_the_last_line(serial: bytes, expected: Outcome | None) -> None:
    assert outcome_on_serial(serial) is expected
    outcome, verdict = judge(None, serial)
    assert outcome is expected
    assert verdict.name == (expected.name if expected else "NO_VERDICT")


def test_text_and_lines() -> None:
    result = RunResult(None, Verdict.NO_VERDICT, None, b"a\r\nb\xff\r\n", b"", 0.0, "")
    assert result.lines == ["a", "b\xff"]


def test_names_are_the_runners_own() -> None:
    assert tuple(by_name(name).name for name in NAMES) == NAMES
    assert UnicornRunner().missing() is None


@pytest.mark.qemu
@pytest.mark.parametrize("kind", FORMATS)
def test_qemu_q35(kind: str, tmp_path: Path) -> None:
    image = write(tmp_path, FORMATS[kind](end_line(Outcome.FINISHED), ending(Outcome.FINISHED)))
    assert QemuRunner(accelerator="tcg", machine="q35").run(image, timeout=LIMIT).verdict is Verdict.FINISHED


def working_in(directory: Path) -> set[int]:
    """Processes whose working directory lies in ``directory``."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink().is_relative_to(directory):
                found.add(int(link.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "name", [pytest.param("bochs", marks=pytest.mark.bochs), pytest.param("qemu", marks=pytest.mark.qemu)]
)
def test_emulator_dies_with_a_runner_that_is_killed(name: str, tmp_path: Path) -> None:
    image = write(tmp_path, images.disk(b"running\r\n", images.SPIN))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "hvtests.runners", name, str(image), "60"],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(scratch)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\r\n"
        assert len(working_in(scratch)) == 1
        parent.kill()
    end = time.monotonic() + 10
    while working_in(scratch) and time.monotonic() < end:
        time.sleep(0.02)
    assert working_in(scratch) == set()


@pytest.mark.qemu
def test_command_prints_the_console_and_exits_with_the_verdict(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    image = write(tmp_path, images.disk(end_line(Outcome.REFUSED), ending(Outcome.REFUSED)))
    assert main(["qemu", str(image), "60"]) == Verdict.REFUSED
    out, err = capfdbinary.readouterr()
    assert out == end_line(Outcome.REFUSED)
    assert err.startswith(b"REFUSED after ")
    assert main(["qemu", str(tmp_path / "nothing")]) == ImageFileError.status
    assert main([]) == UsageError.status
