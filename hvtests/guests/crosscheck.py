"""One image, two machines: the trace that the image prints on port 0xE9 in the harness and in Bochs, event by event."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from generator.arch import abi, exits
from generator.build import build, write

_FIELDS = {line.letter: line.fields for line in abi.TRACE_LINES}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a trace: an exit (X) or an injected event (J), with its fields as numbers."""

    letter: str
    values: tuple[int, ...]

    @property
    def vm(self) -> int:
        return self.values[0]

    @property
    def reason(self) -> int | None:
        """The exit reason; None for an injection."""
        return self.values[1] if self.letter == "X" else None

    def __str__(self) -> str:
        names = [name for name, _ in _FIELDS[self.letter]]
        text = " ".join(f"{name}={value:#x}" for name, value in zip(names, self.values, strict=True))
        what = exits.name(self.reason) if self.reason is not None else "injected"
        return f"{what}: {text}"


def parse_trace(debugcon: bytes) -> list[Event]:
    """The events of a tracing image's output on port 0xE9. ValueError for a line that is none."""
    events = []
    for line in debugcon.decode("ascii").splitlines():
        letter, *words = line.split(" ")
        widths = [width for _, width in _FIELDS.get(letter, ())]
        if not widths or [len(word) for word in words] != widths:
            raise ValueError(f"not a line of the trace: {line!r}")
        events.append(Event(letter, tuple(int(word, 16) for word in words)))
    return events


def build_traced(toml: Path, directory: Path) -> Path:
    """The disk image of ``toml`` with ``trace = true``, built in ``directory`` (beside copied guests)."""
    text = toml.read_text()
    if not re.search(r"^trace *= *true", text, re.MULTILINE):
        text = text.replace("[image]\n", "[image]\ntrace = true\n", 1)
    path = directory / toml.name
    path.write_text(text)
    image = build(path, ["disk"])
    write(image, directory)
    return directory / f"{image.name}.img"


def first_difference(ours: list[Event], theirs: list[Event]) -> str | None:
    """Where two traces part, in words; None if they are the same."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return f"event {number}: the harness has {mine}; Bochs has {other}"
    if len(ours) != len(theirs):
        longer, name = (ours, "the harness") if len(ours) > len(theirs) else (theirs, "Bochs")
        return f"only {name} has event {min(len(ours), len(theirs))}: {longer[min(len(ours), len(theirs))]}"
    return None
