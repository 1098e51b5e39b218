"""A failed VM entry is explained: the rule, each field, its value and where it was last written, what would hold."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from generator import resources
from generator.arch import exits
from generator.build import FORMATS, Image, build, medium, write
from hvtests.image.test_failures import _set_row
from hvtests.machine.stop import Limits, StopKind
from hvtests.places import Places
from hvtests.runners.unicorn import UnicornRunner
from hvtests.verification import verify
from hvtests.vmx.model import VmxMachine

VMCS_TEMPLATE = "vmx/vmcs.asm.j2"


def _damaged(directory: Path, *, with_map: bool) -> Image:
    """images/minimal.toml, CS of the first guest with both L and D/B (SDM 3C 27.3.1.2)."""
    image = build(resources.images() / "minimal.toml", formats=())
    _set_row(image.core, "vmcs_rows_0", "GUEST_CS_AR_BYTES", 0xE09B)
    image.files["multiboot"] = medium(image.core, "multiboot")
    write(image, directory)
    if not with_map:
        (directory / "minimal.map.json").unlink()
    return image


def _line_of_vmwrite() -> int:
    lines = (resources.templates() / VMCS_TEMPLATE).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.split()[:2] == ["vmwrite", "rax,"])


def test_the_rule_the_fields_the_places_and_the_remedy(tmp_path: Path) -> None:
    _damaged(tmp_path, with_map=True)
    lines = UnicornRunner().run(tmp_path / f"minimal{FORMATS['multiboot']}").complaints
    assert lines[0].startswith("VM entry failed (reason 33, qualification 0): guest.cs.db_with_l: ")
    assert lines[0].endswith("(SDM 3C 27.3.1.2)")
    field = next(line for line in lines if "GUEST_CS_AR_BYTES = 0x0000e09b" in line)
    assert field.endswith(f"last written at templates/{VMCS_TEMPLATE}:{_line_of_vmwrite()}")
    assert "it would hold with GUEST_CS_AR_BYTES = 0xa09b" in lines[-1]


def test_verify_fails_with_the_explanation_and_with_nothing_else(tmp_path: Path) -> None:
    """The VM that cannot be entered is one fact; that it has no exits to count is not another."""
    _damaged(tmp_path, with_map=True)
    found = verify(tmp_path / "minimal.elf", None, 30)
    assert [check.passed for check in found.checks] == [False, False, True]
    assert any("guest.cs.db_with_l" in line for line in found.checks[1].details)
    assert not any(row.reason == exits.BY_NAME["INVALID_GUEST_STATE"].name for row in found.exits)


def test_without_a_map_the_address_is_told(tmp_path: Path) -> None:
    core = _damaged(tmp_path, with_map=False).core
    lines = UnicornRunner().run(tmp_path / "minimal.elf").complaints
    address = next(row.address for unit in core.units for row in unit.rows
                   if (row.file, row.line) == (VMCS_TEMPLATE, _line_of_vmwrite()) and row.data)
    assert any(line.endswith(f"last written at {address:#x}") for line in lines)


@pytest.mark.parametrize("quick", [True, False])
def test_the_last_write_counts_by_whichever_path(tmp_path: Path, quick: bool) -> None:
    """GUEST_RIP is written at the start, and again where instructions are skipped: the native path tells so too."""
    image = build(resources.images() / "minimal.toml", ["multiboot"])
    write(image, tmp_path)
    machine = VmxMachine()
    machine.vmx.quick.enabled = quick
    machine.boot(tmp_path / "minimal.elf")
    while len(machine.vmx.exits) < 20:      # in the first guest, after instructions were skipped
        assert machine.run(Limits(ticks=1000)).kind is StopKind.TIMEOUT
    place = Places.of_map({"lines": [
        [row.address, len(row.data), row.file, row.line] for unit in image.core.units for row in unit.rows if row.data],
        "symbols": {}})
    vmcs = machine.vmx.current
    assert vmcs is not None
    by = vmcs.written_by("GUEST_RIP")
    assert by is not None and place(by).startswith("templates/vmx/exit.asm.j2:")
    assert vmcs.written_by("GUEST_CR3") is not None and vmcs.written_by("VM_EXIT_REASON") is None


def test_a_symbol_of_an_elf_and_the_distance_from_it(tmp_path: Path) -> None:
    (tmp_path / "k.s").write_text(".globl _start\n_start: nop\n nop\nsecond: nop\n nop\n")
    subprocess.run(["as", "--32", "k.s", "-o", "k.o"], cwd=tmp_path, check=True, timeout=30)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext=0x100000", "k.o", "-o", "k.elf"], cwd=tmp_path, check=True,
                   timeout=30)
    places = Places.of_file(tmp_path / "k.elf")
    assert places(0x100002) == "second (0x100002)"
    assert places(0x100003) == "second+0x1 (0x100003)"
    assert Places.of_file(tmp_path / "k.s")(0x100003) == "0x100003"
