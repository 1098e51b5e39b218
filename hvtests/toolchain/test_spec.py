"""image.toml: what it means, and one test for each thing that can be wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.arch.abi import VmEnd
from generator.errors import HvforgeError, SpecError
from generator.spec import (
    GuestFormat,
    GuestMode,
    GuestSpec,
    ImageSection,
    ImageSpec,
    Schedule,
    load_spec,
    parse_size,
)

TEMPLATES = ("hostile", "long64", "paged32", "real16")
GOOD = """\
[image]
name = "minimal"

[[vm]]
name = "alpha"
memory = "4M"
[vm.guest]
template = "long64"
"""
FILE = """\
[image]
name = "minimal"
[[vm]]
name = "alpha"
memory = "4M"
[vm.guest]
file = "guest.bin"
"""


def load(tmp_path: Path, text: str) -> ImageSpec:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return load_spec(path, TEMPLATES)


def refused(tmp_path: Path, text: str) -> str:
    """The message, with the path cut down to ``x.toml``."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.status in (65, 74, 75)  # a value, TOML itself, an unknown key: see test_errors.py
    return message.replace(f"{tmp_path}/", "")


def test_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert spec.path == tmp_path / "x.toml"
    assert spec.image == ImageSection(name="minimal")
    assert (spec.image.trace, spec.image.schedule, spec.image.watchdog_ticks, spec.image.slice_ticks) == (
        False, Schedule.SEQUENTIAL, 50_000_000, 1_000_000)
    (vm,) = spec.vms
    assert (vm.name, vm.memory, vm.expect, vm.rdtsc_exiting, vm.tsc_offset) == (
        "alpha", 4 << 20, VmEnd.EXITED, False, 0)
    assert (vm.intercept_exceptions, vm.exception_bitmap) == ((), 0)
    assert (vm.guest.template, vm.guest.file, vm.guest.load, vm.guest.entry) == ("long64", None, 0x1000, None)
    assert vm.guest.params == {}


def test_everything_given(tmp_path: Path) -> None:
    spec = load(tmp_path, """
        [image]
        name = "a-1"
        trace = true
        schedule = "round-robin"
        watchdog_ticks = 1_000
        slice_ticks = 2_000
        [[vm]]
        name = "A.b_c-9"
        memory = 0x200000
        expect = "triple-fault"
        rdtsc_exiting = true
        tsc_offset = -9_223_372_036_854_775_808
        intercept_exceptions = ["#UD", "#GP", "#PF"]
        guest = { template = "real16", load = 0x8000, params = { text = "x", n = 3, on = true } }
        [[vm]]
        name = "flat"
        memory = "1G"
        guest = { file = "f.bin", format = "flat", mode = "protected", load = 0x100000, entry = 0x100010 }
        [[vm]]
        name = "elf"
        memory = "16 MiB"
        guest = { file = "f.elf", format = "elf" }
        """)
    first, flat, elf = spec.vms
    assert (spec.image.trace, spec.image.schedule, spec.image.slice_ticks) == (True, Schedule.ROUND_ROBIN, 2000)
    assert (first.memory, first.expect, first.tsc_offset) == (2 << 20, VmEnd.TRIPLE_FAULT, -(1 << 63))
    assert first.exception_bitmap == 1 << 6 | 1 << 13 | 1 << 14
    assert first.guest.params == {"text": "x", "n": 3, "on": True}
    assert (flat.memory, flat.guest.mode, flat.guest.format) == (1 << 30, GuestMode.PROTECTED, GuestFormat.FLAT)
    assert (flat.guest.load, flat.guest.entry) == (0x100000, 0x100010)
    assert (elf.memory, elf.guest.format, elf.guest.mode) == (16 << 20, GuestFormat.ELF, None)


def test_a_guest_knows_its_place_in_the_file(tmp_path: Path) -> None:
    guest = load(tmp_path, GOOD).vms[0].guest
    assert guest.where("template") == f"{tmp_path}/x.toml:8: vm[0].guest.template"
    assert guest.where("load") == f"{tmp_path}/x.toml:7: vm[0].guest.load"
    assert guest.where() == f"{tmp_path}/x.toml:7: vm[0].guest"
    assert GuestSpec(template="x").where() is None


@pytest.mark.parametrize(("text", "size"), [
    ("2M", 2 << 20), ("16 MiB", 16 << 20), ("1G", 1 << 30), ("1GiB", 1 << 30), ("2048K", 2 << 20),
    ("512 KiB", 512 << 10), ("4096", 4096), (4096, 4096)])
def test_parse_size(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "2 m", "2MB", "-2M", "2.5M", "0x200000", True, None, 2.0, "٢M "])
def test_parse_size_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


