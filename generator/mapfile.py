"""The map of an image as JSON: memory map, sections, symbols, source lines, routines; for tools and messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from generator import __version__
from generator.core import Core
from generator.errors import one_line
from generator.layout import MIB, Kind

MACHINE_MIB = 256    # of an emulated machine, unless the image needs more
FIRMWARE_MIB = 1     # BIOSes keep their ACPI tables at the end of memory

_KEYS = {"image": str, "digest": str, "entry": int, "regions": list, "sections": list, "data": list, "vms": list,
         "symbols": dict, "lines": list, "procs": list, "sizes": dict}
_ROWS = {
    "regions":  {"name": str, "kind": str, "start": int, "end": int},
    "sections": {"name": str, "bits": int, "start": int, "size": int},
    "data":     {"name": str, "kind": str, "start": int, "size": int},
    "vms":      {"name": str, "memory_base": int, "memory_size": int, "mode": str, "entry": int},
}


def image_map(core: Core) -> dict[str, Any]:
    """The map as plain values; addresses are host-physical integers, sizes in bytes."""
    units = [*core.units, *core.loader]
    return {
        "hvforge": __version__,
        "image": core.spec.image.name,
        "digest": payload_digest(core.segments),
        "entry": core.entry,
        "regions": [
            {"name": region.name, "kind": str(region.kind), "start": region.start, "end": region.end}
            for region in core.layout.regions
        ],
        "sections": [
            {"name": unit.name, "bits": unit.bits, "start": unit.base, "size": len(unit.code)} for unit in units
        ],
        "data": [
            {"name": name, "kind": str(blob.kind), "start": address, "size": blob.size}
            for name, (address, blob) in core.layout.blobs.items()
        ],
        "vms": [
            {"name": vm.name, "memory_base": base, "memory_size": size, "mode": str(plan.mode), "entry": plan.entry}
            for vm, (base, size), plan in zip(core.spec.vms, core.layout.guests, core.guests, strict=True)
        ],
        "symbols": {name: address for unit in core.units for name, address in unit.symbols.items()},
        "lines": [
            [row.address, len(row.data), row.file, row.line] for unit in core.units for row in unit.rows if row.data
        ],
        "procs": [
            {"name": proc.name, "purpose": proc.purpose, "inputs": proc.inputs, "outputs": proc.outputs,
             "clobbers": proc.clobbers, "alone": proc.alone, "file": proc.file, "line": proc.line,
             "address": core.symbols[proc.name]}
            for proc in core.procs
        ],
        "sizes": sizes(core),
    }


def memory_mib(content: Mapping[str, Any] | None) -> int:
    """MiB of memory that a machine needs for the image with the map ``content``; without a map what most need."""
    if content is None:
        return MACHINE_MIB
    end: int = max(region["end"] for region in content["regions"])
    return max(MACHINE_MIB, -(-end // MIB) + FIRMWARE_MIB)


def mistake(content: object) -> str | None:
    """What is wrong with ``content``, read from a map's file, so that no reader has to look again; None if nothing."""
    if not isinstance(content, dict) or not isinstance(content.get("hvforge"), str):
        return "this is no map of hvforge's"
    if content["hvforge"] != __version__:
        return f"this map is by hvforge {one_line(content['hvforge'])}, this is {__version__}"
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            return f"this map lacks {key}"
    for key, columns in _ROWS.items():
        for number, row in enumerate(content[key]):
            if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in columns.items()):
                return f"{key}[{number}] of this map is damaged"
    if not all(isinstance(line, list) and list(map(type, line)) == [int, int, str, int] for line in content["lines"]):
        return "lines of this map are damaged"
    if not all(isinstance(value, int) for key in ("symbols", "sizes") for value in content[key].values()):
        return "symbols or sizes of this map are damaged"
    places = {row["name"] for row in content["data"]}
    if not content["regions"] or not all(f"vmcs_{number}" in places for number in range(len(content["vms"]))):
        return "this map is not whole"
    return None


def sizes(core: Core) -> dict[str, int]:
    """Bytes of code, and of data by kind, as used (not as mapped)."""
    out = {"code": sum(len(unit.code) for unit in core.units), "loader": sum(len(unit.code) for unit in core.loader)}
    for kind in (Kind.RODATA, Kind.DATA, Kind.TABLES, Kind.BSS):
        out[str(kind)] = sum(blob.size for _, blob in core.layout.blobs.values() if blob.kind is kind)
    return out


def payload_digest(segments: Iterable[tuple[int, bytes]]) -> str:
    """SHA-256 of what an image loads, (physical address, bytes) ascending: the same for each of its formats."""
    digest = hashlib.sha256()
    for address, data in segments:
        digest.update(f"{address:#x} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def map_json(core: Core) -> str:
    """Text of ``<name>.map.json``."""
    return json.dumps(image_map(core), indent=1) + "\n"
