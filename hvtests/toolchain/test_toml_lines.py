"""Lines of TOML keys, with tomllib as the judge of what the keys are."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.toml_lines import Path, key_lines, line_of, spell

DOCUMENT = """\
# a comment = not a key
[image]
name = "a # b"          # a comment
text = \"\"\"
x = 1
[no.table] \\\"\\\"\\\"
\"\"\"\"
"quoted.key" = 'it\\'
bare-key_1 = 0x10

[[vm]]
list = [
  1, # one ]
  "two, ]",
  [3, 4],
]
inline = { a = 1, b.c = [ { d = 1 }, { d = 2 } ], e = {} }
  [vm.guest]
  template = "t"
  [vm.guest.params]
  p = 1979-05-27T07:32:00Z
[[vm]]
name = "y"
guest . template = "z"
[ spaced . "out" ]
k = 1
"""

LINES = {
    ("image",): 2, ("image", "name"): 3, ("image", "text"): 4, ("image", "quoted.key"): 8, ("image", "bare-key_1"): 9,
    ("vm",): 11, ("vm", 0): 11, ("vm", 0, "list"): 12, ("vm", 0, "list", 0): 13, ("vm", 0, "list", 1): 14,
    ("vm", 0, "list", 2): 15, ("vm", 0, "list", 2, 0): 15, ("vm", 0, "list", 2, 1): 15, ("vm", 0, "inline"): 17,
    ("vm", 0, "inline", "a"): 17, ("vm", 0, "inline", "b"): 17, ("vm", 0, "inline", "b", "c"): 17,
    ("vm", 0, "inline", "b", "c", 0): 17, ("vm", 0, "inline", "b", "c", 0, "d"): 17,
    ("vm", 0, "inline", "b", "c", 1): 17, ("vm", 0, "inline", "b", "c", 1, "d"): 17, ("vm", 0, "inline", "e"): 17,
    ("vm", 0, "guest"): 18, ("vm", 0, "guest", "template"): 19, ("vm", 0, "guest", "params"): 20,
    ("vm", 0, "guest", "params", "p"): 21, ("vm", 1): 22, ("vm", 1, "name"): 23, ("vm", 1, "guest"): 24,
    ("vm", 1, "guest", "template"): 24, ("spaced",): 25, ("spaced", "out"): 25, ("spaced", "out", "k"): 26,
}


def paths(value: Any, at: Path = ()) -> set[Path]:
    """Every path of parsed TOML but the empty one."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {at} if at else set()
    for key, child in children:
        found |= paths(child, (*at, key))
    return found


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines(newline: str) -> None:
    assert key_lines(DOCUMENT.replace("\n", newline)) == LINES


def test_every_key_that_tomllib_sees_has_a_line() -> None:
    assert paths(tomllib.loads(DOCUMENT)) == set(LINES)


def test_table_headers_that_come_back() -> None:
    """A table may be named first by its child, later by itself: its own header is its line."""
    assert key_lines("[a.b]\nx = 1\n[a]\ny = 2\n")[("a",)] == 3


KEYS = st.text("abcXYZ019_-", min_size=1, max_size=5) | st.text("a.\"' #=[]{}é", min_size=1, max_size=5)
SCALARS = st.integers(-9, 9) | st.booleans() | st.text("ab #=\\\"'[]{},\n", max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
                      max_leaves=8)


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return "[ " + " , ".join(inline(item) for item in value) + " ]"
    return "{ " + ", ".join(f"{quote(key)} = {inline(item)}" for key, item in value.items()) + " }"


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_any_document(top: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    lines = [f"{quote(key)} = {inline(value)}" for key, value in top.items() if key != "table"]
    expected: dict[Path, int] = {(key,): number for number, key in enumerate((k for k in top if k != "table"), 1)}
    for index, table in enumerate(tables):
        lines.append("[[ table ]]  # header")
        expected[("table", index)] = len(lines)
        for key, value in table.items():
            lines.append(f"  {quote(key)}={inline(value)}# comment")
            expected[("table", index, key)] = len(lines)
    text = "\n".join(lines)
    found = key_lines(text)
    assert set(found) == paths(tomllib.loads(text))
    for path, line in expected.items():
        assert found[path] == line, path


def test_line_of_falls_back_to_what_is_around() -> None:
    assert line_of(LINES, ("vm", 1, "memory")) == 22
    assert line_of(LINES, ("nothing",)) == 1
    assert line_of(LINES, ()) == 1


def test_spell() -> None:
    assert spell(("vm", 1, "guest", "file")) == "vm[1].guest.file"
    assert spell(("a", 0, 1)) == "a[0][1]"