VALUES = [  # what is replaced in GOOD, by what, the message
    ('"4M"', '"3M"', 'x.toml:6: vm[0].memory: "3M" is not a multiple of 2 MiB from 2M to 1G (write e.g. "4M")'),
    ('"4M"', '"2G"', 'x.toml:6: vm[0].memory: "2G" is not a multiple of 2 MiB from 2M to 1G (write e.g. "4M")'),
    ('"4M"', "0", 'x.toml:6: vm[0].memory: 0 is not a multiple of 2 MiB from 2M to 1G (write e.g. "4M")'),
    ('"4M"', "true", 'x.toml:6: vm[0].memory: true is not a multiple of 2 MiB from 2M to 1G (write e.g. "4M")'),
    ('"4M"', '"much"', 'x.toml:6: vm[0].memory: "much" is not a multiple of 2 MiB from 2M to 1G (write e.g. "4M")'),
    ('"minimal"', '"My Image"',
     'x.toml:2: image.name: "My Image" is not 1 to 32 characters of a-z, 0-9 and hyphen (write e.g. "minimal")'),
    ('"minimal"', "3",
     'x.toml:2: image.name: 3 is not 1 to 32 characters of a-z, 0-9 and hyphen (write e.g. "minimal")'),
    ('"minimal"', '"x"\ntrace = 1', "x.toml:3: image.trace: 1 is not true or false (write e.g. true)"),
    ('"minimal"', '"x"\nschedule = "fair"',
     'x.toml:3: image.schedule: "fair" is not one of "sequential", "round-robin" (write e.g. "round-robin")'),
    ('"minimal"', '"x"\nwatchdog_ticks = 10',
     "x.toml:3: image.watchdog_ticks: 10 is not a number of TSC ticks from 1000 to 4294967295 (write e.g. "
     "50_000_000)"),
    ('"minimal"', '"x"\nslice_ticks = "1"',
     'x.toml:3: image.slice_ticks: "1" is not a number of TSC ticks from 1000 to 4294967295 (write e.g. '
     "1_000_000)"),
    ('"alpha"', '"al pha"',
     'x.toml:5: vm[0].name: "al pha" is not 1 to 16 characters of A-Z, a-z, 0-9, dot, underscore and hyphen '
     '(write e.g. "alpha")'),
    ('"alpha"', '"a"\nexpect = "running"',
     'x.toml:6: vm[0].expect: "running" is not one of "exited", "failed", "halted", "triple-fault", '
     '"ept-violation", "ept-misconfiguration", "watchdog", "unexpected-exit", "entry-failed" (write e.g. '
     '"exited")'),
    ('"alpha"', '"a"\nrdtsc_exiting = "no"',
     'x.toml:6: vm[0].rdtsc_exiting: "no" is not true or false (write e.g. true)'),
    ('"alpha"', '"a"\ntsc_offset = 0x8000000000000000',
     "x.toml:6: vm[0].tsc_offset: 9223372036854775808 is not a signed 64-bit number (write e.g. -1_000_000)"),
    ('"alpha"', '"a"\ntsc_offset = 1.0',
     "x.toml:6: vm[0].tsc_offset: 1.0 is not a signed 64-bit number (write e.g. -1_000_000)"),
    ('"alpha"', '"a"\nintercept_exceptions = "#UD"',
     'x.toml:6: vm[0].intercept_exceptions: "#UD" is not a list of exceptions, each once (write e.g. ["#UD", '
     '"#GP"])'),
    ('"alpha"', '"a"\nintercept_exceptions = ["#UD", "#UD"]',
     'x.toml:6: vm[0].intercept_exceptions: ["#UD", "#UD"] is not a list of exceptions, each once (write e.g. '
     '["#UD", "#GP"])'),
    ("[vm.guest]\ntemplate = ", "guest = ", 'x.toml:7: vm[0].guest: "long64" is not a table (write e.g. [vm.guest])'),
    ('"long64"', "64", 'x.toml:8: vm[0].guest.template: 64 is not the name of a guest template (write e.g. "long64")'),
    ('"long64"', '"long64"\nload = -1',
     "x.toml:9: vm[0].guest.load: -1 is not an address inside the VM's memory (write e.g. 0x1000)"),
    ('"long64"', '"long64"\nparams = 1',
     "x.toml:9: vm[0].guest.params: 1 is not a table of strings, integers and booleans (write e.g. { rounds = 3 "
     "})"),
    ('"long64"', '"long64"\nparams.x = 1.5',
     "x.toml:9: vm[0].guest.params.x: 1.5 is not an integer, true, false, or a string of printable ASCII without "
     "quotes and backslashes"),
    ("[[vm]]", "[vm]",
     "x.toml:4: vm: a table is not 1 to 16 tables, each under a header of its own (write e.g. [[vm]])"),
]


