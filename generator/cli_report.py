"""What the commands print: tables of what was built, found and checked. Data in, text out, nothing is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from generator.inspection.text import size_text
from generator.source import Source

if TYPE_CHECKING:
    from generator.build import Image
    from generator.doctor import Finding
    from generator.explain import Explanation
    from hvtests.verification import Verification
    from hvtests.vmx.checks import Rule

_PIPE_WIDTH = 10_000   # columns where the output is no terminal: nothing is folded
_SHORT = 10            # columns that a cell of a narrow table has at least
_BETWEEN = 3           # columns between two cells
_FILES = {
    ".img": "BIOS disk", ".iso": "El Torito ISO", ".elf": "multiboot1 kernel", ".json": "map", ".lst": "listing",
}
_RIGHTS = {"text": "r-x", "rodata": "r--", "tables": "r--", "guard": "---"}


class _Out(Console):
    """Standard output, plain when it is no terminal; nothing in the text is taken for markup."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not self.is_terminal:
            self.width = _PIPE_WIDTH

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def table(self, table: Table) -> None:
        """Print a table without the blanks that fill up its lines."""
        names = 1 if table.columns[0].header else 2   # a mark stands before the name
        needed = _BETWEEN * (len(table.columns) - 1)
        for number, column in enumerate(table.columns):
            longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
            column.no_wrap = number < names or column.justify == "right" or longest <= _SHORT
            needed += longest if column.no_wrap else _SHORT
        if needed > self.width:
            self.width = _PIPE_WIDTH   # the terminal breaks the lines itself: nothing is cut off
        with self.capture() as captured:
            self.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    # As Text, because a name like [long] would be taken for markup.
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))


def print_build(image: Image, files: Sequence[Path]) -> None:
    """The files written, the memory map, and how much of it is code and data."""
    from generator.mapfile import image_map

    out = _Out()
    table = _table("file", "bytes", "what", right=[1])
    for path in files:
        _row(table, path, path.stat().st_size, _FILES[path.suffix])
    out.table(table)
    out.print()
    _print_memory(out, image_map(image.core))


def _print_memory(out: _Out, image_map: Any) -> None:
    table = _table("memory", "size", "rights", "what", right=[1])
    names = {f"vm{number}": f"memory of VM {vm['name']}" for number, vm in enumerate(image_map["vms"])}
    for region in image_map["regions"]:
        _row(table, f"{region['start']:#010x} - {region['end']:#010x}", size_text(region["end"] - region["start"]),
             _RIGHTS.get(region["kind"], "rw-"), names.get(region["name"], region["name"]))
    out.table(table)
    out.print()
    sizes = image_map["sizes"]
    out.print("bytes used: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))


def print_findings(findings: Sequence[Finding]) -> None:
    """`hvforge doctor`: one line for each thing; what a missing one would enable stands beside it."""
    table = _table("", "what", "found", "enables")
    for finding in findings:
        mark = Text("yes", "green") if finding.present else Text("no", "yellow")
        _row(table, mark, finding.name, finding.detail, finding.enables)
    _Out().table(table)


def print_explanation(explanation: Explanation) -> None:
    """`hvforge explain`."""
    out = _Out()
    out.print(Text(explanation.title, "bold"))
    width = max((len(label) for label, _ in explanation.rows), default=0)
    for label, text in explanation.rows:
        out.print(Text(f"  {label:{width}}  {text}"))
    if explanation.section:
        out.print(Text(f"  {explanation.section}"))


def print_rules(rules: Sequence[Rule], *, as_json: bool) -> None:
    """`hvforge checks`: each rule in words, or as one JSON object a line."""
    if as_json:
        for rule in rules:
            print(json.dumps({"id": rule.id, "stage": rule.stage.value, "section": rule.section,
                              "sentence": rule.sentence, "reads": list(rule.reads)}))
        return
    out = _Out()
    for rule in rules:
        out.print(Text.assemble((rule.id, "bold"), f"  {rule.stage.value}, {rule.section}"))
        out.print(Text(f"    {rule.sentence}"))
        out.print(Text(f"    reads {', '.join(rule.reads)}"))
    out.print(Text(f"{len(rules)} rule{'s' if len(rules) != 1 else ''}"))


def print_images(paths: Sequence[Path]) -> None:
    """`hvforge images`: each file and the comment with which it begins."""
    table = _table("file", "what")
    for path in paths:
        comment = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
        sentence = re.match(r".*?\.(?= |$)|.*", " ".join(line.lstrip("# ") for line in comment))
        _row(table, path, sentence[0] if sentence else "")
    _Out().table(table)


def print_verification(source: Source, found: Verification, where: str) -> None:
    """`hvforge verify`: what was built, what the guests said, the exits, the checks, the verdict."""
    out = _Out()
    out.print(Text(f"{where}: {len(source.data)} bytes"))
    if source.map is not None:
        out.print()
        _print_memory(out, source.map)
    out.print()
    out.print(Text("\n".join(found.result.lines)))
    out.print()
    if found.exits:
        table = _table("VM", "exit reason", "exits", "counted by the image", right=[2, 3])
        for row in found.exits:
            _row(table, row.vm, row.reason, row.harness, row.image)
        out.table(table)
        out.print()
    for check in found.checks:
        out.print(Text.assemble(("ok  ", "green") if check.passed else ("NO  ", "red"), check.text))
        for line in check.details:
            out.print(Text(f"      {line}"))
    out.print(Text.assemble(("verified" if found.passed else "NOT VERIFIED", "bold"), f": {found.verdict}"))


def json_verification(source: Source, found: Verification, where: str) -> str:
    """`hvforge verify --json`: one object on one line."""
    result = found.result
    return json.dumps({
        "image": where,
        "bytes": len(source.data),
        "sizes": None if source.map is None else source.map["sizes"],
        "regions": None if source.map is None else source.map["regions"],
        "verdict": result.verdict.name,
        "detail": found.verdict,
        "seconds": round(result.seconds, 3),
        "console": result.lines,
        "exits": [
            {"vm": row.vm, "reason": row.reason, "harness": row.harness, "image": row.image} for row in found.exits
        ],
        "checks": [{"passed": check.passed, "text": check.text, "details": check.details} for check in found.checks],
        "passed": found.passed,
        "status": found.status,
    })
