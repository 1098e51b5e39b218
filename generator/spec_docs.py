"""docs/image-toml.md, made from the schema of ImageSpec: what a key means is written once, in spec.py."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from generator.spec import GuestSpec, ImageSection, ImageSpec, VmSpec
from generator.spec_errors import show

_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("`[image]`: the image", "Once, at the top.", ImageSection),
    ("`[[vm]]`: a virtual machine", "One for each VM, 1 to 16.", VmSpec),
    ("`[vm.guest]`: what runs in it", "One under each `[[vm]]`: a template, or a file.", GuestSpec),
)

_EXAMPLE = """\
[image]
name     = "pair"
schedule = "round-robin"

[[vm]]
name   = "alpha"
memory = "2M"
[vm.guest]
template = "long64"

[[vm]]
name   = "beta"
memory = "4M"
expect = "halted"
[vm.guest]
file   = "beta.bin"
format = "flat"
mode   = "protected"
load   = 0x10000
"""


def schema() -> dict[str, Any]:
    """The JSON Schema of an image.toml, for editors."""
    return ImageSpec.model_json_schema(by_alias=True)


def _default(name: str, field: Any) -> str:
    if field.default_factory is not None:
        return "`{}`"
    if field.default is PydanticUndefined:
        return "needed"
    value = field.default
    if value is None:
        return "none"
    if name == "load":
        return f"`{value:#x}`"
    if isinstance(value, tuple):
        return f"`{show(list(value))}`"
    spelling = getattr(value, "spelling", value)
    return f"`{show(str(spelling) if isinstance(spelling, str) else spelling)}`"


def _rows(model: type[BaseModel]) -> list[str]:
    rows = ["| key | takes | default | meaning | for example |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or name == "guest":
            continue
        key = field.alias or name
        cells = (f"`{key}`", str(extra["takes"]), _default(name, field), str(field.description),
                 f"`{key} = {extra['write']}`")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def render() -> str:
    """The reference of image.toml as Markdown."""
    lines = [
        "# image.toml",
        "",
        "Which virtual machines an image holds. This page is made from the schema in `generator/spec.py` "
        "(`python -m generator.spec_docs`).",
        "",
        "```toml",
        *_EXAMPLE.rstrip().splitlines(),
        "```",
    ]
    for title, note, model in _SECTIONS:
        lines += ["", f"## {title}", "", note, "", *_rows(model)]
    lines += [
        "",
        "## Which keys go together",
        "",
        "- A guest has either `template` or `file`.",
        "- With `template`: `params` and `load`; the template declares its mode and entry.",
        '- With `format = "flat"`: `mode` is needed, `load` and `entry` are allowed.',
        '- With `format = "elf"`: none of `mode`, `load` and `entry`: the ELF says them. It must be an executable with '
        "fixed addresses, 32-bit for 386 or 64-bit for x86-64; physical addresses (`p_paddr`) count.",
        "- `slice_ticks` counts only with `schedule = \"round-robin\"`.",
        "- The names of the VMs of an image differ.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