@pytest.mark.parametrize(("old", "new", "message"), VALUES)
def test_wrong_value(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refused(tmp_path, GOOD.replace(old, new)) == message


def test_wrong_item_of_a_list_is_shown_at_its_own_line(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD.replace('"alpha"', '"a"\nintercept_exceptions = [\n  "#UD",\n  "#XX",\n]'))
    assert message.startswith('x.toml:8: vm[0].intercept_exceptions[1]: "#XX" is not one of "#DE", "#DB", ')


MISSING = [
    ('name = "minimal"', "",
     'x.toml:1: image.name: is missing: 1 to 32 characters of a-z, 0-9 and hyphen (write e.g. name = "minimal")'),
    ('memory = "4M"\n', "",
     'x.toml:4: vm[0].memory: is missing: a multiple of 2 MiB from 2M to 1G (write e.g. memory = "4M")'),
    ('[vm.guest]\ntemplate = "long64"\n', "", "x.toml:4: vm[0].guest: is missing: a table (write e.g. [vm.guest])"),
    ('[image]\nname = "minimal"\n', "", "x.toml:1: image: is missing: a table (write e.g. [image])"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISSING)
def test_missing_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refused(tmp_path, GOOD.replace(old, new)) == message


def test_no_vm(tmp_path: Path) -> None:
    assert refused(tmp_path, '[image]\nname = "x"\n') == (
        "x.toml:1: vm: is missing: 1 to 16 tables, each under a header of its own (write e.g. [[vm]])")
    assert refused(tmp_path, 'vm = []\n[image]\nname = "x"\n') == (
        "x.toml:1: vm: 0 VMs; an image has 1 to 16 tables [[vm]]")


def test_too_many_vms(tmp_path: Path) -> None:
    image = '[image]\nname = "x"\n'
    vms = [f'[[vm]]\nname = "v{n}"\nmemory = "2M"\nguest.template = "long64"\n' for n in range(17)]
    assert refused(tmp_path, image + "".join(vms)) == "x.toml:3: vm: 17 VMs; an image has 1 to 16 tables [[vm]]"
    assert len(load(tmp_path, image + "".join(vms[:16])).vms) == 16


UNKNOWN = [
    ("memory", "memroy", 'x.toml:6: vm[0].memroy: unknown key; did you mean "memory"?'),
    ("template", "tempalte", 'x.toml:8: vm[0].guest.tempalte: unknown key; did you mean "template"?'),
    ("[image]", "[image]\ncolour = 1",
     "x.toml:2: image.colour: unknown key; there are: name, schedule, slice_ticks, trace, watchdog_ticks"),
    ("[image]", "[Image]", 'x.toml:1: Image: unknown key; did you mean "image"?'),
    ("[[vm]]", "[[vms]]", 'x.toml:4: vms: unknown key; did you mean "vm"?'),
]


@pytest.mark.parametrize(("old", "new", "message"), UNKNOWN)
def test_unknown_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refused(tmp_path, GOOD.replace(old, new, 1)) == message


MALFORMED = [
    ('"4M"', "4M",
     "x.toml:6: is not TOML: expected newline or end of document after a statement (if it is a string, it needs "
     'quotes: memory = "4M")'),
    ('"alpha"', "alpha", 'x.toml:5: is not TOML: invalid value (strings need quotes: name = "alpha")'),
    ('name = "alpha"', "name", "x.toml:5: is not TOML: expected '=' after a key in a key/value pair in: name"),
    ("[vm.guest]", "[vm.guest", "x.toml:7: is not TOML: expected ']' at the end of a table declaration in: [vm.guest"),
    ('memory = "4M"', 'name = "b"', 'x.toml:6: is not TOML: cannot overwrite a value in: name = "b"'),
]


@pytest.mark.parametrize(("old", "new", "message"), MALFORMED)
def test_malformed_toml(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refused(tmp_path, GOOD.replace(old, new)) == message


def test_malformed_at_the_end(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD + "x = [1,\n").startswith("x.toml:9: is not TOML: ")


def test_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b'[image]\nname = "\xff"\n')
    with pytest.raises(SpecError, match=r"x\.toml:2: is not UTF-8: byte 0xff \(save the file as UTF-8\)$"):
        load_spec(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml: cannot be read: no such file or directory"):
        load_spec(tmp_path / "none.toml")
    with pytest.raises(SpecError, match="cannot be read: is a directory"):
        load_spec(tmp_path)


def test_duplicate_names(tmp_path: Path) -> None:
    second = '[[vm]]\nname = "alpha"\nmemory = "2M"\nguest.template = "long64"\n'
    assert refused(tmp_path, GOOD + second) == (
        'x.toml:10: vm[1].name: "alpha" is already the name of the VM at line 5; each VM needs its own')


def test_unknown_template(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace("long64", "lnog64")) == (
        'x.toml:8: vm[0].guest.template: there is no guest template "lnog64"; did you mean "long64"?')
    assert refused(tmp_path, GOOD.replace("long64", "zzz")) == (
        'x.toml:8: vm[0].guest.template: there is no guest template "zzz"; there are: hostile, long64, paged32, real16')


def test_templates_are_not_checked_without_a_list(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD.replace("long64", "zzz"))
    assert load_spec(path).vms[0].guest.template == "zzz"


GUESTS = [  # lines under [vm.guest] of GOOD, the message after "x.toml:LINE: vm[0].guest"
    ("", '7: vm[0].guest: needs a guest: template or file (write e.g. template = "long64")'),
    ('template = "long64"\nfile = "x"',
     "9: vm[0].guest.file: a guest is either a template or a file, not both (leave one out)"),
    ('template = "long64"\nmode = "long"',
     "9: vm[0].guest.mode: only goes with file; a template declares it itself (leave it out)"),
    ('template = "long64"\nformat = "elf"',
     "9: vm[0].guest.format: only goes with file; a template declares it itself (leave it out)"),
    ('template = "long64"\nentry = 1',
     "9: vm[0].guest.entry: only goes with file; a template declares it itself (leave it out)"),
    ('template = "long64"\nparams.a-b = 1',
     "9: vm[0].guest.params.a-b: is not a name that a template can use: letters, digits and underscores, not a "
     "digit first"),
    ('template = "long64"\nload = 0x400000',
     "9: vm[0].guest.load: 0x400000 is outside the VM's memory of 4M (write e.g. 0x1000)"),
    ('file = ""', '8: vm[0].guest.file: "" is not the path of a file (write e.g. "guest.bin")'),
    ('file = "x"', '7: vm[0].guest.format: is missing; a file needs it: one of "flat", "elf"'),
    ('file = "x"\nformat = "raw"', '9: vm[0].guest.format: "raw" is not one of "flat", "elf" (write e.g. "flat")'),
    ('file = "x"\nformat = "flat"',
     '7: vm[0].guest.mode: is missing; a flat file needs it: one of "real", "protected", "long"'),
    ('file = "x"\nformat = "flat"\nmode = "16"',
     '10: vm[0].guest.mode: "16" is not one of "real", "protected", "long" (write e.g. "long")'),
    ('file = "x"\nformat = "flat"\nmode = "long"\nparams.a = 1',
     "11: vm[0].guest.params: only goes with template (leave it out)"),
    ('file = "x"\nformat = "flat"\nmode = "long"\nentry = 0x400000',
     "11: vm[0].guest.entry: 0x400000 is outside the VM's memory of 4M (write e.g. 0x1000)"),
    ('file = "x"\nformat = "flat"\nmode = "real"\nload = 0x100000',
     "11: vm[0].guest.load: 0x100000 is outside 1 MiB, which real mode can reach (write e.g. 0x1000)"),
    ('file = "x"\nformat = "elf"\nmode = "long"',
     "10: vm[0].guest.mode: does not go with an ELF, which says it itself (leave it out)"),
    ('file = "x"\nformat = "elf"\nload = 1',
     "10: vm[0].guest.load: does not go with an ELF, which says it itself (leave it out)"),
    ('file = "x"\nformat = "elf"\nentry = 1',
     "10: vm[0].guest.entry: does not go with an ELF, which says it itself (leave it out)"),
]


@pytest.mark.parametrize(("guest", "message"), GUESTS)
def test_keys_of_a_guest_that_do_not_go_together(tmp_path: Path, guest: str, message: str) -> None:
    assert refused(tmp_path, GOOD.replace('template = "long64"', guest)) == f"x.toml:{message}"


def test_slices_without_turns(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace('"minimal"', '"x"\nslice_ticks = 5000')) == (
        'x.toml:3: image.slice_ticks: only goes with schedule = "round-robin" (set that, or leave slice_ticks out)')


def test_the_first_thing_wrong_is_told(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD.replace('"4M"', '"5M"').replace('"alpha"', '"???"'))
    assert message.startswith("x.toml:5: vm[0].name: ")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_gives_one_line_or_a_spec(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is done to a file, the answer is a spec or an HvforgeError of one line."""
    text = data.draw(st.sampled_from([GOOD, FILE]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    patch = data.draw(st.text('ab"=[]{}#.,\n 1\\x-', max_size=8))
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_text(text[:start] + patch + text[end:])
    try:
        load_spec(path, TEMPLATES)
    except HvforgeError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(path))
