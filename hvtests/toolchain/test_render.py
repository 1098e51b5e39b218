"""Templates: every line knows where it came from, and every mistake is told with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generator.errors import TemplateError
from generator.render import Line, Renderer
from hvtests.toolchain.gnu_as import as_bytes

Write = Callable[..., Renderer]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write({"a.j2": text, …}, name=value, …)`` -> a Renderer over these templates and globals."""

    def make(templates: dict[str, str], **values: object) -> Renderer:
        for name, text in templates.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return Renderer([tmp_path], values)

    return make


def visible(lines: list[Line]) -> list[tuple[str, str, int]]:
    return [(line.text.strip(), line.file, line.line) for line in lines if line.text.strip()]


def test_lines_of_one_file(write: Write) -> None:
    text = "nop\n{% if yes %}\n    cli\n{% endif %}\n\n    mov eax, {{ value }}   ; why\n{# gone\n   too #}\nhlt\n"
    rendered = write({"a.j2": text}, yes=True, value=5).render("a.j2")
    assert visible(rendered.lines) == [
        ("nop", "a.j2", 1), ("cli", "a.j2", 3), ("mov eax, 5   ; why", "a.j2", 6), ("hlt", "a.j2", 9),
    ]  # fmt: skip


def test_lines_of_loops_and_whitespace_control(write: Write) -> None:
    text = "a\n{%- for r in ('rax', 'rbx') %}\n\n  push {{ r }}\n  nop\n{% endfor %}\nb\n"
    rendered = write({"a.j2": text}).render("a.j2")
    assert [line for line in visible(rendered.lines) if line[0] != ""] == [
        ("a", "a.j2", 1), ("push rax", "a.j2", 4), ("nop", "a.j2", 5), ("push rbx", "a.j2", 4), ("nop", "a.j2", 5),
        ("b", "a.j2", 7),
    ]  # fmt: skip


def test_lines_of_macros_includes_and_calls(write: Write) -> None:
    templates = {
        "a.j2": '{% import "m/m.j2" as m %}\nstart:\n{{ m.save("rax") }}\n{% include "i.j2" %}\n'
                '{% call m.twice() %}\n  inc eax\n{% endcall %}\nend:\n',
        "m/m.j2": "{% macro save(r) %}\n  push {{ r }}\n  nop\n{% endmacro %}\n\n"
                  "{% macro twice() %}\n  cli\n{{ caller() }}\n  sti\n{% endmacro %}\n",
        "i.j2": "\n  hlt\n",
    }  # fmt: skip
    assert visible(write(templates).render("a.j2").lines) == [
        ("start:", "a.j2", 2), ("push rax", "m/m.j2", 2), ("nop", "m/m.j2", 3), ("hlt", "i.j2", 2),
        ("cli", "m/m.j2", 7), ("inc eax", "a.j2", 6), ("sti", "m/m.j2", 9), ("end:", "a.j2", 8),
    ]  # fmt: skip


def test_lines_through_inheritance_and_filters(write: Write) -> None:
    templates = {
        "base.j2": "nop\n{% block body %}\n  cli\n{% endblock %}\nhlt\n",
        "a.j2": '{% extends "base.j2" %}\n{% block body %}\n{% filter indent(2) %}\n  STI\n{% endfilter %}\n'
                "{% endblock %}\n",
    }  # fmt: skip
    assert visible(write(templates).render("a.j2").lines) == [
        ("nop", "base.j2", 1), ("STI", "a.j2", 4), ("hlt", "base.j2", 5),
    ]  # fmt: skip


def test_several_lines_from_a_helper_belong_to_its_call(write: Write) -> None:
    rendered = write({"a.j2": "nop\n{{ far_jump32(8, 'entry') }}\nhlt\n"}).render("a.j2")
    assert visible(rendered.lines) == [
        ("nop", "a.j2", 1), (".byte 0xea", "a.j2", 2), (".long entry", "a.j2", 2), (".word 8", "a.j2", 2),
        ("hlt", "a.j2", 3),
    ]  # fmt: skip


def test_no_mark_is_left(write: Write) -> None:
    rendered = write({"a.j2": "{% set x %}rax{% endset %}\nmov {{ x }}, 1\n"}).render("a.j2")
    assert visible(rendered.lines) == [("mov rax, 1", "a.j2", 2)]


