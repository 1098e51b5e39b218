"""What a user names on the command line: an image.toml, which is built, or a file that is built already."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import ImageFileError, OutputError, UsageError
from generator.inspection.media import read_medium
from generator.mapfile import image_map, memory_mib, mistake, payload_digest

if TYPE_CHECKING:
    from generator.build import Image

DESCRIPTION = ".toml"
MAP = ".map.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that boots: its ``path`` and bytes, its map if there is one, and the image if it was built just now."""

    path: Path
    data: bytes
    map: Mapping[str, Any] | None
    image: Image | None

    @property
    def memory_mib(self) -> int:
        """MiB of memory that a machine needs for it, as its map tells."""
        return memory_mib(self.map)


@contextmanager
def bootable(path: Path, format_: str | None, template_dirs: Sequence[Path] = ()) -> Iterator[Source]:
    """The file to boot for ``path``; one that has to be built lies in a temporary directory until the block ends.

    ``format_`` is disk, iso or multiboot, by default disk. UsageError for a format with a file, which has its own.
    """
    if path.suffix != DESCRIPTION:
        if format_ is not None:
            raise UsageError(f"goes with an image.toml; {path} has the format it has", "--format")
        yield read_built(path)
        return
    from generator.build import FORMATS, build

    image = build(path, [format_ or "disk"], template_dirs)
    (name, data), = image.files.items()
    with _temporary_directory() as directory:
        file = directory / f"{image.name}{FORMATS[name]}"
        try:
            file.write_bytes(data)
        except OSError as error:
            raise OutputError(f"cannot write this file: {error.strerror or error}", str(file)) from None
        yield Source(file, data, image_map(image.core), image)


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    try:
        holder = tempfile.TemporaryDirectory(prefix="hvforge-")
    except OSError as error:
        raise OutputError(f"cannot make a temporary directory: {error.strerror or error}", error.filename) from None
    with holder as name:
        yield Path(name)


def read_built(path: Path) -> Source:
    """A file with the map beside it, if there is one. Raises ImageFileError for what cannot be read or used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f"cannot be read: {(error.strerror or str(error)).lower()}", str(path)) from None
    beside = path.with_suffix(MAP)
    try:
        text = beside.read_text("utf-8")
    except FileNotFoundError:
        return Source(path, data, None, None)
    except (OSError, UnicodeDecodeError) as error:
        raise ImageFileError(f"this map cannot be read: {error}", str(beside)) from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ImageFileError(f"this map is no JSON: {error.msg}", f"{beside}:{error.lineno}") from None
    wrong = mistake(content)
    if wrong is not None:
        raise ImageFileError(f"{wrong}; build the image again", str(beside))
    pieces = read_medium(data, str(path)).pieces
    if content["digest"] != payload_digest((piece.address, piece.data) for piece in pieces):
        raise ImageFileError(f"this map is of another build than {path.name}; build the image again", str(beside))
    return Source(path, data, content, None)
