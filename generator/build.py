"""The pipeline: image.toml -> spec -> layout, tables, templates, assembly (core.py) -> media -> files.

    image = build(Path("images/minimal.toml"))
    image.files["disk"]          # bytes of the raw disk
    write(image, Path("build"))  # build/minimal.img, .iso, .elf, .map.json, .lst
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from generator import layout, resources
from generator.core import Core, loader_bytes, make_core
from generator.errors import LayoutError, OutputError
from generator.files import write_atomically
from generator.listing import listing
from generator.mapfile import map_json
from generator.media.disk import make_disk
from generator.media.iso import make_iso
from generator.media.multiboot import make_elf
from generator.media.segments import Segment
from generator.spec import ImageSpec, load_spec

FORMATS = {"disk": ".img", "iso": ".iso", "multiboot": ".elf"}
ASSEMBLE_SECONDS = 30.0


@dataclass
class Image:
    """A built image: ``files`` maps a format (disk, iso, multiboot) to bytes, ``core`` has all that led to them."""

    core: Core
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def spec(self) -> ImageSpec:
        return self.core.spec

    @property
    def name(self) -> str:
        return self.core.spec.image.name


def build(path: Path, formats: Iterable[str] = tuple(FORMATS), template_dirs: Iterable[Path] = ()) -> Image:
    """Build the image that ``path`` (an image.toml) describes; nothing is written.

    ``template_dirs`` are searched before the templates of hvforge. Every mistake of the user's is an HvforgeError.
    """
    directories = [*template_dirs, resources.templates()]
    found = [file.name for directory in directories for file in (directory / "guests").glob("*.asm.j2")]
    spec = load_spec(path, sorted({name.removesuffix(".asm.j2") for name in found}))
    core = make_core(spec, directories, ASSEMBLE_SECONDS)
    image = Image(core)
    for name in formats:
        try:
            image.files[name] = medium(core, name)
        except LayoutError as error:
            raise type(error)(error.message, error.where or str(path)) from None
    return image


def medium(core: Core, name: str) -> bytes:
    """The bytes of one format (a key of FORMATS)."""
    segments = [
        Segment(address, data, core.layout.core_end - address if address == layout.CORE else 0)
        for address, data in core.segments
    ]
    if name == "multiboot":
        return make_elf(segments, core.entry)
    boot = loader_bytes(core)
    table = layout.LOADER_TABLE - layout.LOADER
    sectors = next(unit.symbols["mbr_sectors"] for unit in core.loader if unit.name == "mbr") - layout.LOADER
    if name == "disk":
        return make_disk(boot, table, segments, sectors)
    return make_iso(boot, table, segments, core.spec.image.name, sectors)


def write(image: Image, directory: Path) -> list[Path]:
    """Write the image's files, its map and its listing into ``directory``, each in one step; the paths, in order."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create this directory: {error.strerror}", str(directory)) from None
    contents = [(FORMATS[name], data) for name, data in image.files.items()]
    contents += [
        (".map.json", map_json(image.core).encode("utf-8")),
        (".lst", listing(image.core).encode("utf-8")),
    ]
    paths = []
    for suffix, data in contents:
        path = directory / f"{image.name}{suffix}"
        write_atomically(path, data)
        paths.append(path)
    return paths
