"""Where an address of a hypervisor is, in words for messages: template and line, symbol and offset, or the address."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

MAP = ".map.json"
_TEMPLATES = "templates/"


class Places:
    """Knows the addresses of one image. Words are for messages alone: no result depends on them."""

    def __init__(self, lines: Sequence[tuple[int, int, str]] = (), symbols: Mapping[str, int] | None = None) -> None:
        """`lines`: (address, bytes, what stands there), in any order; `symbols`: name -> address."""
        self._lines = sorted(lines)
        self._starts = [start for start, _, _ in self._lines]
        self._symbols = sorted((address, name) for name, address in (symbols or {}).items())
        self._values = [address for address, _ in self._symbols]

    @classmethod
    def of_map(cls, image_map: Mapping[str, Any]) -> Places:
        """From the map that a build makes."""
        return cls([(address, size, f"{_TEMPLATES}{file}:{line}") for address, size, file, line in image_map["lines"]],
                   image_map["symbols"])

    @classmethod
    def of_file(cls, image: Path) -> Places:
        """From the map beside an image, else from an ELF's symbols; without either, addresses stay addresses."""
        try:
            return cls.of_map(json.loads(image.with_suffix(MAP).read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            pass    # no map, or none of ours: hvforge itself complains about a wrong one
        try:
            with image.open("rb") as file:
                return cls(symbols=_symbols(ELFFile(file)))
        except (OSError, ELFError, ValueError):
            return cls()

    def __call__(self, address: int) -> str:
        """The place of `address`."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            start, size, text = self._lines[at]
            if address < start + size:
                return text
        at = bisect_right(self._values, address) - 1
        if at >= 0:
            start, name = self._symbols[at]
            return f"{name}+{address - start:#x} ({address:#x})" if address > start else f"{name} ({address:#x})"
        return f"{address:#x}"


def _symbols(elf: ELFFile) -> dict[str, int]:
    found: dict[str, int] = {}
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            for symbol in section.iter_symbols():
                if symbol.name and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] in (
                        "STT_FUNC", "STT_OBJECT", "STT_NOTYPE"):
                    found[symbol.name] = int(symbol["st_value"])
    return found
