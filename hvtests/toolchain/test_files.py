"""Output files appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from generator.errors import OutputError
from generator.files import write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.img"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["a.img"]


def test_has_the_mode_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_an_open_reader_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_atomically(target, b"old")
    with target.open("rb") as reader:
        write_atomically(target, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize(("name", "reason"), [
    ("file/a.img", "Not a directory|File exists"),
    ("directory",  "Is a directory"),
    ("x" * 300,    "File name too long"),
])  # fmt: skip
def test_unwritable_places(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "directory").mkdir()
    with pytest.raises(OutputError, match=reason) as caught:
        write_atomically(tmp_path / name, b"data")
    assert caught.value.where == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["directory", "file"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    write_atomically(target, b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and target.read_bytes() == b"old"
