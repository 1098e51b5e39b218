"""Typed structs: one definition gives templates their offsets and Python its packing and views.

>>> point = Struct("Point", field("tag", U8), field("x", U32), field("pad", Bytes(3)))
>>> point.size, point.offset("x"), point.offsets.x
(12, 4, 4)
>>> point.pack(tag=1, x=0x11223344).hex()
'010000004433221100000000'
>>> memory = bytearray(16)
>>> view = point.view(memory, 4)
>>> view.x = 7
>>> view.x, memory[8]
(7, 7)

Everything is little-endian and aligned naturally, as the CPU and C would have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class FieldType(Protocol):
    """What a field can be: a size and an alignment in bytes, and both directions of conversion."""

    @property
    def size(self) -> int: ...

    @property
    def align(self) -> int: ...

    def encode(self, value: Any) -> bytes: ...

    def decode(self, data: memoryview) -> Any: ...

    def zero(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Unsigned:
    """An unsigned integer of ``size`` bytes; negative values are taken as two's complement."""

    size: int

    @property
    def align(self) -> int:
        return self.size

    def encode(self, value: int) -> bytes:
        bits = 8 * self.size
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise ValueError(f"{value:#x} does not fit in {bits} bits")
        return (value & ((1 << bits) - 1)).to_bytes(self.size, "little")

    def decode(self, data: memoryview) -> int:
        return int.from_bytes(data, "little")

    def zero(self) -> int:
        return 0


U8, U16, U32, U64 = Unsigned(1), Unsigned(2), Unsigned(4), Unsigned(8)


@dataclass(frozen=True, slots=True)
class Bytes:
    """``size`` bytes; shorter values are filled up with zeros."""

    size: int
    align: int = 1

    def encode(self, value: bytes) -> bytes:
        if len(value) > self.size:
            raise ValueError(f"{len(value)} bytes do not fit in {self.size}")
        return bytes(value).ljust(self.size, b"\0")

    def decode(self, data: memoryview) -> bytes:
        return bytes(data)

    def zero(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class Array:
    """``count`` elements of one type, one after another; shorter sequences are filled up with zeros."""

    element: FieldType
    count: int

    @property
    def size(self) -> int:
        return self.element.size * self.count

    @property
    def align(self) -> int:
        return self.element.align

    def encode(self, value: Sequence[Any]) -> bytes:
        if len(value) > self.count:
            raise ValueError(f"{len(value)} elements do not fit in {self.count}")
        filled = [*value, *(self.element.zero() for _ in range(self.count - len(value)))]
        return b"".join(self.element.encode(item) for item in filled)

    def decode(self, data: memoryview) -> list[Any]:
        step = self.element.size
        return [self.element.decode(data[i * step : (i + 1) * step]) for i in range(self.count)]

    def zero(self) -> list[Any]:
        return []


@dataclass(frozen=True, slots=True)
class Field:
    """One field as declared. ``align`` overrides the natural alignment when it is larger; ``note`` is for listings."""

    name: str
    type: FieldType
    align: int = 1
    note: str = ""


def field(name: str, type: FieldType, align: int = 1, note: str = "") -> Field:
    """A row of a struct's table."""
    return Field(name, type, align, note)


class Offsets:
    """What templates get: an attribute for each field with its offset in bytes, and ``SIZE``."""

    def __init__(self, offsets: dict[str, int], size: int) -> None:
        self.__dict__.update(offsets, SIZE=size)

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")


class Struct:
    """Fields in order, each at its natural alignment or a larger one asked for; ``size`` is padded to ``align``.

    A Struct is itself a field type. ``size`` and ``align`` are in bytes. Programmers' mistakes (a name that is no
    field, a value that does not fit) raise AttributeError, TypeError or ValueError naming the struct and the field.
    """

    def __init__(self, name: str, *fields: Field, align: int = 1) -> None:
        self.name = name
        self.fields = fields
        self._offsets: dict[str, int] = {}
        self._types = {item.name: item.type for item in fields}
        position, strictest = 0, align
        for item in fields:
            if item.name in self._offsets or item.name == "SIZE":
                raise ValueError(f"{name}: the name {item.name!r} is taken")
            at = max(item.type.align, item.align)
            position = -(-position // at) * at
            self._offsets[item.name] = position
            position += item.type.size
            strictest = max(strictest, at)
        self.align = strictest
        self.size = -(-position // strictest) * strictest
        # A class of the struct's own name, so that Jinja2's message about an unknown field names it.
        self.offsets: Any = type(name, (Offsets,), {})(self._offsets, self.size)

    def __iter__(self) -> Iterator[tuple[Field, int]]:
        """(field, offset) in order."""
        return ((item, self._offsets[item.name]) for item in self.fields)

    def offset(self, path: str) -> int:
        """Offset in bytes of a field; ``"inner.x"`` reaches into a nested struct, ``"list[2]"`` into an array."""
        head, _, rest = path.partition(".")
        name, _, index = head.partition("[")
        if name not in self._offsets:
            raise AttributeError(f"{self.name} has no field {name!r}")
        at, kind = self._offsets[name], self._types[name]
        if index:
            number = int(index.rstrip("]"))
            if not isinstance(kind, Array) or not 0 <= number < kind.count:
                raise AttributeError(f"{self.name}.{name} has no element {number}")
            at, kind = at + number * kind.element.size, kind.element
        if rest:
            if not isinstance(kind, Struct):
                raise AttributeError(f"{self.name}.{name} is not a struct")
            return at + kind.offset(rest)
        return at

    def pack(self, **values: Any) -> bytes:
        """``size`` bytes; fields that are not given are zero."""
        out = bytearray(self.size)
        for name, value in values.items():
            self._store(memoryview(out), name, value)
        return bytes(out)

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """All fields of the first ``size`` bytes of ``data``."""
        view = self.view(data)
        return {name: getattr(view, name) for name in self._offsets}

    def view(self, memory: bytes | bytearray | memoryview, offset: int = 0) -> View:
        """Attribute access to the struct that lies in ``memory`` at ``offset`` (bytes); writes go through."""
        window = memoryview(memory)[offset : offset + self.size]
        if len(window) < self.size:
            raise ValueError(f"{self.name} needs {self.size} bytes, {len(window)} are there")
        return View(self, window)

    def encode(self, value: dict[str, Any]) -> bytes:
        return self.pack(**value)

    def decode(self, data: memoryview) -> dict[str, Any]:
        return self.unpack(data)

    def zero(self) -> dict[str, Any]:
        return {}

    def _store(self, window: memoryview, name: str, value: Any) -> None:
        if name not in self._offsets:
            raise AttributeError(f"{self.name} has no field {name!r}")
        try:
            data = self._types[name].encode(value)
        except ValueError as error:
            raise ValueError(f"{self.name}.{name}: {error}") from None
        window[self._offsets[name] : self._offsets[name] + len(data)] = data

    def _load(self, window: memoryview, name: str) -> Any:
        if name not in self._offsets:
            raise AttributeError(f"{self.name} has no field {name!r}")
        kind, at = self._types[name], self._offsets[name]
        data = window[at : at + kind.size]
        return kind.view(data) if isinstance(kind, Struct) else kind.decode(data)


class View:
    """A struct's fields as attributes, over memory that someone else owns. A nested struct is a view again."""

    __slots__ = ("_struct", "_window")

    def __init__(self, struct: Struct, window: memoryview) -> None:
        object.__setattr__(self, "_struct", struct)
        object.__setattr__(self, "_window", window)

    def __getattr__(self, name: str) -> Any:
        return self._struct._load(self._window, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._struct._store(self._window, name, value)
