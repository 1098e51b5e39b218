"""Every error that a user of hvforge can cause: one line of text and a process exit status of its own.

``str(error)`` is ``where: message``; `where` is ``file:line`` or the path of a key, and is left out when there is none.
The statuses stand beside those of a finished run (hvtests.runners.base.Verdict: 0 to 6) and never overlap them;
docs/exit-codes.md lists both.
"""

from __future__ import annotations

from typing import ClassVar


def one_line(text: str) -> str:
    """`text` with every run of white space, line ends included, made one space."""
    return " ".join(text.split())


class HvforgeError(Exception):
    """Something the user can put right. `status` is what the process exits with."""

    status: ClassVar[int] = 1

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message, where)
        self.message = one_line(message)
        self.where = where

    def __str__(self) -> str:
        return self.message if self.where is None else f"{self.where}: {self.message}"


class UsageError(HvforgeError):
    """The command line asks for something that does not exist."""

    status = 64


class SpecError(HvforgeError):
    """image.toml says something that is not allowed there: a value of a wrong type, out of range, or missing."""

    status = 65


class TomlError(SpecError):
    """image.toml is not TOML, or not even text."""

    status = 74


class UnknownKeyError(SpecError):
    """image.toml has a key that does not exist."""

    status = 75


class LayoutError(HvforgeError):
    """Things do not fit together: memory that overlaps, or more than a machine has room for."""

    status = 66


class TooLargeError(LayoutError):
    """A guest is larger than its VM's memory."""

    status = 76


class GuestFileError(HvforgeError):
    """A guest's file is missing or unreadable."""

    status = 67


class NotAsClaimedError(GuestFileError):
    """A guest's file is not what image.toml claims, or damaged."""

    status = 77


class TemplateError(HvforgeError):
    """A template cannot be rendered: syntax, or a name that nothing defines."""

    status = 68


class AssemblerError(HvforgeError):
    """A line of assembly is wrong, refused, or came out as other bytes than it says."""

    status = 69


class ImageFileError(HvforgeError):
    """A file given to verify, run or inspect is not an image that boots."""

    status = 70


class EmulatorMissingError(HvforgeError):
    """An emulator that was asked for is not installed."""

    status = 71


class OutputError(HvforgeError):
    """A file cannot be written."""

    status = 72


class EngineError(HvforgeError):
    """The CPU engine under the harness is not the one it was written for."""

    status = 73
