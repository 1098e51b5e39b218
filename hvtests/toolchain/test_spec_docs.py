"""docs/image-toml.md and the JSON Schema: every key is there, and every example in them is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from generator import spec_docs
from generator.spec import GuestSpec, ImageSection, ImageSpec, VmSpec, load_spec


def load(tmp_path: Path, text: str) -> ImageSpec:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return load_spec(path)


def test_every_key_is_described() -> None:
    for model in (ImageSection, VmSpec, GuestSpec, ImageSpec):
        for name, field in model.model_fields.items():
            extra = field.json_schema_extra
            assert field.description, name
            assert isinstance(extra, dict), name
            assert extra["takes"], name
            assert extra["write"], name


def test_schema_is_json() -> None:
    schema = json.loads(json.dumps(spec_docs.schema()))
    assert set(schema["properties"]) == {"image", "vm"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["VmSpec"]["properties"]["expect"]["enum"][0] == "exited"


def test_reference_has_every_key_and_its_example_loads(tmp_path: Path) -> None:
    text = spec_docs.render()
    for model in (ImageSection, VmSpec, GuestSpec):
        for name in model.model_fields:
            assert name == "guest" or f"| `{name}` |" in text, name
    example = text.split("```toml\n")[1].split("```")[0]
    assert [vm.name for vm in load(tmp_path, example).vms] == ["alpha", "beta"]


TABLES: dict[type[BaseModel], tuple[str, dict[str, str]]] = {
    ImageSection: ("[image]", {"name": '"x"', "schedule": '"round-robin"'}),
    VmSpec: ("[[vm]]", {"name": '"v"', "memory": '"2M"'}),
    GuestSpec: ("[vm.guest]", {"file": '"f"', "format": '"flat"', "mode": '"long"'}),
}


@pytest.mark.parametrize(("model", "name"), [
    (model, name) for model in TABLES for name in model.model_fields if name != "guest"])
def test_what_a_message_tells_to_write_is_right(tmp_path: Path, model: type[BaseModel], name: str) -> None:
    extra = model.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    text = ""
    for table, (header, keys) in TABLES.items():
        if table is GuestSpec and name in ("template", "params"):
            keys = {"template": '"long64"'}
        if table is model:
            keys = {**keys, name: str(extra["write"])}
        text += "\n".join([header, *(f"{key} = {value}" for key, value in keys.items())]) + "\n"
    load(tmp_path, text)


def test_the_page_in_docs_is_what_the_schema_gives() -> None:
    """If this fails: python -m generator.spec_docs > docs/image-toml.md."""
    page = Path(spec_docs.__file__).parent.parent / "docs" / "image-toml.md"
    assert page.read_text() == spec_docs.render()
