"""A named field of bits, as tables of registers and information fields use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BitField:
    """Bits `high`:`low` of a value."""

    low: int
    high: int
    name: str
    title: str

    @property
    def mask(self) -> int:
        """The field's bits as a mask over the whole value."""
        return (1 << self.high + 1) - (1 << self.low)

    @property
    def place(self) -> str:
        """``5`` or ``11:8``."""
        return str(self.low) if self.low == self.high else f"{self.high}:{self.low}"

    def value(self, whole: int) -> int:
        """The field's value in `whole`."""
        return (whole & self.mask) >> self.low


def fields(*rows: tuple[int, int, str, str]) -> tuple[BitField, ...]:
    """A table of (low, high, name, title)."""
    return tuple(BitField(*row) for row in rows)