def test_first_directory_wins(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.j2").write_text(f"; {name}\n")
    rendered = Renderer([tmp_path / "mine", tmp_path / "theirs"]).render("a.j2")
    assert visible(rendered.lines) == [("; mine", "a.j2", 1)]


def test_procs_are_declared_and_are_labels(write: Write) -> None:
    text = 'nop\n{{ proc("copy", "copy rcx bytes", inputs="rsi, rdi,rcx", outputs="memory",\n' \
           '        clobbers="flags", alone=True) }}\n    rep movsb\n{{ proc("end", "no return") }}\n'  # fmt: skip
    rendered = write({"a.j2": text}).render("a.j2")
    assert visible(rendered.lines) == [
        ("nop", "a.j2", 1), ("copy:", "a.j2", 2), ("rep movsb", "a.j2", 4), ("end:", "a.j2", 5),
    ]  # fmt: skip
    copy, end = rendered.procs
    assert (copy.name, copy.purpose, copy.file, copy.line) == ("copy", "copy rcx bytes", "a.j2", 2)
    assert (copy.inputs, copy.outputs, copy.clobbers, copy.alone) == (
        ("rsi", "rdi", "rcx"), ("memory",), ("flags",), True)  # fmt: skip
    assert (end.inputs, end.outputs, end.clobbers, end.alone) == ((), (), (), False)


@pytest.mark.parametrize(("templates", "where", "words"), [
    ({"a.j2": "nop\nmov eax, {{ nothing }}\n"},                       "a.j2:2", "'nothing' is undefined"),
    ({"a.j2": "nop\nmov eax, {{ box.nothing }}\n"},                   "a.j2:2", "no attribute 'nothing'"),
    ({"a.j2": "nop\n{% if nothing %}x{% endif %}\n"},                 "a.j2:2", "'nothing' is undefined"),
    ({"a.j2": "nop\n\n{% include 'b.j2' %}\n", "b.j2": "\n{{ x }}"},  "b.j2:2", "'x' is undefined"),
    ({"a.j2": "nop\n{% if %}\n"},                                     "a.j2:2", "Expected an expression"),
    ({"a.j2": "{% include 'b.j2' %}\n", "b.j2": "nop\n{{ 1 + }}\n"},  "b.j2:2", ""),
    ({"a.j2": "nop\n{% for x in y %}\n"},                             "a.j2:2", "endfor"),
    ({"a.j2": "nop\n{% include 'gone.j2' %}\n"},                      "a.j2:2", "no template 'gone.j2'"),
    ({"a.j2": "nop\nmov eax, {{ 1 // zero }}\n"},                     "a.j2:2", "ZeroDivisionError"),
    ({"a.j2": "nop\n{{ fails() }}\n"},                                "a.j2:2", "TypeError"),
])  # fmt: skip
def test_mistakes_are_told_with_file_and_line(
    write: Write, templates: dict[str, str], where: str, words: str
) -> None:
    def fails(_: int) -> str:
        return ""

    renderer = write(templates, box={}, zero=0, fails=fails)
    with pytest.raises(TemplateError) as caught:
        renderer.render("a.j2")
    assert caught.value.where == where
    assert words in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_there(write: Write) -> None:
    with pytest.raises(TemplateError, match=r"no template 'gone\.j2'"):
        write({}).render("gone.j2")


@pytest.mark.parametrize(("bits", "call", "gnu"), [
    (16, "far_jump16(8, 0x1234)",                "jmp 8:0x1234"),
    (16, "far_jump32(8, 0x12345678, bits=16)",   ".byte 0x66\n.byte 0xea\n.long 0x12345678\n.word 8"),
    (32, "far_jump32(8, 0x12345678)",            "jmp 8:0x12345678"),
    (32, "lgdt(0x12345, 32)",                    "lgdt [0x12345]"),
    (32, "lidt(0x12345, 32)",                    "lidt [0x12345]"),
    (16, "lgdt(0x1234, 16)",                     "data32 lgdt [0x1234]"),
    (16, "lidt(0x1234, 16)",                     "data32 lidt [0x1234]"),
    (16, "call16(0x7d00)",                       "call 0x7d00"),
    (16, "ret16()",                              "ret"),
    (16, "ret16(4)",                             "ret 4"),
    (16, "retf16()",                             "retf"),
    (16, "push16(0x1234)",                       "push 0x1234"),
    *((64, f"gs_load('{register}', 0x60)",       f"mov {register}, gs:[0x60]")
      for register in ("rax", "rcx", "rsp", "rbp", "rsi", "r8", "r12", "r13", "r15") if register != "rax"),
    (64, "gs_load('rbx', -8)",                   "mov rbx, gs:[-8]"),
    *((64, f"gs_store(0x60, '{register}')",      f"mov gs:[0x60], {register}") for register in ("rcx", "rsp", "r12")),
    (64, "bytes_('abc'.encode())",               ".ascii \"abc\""),
])  # fmt: skip
def test_helpers_encode_as_gnu_as_does(write: Write, tmp_path: Path, bits: int, call: str, gnu: str) -> None:
    lines = write({"a.j2": f"{{{{ {call} }}}}\n"}).render("a.j2").lines
    text = "\n".join(line.text for line in lines)
    base = 0x7C00 if bits == 16 else 0x10_0000
    assert as_bytes(bits, base, text, tmp_path) == as_bytes(bits, base, gnu, tmp_path) != b""
