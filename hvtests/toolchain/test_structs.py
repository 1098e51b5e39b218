"""Structs against ctypes, which lays them out as C does; and their views, packing and mistakes."""

from __future__ import annotations

import ctypes
import doctest
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator import structs
from generator.structs import U8, U16, U32, U64, Array, Bytes, Field, Struct, field

INNER = Struct("Inner", field("low", U8), field("high", U32))
OUTER = Struct(
    "Outer", field("tag", U8), field("inner", INNER), field("list", Array(U16, 3)), field("raw", Bytes(5)),
    field("big", U64), field("area", Bytes(16), align=64), field("nested", Array(INNER, 2)),
)  # fmt: skip

_C = {U8: ctypes.c_uint8, U16: ctypes.c_uint16, U32: ctypes.c_uint32, U64: ctypes.c_uint64}


@given(st.lists(st.sampled_from([U8, U16, U32, U64, Bytes(3), Array(U32, 2)]), min_size=1, max_size=12))
def test_layout_is_that_of_c(types: list[structs.FieldType]) -> None:
    def c_type(kind: structs.FieldType) -> Any:
        if isinstance(kind, Bytes):
            return ctypes.c_uint8 * kind.size
        if isinstance(kind, Array):
            return c_type(kind.element) * kind.count
        assert isinstance(kind, structs.Unsigned)
        return _C[kind]

    names = [f"f{number}" for number in range(len(types))]
    ours = Struct("S", *(Field(name, kind) for name, kind in zip(names, types, strict=True)))
    fields = [(name, c_type(kind)) for name, kind in zip(names, types, strict=True)]
    theirs = type("C", (ctypes.Structure,), {"_fields_": fields})
    assert ours.size == ctypes.sizeof(theirs)
    assert ours.align == ctypes.alignment(theirs)
    assert [ours.offset(name) for name in names] == [getattr(theirs, name).offset for name in names]


def test_offsets_and_alignment() -> None:
    assert [(item.name, offset) for item, offset in OUTER] == [
        ("tag", 0), ("inner", 4), ("list", 12), ("raw", 18), ("big", 24), ("area", 64), ("nested", 80),
    ]  # fmt: skip
    assert (OUTER.align, OUTER.size) == (64, 128)
    assert OUTER.offset("inner.high") == 8
    assert OUTER.offset("list[2]") == 16
    assert OUTER.offset("nested[1].high") == 92
    assert Struct("S", field("a", U8), align=16).size == 16


def test_pack_and_unpack() -> None:
    values = {
        "tag": 1, "inner": {"low": 2, "high": 3}, "list": [4, 5, 6], "raw": b"abcde", "big": 1 << 63,
        "area": bytes(range(16)), "nested": [{"low": 7, "high": 8}, {"low": 9, "high": 10}],
    }  # fmt: skip
    data = OUTER.pack(**values)
    assert len(data) == OUTER.size
    assert data[:12] == b"\x01\0\0\0\x02\0\0\0\x03\0\0\0"
    unpacked = OUTER.unpack(data)
    inner = unpacked.pop("inner")
    assert (inner.low, inner.high) == (2, 3)
    assert unpacked == {name: value for name, value in values.items() if name != "inner"}


def test_what_is_not_given_is_zero_and_short_values_are_filled_up() -> None:
    assert OUTER.pack() == bytes(OUTER.size)
    data = OUTER.pack(list=[1], raw=b"x", nested=[{"low": 1}], big=-1)
    assert data[12:18] == b"\x01\0\0\0\0\0" and data[18:23] == b"x\0\0\0\0" and data[24:32] == b"\xff" * 8
    assert data[80:96] == b"\x01" + bytes(15)


def test_views_write_through() -> None:
    memory = bytearray(200)
    view = OUTER.view(memory, 8)
    view.big = 0x1122
    view.inner.high = 5
    view.list = [1, 2, 3]
    assert memory[8 + 24 : 8 + 26] == b"\x22\x11" and memory[8 + 8] == 5 and memory[8 + 16] == 3
    assert (view.big, view.inner.high, view.list, view.tag) == (0x1122, 5, [1, 2, 3], 0)


@pytest.mark.parametrize(("values", "message"), [
    ({"tag": 256},            r"Outer\.tag: 0x100 does not fit in 8 bits"),
    ({"tag": -129},           r"Outer\.tag: -0x81 does not fit in 8 bits"),
    ({"raw": b"abcdef"},      r"Outer\.raw: 6 bytes do not fit in 5"),
    ({"list": [1, 2, 3, 4]},  r"Outer\.list: 4 elements do not fit in 3"),
    ({"nested": [{"low": 300}]}, r"Outer\.nested: Inner\.low: 0x12c does not fit in 8 bits"),
])  # fmt: skip
def test_values_that_do_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OUTER.pack(**values)


def test_names_that_are_no_field() -> None:
    for attempt in (
        lambda: OUTER.pack(gone=1), lambda: OUTER.offset("gone"), lambda: OUTER.offset("list[3]"),
        lambda: OUTER.offset("tag.x"), lambda: OUTER.view(bytearray(128)).gone, lambda: OUTER.offsets.gone,
    ):  # fmt: skip
        with pytest.raises(AttributeError, match="Outer"):
            attempt()
    with pytest.raises(AttributeError, match="Outer has no field 'gone'"):
        OUTER.view(bytearray(128)).gone = 1
    with pytest.raises(ValueError, match="the name 'a' is taken"):
        Struct("S", field("a", U8), field("a", U8))
    with pytest.raises(ValueError, match="Outer needs 128 bytes, 100 are there"):
        OUTER.view(bytearray(100))


def test_templates_get_offsets_and_are_told_of_unknown_fields() -> None:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.globals["outer"] = OUTER.offsets
    assert environment.from_string("{{ outer.big }} {{ outer.SIZE }}").render() == "24 128"
    with pytest.raises(jinja2.UndefinedError, match=r"Outer object' has no attribute 'gone'"):
        environment.from_string("{{ outer.gone }}").render()


def test_examples() -> None:
    assert doctest.testmod(structs).failed == 0
