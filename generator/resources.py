"""Where the templates and images are: in the checkout beside this package, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def templates() -> Path:
    """The directory of ``*.asm.j2``."""
    return _find("templates")


def images() -> Path:
    """The directory of the image files that users start from."""
    return _find("images")
