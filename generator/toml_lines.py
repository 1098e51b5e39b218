"""Where each key of a TOML document stands.

tomllib gives values without places, and an error message without a line sends its reader searching. `key_lines` walks
a document that tomllib has already accepted, so it only has to find keys, not to judge them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # elements so far of each array of tables

    def peek(self, length: int = 1) -> str:
        return self.text[self.at:self.at + length]

    def skip(self, length: int) -> str:
        """Go on by `length` characters and give them back, counting the lines among them."""
        taken = self.peek(length)
        self.line += taken.count("\n")
        self.at += length
        return taken

    def skip_blank(self, *, newlines: bool) -> None:
        """Go past spaces and comments, and past line ends where they mean nothing."""
        while char := self.peek():
            if char in " \t" or (newlines and char == "\n"):
                self.skip(1)
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.skip((end if end >= 0 else len(self.text)) - self.at)
            else:
                return

    def string(self) -> str:
        """A string of any of TOML's four kinds, as it is written."""
        start = self.at
        quote = self.peek()
        close = quote * 3 if self.peek(3) == quote * 3 else quote
        self.skip(len(close))
        while self.peek(len(close)) != close:
            self.skip(2 if self.peek() == "\\" and quote == '"' else 1)
        self.skip(len(close))
        while len(close) == 3 and self.peek() == quote:  # a multi-line string may end in up to two quotes of its own
            self.skip(1)
        return self.text[start:self.at]

    def key(self) -> tuple[list[str], int]:
        """A dotted key and the line it stands on."""
        line, parts = self.line, []
        while True:
            self.skip_blank(newlines=False)
            if self.peek() in ("'", '"'):
                parts.append(str(tomllib.loads(f"value = {self.string()}")["value"]))
            else:
                start = self.at
                while self.peek() and self.peek() in _BARE:
                    self.skip(1)
                parts.append(self.text[start:self.at])
            self.skip_blank(newlines=False)
            if self.peek() != ".":
                return parts, line
            self.skip(1)

    def note(self, path: Path, line: int) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def assignment(self, table: Path) -> None:
        keys, line = self.key()
        path = (*table, *keys)
        self.note(path, line)
        self.skip(1)  # the equals sign
        self.skip_blank(newlines=False)
        self.value(path)

    def value(self, path: Path) -> None:
        char = self.peek()
        if char in ("'", '"'):
            self.string()
        elif char == "[":
            self.skip(1)
            for index, _ in enumerate(self.items("]")):
                self.note((*path, index), self.line)
                self.value((*path, index))
        elif char == "{":
            self.skip(1)
            for _ in self.items("}"):
                self.assignment(path)
        else:
            while self.peek() and self.peek() not in ",]}#\n":
                self.skip(1)

    def items(self, close: str) -> Iterator[None]:
        """Stop at each item of an array or inline table, for the caller to read it, and end after `close`."""
        while True:
            self.skip_blank(newlines=True)
            if self.peek() == close:
                self.skip(1)
                return
            yield None
            self.skip_blank(newlines=True)
            if self.peek() == ",":
                self.skip(1)

    def header(self) -> Path:
        """A table's header: the path of the table that it opens."""
        array = self.peek(2) == "[["
        self.skip(2 if array else 1)
        keys, line = self.key()
        self.skip(2 if array else 1)
        path: Path = ()
        for position, part in enumerate(keys):
            path = (*path, part)
            last = position == len(keys) - 1
            if array and last:
                self.counts[path] = self.counts.get(path, 0) + 1
                self.lines.setdefault(path, line)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        self.lines[path] = line
        self.note(path, line)
        return path

    def document(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self.skip_blank(newlines=True)
            if not self.peek():
                return self.lines
            if self.peek() == "[":
                table = self.header()
            else:
                self.assignment(table)


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every key, table and array element of `text`, which must be valid TOML.

    A path is what leads to the value in what ``tomllib.loads`` returns: ``("vm", 1, "memory")``.
    """
    return _Scanner(text).document()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of `path`, or of the innermost thing around it that has one; 1 for the document itself."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def spell(path: Path) -> str:
    """A path as messages write it: ``vm[1].memory``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
