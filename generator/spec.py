"""image.toml → ImageSpec: what the user wants, checked, with defaults filled in.

Every key says here what it means, what it takes and how it is written: the messages (spec_errors.py) and
docs/image-toml.md (spec_docs.py) are made from that. Values come out in the units that the rest computes with:
bytes, TSC ticks, VmEnd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)

from generator.arch import events
from generator.arch.abi import VmEnd
from generator.spec_errors import Document, KeyPath, explain_validation
from generator.suggest import nearest

MIB = 1 << 20
MEMORY_STEP = 2 * MIB            # EPT maps guests with 2 MiB pages
MEMORY_MAX = 1024 * MIB
REAL_MODE_LIMIT = MIB            # a real-mode guest starts with CS:IP
VMS_MAX = 16
DEFAULT_LOAD = 0x1000            # page 0 stays free: null pointers and a real-mode guest's IVT
TICKS_MAX = (1 << 32) - 1        # the VMX-preemption timer has 32 bits
_PARAM_TEXT = re.compile(r'[ !#-\[\]-~]*')  # what can stand in a string of assembly as it is
_SIZE = re.compile(r"([0-9]+) *(K|M|G|KiB|MiB|GiB)?")
_UNITS = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Schedule(StrEnum):
    """How several VMs share the CPU."""

    SEQUENTIAL = "sequential"    # each runs until it ends
    ROUND_ROBIN = "round-robin"  # each runs for slice_ticks at a time


class GuestFormat(StrEnum):
    """What a guest's file holds."""

    FLAT = "flat"                # bytes, loaded as they are
    ELF = "elf"                  # an executable ELF for x86; its PT_LOAD segments are loaded


class GuestMode(StrEnum):
    """The mode in which a guest's CPU starts; docs/boot-protocol.md gives the registers."""

    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"


