"""The middle of the pipeline: templates, data and layout -> the bytes of the hypervisor and of the loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generator import __version__, image_data, layout, tables, vmcs_init
from generator.assemble import Assembled, Unit, assemble
from generator.errors import LayoutError, SpecError, TemplateError, TooLargeError
from generator.guests import load_guest
from generator.layout import PAGE, Blob, Kind, Layout, make_layout
from generator.names import template_globals
from generator.render import Line, Proc, Renderer
from generator.spec import GuestMode, GuestSpec, ImageSpec, VmSpec
from generator.suggest import nearest

TEXT64 = layout.CORE + layout.ENTRY32_SIZE

# The files of the 64-bit code, in the order in which they are assembled; start64 is first, for entry32 jumps there.
TEXT64_FILES = (
    "cpu/start64", "cpu/features", "cpu/exceptions", "cpu/finish", "devices/console", "devices/pic",
    "vmx/on", "vmx/vmcs", "vmx/exit", "vmx/inject", "vmx/failure", "vmx/guest_state",
    "exits/cpuid", "exits/msr", "exits/io", "exits/control_registers", "exits/hypercall", "exits/simple", "exits/ept",
    "exits/events", "vm/schedule", "vm/console", "vm/dump",
)
LOADER_UNITS = (
    ("mbr", "boot/mbr", 16, layout.LOADER), ("loader16", "boot/loader16", 16, layout.LOADER16),
    ("loader32", "boot/loader32", 32, layout.LOADER32),
)
LOADER_ENDS = (layout.LOADER16 - 2, layout.LOADER32, layout.LOADER_TABLE)  # the MBR ends with its signature


REAL_MODE_STACK = 0x7C00  # where a PC's firmware leaves memory free below; for code that lies above 64 KiB
_BITS = {GuestMode.REAL: 16, GuestMode.PROTECTED: 32, GuestMode.LONG: 64}


@dataclass
class Core:
    """Everything before it is put on a medium. ``segments``: (host-physical address, bytes), ascending, whole pages."""

    spec: ImageSpec
    layout: Layout
    symbols: dict[str, int]
    units: list[Assembled]                 # entry32, text64: the hypervisor
    loader: list[Assembled]                # mbr, loader16, loader32
    guest_units: list[Assembled]
    procs: list[Proc]
    guests: list[image_data.GuestPlan]
    rows: list[list[vmcs_init.Row]]
    wanted: list[tuple[vmcs_init.Wanted, ...]]
    segments: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def entry(self) -> int:
        """Host-physical address of the multiboot entry."""
        return self.symbols["entry32"]


def make_core(spec: ImageSpec, template_dirs: Sequence[Path], time_limit: float) -> Core:
    """spec -> layout -> tables -> render -> assemble, for one image."""
    pool = image_data.StringPool()
    renderer = Renderer(template_dirs, {
        **template_globals(spec, __version__), "s": pool.add, "TEXT64": f"{TEXT64:#x}"})
    guests, guest_units = _guests(spec, renderer, time_limit)
    rendered = [(name, renderer.render(f"{name}.asm.j2")) for name in _text64_files(spec)]
    entry32 = renderer.render("boot/entry32.asm.j2")
    wanted = [vmcs_init.wanted_controls(spec, vm, guest.mode) for vm, guest in zip(spec.vms, guests, strict=True)]
    rows = [
        vmcs_init.control_rows(spec, vm, index)
        + vmcs_init.guest_rows(guest.mode, guest.entry, guest.stack, guest.page_tables) + vmcs_init.host_rows()
        for index, (vm, guest) in enumerate(zip(spec.vms, guests, strict=True))
    ]
    placed = _place(spec, pool, guests, wanted, rows)
    symbols = dict(placed.symbols)
    for index in range(len(spec.vms)):
        symbols.update(vmcs_init.vm_symbols(index, symbols))
    lines: list[Line] = [line for _, part in rendered for line in part.lines]
    memory_end = f"{max(region.end for region in placed.regions):#x}"
    loader = [
        Unit(name, bits, base, renderer.render(f"{file}.asm.j2", memory_end=memory_end).lines)
        for name, file, bits, base in LOADER_UNITS
    ]
    units = assemble(
        [Unit("entry32", 32, layout.CORE, entry32.lines), Unit("text64", 64, TEXT64, lines), *loader],
        {**symbols, "media_table": layout.LOADER_TABLE}, time_limit)
    for unit, end in zip(units, (TEXT64, layout.CORE + layout.TEXT_SIZE, *LOADER_ENDS), strict=True):
        if unit.base + len(unit.code) > end:
            raise LayoutError(f"{unit.name} is {len(unit.code)} bytes, more than its window of {end - unit.base}",
                              str(spec.path))
    for unit in units[:2]:
        symbols.update(unit.symbols)
    procs = [proc for _, part in rendered for proc in part.procs] + entry32.procs
    core = Core(spec, placed, symbols, units[:2], units[2:], guest_units, procs, guests, rows, wanted)
    core.segments = [(layout.CORE, _core_bytes(core))]
    for (base, _), guest in zip(placed.guests, guests, strict=True):
        core.segments += [(base + gpa, data) for gpa, data in _page_pieces(guest.segments)]
    return core


def _text64_files(spec: ImageSpec) -> list[str]:
    return [*TEXT64_FILES, *(["vm/trace"] if spec.image.trace else [])]


def _place(
    spec: ImageSpec, pool: image_data.StringPool, guests: Sequence[image_data.GuestPlan],
    wanted: Sequence[Sequence[vmcs_init.Wanted]], rows: Sequence[Sequence[vmcs_init.Row]],
) -> Layout:
    """All blobs, placed. What depends on the layout asks for it when its bytes are made."""
    holder: list[Layout] = []
    sizes = [vm.memory for vm in spec.vms]
    directories = -(-(layout.CORE_END + sum(sizes)) // layout.GIB)
    pieces = [_page_pieces(guest.segments) for guest in guests]

    def needs() -> list[tuple[int, int]]:
        return [(layout.CORE, holder[0].core_end), *((base, base + size) for base, size in holder[0].guests)]

    def zeros() -> list[tuple[int, int]]:
        return [gap for (base, size), piece in zip(holder[0].guests, pieces, strict=True)
                for gap in _gaps(base, size, piece)]

    def host_tables(symbols: Mapping[str, int]) -> bytes:
        return tables.host_page_tables(symbols["host_pml4"], directories, holder[0].regions)

    blobs: list[Blob] = [
        *image_data.cpu_blobs(),
        *image_data.vm_blobs(spec, lambda: holder[0].guests),
        Blob("host_pml4", Kind.TABLES, (3 + directories) * PAGE, PAGE, host_tables),
        image_data.feature_rows(pool),
        image_data.cpuid_rows(),
        image_data.range_table("memory_needs", needs, 1 + len(sizes)),
        image_data.range_table("zero_ranges", zeros, sum(len(piece) + 1 for piece in pieces)),
        *image_data.control_blobs(pool, wanted),
        *image_data.vmcs_blobs(rows),
        *image_data.name_tables(pool),
    ]
    holder.append(make_layout([*blobs, *pool.blobs()], sizes, str(spec.path)))
    return holder[0]


def _guests(
    spec: ImageSpec, renderer: Renderer, time_limit: float
) -> tuple[list[image_data.GuestPlan], list[Assembled]]:
    """Every VM's guest: a template assembled for where it is loaded, or a file."""
    texts: list[Unit] = []
    modes: dict[int, GuestMode] = {}
    for index, vm in enumerate(spec.vms):
        if vm.guest.template is not None:
            declared: list[str] = []
            params = Params(vm.guest)
            text = renderer.render(
                f"guests/{vm.guest.template}.asm.j2", starts_in=_collector(declared), params=params,
                one_of=params.one_of, load=vm.guest.load, scratch=vm.guest.load + PAGE)
            params.check()
            modes[index] = _declared_mode(vm.guest.template, declared)
            texts.append(Unit(f"guest{index}", _BITS[modes[index]], vm.guest.load, text.lines))
    units = assemble(texts, {}, time_limit) if texts else []
    codes = {unit.name: unit.code for unit in units}
    plans: list[image_data.GuestPlan] = []
    for index, vm in enumerate(spec.vms):
        if index in modes:
            load = vm.guest.load
            plans.append(_plan(spec, index, vm, modes[index], load, ((load, codes[f"guest{index}"]),)))
        else:
            image = load_guest(vm, spec.path.parent)
            plans.append(_plan(spec, index, vm, image.mode, image.entry, image.segments))
    return plans, units


