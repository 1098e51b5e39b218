"""An image as an emulator gets it: under a name without surprises, and so that the file itself is never written."""

from __future__ import annotations

import shutil
from pathlib import Path

from hvtests.machine.imagefile import SECTOR, ImageFormat

# A disk smaller than one cylinder is taken for none by Bochs and, on an AHCI controller, by SeaBIOS.
CYLINDER = 16 * 63 * SECTOR


def place(image: Path, to: Path, kind: ImageFormat) -> None:
    """Make ``to`` a private copy of a disk, padded to whole cylinders, or a link to what cannot be written anyway."""
    if kind is not ImageFormat.DISK:
        to.symlink_to(image.resolve())
        return
    shutil.copyfile(image, to)
    with to.open("r+b") as file:
        file.truncate(-(-to.stat().st_size // CYLINDER) * CYLINDER)
