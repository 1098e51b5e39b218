"""The three media: their formats looked at by other readers, and the loader's table against what lies on them."""

from __future__ import annotations

import io
import struct
import subprocess
import time
from pathlib import Path
from random import Random

import pycdlib
import pytest
from elftools.elf.elffile import ELFFile

from generator.errors import LayoutError
from generator.media.disk import make_disk
from generator.media.iso import make_iso
from generator.media.multiboot import make_elf
from generator.media.segments import Segment

RANDOM = Random(7)
TABLE = 0x900        # where the tests' loader has its media table
SECTORS = 0x60       # where its first sector has the word with the number of sectors to load
BOOT = RANDOM.randbytes(SECTORS) + b"\0\0" + RANDOM.randbytes(100) + bytes(512 - SECTORS - 102) + RANDOM.randbytes(1500)
SEGMENTS = (
    Segment(0x10_0000, RANDOM.randbytes(5000), 9000),
    Segment(0x40_0000, RANDOM.randbytes(2048)),
    Segment(0x20_0001, RANDOM.randbytes(1)),
    Segment(0x30_0000, b"", 4096),
)
MAGIC = 0x4246_5648


def table(loader: bytes) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """(sector size, sectors to load, rows of (lba, sectors, destination, length)) of a loader."""
    magic, sector, to_load, count = struct.unpack_from("<IIII", loader, TABLE)
    assert magic == MAGIC
    rows = [struct.unpack_from("<QI4xQQ", loader, TABLE + 16 + 32 * number) for number in range(count)]
    return sector, to_load, rows


