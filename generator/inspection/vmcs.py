"""The rows that fill a VMCS, read back from the image's bytes, each value in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from generator import records, vmcs_init
from generator.arch import controls, cr, events, msrs, vmcs
from generator.arch.qualification_bits import VMCS_LAYOUTS
from generator.errors import ImageFileError
from generator.inspection.paging import Read

Names = Callable[[int], str]   # the name of an address, or ""
_ROWS_MAX = 512
_ADDRESSES = ("IO_BITMAP_A", "IO_BITMAP_B", "MSR_BITMAP", "EPT_POINTER", "HOST_CR3", "HOST_RSP", "HOST_RIP")
_CONTROLS = {word.field: word for word in controls.WORDS}

# What the running machine adds to a row's value, by the row's operation (templates/vmx/vmcs.asm.j2).
OPERATIONS: Mapping[str, str] = MappingProxyType({
    "literal":   "",
    "control":   "",  # (wanted | must-be-1) & may-be-1: said once, in the title
    "guest_cr0": "and what IA32_VMX_CR0_FIXED0 demands, but for PE and PG",
    "guest_cr4": "and what IA32_VMX_CR4_FIXED0 demands",
    "eptp":      "and accessed and dirty flags where IA32_VMX_EPT_VPID_CAP offers them",
    "timer":     "TSC ticks, divided by 2^IA32_VMX_MISC[4:0]",
    "host_cr0":  "CR0 as it is then",
    "host_cr4":  "CR4 as it is then",
    "host_msr":  "the MSR's value as it is then",
    "host_rip":  "the exit stub's address",
})
_TAKEN_THEN = ("host_cr0", "host_cr4", "host_rip")  # the row's own value has no meaning
_REGISTERS = {
    "CR0": "CR0_", "CR4": "CR4_", "EFER": "EFER_", "RFLAGS": "RFLAGS_",
}


@dataclass(frozen=True, slots=True)
class InitialValue:
    """One VMWRITE that the image makes: ``value`` is None where only the running machine has it."""

    field: vmcs.Field
    operation: str
    value: int | None
    words: str


def initial_values(read: Read, tables: list[int], name_of: Names, where: str) -> list[InitialValue]:
    """The rows of ``tables`` (addresses), in the order of the fields' encodings. ImageFileError for what is no row."""
    values = [value for table in tables for value in _rows(read, table, name_of, where)]
    return sorted(values, key=lambda value: (value.field.type, value.field.width, value.field.index))


def _rows(read: Read, table: int, name_of: Names, where: str) -> list[InitialValue]:
    size = records.VMCS_ROW.size
    values: list[InitialValue] = []
    for number in range(_ROWS_MAX):
        row: Any = records.VMCS_ROW.view(read(table + number * size, size))
        if row.operation >= len(vmcs_init.OPERATIONS):
            return values
        decoded = vmcs.decode(row.field)
        if decoded is None:
            raise ImageFileError(f"the VMCS rows at {table:#x} name a field {row.field:#x} that does not exist: "
                                 "does the map belong to this image?", where)
        operation = vmcs_init.OPERATIONS[row.operation]
        value = None if operation in _TAKEN_THEN else int(row.value)
        values.append(InitialValue(decoded[0], operation, value, _words(read, decoded[0], operation, value, name_of)))
    raise ImageFileError(f"the VMCS rows at {table:#x} have no end", where)


def _words(read: Read, field: vmcs.Field, operation: str, value: int | None, name_of: Names) -> str:
    if value is None:
        return ""
    if operation == "control":
        return _control_words(read, field, value)
    if operation == "host_msr":
        msr = msrs.BY_ADDRESS.get(value)
        return msr.name if msr else "an MSR that hvforge does not know"
    if field.name == "EXCEPTION_BITMAP":
        return " ".join(vector.mnemonic for vector in events.EXCEPTIONS if value >> vector.number & 1)
    for part, prefix in _REGISTERS.items():
        if field.name.endswith((f"_{part}", f"_IA32_{part}")) and field.type is vmcs.FieldType.GUEST:
            return _bits(prefix, value)
    if field.name.startswith(("CR0_", "CR4_")):
        return _bits(field.name[:4], value) if value.bit_count() < 32 else f"all but {_bits(field.name[:4], ~value)}"
    if field.name in VMCS_LAYOUTS and value and field.name != "EPT_POINTER":
        return _layout_words(field.name, value)
    if field.name in _ADDRESSES or (field.name.startswith("HOST_") and field.name.endswith("_BASE") and value):
        return name_of(value & ~0xFFF if field.name == "EPT_POINTER" else value)
    return ""


def _bits(prefix: str, value: int) -> str:
    return " ".join(
        name.removeprefix(prefix) for name, mask in vars(cr).items()
        if name.startswith(prefix) and isinstance(mask, int) and mask > 0 and mask.bit_count() == 1 and value & mask
    )


def _layout_words(name: str, value: int) -> str:
    words = []
    for part in VMCS_LAYOUTS[name]:
        found = part.value(value)
        if part.low == part.high:
            words += [part.name] * found
        elif found:
            words.append(f"{part.name}={found:#x}" if found > 9 else f"{part.name}={found}")
    return " ".join(words)


def _control_words(read: Read, field: vmcs.Field, at: int) -> str:
    """The wanted bits of the control row at ``at`` by name."""
    row: Any = records.CONTROL_ROW.view(read(at, records.CONTROL_ROW.size))
    word = _CONTROLS.get(field.name)
    if word is None:
        return f"the field is no control word, but has a row of controls at {at:#x}"
    required, optional = control_names(word, row.required), control_names(word, row.optional)
    msr = msrs.BY_ADDRESS.get(row.msr)
    asked = msr.name if msr else f"MSR {row.msr:#x}"
    wrong = "" if asked in (word.msr, word.true_msr) else f" (not this word's: {word.true_msr or word.msr})"
    return ", ".join([*required, *(f"{name} where offered" for name in optional)]) + f"; asks {asked}{wrong}"


def control_names(word: controls.ControlWord, value: int) -> list[str]:
    """Names of the bits of ``value``; a bit without a name as ``bit N``."""
    names = {bit.bit: bit.name for bit in word.bits}
    return [names.get(bit, f"bit {bit}") for bit in range(word.width) if value >> bit & 1]
