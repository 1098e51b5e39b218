"""The built image, read back from its bytes: maps, bitmaps, tables, sizes. No test asks the layout what it meant."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from generator import resources
from generator.arch import exits, msrs
from generator.build import Image, build, write
from generator.mapfile import sizes

IMAGES = sorted(path.stem for path in resources.images().glob("*.toml"))
CORE, TWO_MIB, GIB = 0x10_0000, 2 << 20, 1 << 30


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest) -> Image:
    return build(resources.images() / f"{request.param}.toml")


@pytest.fixture(scope="module")
def minimal() -> Image:
    return build(resources.images() / "minimal.toml")


def _memory(image: Image) -> dict[int, bytes]:
    return {
        address + at: data[at:at + 4096] for address, data in image.core.segments for at in range(0, len(data), 4096)
    }


def _entry(memory: dict[int, bytes], table: int, index: int) -> int:
    return int(struct.unpack_from("<Q", memory[table], 8 * index)[0])


def _leaves(memory: dict[int, bytes], root: int, present: int, large: int) -> Iterator[tuple[int, int, int, int]]:
    """(linear or guest-physical address, size, mapped address, entry) of a 4-level table, SDM 3A 4.5 and 3C 29.3.2."""
    def walk(table: int, level: int, base: int) -> Iterator[tuple[int, int, int, int]]:
        shift = 12 + 9 * (level - 1)
        for index in range(512):
            entry = _entry(memory, table, index)
            if not entry & present:
                continue
            at, target = base + (index << shift), entry & 0x000F_FFFF_FFFF_F000
            if level == 1 or entry & large:
                yield at, 1 << shift, target, entry
            else:
                yield from walk(target, level - 1, at)
    yield from walk(root, 4, 0)


def test_host_maps_are_identity_and_never_writable_and_executable(image: Image) -> None:
    memory = _memory(image)
    writable, executable, nx = 1 << 1, 0, 1 << 63
    pages = list(_leaves(memory, image.core.symbols["host_pml4"], 1, 1 << 7))
    for at, _, target, entry in pages:
        assert at == target
        executable += not entry & nx
        assert entry & nx or not entry & writable, f"{at:#x} is writable and executable"
        assert not entry & 1 << 2, f"{at:#x} is a user page"
    mapped = {at for at, *_ in pages}
    code = image.core.units
    assert executable * 4096 >= sum(len(unit.code) for unit in code)
    for name in ("cpu0_guard", "ist0_guard"):
        assert image.core.symbols[name] not in mapped, f"{name} is mapped"
    assert 0 not in mapped and min(mapped) == CORE
    # The page below each stack is the guard.
    for stack, guard in (("cpu0_stack", "cpu0_guard"), ("ist0_stack", "ist0_guard")):
        assert image.core.symbols[stack] - 4096 == image.core.symbols[guard]


def test_each_vm_reaches_its_own_memory_and_no_other(image: Image) -> None:
    memory = _memory(image)
    owned: dict[int, int] = {}
    for index, vm in enumerate(image.spec.vms):
        leaves = list(_leaves(memory, image.core.symbols[f"ept_{index}"], 7, 1 << 7))
        assert sum(size for _, size, *_ in leaves) == vm.memory
        assert [gpa for gpa, *_ in leaves] == list(range(0, vm.memory, TWO_MIB))
        for _, size, target, entry in leaves:
            assert size == TWO_MIB and target % TWO_MIB == 0
            assert entry & 7 == 7 and entry >> 3 & 7 == 6  # all rights, write-back (SDM 3C table 29-1)
            assert target >= TWO_MIB, "a VM reaches the hypervisor"
            assert target not in owned, f"VM {index} shares {target:#x} with VM {owned.get(target)}"
            owned[target] = index


def test_msr_bitmap_passes_only_what_is_the_guests_own(image: Image) -> None:
    """SDM 3C 25.6.9: four parts of 1 KiB, a bit per MSR, 1 = exit."""
    bitmap = _memory(image)[image.core.symbols["msr_bitmap"]]
    passed = set()
    for part, base in ((0, 0), (1, 0xC000_0000), (2, 0), (3, 0xC000_0000)):
        for bit in range(8192):
            if not bitmap[1024 * part + bit // 8] >> bit % 8 & 1:
                passed.add((part >= 2, base + bit))
    names = {msrs.BY_ADDRESS[address].name for _, address in passed}
    assert names == {
        "IA32_FS_BASE", "IA32_GS_BASE", "IA32_KERNEL_GS_BASE", "IA32_STAR", "IA32_LSTAR", "IA32_CSTAR", "IA32_FMASK",
        "IA32_SYSENTER_CS", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP", "IA32_PAT", "IA32_TSC_AUX"}
    assert {address for write, address in passed if write} == {address for write, address in passed if not write}


def test_every_port_exits(image: Image) -> None:
    memory, at = _memory(image), image.core.symbols["io_bitmaps"]
    assert memory[at] + memory[at + 4096] == b"\xff" * 8192


def test_the_jump_table_has_a_handler_for_every_reason_of_the_manual(image: Image) -> None:
    symbols = image.core.symbols
    text = next(unit for unit in image.core.units if unit.name == "text64")
    offset = symbols["exit_table"] - text.base
    count = max(reason.number for reason in exits.EXIT_REASONS) + 1
    table = struct.unpack_from(f"<{count}Q", text.code, offset)
    labels = set(text.symbols.values())
    assert all(target in labels for target in table)
    assert table[10] == symbols["exit_cpuid"] and table[48] == symbols["exit_ept_violation"]
    assert table[65] == symbols["exit_unexpected"]  # WBINVD is 54, 65 is unused in the manual


def test_each_field_of_a_vmcs_is_written_once(image: Image) -> None:
    for rows in image.core.rows:
        fields = [row.field for row in rows]
        assert len(fields) == len(set(fields))


def test_listing_accounts_for_every_byte_of_code(image: Image) -> None:
    for unit in [*image.core.units, *image.core.loader, *image.core.guest_units]:
        at = unit.base
        for row in unit.rows:
            assert row.address == at
            at += len(row.data)
            assert not row.data or row.line > 0
        assert at == unit.base + len(unit.code)


def test_the_minimal_hypervisor_is_small(minimal: Image) -> None:
    size = sizes(minimal.core)
    assert size["code"] + size["rodata"] + size["data"] < 24 * 1024


def test_the_same_image_toml_gives_the_same_bytes(minimal: Image, tmp_path: Path) -> None:
    """Built again by another process with another hash seed, a different directory and another time of day."""
    script = (
        "import sys; from pathlib import Path; from generator import resources; from generator.build import *;"
        "write(build(resources.images() / 'minimal.toml'), Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Pacific/Chatham"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(tmp_path / "b")]
    subprocess.run(command, check=True, env=environment, cwd=root, timeout=60)
    mine = write(minimal, tmp_path / "a")
    for path in mine:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_zeroed_and_loaded_parts_make_up_each_vms_memory(image: Image) -> None:
    """What no loader fills, the hypervisor zeroes: together they are the VM's memory, without gap or overlap."""
    memory = _memory(image)
    at = image.core.symbols["zero_ranges"]
    end = image.core.symbols["zero_ranges_end"]
    raw = b"".join(memory[page] for page in range(at & ~4095, end + 4095 & ~4095, 4096))[at & 4095:][:end - at]
    spans = [pair for pair in struct.iter_unpack("<QQ", raw) if pair[1]]
    spans += [(address, address + len(data)) for address, data in image.core.segments if address >= TWO_MIB]
    spans.sort()
    assert spans[0][0] == TWO_MIB and spans[-1][1] == TWO_MIB + sum(vm.memory for vm in image.spec.vms)
    assert all(lower[1] == upper[0] for lower, upper in pairwise(spans))