def parse_size(value: object) -> int:
    """Bytes from ``"16 MiB"``, ``"2M"``, ``"1G"`` or a plain integer. ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("is not a size")
    unit = match[2][0] if match[2] else None
    return int(match[1]) * _UNITS[unit]


def _memory(value: object) -> int:
    size = parse_size(value)
    if size % MEMORY_STEP or not MEMORY_STEP <= size <= MEMORY_MAX:
        raise ValueError("is not a memory size")
    return size


def _one_of(choices: dict[str, Any]) -> Callable[[object], Any]:
    def choose(value: object) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError("is none of the choices")
        return choices[value]
    return choose


def _param(value: object) -> str | int | bool:
    if not isinstance(value, str | int) or (isinstance(value, str) and not _PARAM_TEXT.fullmatch(value)):
        raise ValueError("is no parameter")
    return value


def _no_repeat(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names an exception twice")
    return values


def _names(*values: str) -> str:
    return ", ".join(f'"{value}"' for value in values)


ENDS = {end.spelling: end for end in VmEnd if end is not VmEnd.RUNNING}
EXCEPTIONS = {vector.mnemonic: vector.mnemonic for vector in events.EXCEPTIONS if vector.mnemonic != "NMI"}


def _key(description: str, *, takes: str, write: str, item: str = "", bounds: tuple[int, int] | None = None,
         **more: Any) -> Any:
    """A key: what it means, what it takes ("… is not `takes`"), how a right one is written, what an `item` of it is."""
    if bounds is not None:
        more |= {"ge": bounds[0], "le": bounds[1]}
    return Field(description=description, json_schema_extra={"takes": takes, "write": write, "item": item}, **more)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ImageSection(_Section):
    """What holds for the whole image."""

    name: str = _key(
        "Name of the image; the files that a build makes are named after it.",
        takes="1 to 32 characters of a-z, 0-9 and hyphen", write='"minimal"', pattern=r"^[a-z0-9-]{1,32}$")
    trace: bool = _key(
        "Whether each VM exit and each injected event is printed on port 0xE9, for comparing emulators.",
        takes="true or false", write="true", default=False)
    schedule: Annotated[Schedule, BeforeValidator(_one_of({s.value: s for s in Schedule}))] = _key(
        "How several VMs share the CPU: one after another, or in turns of `slice_ticks`.",
        takes=f"one of {_names(*Schedule)}", write='"round-robin"', default=Schedule.SEQUENTIAL)
    watchdog_ticks: int = _key(
        "TSC ticks that a VM may run without a VM exit before it is stopped with the end `watchdog`.",
        takes=f"a number of TSC ticks from 1000 to {TICKS_MAX}", write="50_000_000", default=50_000_000,
        bounds=(1000, TICKS_MAX))
    slice_ticks: int = _key(
        "TSC ticks of one turn; only with `schedule = \"round-robin\"`.",
        takes=f"a number of TSC ticks from 1000 to {TICKS_MAX}", write="1_000_000", default=1_000_000,
        bounds=(1000, TICKS_MAX))


class GuestSpec(_Section):
    """What runs in a VM: a template of hvforge, or a file of yours. Exactly one of `template` and `file` is given."""

    template: str | None = _key(
        "Name of a guest template (`templates/guests/NAME.asm.j2`); it declares its mode and entry itself.",
        takes="the name of a guest template", write='"long64"', default=None)
    file: str | None = _key(
        "Path of a file that holds the guest, relative to image.toml.",
        takes="the path of a file", write='"guest.bin"', default=None, min_length=1)
    format: Annotated[GuestFormat | None, BeforeValidator(_one_of({f.value: f for f in GuestFormat}))] = _key(
        "What `file` holds: bytes that are loaded as they are, or an ELF executable. Needed with `file`.",
        takes=f"one of {_names(*GuestFormat)}", write='"flat"', default=None)
    mode: Annotated[GuestMode | None, BeforeValidator(_one_of({m.value: m for m in GuestMode}))] = _key(
        "The mode in which the CPU starts. Needed with `format = \"flat\"`; a template declares it, an ELF's class "
        "decides it (32-bit: protected, 64-bit: long).",
        takes=f"one of {_names(*GuestMode)}", write='"long"', default=None)
    load: int = _key(
        "Guest-physical address at which a flat file or a template is loaded. An ELF says it itself.",
        takes="an address inside the VM's memory", write="0x1000", default=DEFAULT_LOAD, bounds=(0, MEMORY_MAX - 1))
    entry: int | None = _key(
        "Guest-physical address of the first instruction of a flat file; without it, `load`.",
        takes="an address inside the VM's memory", write="0x1000", default=None, bounds=(0, MEMORY_MAX - 1))
    params: dict[str, Annotated[str | int | bool, PlainValidator(_param), WithJsonSchema(
        {"type": ["string", "integer", "boolean"]})]] = _key(
        "Values handed to the template under their names; which it takes, it says at its top.",
        takes="a table of strings, integers and booleans",
        item="an integer, true, false, or a string of printable ASCII without quotes and backslashes",
        write="{ rounds = 3 }", default_factory=dict)

    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def where(self, key: str = "") -> str | None:
        """Place of `key` (or of the guest itself) for messages: ``file:line: vm[0].guest.key``; None if not loaded."""
        return self._places.get(key, self._places.get(""))


class VmSpec(_Section):
    """One virtual machine."""

    name: str = _key(
        "Name of the VM: every line that it prints begins with it.",
        takes="1 to 16 characters of A-Z, a-z, 0-9, dot, underscore and hyphen", write='"alpha"',
        pattern=r"^[A-Za-z0-9._-]{1,16}$")
    memory: Annotated[int, BeforeValidator(_memory), WithJsonSchema({"type": ["string", "integer"]})] = _key(
        "Size of its memory, from guest-physical address 0: a number of bytes, or a string with K, M or G.",
        takes="a multiple of 2 MiB from 2M to 1G", write='"4M"')
    expect: Annotated[VmEnd, BeforeValidator(_one_of(ENDS)), WithJsonSchema({"enum": list(ENDS)})] = _key(
        "How the VM is expected to end. The image's outcome is FINISHED only if every VM ends as expected.",
        takes=f"one of {_names(*ENDS)}", write='"exited"', default=VmEnd.EXITED)
    rdtsc_exiting: bool = _key(
        "Whether RDTSC and RDTSCP cause VM exits.",
        takes="true or false", write="true", default=False)
    tsc_offset: int = _key(
        "What is added to the time-stamp counter that the guest reads.",
        takes="a signed 64-bit number", write="-1_000_000", default=0, bounds=(-(1 << 63), (1 << 63) - 1))
    intercept_exceptions: Annotated[
        tuple[Annotated[str, BeforeValidator(_one_of(EXCEPTIONS)), WithJsonSchema({"enum": list(EXCEPTIONS)})], ...],
        AfterValidator(_no_repeat)] = _key(
        "Exceptions of the guest that cause VM exits; the hypervisor hands them back to the guest.",
        takes="a list of exceptions, each once", item=f"one of {_names(*EXCEPTIONS)}", write='["#UD", "#GP"]',
        default=(), strict=False)
    guest: GuestSpec = _key(
        "What runs in it.", takes="a table", write="[vm.guest]")

    @property
    def exception_bitmap(self) -> int:
        """The VMCS field EXCEPTION_BITMAP that `intercept_exceptions` asks for."""
        return sum(1 << events.BY_MNEMONIC[mnemonic].number for mnemonic in self.intercept_exceptions)


class ImageSpec(_Section):
    """A whole image.toml."""

    image: ImageSection = _key("What holds for the whole image.", takes="a table", write="[image]")
    vms: tuple[VmSpec, ...] = _key(
        "The virtual machines, in the order in which they run.",
        takes=f"1 to {VMS_MAX} tables, each under a header of its own", write="[[vm]]", alias="vm", strict=False)

    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The image.toml that this was read from."""
        return self._path