class Params(dict[str, Any]):
    """A guest's params as its template reads them; what it does not read, or does not take, is a mistake."""

    def __init__(self, guest: GuestSpec) -> None:
        super().__init__(guest.params)
        self._guest = guest
        self._read: set[str] = set()
        self._refused: list[SpecError] = []

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def one_of(self, name: str, *choices: str) -> str:
        """Template global: the param's value, which must be one of ``choices``."""
        self._read.add(name)
        value = self.get(name, "(nothing)")
        if value not in choices:
            listed = ", ".join(f'"{choice}"' for choice in choices)
            self._refused.append(SpecError(
                f'params.{name}: "{value}" is not one of {listed}',
                self._guest.where("params")))
            return choices[0]
        return str(value)

    def check(self) -> None:
        """Raises SpecError for a param that the template did not read, or refused."""
        for error in self._refused:
            raise error
        for name in sorted(self.keys() - self._read):
            raise SpecError(f"params.{name}: the template {self._guest.template} takes no such param"
                            + nearest(name, self._read), self._guest.where("params"))


def _declared_mode(template: str, declared: list[str]) -> GuestMode:
    """The mode that a guest template declares by ``{{ starts_in("…") }}``."""
    where = f"guests/{template}.asm.j2"
    if len(declared) != 1:
        raise TemplateError('a guest declares once how it starts (write e.g. {{ starts_in("long") }})', where)
    if declared[0] not in set(GuestMode):
        raise TemplateError(f'there is no mode "{declared[0]}": starts_in takes real, protected or long', where)
    return GuestMode(declared[0])