def check_contents(image: bytes, loader: bytes, sector: int) -> None:
    """Follow the table as the loader does: every byte of every segment is found, and no two overlap on the medium."""
    size, _, rows = table(loader)
    assert size == sector
    wanted = [segment for segment in SEGMENTS if segment.data]
    assert [(row[2], row[3]) for row in rows] == [(segment.address, len(segment.data)) for segment in wanted]
    end = 0
    for (lba, sectors, _, length), segment in zip(rows, wanted, strict=True):
        assert lba >= end and sectors == -(-length // sector)
        end = lba + sectors
        assert end * sector <= len(image)
        piece = image[lba * sector : end * sector]
        assert piece[:length] == segment.data
        assert not any(piece[length:])


def test_disk() -> None:
    image = make_disk(BOOT, TABLE, SEGMENTS, SECTORS)
    assert len(image) % (16 * 63 * 512) == 0
    assert image[510:512] == b"\x55\xaa"
    _, to_load, rows = table(image)
    assert struct.unpack_from("<H", image, SECTORS) == (to_load,)
    # What the loader reads ends where the payload begins, and holds all of it.
    assert rows[0][0] == 1 + to_load
    assert 512 * (1 + to_load) >= max(len(BOOT), TABLE + 16 + 32 * len(rows))
    assert image[:SECTORS] == BOOT[:SECTORS] and image[SECTORS + 2 : 446] == BOOT[SECTORS + 2 : 446]
    assert image[512 : len(BOOT)] == BOOT[512:]
    check_contents(image, image, 512)


def test_disk_has_one_active_partition_over_everything() -> None:
    image = make_disk(BOOT, TABLE, SEGMENTS)
    active, kind, first, count = struct.unpack_from("<B3xB3xII", image, 446)
    assert (active, kind, first, count) == (0x80, 0xDA, 1, len(image) // 512 - 1)
    assert not any(image[462:510])


def test_disk_leaves_code_in_the_partition_table_alone() -> None:
    boot = bytearray(BOOT)
    boot[450] = 0x90
    assert make_disk(bytes(boot), TABLE, SEGMENTS)[446:510] == boot[446:510]


def test_disk_without_payload() -> None:
    image = make_disk(BOOT, TABLE, [])
    assert table(image)[2] == [] and len(image) == 16 * 63 * 512


def iso_boot_entry(image: bytes) -> tuple[int, int, int]:
    """(load segment, sectors to load, LBA of the boot file) by the El Torito specification 1.0, 2.0 to 2.2."""
    record = image[17 * 2048 : 18 * 2048]
    assert record[:7] == b"\0CD001\x01" and record[7:30] == b"EL TORITO SPECIFICATION"
    catalog = image[struct.unpack_from("<I", record, 0x47)[0] * 2048 :][:2048]
    header, platform, key = catalog[0], catalog[1], catalog[30:32]
    assert (header, platform, key) == (1, 0, b"\x55\xaa")
    assert sum(struct.unpack("<16H", catalog[:32])) & 0xFFFF == 0
    bootable, media, segment, system, sectors, lba = struct.unpack_from("<BBHBxHI", catalog, 32)
    assert (bootable, media, system) == (0x88, 0, 0)
    return segment, sectors, lba


def test_iso() -> None:
    image = make_iso(BOOT, TABLE, SEGMENTS, "minimal-1", SECTORS)
    assert len(image) % 2048 == 0
    segment, sectors, lba = iso_boot_entry(image)
    assert segment == 0 and sectors <= 56
    loader = image[lba * 2048 : lba * 2048 + sectors * 512]
    assert loader[510:512] == b"\x55\xaa"
    assert len(loader) >= max(len(BOOT), TABLE + 16 + 32 * 3)
    assert table(loader)[1] == 0 and loader[SECTORS : SECTORS + 2] == b"\0\0"
    check_contents(image, loader, 2048)


def test_iso_is_read_by_pycdlib() -> None:
    image = make_iso(BOOT, TABLE, SEGMENTS, "minimal-1")
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    names = {child.file_identifier() for child in iso.list_children(iso_path="/")}
    assert names >= {b"BOOT.BIN;1", b"HVFORGE.BIN;1"}
    payload = io.BytesIO()
    iso.get_file_from_iso_fp(payload, iso_path="/HVFORGE.BIN;1")
    assert payload.getvalue()[:5000] == SEGMENTS[0].data
    assert iso.pvd.volume_identifier.rstrip() == b"MINIMAL_1"
    iso.close()


def test_iso_is_the_same_at_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    images = set()
    for later, zone in ((0, "UTC"), (1, "UTC"), (40_000_000, "UTC"), (1, "Asia/Tokyo")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        images.add(make_iso(BOOT, TABLE, SEGMENTS))
    monkeypatch.undo()
    time.tzset()
    assert len(images) == 1


def test_iso_dates_were_really_those_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pinning the images differ: the test above can fail."""
    now = time.time()
    monkeypatch.setattr("generator.media.iso._pin_dates", lambda _: None)
    images = set()
    for later in (0, 40_000_000):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        images.add(make_iso(BOOT, TABLE, SEGMENTS))
    assert len(images) == 2


def test_multiboot_elf(tmp_path: Path) -> None:
    data = make_elf(SEGMENTS, 0x10_0010)
    elf = ELFFile(io.BytesIO(data))
    assert (elf.elfclass, elf.little_endian) == (32, True)
    assert (elf["e_type"], elf["e_machine"], elf["e_entry"], elf["e_shnum"]) == ("ET_EXEC", "EM_386", 0x10_0010, 0)
    wanted = sorted(SEGMENTS, key=lambda segment: segment.address)
    assert elf.num_segments() == len(wanted)
    for found, segment in zip(elf.iter_segments(), wanted, strict=True):
        assert found["p_type"] == "PT_LOAD"
        assert found["p_vaddr"] == found["p_paddr"] == segment.address
        assert found["p_memsz"] == max(len(segment.data), segment.memory)
        assert found.data() == segment.data
        assert (found["p_offset"] - found["p_vaddr"]) % found["p_align"] == 0
    assert elf.get_segment(0)["p_offset"] + 4096 <= 8192  # where loaders look for the header (multiboot 3.1.1)
    path = tmp_path / "kernel.elf"
    path.write_bytes(data)
    done = subprocess.run(["readelf", "-hlW", str(path)], capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == "" and "Warning" not in done.stdout
    assert done.stdout.count("LOAD ") == len(wanted) and "0x100010" in done.stdout


OVERLAP = [Segment(0x10_0000, bytes(100), 5000), Segment(0x10_1000, b"x")]
HUGE = [Segment(0x10_0000, bytes((64 << 20) + 1))]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: make_disk(BOOT, TABLE, OVERLAP),           "segments overlap: 0x100000 to 0x101388 and one at 0x101000"),
    (lambda: make_iso(BOOT, TABLE, OVERLAP),            "payload segments overlap"),
    (lambda: make_elf(OVERLAP, 0x10_0000),              "0x100000 to 0x101388 reaches beyond 0x101000"),
    (lambda: make_disk(BOOT, TABLE, HUGE),              "a BIOS medium carries at most 67108864"),
    (lambda: make_elf([Segment((1 << 32) - 1, b"xx")], 0), "reaches beyond 0x100000000"),
    (lambda: make_elf([Segment(n << 12, b"x") for n in range(200)], 0), "200 segments are too many"),
    (lambda: make_disk(bytes(13000), TABLE, []),        "the loader and its table of 0 rows take 13312 bytes of 12288"),
    (lambda: make_disk(BOOT, TABLE, [Segment(n << 12, b"x") for n in range(400)]), "400 rows"),
    (lambda: make_disk(b"\x90" * 600, TABLE, []),       "code where its signature belongs"),
])  # fmt: skip
def test_what_does_not_fit(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(LayoutError, match=message):
        make()