def load_spec(path: Path, templates: Collection[str] | None = None) -> ImageSpec:
    """Read and check the image.toml at `path`.

    `templates` are the names of the guest templates there are; without them any name is taken. SpecError names file,
    line and key of the first thing that is wrong. Files of guests are not opened here (guests.load_guest does that).
    """
    document = Document.read(path)
    try:
        spec = ImageSpec.model_validate(document.data)
    except ValidationError as error:
        raise explain_validation(document, error, ImageSpec) from None
    _check_image(document, spec)
    for index, vm in enumerate(spec.vms):
        place: KeyPath = ("vm", index, "guest")
        _check_guest(document, place, vm, templates)
        vm.guest._places[""] = document.place(place)
        vm.guest._places.update({key: document.place((*place, key)) for key in GuestSpec.model_fields})
    spec._path = path
    return spec


def _check_image(document: Document, spec: ImageSpec) -> None:
    """What no single key can show: how many VMs, slices without turns, and names given twice."""
    if not 1 <= len(spec.vms) <= VMS_MAX:
        raise document.error(("vm",), f"{len(spec.vms)} VMs; an image has 1 to {VMS_MAX} tables [[vm]]")
    if "slice_ticks" in spec.image.model_fields_set and spec.image.schedule is not Schedule.ROUND_ROBIN:
        raise document.error(("image", "slice_ticks"),
                             'only goes with schedule = "round-robin" (set that, or leave slice_ticks out)')
    first: dict[str, int] = {}
    for index, vm in enumerate(spec.vms):
        if vm.name in first:
            other = document.line(("vm", first[vm.name], "name"))
            raise document.error(("vm", index, "name"), f'"{vm.name}" is already the name of the VM at line {other}; '
                                 "each VM needs its own")
        first[vm.name] = index


def _check_guest(document: Document, place: KeyPath, vm: VmSpec, templates: Collection[str] | None) -> None:
    """Which keys of a guest go together."""
    guest = vm.guest
    given = guest.model_fields_set

    def refuse(key: str, message: str) -> None:
        if key in given:
            raise document.error((*place, key), message)

    if guest.template is None and guest.file is None:
        raise document.error(place, 'needs a guest: template or file (write e.g. template = "long64")')
    if guest.template is not None:
        refuse("file", "a guest is either a template or a file, not both (leave one out)")
        for key in ("format", "mode", "entry"):
            refuse(key, "only goes with file; a template declares it itself (leave it out)")
        if templates is not None and guest.template not in templates:
            raise document.error((*place, "template"), f'there is no guest template "{guest.template}"'
                                 + nearest(guest.template, templates))
        for name in guest.params:
            if not name.isidentifier():
                raise document.error((*place, "params", name), "is not a name that a template can use: letters, digits "
                                     "and underscores, not a digit first")
    else:
        refuse("params", "only goes with template (leave it out)")
        if guest.format is None:
            raise document.error((*place, "format"), f"is missing; a file needs it: one of {_names(*GuestFormat)}")
    if guest.format is GuestFormat.FLAT and guest.mode is None:
        raise document.error((*place, "mode"), f"is missing; a flat file needs it: one of {_names(*GuestMode)}")
    if guest.format is GuestFormat.ELF:
        for key in ("mode", "load", "entry"):
            refuse(key, "does not go with an ELF, which says it itself (leave it out)")
    limit = min(vm.memory, REAL_MODE_LIMIT) if guest.mode is GuestMode.REAL else vm.memory
    reason = "1 MiB, which real mode can reach" if limit < vm.memory else f"the VM's memory of {vm.memory // MIB}M"
    for key, value in (("load", guest.load), ("entry", guest.entry)):
        if value is not None and value >= limit:
            raise document.error((*place, key), f"{value:#x} is outside {reason} (write e.g. {DEFAULT_LOAD:#x})")
