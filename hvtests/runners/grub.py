"""A rescue ISO on which GRUB boots a multiboot kernel, for emulators that cannot load one themselves."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from generator.errors import EmulatorMissingError

MODULE = Path("/usr/lib/grub/i386-pc/multiboot.mod")
INSTALL = "apt-get install grub-pc-bin grub-common xorriso"
MENU = "set timeout=0\nmultiboot /boot/kernel\nboot\n"
TIME_LIMIT = 60.0


def missing() -> str | None:
    """None if a rescue ISO can be made; otherwise one line: what is missing and how to install it."""
    for program in ("grub-mkrescue", "xorriso"):
        if shutil.which(program) is None:
            return f"{program} is not installed, so no multiboot kernel can be booted here; to install it: {INSTALL}"
    if not MODULE.is_file():
        return f"grub-mkrescue lacks its BIOS modules ({MODULE}); to install them: {INSTALL}"
    return None


def make_rescue_iso(kernel: Path, iso: Path) -> None:
    """Write to ``iso`` an El Torito image that boots ``kernel`` by GRUB's ``multiboot`` command, without a menu.

    Raises EmulatorMissingError if GRUB's tools fail.
    """
    with tempfile.TemporaryDirectory(prefix="hvforge-grub-", dir=iso.parent) as name:
        root = Path(name)
        (root / "boot" / "grub").mkdir(parents=True)
        (root / "boot" / "grub" / "grub.cfg").write_text(MENU)
        shutil.copyfile(kernel, root / "boot" / "kernel")
        command = [
            "grub-mkrescue", f"--directory={MODULE.parent}", "--install-modules=multiboot biosdisk iso9660 part_msdos",
            "--locales=", "--themes=", "--fonts=", f"--output={iso}", str(root),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired as error:
            raise EmulatorMissingError(f"grub-mkrescue did not end within {TIME_LIMIT:.0f} s") from error
    if done.returncode != 0 or not iso.is_file():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EmulatorMissingError(f"grub-mkrescue failed: {last}")
