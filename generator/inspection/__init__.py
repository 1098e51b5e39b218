"""`hvforge inspect`: an image taken apart again, from the bytes that a machine would load.

Nothing here asks the build how it meant something: tables are walked, rows decoded, bitmaps scanned where the map says
they are, so that a mistake in what was written shows. ``inspect`` gives data, ``text.as_text`` lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generator.errors import ImageFileError
from generator.inspection.media import Medium, PhysicalMemory, read_medium
from generator.inspection.paging import (
    MappedRange,
    Read,
    ept_ranges,
    msrs_without_exit,
    page_ranges,
    ports_without_exit,
    translate,
)
from generator.inspection.vmcs import InitialValue, initial_values

_BITMAP = 4096
_CR0_PG = 1 << 31


@dataclass(frozen=True, slots=True)
class VmInspection:
    """One VM as its VMCS rows make it. Tables are None where the rows name none."""

    name: str
    memory_base: int
    memory_size: int
    values: tuple[InitialValue, ...]
    ept: tuple[MappedRange, ...] | None
    guest_pages: tuple[MappedRange, ...] | None    # guest-physical targets; the tables with which it starts
    ports: tuple[tuple[int, int], ...] | None      # that do not exit
    msrs: tuple[tuple[str, str], ...] | None       # likewise, with r and w


@dataclass(frozen=True, slots=True)
class Inspection:
    """A whole image: the file, what it loads, and with a map what it means."""

    where: str
    size: int
    medium: Medium
    map: Mapping[str, Any] | None
    host_pages: tuple[MappedRange, ...] | None
    vms: tuple[VmInspection, ...]


def inspect(data: bytes, where: str, image_map: Mapping[str, Any] | None = None) -> Inspection:
    """Take the file ``data`` apart; ``image_map`` is what <name>.map.json holds. Raises ImageFileError."""
    medium = read_medium(data, where)
    if image_map is None:
        return Inspection(where, len(data), medium, None, None, ())
    try:
        return _with_map(data, where, medium, image_map)
    except (KeyError, TypeError) as error:
        raise ImageFileError(f"the image's map lacks {error}: it is not of this version of hvforge", where) from None


def _with_map(data: bytes, where: str, medium: Medium, image_map: Mapping[str, Any]) -> Inspection:
    read = PhysicalMemory(medium.pieces, where).read
    starts = {row["name"]: int(row["start"]) for row in image_map["data"]}
    names = _Names(image_map)
    shared = [starts["vmcs_rows_shared"]] if "vmcs_rows_shared" in starts else []
    vms = []
    for index, vm in enumerate(image_map["vms"]):
        values = initial_values(read, [*shared, starts[f"vmcs_rows_{index}"]], names, where)
        vms.append(_vm(read, vm, values))
    host = _value(vms[0].values, "HOST_CR3") if vms else None
    return Inspection(where, len(data), medium, image_map,
                      None if host is None else tuple(page_ranges(read, host)), tuple(vms))


class _Names:
    """Names of addresses, as the map tells them: code labels, data, and places inside data."""

    def __init__(self, image_map: Mapping[str, Any]) -> None:
        self._labels: dict[int, str] = {int(address): name for name, address in image_map["symbols"].items()}
        self._data = [(int(row["start"]), int(row["size"]), str(row["name"])) for row in image_map["data"]]

    def __call__(self, address: int) -> str:
        for start, size, name in self._data:
            if start <= address < start + size:
                return name if start == address else f"{name} + {address - start:#x}"
        return self._labels.get(address, "")


def _value(values: tuple[InitialValue, ...] | list[InitialValue], name: str) -> int | None:
    return next((value.value for value in values if value.field.name == name), None)


def _vm(read: Read, vm: Mapping[str, Any], values: list[InitialValue]) -> VmInspection:
    pointer = _value(values, "EPT_POINTER")
    ept = None if pointer is None else tuple(ept_ranges(read, pointer))
    bitmaps = [_value(values, name) for name in ("IO_BITMAP_A", "IO_BITMAP_B", "MSR_BITMAP")]
    a, b, msr = (None if at is None else read(at, _BITMAP) for at in bitmaps)
    return VmInspection(
        vm["name"], int(vm["memory_base"]), int(vm["memory_size"]), tuple(values), ept,
        _guest_pages(read, values, ept),
        None if a is None or b is None else tuple(ports_without_exit(a, b)),
        None if msr is None else tuple(msrs_without_exit(msr)),
    )


def _guest_pages(
    read: Read, values: list[InitialValue], ept: tuple[MappedRange, ...] | None
) -> tuple[MappedRange, ...] | None:
    """The tables that GUEST_CR3 points to, read through the EPT; None for a guest that starts without paging."""
    cr0, root = _value(values, "GUEST_CR0"), _value(values, "GUEST_CR3")
    if cr0 is None or root is None or not cr0 & _CR0_PG or ept is None:
        return None

    def read_guest(address: int, size: int) -> bytes:
        at = translate(list(ept), address)
        if at is None:
            raise ImageFileError(f"a page table of the guest at {address:#x} is outside its EPT")
        return read(at, size)

    return tuple(page_ranges(read_guest, root))


__all__ = ["Inspection", "VmInspection", "inspect"]
