"""The listing: every byte of code with its address, Capstone's reading of it, and the template line it came from."""

from __future__ import annotations

from generator.assemble import Assembled, ListingRow
from generator.core import Core

_BYTES = 8  # of one row


def listing(core: Core) -> str:
    """Text of ``<name>.lst``: loader, hypervisor, guests, one section each."""
    parts = [_unit(unit, name) for name, unit in (
        *((f"loader: {unit.name}", unit) for unit in core.loader),
        *((f"hypervisor: {unit.name}", unit) for unit in core.units),
        *((f"guest: {unit.name}", unit) for unit in core.guest_units),
    )]
    return "\n".join(parts)


def _unit(unit: Assembled, title: str) -> str:
    labels: dict[int, list[str]] = {}
    for name, address in unit.symbols.items():
        labels.setdefault(address, []).append(name)
    out = [f"== {title}, {unit.bits}-bit, {unit.base:#x} to {unit.base + len(unit.code):#x}"]
    for row in unit.rows:
        out += [f"{'':18}{name}:" for name in labels.pop(row.address, ())]
        out += _row(row)
    return "\n".join(out) + "\n"


def _row(row: ListingRow) -> list[str]:
    if not row.data:
        return []
    first = f"{row.address:#010x}  {row.data[:_BYTES].hex(' '):24} {row.text:48} ; {row.file}:{row.line}"
    rest = [
        f"{row.address + at:#010x}  {row.data[at:at + _BYTES].hex(' ')}" for at in range(_BYTES, len(row.data), _BYTES)
    ]
    return [first, *rest]
