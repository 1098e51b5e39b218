"""Image formats by content, and one clear line for what is none."""

import struct
from pathlib import Path

import pytest

from generator.errors import ImageFileError
from generator.inspection.media import read_medium
from hvtests.boot import images
from hvtests.machine.imagefile import (
    ElToritoEntry,
    ImageFormat,
    MultibootHeader,
    find_el_torito_entry,
    find_multiboot_header,
    recognise,
    recognise_bytes,
)

DISK = images.disk(b"x", "")
ISO = images.iso(b"x", "")
ELF = images.multiboot_elf(b"x", "")


@pytest.mark.parametrize(
    ("data", "expected"),
    [(DISK, ImageFormat.DISK), (ISO, ImageFormat.ISO), (ELF, ImageFormat.MULTIBOOT),
     (ISO[:510] + b"\x55\xaa" + ISO[512:], ImageFormat.ISO)],
    ids=["disk", "iso", "elf", "hybrid iso"],
)  # fmt: skip
def test_format_by_content_not_by_name(tmp_path: Path, data: bytes, expected: ImageFormat) -> None:
    path = tmp_path / "kernel.txt"
    path.write_bytes(data)
    assert recognise(path) is expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bootable image"),
        (b"\0" * 4096, "not a bootable image"),
        (DISK[:511], "not a bootable image"),
        (b"\x7fELF" + bytes(9000), "without a multiboot1 header"),
        (ELF[:9], "without a multiboot1 header"),
        (ISO[: 17 * 2048], "without an El Torito boot record"),
    ],
    ids=["empty", "zeros", "half a sector", "plain ELF", "cut ELF", "plain ISO"],
)
def test_what_does_not_boot_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageFileError, match=message) as caught:
        recognise_bytes(data, "some.file")
    assert str(caught.value).startswith("some.file: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.img", "."])
def test_unreadable_files_say_why(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageFileError, match=r"cannot be read: (No such file|Is a directory)"):
        recognise(tmp_path / name)


def test_a_header_with_a_bad_checksum_is_none() -> None:
    header = struct.pack("<III", 0x1BADB002, 0, 0)
    with pytest.raises(ImageFileError, match="without a multiboot1 header"):
        find_multiboot_header(b"\x7fELF" + header, "k")


def test_header_must_be_aligned_and_within_8_kib() -> None:
    good = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    assert find_multiboot_header(bytes(8180) + good, "k") == MultibootHeader(8180, 0)
    for prefix in (8184, 2):
        with pytest.raises(ImageFileError):
            find_multiboot_header(bytes(prefix) + good + bytes(64), "k")


def test_header_with_address_fields() -> None:
    flags = 0x10003
    header = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, 1, 2, 3, 4, 5)
    assert find_multiboot_header(header, "k") == MultibootHeader(0, flags, 1, 2, 3, 4, 5)


def test_header_that_demands_the_unknown_is_refused() -> None:
    flags = 0x0108
    header = struct.pack("<3I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    with pytest.raises(ImageFileError, match="flags 0x0108"):
        find_multiboot_header(header, "k")


def test_el_torito_entry() -> None:
    entry = find_el_torito_entry(ISO, "i")
    assert entry == ElToritoEntry(entry.lba, 1, 0x7C0)
    assert ISO[entry.lba * 2048 :][:512] == DISK


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0x1C, 1, "damaged"), (0x1E, 0, "damaged"), (0x20, 0, "not marked bootable"), (0x21, 2, "media type 2"),
     (0x28, 0xFF, "past the end")],
)  # fmt: skip
def test_damaged_boot_catalogs_are_named(offset: int, value: int, message: str) -> None:
    (catalog,) = struct.unpack_from("<I", ISO, 17 * 2048 + 0x47)
    broken = bytearray(ISO)
    broken[catalog * 2048 + offset] = value
    if offset == 0x28:
        broken[catalog * 2048 + 0x2A] = value
    with pytest.raises(ImageFileError, match=message):
        find_el_torito_entry(bytes(broken), "i")


def with_catalog(offset: int, *values: int) -> bytes:
    """The ISO with bytes of its boot catalog changed; 0x1D keeps the validation entry's sum."""
    (catalog,) = struct.unpack_from("<I", ISO, 17 * 2048 + 0x47)
    broken = bytearray(ISO)
    broken[catalog * 2048 + offset:catalog * 2048 + offset + len(values)] = values
    if offset == 1:
        broken[catalog * 2048 + 0x1D] = broken[catalog * 2048 + 0x1D] - values[0] & 0xFF
    return bytes(broken)


def demanding(flags: int) -> bytes:
    """An ELF file's beginning with a multiboot1 header of `flags`."""
    return b"\x7fELF".ljust(64, b"\0") + struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)


@pytest.mark.parametrize("data", [
    b"", DISK[:511], b"\x7fELF" + bytes(9000), ISO[: 17 * 2048], demanding(0x0108), with_catalog(1, 0xEF),
    with_catalog(0x1C, 1), with_catalog(0x1E, 0), with_catalog(0x20, 0), with_catalog(0x21, 2),
    with_catalog(0x28, 0xFF, 0xFF, 0xFF),
], ids=["nothing", "half a sector", "plain ELF", "plain ISO", "unknown features", "other platform", "damaged sum",
        "damaged key", "not bootable", "emulation", "cut off"])
def test_a_mistake_reads_the_same_wherever_it_is_found(data: bytes) -> None:
    """verify finds it with a map beside the file or without one; inspect finds it by itself."""
    with pytest.raises(ImageFileError) as ours:
        if recognise_bytes(data, "some.file") is ImageFormat.ISO:
            find_el_torito_entry(data, "some.file")
    with pytest.raises(ImageFileError) as theirs:
        read_medium(data, "some.file")
    assert str(theirs.value) == str(ours.value)
