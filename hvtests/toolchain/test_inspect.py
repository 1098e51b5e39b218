"""`hvforge inspect`: what it says of an image is what the bytes hold, for every format, and a wrong byte shows."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from generator import vmcs_init
from generator.build import Image, build, write
from generator.errors import ImageFileError
from generator.inspection import Inspection, inspect
from generator.inspection.media import read_medium
from generator.inspection.paging import MappedRange, ept_ranges, msrs_without_exit, page_ranges, ports_without_exit
from generator.inspection.text import as_text, size_text
from generator.inspection.vmcs import OPERATIONS
from generator.mapfile import image_map
from hvtests.toolchain.command import MINIMAL, hvforge

MIB = 1 << 20
PRESENT, WRITE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 63   # SDM 3A 4.5.4
FORMATS = ("disk", "iso", "multiboot")


@pytest.fixture(scope="module")
def image() -> Image:
    return build(MINIMAL)


def taken_apart(image: Image, format_: str = "disk") -> Inspection:
    return inspect(image.files[format_], "image", image_map(image.core))


def value(inspection: Inspection, vm: int, field: str) -> int | None:
    return next(row.value for row in inspection.vms[vm].values if row.field.name == field)


def words(inspection: Inspection, vm: int, field: str) -> str:
    return next(row.words for row in inspection.vms[vm].values if row.field.name == field)


class Memory:
    """Physical memory in which tables are written by hand."""

    def __init__(self) -> None:
        self.data = bytearray(16 * 4096)

    def put(self, table: int, index: int, entry: int) -> None:
        struct.pack_into("<Q", self.data, table + 8 * index, entry)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.data[address:address + size])


# -- tables written by hand --------------------------------------------------------------------------------------------

def test_page_tables_merge_what_is_alike_and_and_rights_of_all_levels() -> None:
    memory = Memory()
    memory.put(0x0000, 0, 0x1000 | PRESENT | WRITE | USER)
    memory.put(0x0000, 511, 0x4000 | PRESENT | WRITE)                    # the upper half: canonical addresses
    memory.put(0x1000, 0, 0x2000 | PRESENT | WRITE | USER)
    memory.put(0x1000, 1, 1 << 30 | PRESENT | LARGE | USER)              # a page of 1 GiB
    memory.put(0x2000, 0, 0x3000 | PRESENT | USER)                       # read-only from here
    memory.put(0x2000, 1, 0x20_0000 | PRESENT | WRITE | USER | LARGE | NO_EXECUTE)
    memory.put(0x2000, 2, 0x40_0000 | PRESENT | WRITE | USER | LARGE | NO_EXECUTE)
    memory.put(0x2000, 3, 0x80_0000 | PRESENT | WRITE | LARGE)           # not where the last one ended
    memory.put(0x3000, 4, 0x4000 | PRESENT | WRITE | USER)
    memory.put(0x3000, 5, 0x5000 | PRESENT | WRITE | USER)
    memory.put(0x3000, 7, 0x7000 | PRESENT | WRITE | USER)
    memory.put(0x4000, 511, 0x5000 | PRESENT | WRITE)
    memory.put(0x5000, 511, 0x60_0000 | PRESENT | LARGE | NO_EXECUTE)
    assert page_ranges(memory.read, 0) == [
        MappedRange(0x4000, 0x6000, 0x4000, "r-x", 4096, "user"),
        MappedRange(0x7000, 0x8000, 0x7000, "r-x", 4096, "user"),
        MappedRange(0x20_0000, 0x60_0000, 0x20_0000, "rw-", 2 * MIB, "user"),
        MappedRange(0x60_0000, 0x80_0000, 0x80_0000, "rwx", 2 * MIB, ""),
        MappedRange(1 << 30, 2 << 30, 1 << 30, "r-x", 1 << 30, "user"),
        MappedRange(0xFFFF_FFFF_FFE0_0000, 1 << 64, 0x60_0000, "r--", 2 * MIB, ""),
    ]


def test_ept_says_rights_and_types_and_marks_what_would_misconfigure() -> None:
    memory = Memory()
    write_back = 6 << 3
    memory.put(0x0000, 0, 0x1000 | 7)
    memory.put(0x1000, 0, 0x2000 | 7)
    memory.put(0x2000, 0, 0x40_0000 | 7 | write_back | LARGE)
    memory.put(0x2000, 1, 0x60_0000 | 7 | write_back | LARGE)
    memory.put(0x2000, 2, 0x3000 | 5)
    memory.put(0x2000, 3, 0xA0_0000 | 2 | write_back | LARGE)            # writes without reads: SDM 3C 29.3.3.1
    memory.put(0x2000, 4, 0xC0_0000 | 7 | 2 << 3 | LARGE)                # memory type 2 is reserved
    memory.put(0x2000, 5, 0xE0_0000 | 0x1_0000 | 7 | write_back | LARGE)  # bit 16 of a 2 MiB page's address
    memory.put(0x3000, 0, 0x9000 | 7)
    assert ept_ranges(memory.read, 0x0000 | 6 | 3 << 3) == [
        MappedRange(0, 4 * MIB, 4 * MIB, "rwx", 2 * MIB, "WB"),
        MappedRange(4 * MIB, 4 * MIB + 4096, 0x9000, "r-x", 4096, "UC"),
        MappedRange(6 * MIB, 8 * MIB, 0xA0_0000, "-w-", 2 * MIB, "WB MISCONFIGURED"),
        MappedRange(8 * MIB, 10 * MIB, 0xC0_0000, "rwx", 2 * MIB, "reserved memory type MISCONFIGURED"),
        MappedRange(10 * MIB, 12 * MIB, 0xE0_0000, "rwx", 2 * MIB, "WB MISCONFIGURED"),
    ]


def test_bitmaps_in_words() -> None:
    a, b = bytearray(b"\xff" * 4096), bytearray(b"\xff" * 4096)
    a[0x60 // 8] = 0xEE          # ports 60H and 64H
    a[0x3F8 // 8] = 0            # 3F8H to 3FFH
    a[-1], b[0] = 0x7F, 0xFE     # 7FFFH in A and 8000H in B are neighbours
    assert ports_without_exit(bytes(a), bytes(b)) == [
        (0x60, 0x60), (0x64, 0x64), (0x3F8, 0x3FF), (0x7FFF, 0x8000)]
    bitmap = bytearray(b"\xff" * 4096)
    bitmap[0x10 // 8] = 0xFE                                # reads of 10H, the TSC
    bitmap[2048 + 0x174 // 8] &= 0xEF                       # writes of 174H
    for half in (1024, 3072):
        bitmap[half + 0x80 // 8] &= 0xFD                    # C000_0081H, both ways
    bitmap[1024 + 0x1FF8 // 8] = 0                          # reads of C000_1FF8H to C000_1FFFH, which have no name
    assert msrs_without_exit(bytes(bitmap)) == [
        ("IA32_TIME_STAMP_COUNTER (0x10)", "r"), ("IA32_SYSENTER_CS (0x174)", "w"), ("IA32_STAR (0xc0000081)", "rw"),
        ("0xc0001ff8 to 0xc0001fff", "r")]


# -- a built image -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_holds_the_same(image: Image, format_: str) -> None:
    one, other = taken_apart(image, format_), taken_apart(image, "disk")
    assert one.vms == other.vms
    assert one.host_pages == other.host_pages
    assert [(piece.address, piece.data) for piece in one.medium.pieces] == image.core.segments


def test_vmcs_begins_as_the_description_says(image: Image) -> None:
    found = taken_apart(image)
    assert [vm.name for vm in found.vms] == ["long", "paged", "real"]
    for number, vm in enumerate(found.vms):
        names = [row.field.name for row in vm.values]
        assert len(set(names)) == len(names)
        assert vm.memory_size == 2 * MIB
        assert value(found, number, "GUEST_RIP") == 0x1000
        assert value(found, number, "VIRTUAL_PROCESSOR_ID") == number + 1
        assert value(found, number, "VMCS_LINK_POINTER") == (1 << 64) - 1
        assert value(found, number, "VMX_PREEMPTION_TIMER_VALUE") == 50_000_000   # watchdog_ticks' default
        assert "HLT_EXITING" in words(found, number, "CPU_BASED_VM_EXEC_CONTROL")
        assert "UNRESTRICTED_GUEST" in words(found, number, "SECONDARY_VM_EXEC_CONTROL")
        assert words(found, number, "HOST_CR3") == "host_pml4"
        assert words(found, number, "EPT_POINTER") == f"ept_{number}"
    # CR0 and access rights of the three modes (SDM 3A 2.5, SDM 3C table 25-2); CR0 bit 4 (ET) is always 1.
    assert [value(found, n, "GUEST_CR0") for n in range(3)] == [0x8000_0011, 0x11, 0x10]
    assert [value(found, n, "GUEST_CS_AR_BYTES") for n in range(3)] == [0xA09B, 0xC09B, 0x9B]
    assert ["IA32E_MODE_GUEST" in words(found, n, "VM_ENTRY_CONTROLS") for n in range(3)] == [True, False, False]


def test_every_vm_has_its_own_memory_and_nothing_else(image: Image) -> None:
    found = taken_apart(image)
    for number, vm in enumerate(found.vms):
        base = 2 * MIB * (number + 1)
        assert vm.memory_base == base
        assert vm.ept == (MappedRange(0, 2 * MIB, base, "rwx", 2 * MIB, "WB"),)
        assert vm.ports == ()
    assert found.vms[0].guest_pages == (MappedRange(0, 1 << 30, 0, "rwx", 2 * MIB, "user"),)
    assert found.vms[1].guest_pages is None


def test_host_maps_no_byte_both_writable_and_executable(image: Image) -> None:
    found = taken_apart(image)
    assert found.host_pages is not None
    assert {item.rights for item in found.host_pages} == {"r-x", "r--", "rw-"}
    assert all(item.start == item.target for item in found.host_pages)
    mapped = {page for item in found.host_pages for page in range(item.start, item.end, 4096)}
    for region in image_map(image.core)["regions"]:
        pages = set(range(region["start"], region["end"], 4096))
        assert pages.isdisjoint(mapped) if region["kind"] == "guard" else pages & mapped


def test_one_wrong_bit_shows(image: Image) -> None:
    """The report comes from the bytes: a table that is written wrong is shown wrong."""
    elf = image.files["multiboot"]
    core = read_medium(elf, "image").pieces[0]
    offset = elf.index(core.data[:64])
    at = {row["name"]: row["start"] for row in image_map(image.core)["data"]}

    def changed(address: int, mask: int) -> Inspection:
        data = bytearray(elf)
        data[offset + address - core.address] ^= mask
        return inspect(bytes(data), "image", image_map(image.core))

    assert changed(at["ept_1"] + 2 * 4096, 2).vms[1].ept == (MappedRange(0, 2 * MIB, 4 * MIB, "r-x", 2 * MIB, "WB"),)
    assert changed(at["io_bitmaps"] + 0x80 // 8, 1).vms[0].ports == ((0x80, 0x80),)
    assert ("IA32_FEATURE_CONTROL (0x3a)", "r") in (changed(at["msr_bitmap"] + 0x3A // 8, 4).vms[2].msrs or ())
    row = changed(at["control_0_pin"] + 4, 8)   # bit 3 of `required`: NMI exiting
    assert "NMI_EXITING" in words(taken_apart(image), 0, "PIN_BASED_VM_EXEC_CONTROL")
    assert "NMI_EXITING" not in words(row, 0, "PIN_BASED_VM_EXEC_CONTROL")


def test_a_map_of_something_else_is_refused(image: Image) -> None:
    with pytest.raises(ImageFileError, match="not of this version"):
        inspect(image.files["disk"], "image", {"image": "x"})


def test_damaged_files_are_refused(image: Image) -> None:
    disk = bytearray(image.files["disk"])
    with pytest.raises(ImageFileError, match="not all there"):
        inspect(bytes(disk[:20_000]), "image")
    struct.pack_into("<I", disk, disk.rindex(b"HVFB", 0, 3072) + 4, 777)   # the media table's sector size
    with pytest.raises(ImageFileError, match="media table is damaged"):
        inspect(bytes(disk), "image")
    with pytest.raises(ImageFileError, match="without a multiboot1 header"):
        inspect(b"\x7fELF".ljust(9000, b"\0"), "image")
    with pytest.raises(ImageFileError, match="damaged ELF"):
        inspect(image.files["multiboot"][:4] + b"\x09" + image.files["multiboot"][5:], "image")   # EI_CLASS
    with pytest.raises(ImageFileError, match=r"segment .* is not all there"):
        inspect(image.files["multiboot"][:20_000], "image")


# -- the command -------------------------------------------------------------------------------------------------------

def test_text_tells_each_thing_once(image: Image) -> None:
    text = as_text(taken_apart(image))
    for line in ("  0x00100000 - 0x00106000  24K  text",
                 "    0x00000000 - 0x00200000  0x00600000   rwx  1 x 2M  WB  its memory",
                 "    0x681e  GUEST_RIP                      0x1000"):
        assert text.count(line + "\n") == 1, line
    assert text.count(" GUEST_RIP ") == 1        # alike in all VMs
    assert text.count(" GUEST_CR0 ") == 3        # each its own
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(("size", "shown"), [(0, "0"), (1, "1"), (4096, "4K"), (6144, "6K"), (2 * MIB, "2M")])
def test_sizes_in_words(size: int, shown: str) -> None:
    assert size_text(size) == shown


def test_command_inspects_a_description_and_the_files_made_of_it(
    image: Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(image, tmp_path)
    described = hvforge(capfd, "inspect", MINIMAL)
    assert (described.status, described.err) == (0, "")
    built = hvforge(capfd, "inspect", tmp_path / "minimal.img")
    assert described.out.splitlines()[1:] == built.out.splitlines()[1:]
    (tmp_path / "minimal.map.json").unlink()
    for suffix, format_ in ((".img", "BIOS disk"), (".iso", "El Torito ISO"), (".elf", "multiboot1 kernel, ELF32")):
        alone = hvforge(capfd, "inspect", tmp_path / f"minimal{suffix}")
        assert alone.status == 0
        assert f"  {format_}\n" in alone.out
        assert "0x00100000 - " in alone.out
        assert "VMCS" not in alone.out


@pytest.mark.parametrize(("content", "words"), [
    ("{", ":1: this map is no JSON"), ("[]", "no map of hvforge's"), ('{"digest": ""}', "no map of hvforge's")])
def test_broken_map_is_one_line(content: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.img").write_bytes(bytes(510) + b"\x55\xaa")
    (tmp_path / "x.map.json").write_text(content)
    ran = hvforge(capfd, "inspect", tmp_path / "x.img")
    assert ran.status == ImageFileError.status
    assert words in ran.error


def test_somebody_elses_disk_is_told_as_far_as_it_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sector = bytearray(bytes(510) + b"\x55\xaa")
    struct.pack_into("<B3xB3xII", sector, 446 + 16, 0x80, 0x83, 2048, 4096)
    (tmp_path / "x.img").write_bytes(bytes(sector) * 4)
    out = hvforge(capfd, "inspect", tmp_path / "x.img").out
    assert "partition 2  active, type 0x83, sectors 2048 to 6143" in out
    assert "loader" not in out


def test_map_of_files_on_disk_is_the_map_of_the_build(image: Image, tmp_path: Path) -> None:
    write(image, tmp_path)
    assert json.loads((tmp_path / "minimal.map.json").read_text()) == json.loads(json.dumps(image_map(image.core)))


def test_every_operation_of_a_row_is_put_in_words() -> None:
    assert set(OPERATIONS) == set(vmcs_init.OPERATIONS)


def test_map_that_no_reader_could_use_is_one_line(
    image: Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each key left out, each list's first element made something else; and a map by another version."""
    write(image, tmp_path)
    beside = tmp_path / "minimal.map.json"
    right = json.loads(beside.read_text())
    wrong = [({**right, "hvforge": "0.0.9"}, "this map is by hvforge 0.0.9, this is "),
             ({**right, "digest": "0"}, "of another build")]
    wrong += [({name: value for name, value in right.items() if name != key}, "map") for key in right]
    wrong += [({**right, key: [None, *right[key][1:]]}, "damaged")
              for key in ("regions", "sections", "data", "vms", "lines")]
    wrong += [({**right, key: {"name": "text"}}, "damaged") for key in ("symbols", "sizes")]
    wrong += [({**right, "data": []}, "not whole"), ({**right, "regions": []}, "not whole")]
    for content, words in wrong:
        beside.write_text(json.dumps(content))
        for command in ("verify", "inspect"):
            ran = hvforge(capfd, command, tmp_path / "minimal.elf")
            assert ran.status == ImageFileError.status, (words, ran)
            assert ran.error.startswith(f"{beside}: ") and words in ran.error
            assert ran.error.endswith("; build the image again")
