"""``make smoke``: one image, booted by Bochs and QEMU from every format, with the end that each should have.

Bochs has VMX: the image must finish. QEMU has it only under a KVM that offers it; elsewhere the image must refuse to
start, name what is missing, and end cleanly.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from generator.build import FORMATS, build
from generator.errors import HvforgeError
from generator.mapfile import image_map, memory_mib
from hvtests.runners.base import Runner, RunResult, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.qemu import QemuRunner
from hvtests.runners.words import verdict_line

TIMEOUT = 60.0
NO_VMX = "hvforge: refused: CPUID.1:ECX[5] (VMX)"


def as_it_should(runner: Runner, result: RunResult) -> bool:
    """Whether ``result`` is the end that the image should have on ``runner``."""
    if isinstance(runner, QemuRunner) and not runner.uses_kvm():
        return result.verdict is Verdict.REFUSED and any(line.startswith(NO_VMX) for line in result.lines)
    return result.verdict is Verdict.FINISHED


def smoke(description: Path) -> bool:
    """Boot the image on everything, a line for each; whether all ended as they should."""
    image = build(description)
    memory = memory_mib(image_map(image.core))
    good = True
    runners: list[Runner] = [BochsRunner(memory_mib=memory), QemuRunner(memory_mib=memory)]
    with tempfile.TemporaryDirectory(prefix="hvforge-smoke-") as name:
        for format_, data in image.files.items():
            file = Path(name) / f"{image.name}{FORMATS[format_]}"
            file.write_bytes(data)
            for runner in runners:
                result = runner.run(file, timeout=TIMEOUT)
                passed = as_it_should(runner, result)
                good = good and passed
                print(f"{'ok' if passed else 'NO':2}  {format_:9}  {verdict_line(result, runner.name)}", flush=True)
    return good


def main(arguments: list[str]) -> int:
    """Exit status: 0 if all ended as they should, 1 if not, that of the error if the image cannot be built."""
    try:
        return 0 if smoke(Path(arguments[0] if arguments else "images/minimal.toml")) else 1
    except HvforgeError as error:
        print(f"hvforge: error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
