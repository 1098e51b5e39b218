"""Bochs 2.7: an independent VMX with EPT on any machine, slow and deterministic.

Time inside is counted in instructions (``ips``, ``sync=none``) and starts at a fixed date, so two runs are alike.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hvtests.machine.imagefile import ImageFormat, recognise
from hvtests.runners import grub
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

BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA_BIOS = Path("/usr/share/vgabios/vgabios.bin")
INSTALL = "apt-get install bochs bochs-term bochsbios vgabios"   # bochs-term, or Debian adds one that needs X11
MOST_HOST_MIB = 2048  # Bochs refuses to keep more of the guest's memory in its own

CONFIGURATION = """\
config_interface: textconfig
display_library: rfb, options="timeout=0"
cpu: model={cpu}, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={host_memory}
romimage: file={bios}, options=fastboot
vgaromimage: file={vga_bios}
pci: enabled=1, chipset=i440fx
clock: sync=none, time0=1000000000
speaker: enabled=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: {drive}
boot: {boot}
com1: enabled=1, mode=file, dev=com1
port_e9_hack: enabled=1
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
log: bochs.log
"""
DRIVES = {
    ImageFormat.DISK: ("type=disk, path=image, mode=flat", "disk"),
    ImageFormat.ISO: ("type=cdrom, path=image, status=inserted", "cdrom"),
}

# Port 0xE9 comes on standard output behind the debugger's first prompt.
_PROMPT = re.compile(rb"\A.*?\(0\) \[0x[0-9a-f]+\] f000:fff0 [^\n]*\n", re.DOTALL)
# It also shows the current instruction: at the end, and at a triple fault, even one that is a guest's.
_SHOWN = rb"\(0\)\.\[\d+\] \[0x[0-9a-f]+\] [^\n]*\n"
_INSTRUCTION = re.compile(rb"^" + _SHOWN + rb"|" + _SHOWN + rb"\Z", re.MULTILINE)
_LAST_WORDS = re.compile(rb"Bochs is exiting with the following message:\n\[[^\]]*\] (.*)")


@dataclass(frozen=True, slots=True)
class BochsRunner:
    """Boots a disk or an ISO in Bochs; a multiboot kernel through GRUB on an ISO made for the run.

    ``cpu`` is one of Bochs' models (``bochs --help cpu``): ``core2_penryn_t9600`` has VMX without EPT,
    ``ryzen`` has SVM.
    """

    name: ClassVar[str] = "bochs"
    cpu: str = "corei7_skylake_x"
    memory_mib: int = 256

    def missing(self) -> str | None:
        """See :class:`hvtests.runners.base.Runner`."""
        if shutil.which("bochs") is None:
            return f"bochs is not installed; to install it: {INSTALL}"
        for rom in (BIOS, VGA_BIOS):
            if not rom.is_file():
                return f"bochs lacks {rom}; to install it: {INSTALL}"
        return None

    def run(self, image: Path, *, timeout: float = DEFAULT_TIMEOUT, on_serial: SerialSink | None = None) -> RunResult:
        """See :class:`hvtests.runners.base.Runner`."""
        kind = recognise(image)
        lacking = self.missing() or (grub.missing() if kind is ImageFormat.MULTIBOOT else None)
        if lacking is not None:
            return emulator_missing(lacking)
        with tempfile.TemporaryDirectory(prefix="hvforge-bochs-") as name:
            directory = Path(name)
            if kind is ImageFormat.MULTIBOOT:
                grub.make_rescue_iso(image, directory / "image")
                kind = ImageFormat.ISO
            else:
                place(image, directory / "image", kind)
            drive, boot = DRIVES[kind]
            configuration = CONFIGURATION.format(
                cpu=self.cpu, memory=self.memory_mib, host_memory=min(self.memory_mib, MOST_HOST_MIB),
                bios=BIOS, vga_bios=VGA_BIOS, drive=drive, boot=boot,
            )  # fmt: skip
            (directory / "bochsrc").write_text(configuration)
            # Debian's Bochs is a debugger build: it stops at a prompt unless a script tells it to continue.
            (directory / "commands").write_text("c\nq\n")
            ended = supervise(
                ["bochs", "-q", "-unlock", "-f", "bochsrc", "-rc", "commands"],
                directory=directory,
                serial="com1",
                timeout=timeout,
                on_serial=on_serial,
            )
            return _result(ended)


def _result(ended: Ended) -> RunResult:
    last_words = _LAST_WORDS.search(ended.stderr)
    outcome, verdict = judge(None, ended.serial)
    if ended.timed_out:
        verdict, detail = Verdict.TIMEOUT, f"still running after {ended.seconds:.1f} s"
    elif last_words is not None:
        detail = _explain(last_words[1].decode("latin-1"))
    elif ended.status is None:
        detail = "the last line was printed, then the CPU went on without an end that Bochs knows"
    else:
        detail = f"Bochs ended by itself with status {ended.status}"
    debugcon = _INSTRUCTION.sub(b"", _PROMPT.sub(b"", ended.stdout, count=1))
    return RunResult(outcome, verdict, None, ended.serial, debugcon, ended.seconds, detail)


def _explain(panic: str) -> str:
    """Bochs' last message in words; every end of a guest's making is a panic to it."""
    if "3rd" in panic and "exception with no resolution" in panic:
        return f"triple fault ({panic})"
    if panic.startswith("Shutdown port"):
        return "shutdown by port 0x8900"
    return panic
