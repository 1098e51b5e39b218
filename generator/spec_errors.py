"""What is wrong with an image.toml, in one line: file, line, key, and what would be right."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from generator import toml_lines
from generator.errors import SpecError, TomlError, UnknownKeyError
from generator.suggest import nearest

KeyPath = tuple[str | int, ...]

_AT_LINE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_BARE_WORD = re.compile(r"^\s*([A-Za-z0-9_.\"-]+)\s*=\s*([A-Za-z0-9_./#-][^\"'#\[\]{}]*?)\s*(?:#.*)?$")


def show(value: object) -> str:
    """`value` as TOML writes it, cut short where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif isinstance(value, dict):
        return "a table"
    elif isinstance(value, list):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file: its data, and where each key of it stands."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document at `path`. SpecError if it cannot be read or is not TOML."""
        try:
            text = path.read_bytes().decode("utf-8-sig")   # editors on Windows put a byte-order mark first
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SpecError(f"cannot be read: {reason} (give the path of an image.toml)", str(path)) from None
        except UnicodeDecodeError as error:
            line = error.object[:error.start].count(b"\n") + 1
            raise TomlError(f"is not UTF-8: byte {error.object[error.start]:#04x} (save the file as UTF-8)",
                            f"{path}:{line}") from None
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _malformed(path, text, str(error)) from None
        return cls(path, data, toml_lines.key_lines(text))

    def line(self, key: KeyPath) -> int:
        """The line of `key`, or of the table around it."""
        return toml_lines.line_of(self.lines, key)

    def place(self, key: KeyPath) -> str:
        """``file:line: key`` for a message about `key`."""
        where = f"{self.path}:{self.line(key)}"
        return f"{where}: {toml_lines.spell(key)}" if key else where

    def value(self, key: KeyPath) -> object:
        """What stands at `key`."""
        value: Any = self.data
        for part in key:
            value = value[part]
        return value

    def error(self, key: KeyPath, message: str, kind: type[SpecError] = SpecError) -> SpecError:
        """An error about `key`."""
        return kind(message, self.place(key))


def _malformed(path: Path, text: str, message: str) -> SpecError:
    lines = text.splitlines()
    match = _AT_LINE.search(message)
    number = int(match[1]) if match and match[1] else max(len(lines), 1)
    reason = message[:match.start()] if match else message
    reason = reason[:1].lower() + reason[1:]
    source = lines[number - 1].strip() if number <= len(lines) else ""
    word = _BARE_WORD.match(source)
    if word and word[2] not in ("true", "false") and not word[2][0].isdigit():
        hint = f'(strings need quotes: {word[1]} = "{word[2]}")'
    elif word and not re.fullmatch(r"[0-9][0-9_]*|0x[0-9a-fA-F_]+", word[2]):
        hint = f'(if it is a string, it needs quotes: {word[1]} = "{word[2]}")'
    else:
        hint = f"in: {source}" if source else "(the file ends too early)"
    return TomlError(f"is not TOML: {reason} {hint}", f"{path}:{number}")


def _extra(model: type[BaseModel], path: KeyPath) -> dict[str, str]:
    """What the key at `path` takes and how it is written, from the field of the model that it leads to."""
    found: dict[str, str] = {}
    current: Any = model
    for part in path:
        if isinstance(part, int) or not (isinstance(current, type) and issubclass(current, BaseModel)):
            continue
        by_alias = {field.alias or name: field for name, field in current.model_fields.items()}
        if part not in by_alias:
            continue
        field = by_alias[part]
        found = dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}  # type: ignore[arg-type]
        current = _inner_model(field.annotation)
    return found


def _inner_model(annotation: Any) -> Any:
    """The model in an annotation such as ``tuple[VmSpec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_model(argument)
        if inner is not None:
            return inner
    return None


def _siblings(model: type[BaseModel], path: KeyPath) -> Collection[str]:
    """The keys that are allowed beside the key at `path`."""
    current: Any = model
    for part in path[:-1]:
        if isinstance(part, str):
            by_alias = {field.alias or name: field for name, field in current.model_fields.items()}
            current = _inner_model(by_alias[part].annotation)
    return [field.alias or name for name, field in current.model_fields.items()]


def _message(document: Document, kind: str, path: KeyPath, model: type[BaseModel]) -> str:
    extra = _extra(model, path)
    if kind == "extra_forbidden":
        return "unknown key" + nearest(str(path[-1]), _siblings(model, path))
    takes, write = extra.get("takes", "right"), extra.get("write", "")
    if kind == "missing":
        header = write.startswith("[")
        return f"is missing: {takes} (write e.g. {write if header else f'{path[-1]} = {write}'})"
    if isinstance(path[-1], int) or path[-2:-1] == ("params",):
        takes, write = extra.get("item", takes), ""
    return f"{show(document.value(path))} is not {takes}" + (f" (write e.g. {write})" if write else "")


def explain_validation(document: Document, error: ValidationError, model: type[BaseModel]) -> SpecError:
    """The first thing that `error` finds wrong, in the order of the file, as one line."""
    found: list[tuple[int, int, KeyPath, str]] = []
    for order, detail in enumerate(error.errors(include_url=False, include_context=False, include_input=False)):
        path: KeyPath = detail["loc"]
        while detail["type"] != "missing" and path and path not in document.lines:
            path = path[:-1]  # pydantic adds steps of its own, such as the member of a union
        found.append((document.line(path), order, path, detail["type"]))
    # An unknown key is often the misspelling that makes another one missing: say that first.
    _, _, path, kind = min(found, key=lambda item: (item[3] == "missing", item[0], item[1]))
    wrong = UnknownKeyError if kind == "extra_forbidden" else SpecError
    return document.error(path, _message(document, kind, path, model), wrong)