def _collector(into: list[str]) -> Any:
    def starts_in(mode: str) -> str:
        into.append(mode)
        return ""
    return starts_in


def _plan(
    spec: ImageSpec, index: int, vm: VmSpec, mode: GuestMode, entry: int, segments: tuple[tuple[int, bytes], ...]
) -> image_data.GuestPlan:
    """Stack and page tables: real mode has its stack below the code, the others at the top of the VM's memory."""
    tables_at = vm.memory - 3 * PAGE
    limit = tables_at if mode is GuestMode.LONG else vm.memory
    end = max(address + len(data) for address, data in segments)
    if end > limit:
        where = vm.guest.where("file" if vm.guest.file else "template") or f"{spec.path}: vm[{index}].guest"
        kind = LayoutError if end <= vm.memory else TooLargeError
        tables_there = " (its page tables are above)" if limit != vm.memory else ""
        raise kind(f"the guest reaches up to {end:#x}, but the VM's memory ends at {limit:#x}{tables_there}: "
                   "give it more memory", where)
    if mode is GuestMode.LONG:
        return image_data.GuestPlan(mode, entry, tables_at, tables_at, (
            *segments, (tables_at, tables.guest_page_tables(tables_at))))
    stack = vm.memory
    if mode is GuestMode.REAL:
        lowest = min(address for address, _ in segments)
        stack = lowest if lowest <= 0xFFFF else REAL_MODE_STACK
    return image_data.GuestPlan(mode, entry, stack, 0, segments)


def _page_pieces(segments: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same bytes in whole pages, neighbours joined: what a loader puts into a VM's memory."""
    pages: dict[int, bytearray] = {}
    for address, data in segments:
        position = 0
        while position < len(data):
            page, offset = divmod(address + position, PAGE)
            count = min(PAGE - offset, len(data) - position)
            pages.setdefault(page, bytearray(PAGE))[offset:offset + count] = data[position:position + count]
            position += count
    pieces: list[tuple[int, bytearray]] = []
    for page in sorted(pages):
        if pieces and pieces[-1][0] + len(pieces[-1][1]) == page * PAGE:
            pieces[-1][1].extend(pages[page])
        else:
            pieces.append((page * PAGE, pages[page]))
    return [(address, bytes(data)) for address, data in pieces]


def _gaps(base: int, size: int, pieces: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """The parts of a VM's memory that no loader fills: the hypervisor zeroes them."""
    gaps, at = [], base
    for gpa, data in pieces:
        if base + gpa > at:
            gaps.append((at, base + gpa))
        at = base + gpa + len(data)
    if at < base + size:
        gaps.append((at, base + size))
    return gaps


def _core_bytes(core: Core) -> bytes:
    """The hypervisor from 1 MiB up to its last byte that is not zero by declaration."""
    data = bytearray(core.layout.core_file_end - layout.CORE)
    for unit in core.units:
        data[unit.base - layout.CORE:unit.base - layout.CORE + len(unit.code)] = unit.code
    for name, (address, blob) in core.layout.blobs.items():
        if blob.fill is None or blob.kind is Kind.BSS:
            continue
        content = blob.fill(core.symbols)
        if len(content) != blob.size:
            raise AssertionError(f"{name}: {len(content)} bytes were made, {blob.size} were placed")
        data[address - layout.CORE:address - layout.CORE + len(content)] = content
    return bytes(data)


def loader_bytes(core: Core) -> bytes:
    """boot.bin up to where the media table begins (layout.LOADER_TABLE), with the signature of a boot sector."""
    data = bytearray(layout.LOADER_TABLE - layout.LOADER)
    for unit in core.loader:
        data[unit.base - layout.LOADER:unit.base - layout.LOADER + len(unit.code)] = unit.code
    data[510:512] = b"\x55\xaa"
    return bytes(data)

