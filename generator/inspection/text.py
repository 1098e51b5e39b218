"""An Inspection as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from generator.inspection import Inspection, VmInspection
from generator.inspection.paging import MappedRange
from generator.inspection.vmcs import OPERATIONS, InitialValue

_GROUPS = (
    "Controls (a control word is (wanted | must-be-1) & may-be-1 by the MSR it asks)", "VM-exit information",
    "Guest state", "Host state",
)
_WORDS = 88  # characters of the last column before it goes on in the next line
_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def as_text(inspection: Inspection) -> str:
    """The whole report, ended by a line end."""
    lines = _file(inspection)
    if inspection.map is None:
        lines += ["", "No map (.map.json) lies beside this file: what the bytes mean is not known."]
    else:
        regions = [(row["start"], row["end"], row["name"]) for row in inspection.map["regions"]]
        lines += _layout(inspection.map)
        if inspection.host_pages is not None:
            lines += ["", "Host page tables (HOST_CR3)", *_ranges(inspection.host_pages, regions, "linear")]
        lines += _vms(inspection) if inspection.vms else []
    return "\n".join(lines) + "\n"


def size_text(size: int) -> str:
    """``24K``, ``2M``: a number of bytes in the largest unit that divides it."""
    for unit, letter in _UNITS:
        if size and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def aligned(rows: Iterable[Sequence[str]], indent: int = 2) -> list[str]:
    """Rows of the same number of cells as lines with aligned columns."""
    table = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [(" " * indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
            for row in table]


def _file(inspection: Inspection) -> list[str]:
    medium = inspection.medium
    facts = [("format", medium.format), ("size", f"{inspection.size} bytes"), *medium.facts]
    if medium.entry is not None:
        facts.append(("entry", f"{medium.entry:#x}"))
    lines = [inspection.where, *aligned(facts)]
    if medium.pieces:
        lines += ["", "Loaded into memory", *aligned(
            (f"{piece.address:#010x} - {piece.end:#010x}", f"{len(piece.data)} bytes", piece.place)
            for piece in medium.pieces)]
    return lines


def _layout(image_map: Mapping[str, Any]) -> list[str]:
    regions = [
        (f"{region['start']:#010x} - {region['end']:#010x}", size_text(region["end"] - region["start"]), region["name"],
         region["kind"] if region["kind"] != region["name"] else "")
        for region in image_map["regions"]
    ]
    return [
        "", f"Layout of image {image_map['image']!r}", *aligned(regions),
        "", "Bytes used", *aligned((name, str(size)) for name, size in image_map["sizes"].items()),
    ]


def _vms(inspection: Inspection) -> list[str]:
    """What all VMs have alike, once; then what is each one's own."""
    vms = inspection.vms
    common = set(vms[0].values).intersection(*(vm.values for vm in vms[1:])) if len(vms) > 1 else set()
    same_bitmaps = len(vms) > 1 and all((vm.ports, vm.msrs) == (vms[0].ports, vms[0].msrs) for vm in vms)
    lines: list[str] = []
    if common:
        lines += ["", "What the VMCS of every VM begins with", *_values([v for v in vms[0].values if v in common])]
    if same_bitmaps:
        lines += ["", "What no VM exits for", *_bitmaps(vms[0])]
    for number, vm in enumerate(vms):
        lines += ["", f"VM {number} {vm.name}: {size_text(vm.memory_size)} of memory at {vm.memory_base:#x}"]
        lines += _values([value for value in vm.values if value not in common])
        lines += [] if same_bitmaps else _bitmaps(vm)
        if vm.ept is not None:
            lines += ["  EPT", *_ranges(vm.ept, [(vm.memory_base, vm.memory_base + vm.memory_size, "its memory")],
                                        "guest-physical", indent=4)]
        if vm.guest_pages is not None:
            lines += ["  Page tables with which it starts (GUEST_CR3)",
                      *_ranges(vm.guest_pages, [], "linear", "guest-physical", indent=4)]
    return lines


def _bitmaps(vm: VmInspection) -> list[str]:
    lines: list[str] = []
    if vm.ports is not None:
        lines += ["  I/O ports", *_listed([
            (f"{first:#06x}" if first == last else f"{first:#06x} to {last:#06x}",) for first, last in vm.ports])]
    if vm.msrs is not None:
        lines += ["  MSRs (r reads, w writes)", *_listed(vm.msrs)]
    return lines


def _listed(rows: Sequence[Sequence[str]]) -> list[str]:
    return aligned(rows, indent=4) if rows else ["    none"]


def _values(values: Sequence[InitialValue]) -> list[str]:
    """The fields by group, all in one set of columns."""
    rows = [(value.field.type, row) for value in values for row in _value_rows(value)]
    lines = aligned([row for _, row in rows], indent=4) if rows else []
    out: list[str] = []
    for kind, title in enumerate(_GROUPS):
        group = [line for (type_, _), line in zip(rows, lines, strict=True) if type_ == kind]
        out += [f"  {title}", *group] if group else []
    return out


def _value_rows(value: InitialValue) -> list[tuple[str, str, str, str]]:
    """One row; more where the words are long."""
    shown = "" if value.value is None or value.operation in ("control", "host_msr") else f"{value.value:#x}"
    words = "; ".join(part for part in (value.words, OPERATIONS[value.operation]) if part)
    first, *rest = textwrap.wrap(words, _WORDS, break_long_words=False) or [""]
    return [(f"{value.field.encoding:#06x}", value.field.name, shown, first), *(("", "", "", more) for more in rest)]


def _ranges(
    ranges: Sequence[MappedRange], names: Sequence[tuple[int, int, str]], source: str, target: str = "physical",
    indent: int = 2,
) -> list[str]:
    """One line per range; the target is not repeated where it is the same address. ``names``: (start, end, name)."""
    if not ranges:
        return [" " * indent + "nothing is mapped"]
    rows = [(source, f"-> {target}", "", "pages", "", "")]
    for item in ranges:
        end = item.target + item.end - item.start
        known = ", ".join(name for start, stop, name in names if start < end and item.target < stop)
        rows.append((
            f"{item.start:#010x} - {item.end:#010x}", "same" if item.start == item.target else f"{item.target:#010x}",
            item.rights, f"{(item.end - item.start) // item.page} x {size_text(item.page)}", item.notes, known))
    return aligned(rows, indent)
