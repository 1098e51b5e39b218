"""QEMU: nested KVM with real VMX where /dev/kvm offers it, otherwise its own translator (TCG), which has no VMX.

Under TCG time inside is counted in instructions and the date is fixed; only how long a disk or CD takes depends on
the host, so two runs of a multiboot kernel are alike, and two of a disk may differ in their time stamps.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hvtests.machine.imagefile import ImageFormat, recognise
from hvtests.runners import kvm
from hvtests.runners.base import (
    DEFAULT_TIMEOUT,
    RunResult,
    SerialSink,
    Verdict,
    emulator_missing,
    judge,
)
from hvtests.runners.media import place
from hvtests.runners.process import Ended, supervise

PROGRAM = "qemu-system-x86_64"
INSTALL = "apt-get install qemu-system-x86 seabios"

MACHINE = (
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-serial", "file:com1", "-debugcon", "file:debugcon",
    "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    # The log tells a triple fault from a power-off: both end the process with status 0.
    "-d", "cpu_reset", "-D", "qemu.log",
)  # fmt: skip
TCG = ("-accel", "tcg", "-icount", "shift=0,align=off,sleep=off", "-rtc", "base=2001-09-09T01:46:40,clock=vm")
KVM = ("-accel", "kvm")
DRIVES = {
    ImageFormat.DISK: ("-drive", "file=image,format=raw,if=ide"),
    ImageFormat.ISO: ("-drive", "file=image,format=raw,if=ide,media=cdrom,readonly=on", "-boot", "d"),
    ImageFormat.MULTIBOOT: ("-kernel", "image"),
}


@dataclass(frozen=True, slots=True)
class QemuRunner:
    """Boots a disk, an ISO or a multiboot kernel in QEMU.

    ``accelerator`` "auto" takes KVM only if it offers VMX. ``machine`` is ``pc`` or ``q35``; ``cpu`` a model of QEMU's,
    by default ``max`` under TCG and ``host,+vmx`` under KVM.
    """

    name: ClassVar[str] = "qemu"
    accelerator: Literal["auto", "tcg", "kvm"] = "auto"
    machine: str = "pc"
    cpu: str | None = None
    memory_mib: int = 256

    def missing(self) -> str | None:
        """See :class:`hvtests.runners.base.Runner`."""
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not installed; to install it: {INSTALL}"
        if self.accelerator == "kvm" and not kvm.probe().usable:
            return f"KVM was asked for and cannot be used: {kvm.probe().detail}"
        return None

    def uses_kvm(self) -> bool:
        """Whether a run would use KVM."""
        return self.accelerator == "kvm" or (self.accelerator == "auto" and kvm.probe().vmx)

    def run(self, image: Path, *, timeout: float = DEFAULT_TIMEOUT, on_serial: SerialSink | None = None) -> RunResult:
        """See :class:`hvtests.runners.base.Runner`."""
        kind = recognise(image)
        lacking = self.missing()
        if lacking is not None:
            return emulator_missing(lacking)
        with_kvm = self.uses_kvm()
        with tempfile.TemporaryDirectory(prefix="hvforge-qemu-") as name:
            directory = Path(name)
            # Under a name of our own, since QEMU's option syntax gives commas in a path a meaning.
            place(image, directory / "image", kind)
            ended = supervise(
                [PROGRAM, *MACHINE, "-machine", self.machine, "-m", str(self.memory_mib), *(KVM if with_kvm else TCG),
                 "-cpu", self.cpu or ("host,+vmx" if with_kvm else "max"), *DRIVES[kind]],
                directory=directory, serial="com1", timeout=timeout, on_serial=on_serial
            )  # fmt: skip
            engine = "KVM" if with_kvm else "TCG"
            return _result(ended, _read(directory / "debugcon"), _read(directory / "qemu.log"), engine)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _result(ended: Ended, debugcon: bytes, log: bytes, accelerator: str) -> RunResult:
    messages = ended.stderr.decode("latin-1").strip().splitlines()
    code = None
    if ended.timed_out:
        detail = f"still running after {ended.seconds:.1f} s"
    elif ended.status is None:
        detail = "the last line was printed, then the CPU went on without an end that QEMU knows"
    elif ended.status == 1 and messages:
        detail = f"QEMU did not run it: {messages[-1]}"  # status 1 is also what a debug exit with code 0 gives
    elif ended.status > 0 and ended.status & 1:
        code = ended.status >> 1
        detail = f"debug exit with code {code:#04x}"
    elif b"Triple fault" in log:
        detail = "triple fault"
    elif ended.status == 0:
        detail = "powered off or reset"
    else:
        detail = f"QEMU ended with status {ended.status}: {messages[-1] if messages else 'no message'}"
    outcome, verdict = judge(code, ended.serial)
    if ended.timed_out:
        verdict = Verdict.TIMEOUT
    return RunResult(outcome, verdict, code, ended.serial, debugcon, ended.seconds, f"{detail} ({accelerator})")
