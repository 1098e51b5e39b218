"""Jinja2 templates -> assembly text in which every line knows the template line it came from.

How a line is traced: :class:`_LineMarks` puts an invisible mark (file and line) at the start of every stretch of
template text and after each newline in it. The marks travel with the text through macros, includes, imports and
filters, and are taken out after rendering. A line belongs to the last mark before its first visible character; a line
without a mark (from a helper that returns several lines) belongs to where the line before it came from.
A consequence: what a macro returns is text to emit, not a value to compare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from generator.errors import TemplateError
from generator.render_helpers import HELPERS

_MARK = re.compile(r"\x01([^\x01\x02]*):(\d+)\x02")
_PROC = re.compile(r"\x03([^\x03\x02]*)\x02")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of assembly text and the template line (path relative to the template directory) that made it."""

    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Proc:
    """The declared contract of one routine: register names ("rdi", "flags", "memory"), purpose in one line."""

    name: str
    purpose: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    clobbers: tuple[str, ...]
    alone: bool  # can be run by itself: no port I/O, no VMX, no far control transfer
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one rendered template, and the routines it declared, in order."""

    lines: list[Line]
    procs: list[Proc]


class _LineMarks(Extension):
    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        file = stream.name or "<template>"
        for token in stream:
            if token.type == "data":
                parts = token.value.split("\n")
                marked = (f"\x01{file}:{token.lineno + i}\x02{part}" for i, part in enumerate(parts))
                token = Token(token.lineno, "data", "\n".join(marked))
            yield token


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _proc(
    name: str, purpose: str, inputs: str = "", outputs: str = "", clobbers: str = "", alone: bool = False
) -> str:
    """Template global: declares a routine and gives its label line. Lists are register names between commas."""
    record = [name, purpose, _names(inputs), _names(outputs), _names(clobbers), bool(alone)]
    return f"\x03{json.dumps(record)}\x02{name}:"


class Renderer:
    """Renders templates found in ``template_dirs`` (first match wins) with ``globals`` visible in every template."""

    def __init__(self, template_dirs: Sequence[Path], globals: Mapping[str, Any] | None = None) -> None:
        self._dirs = [directory.resolve() for directory in template_dirs]
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader([str(directory) for directory in self._dirs]),
            extensions=[_LineMarks, "jinja2.ext.do", "jinja2.ext.loopcontrols"],
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,  # or an included file's last line would run into the line behind the include
            autoescape=False,
            optimized=False,  # a template is compiled for one rendering: folding constants costs more than it saves
        )
        self._env.globals.update(HELPERS)
        self._env.globals["proc"] = _proc
        self._env.globals.update(globals or {})

    def render(self, name: str, **context: object) -> Rendered:
        """The template ``name`` (path relative to a template directory). Raises TemplateError with file and line."""
        try:
            text = self._env.get_template(name).render(context)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(error.message or "syntax error", f"{error.name or name}:{error.lineno}") from None
        except jinja2.TemplateNotFound as error:
            where = self._place(error)
            raise TemplateError(f"there is no template {error.name!r} in the template directories", where) from None
        except jinja2.UndefinedError as error:
            raise TemplateError(error.message or "undefined name", self._place(error) or name) from None
        except UnicodeDecodeError as error:
            raise TemplateError(f"a template is not UTF-8: {error.reason}", self._place(error) or name) from None
        except Exception as error:  # templates run as code: a division by zero in one is raised as itself
            where = self._place(error)
            if where is None:
                raise
            raise TemplateError(f"{type(error).__name__}: {error}", where) from error
        return _unmark(text, name)

    def _place(self, error: BaseException) -> str | None:
        """The innermost template line in the traceback, which Jinja2 has rewritten to template files."""
        place = None
        trace = error.__traceback__
        while trace is not None:
            path = Path(trace.tb_frame.f_code.co_filename)
            for directory in self._dirs:
                if path.is_relative_to(directory):
                    place = f"{path.relative_to(directory).as_posix()}:{trace.tb_lineno}"
            trace = trace.tb_next
        return place


def _unmark(text: str, name: str) -> Rendered:
    lines: list[Line] = []
    procs: list[Proc] = []
    file, number = name, 1
    for raw in text.split("\n"):
        visible = False
        position = 0
        for mark in _MARK.finditer(raw):
            visible = visible or bool(raw[position : mark.start()].strip())
            if visible:
                break
            file, number = mark[1], int(mark[2])
            position = mark.end()
        plain = _MARK.sub("", raw)
        for declared in _PROC.finditer(plain):
            label, purpose, inputs, outputs, clobbers, alone = json.loads(declared[1])
            procs.append(
                Proc(label, purpose, tuple(inputs), tuple(outputs), tuple(clobbers), alone, file, number)
            )
        lines.append(Line(_PROC.sub("", plain).rstrip(), file, number))
        # Marks after the first visible character say where the next unmarked line comes from.
        rest = _MARK.findall(raw, position)
        if rest:
            file, number = rest[-1][0], int(rest[-1][1])
    while lines and not lines[-1].text:
        lines.pop()
    return Rendered(lines, procs)
