"""One VMCS: its fields, its launch state, and the region of memory that it comes from and goes back to.

Field data lives in one buffer whose first part mirrors the engine's register block (:mod:`hvtests.machine.layout`),
so that most of the guest-state area is loaded and saved by copying; the other fields are 64-bit words behind it.
Access rights are kept twice: as software wrote them, and in the engine's form.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from generator.arch import vmcs as arch
from generator.arch.vmcs import Field, FieldType, FieldWidth
from hvtests.machine import layout as L
from hvtests.machine.cpu import access_from_flags, flags_from_access
from hvtests.machine.memory import Memory

if TYPE_CHECKING:
    from hvtests.vmx.prepared import Controls, HostState

SIZE: Final = 4096
REVISION_AT, ABORT_AT, DATA_AT = 0, 4, 8
SHADOW_INDICATOR: Final = 1 << 31       # in the word at REVISION_AT
_WORDS_AT = (L.STATE_END + 7) // 8
SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")


def _mirrored() -> dict[str, tuple[int, int]]:
    """Field name -> (index of the 64-bit word, 0) or (index of the 32-bit word, 1) in the mirror."""
    places = {
        "GUEST_RSP": (L.Q_RSP, 0), "GUEST_RIP": (L.Q_RIP, 0), "GUEST_RFLAGS": (L.Q_RFLAGS, 0),
        "GUEST_CR0": (L.Q_CR, 0), "GUEST_CR3": (L.Q_CR + 3, 0), "GUEST_CR4": (L.Q_CR + 4, 0),
        "GUEST_IA32_EFER": (L.Q_EFER, 0),
    }
    for number, name in enumerate((*SEGMENTS, "GDTR", "IDTR")):
        places[f"GUEST_{name}_BASE"] = L.q_base(number), 0
        places[f"GUEST_{name}_LIMIT"] = L.i_limit(number), 1
        if number < 8:
            places[f"GUEST_{name}_SELECTOR"] = L.i_selector(number), 1
    return places


_MIRRORED = _mirrored()
_OWN = [field for field in arch.FIELDS if field.name not in _MIRRORED]
# Field name -> (index, 1 if in the view of 32-bit words). Fields of their own are 64-bit words.
PLACES: Final[dict[str, tuple[int, int]]] = {
    **_MIRRORED, **{field.name: (_WORDS_AT + number, 0) for number, field in enumerate(_OWN)}}
WORD: Final[dict[str, int]] = {name: index for name, (index, narrow) in PLACES.items() if not narrow}
_DATA_SIZE = 8 * (_WORDS_AT + len(_OWN))
assert DATA_AT + _DATA_SIZE <= SIZE, "a VMCS outgrows its region"

# Behind the field data: words that the model keeps with a VMCS, shared with native code (hvtests.vmx.quick); for each
# field the address of the VMWRITE that last wrote it; one byte for each field that VMWRITE has changed since the last
# VM entry that passed its checks.
_STATE = _DATA_SIZE // 8
(QUICK, CHECK, RIGHTS_STALE, INTERCEPT, INTERCEPT_CR_DR, NESTED_ROOT, HFLAGS2, OPTIONS, HOST_BLOCK,
 IDENTITY) = range(_STATE, _STATE + 10)
WRITTEN_AT = 8 * (_STATE + 10)
DIRTY_AT = WRITTEN_AT + 8 * len(arch.FIELDS)
FIELD_NUMBER: Final = {field.name: number for number, field in enumerate(arch.FIELDS)}
_BUFFER_SIZE = DIRTY_AT + len(arch.FIELDS) + 7 & ~7
# A change of these can break no check but the ones that native code makes itself.
UNCHECKED: Final = frozenset(("GUEST_RIP", "GUEST_RSP"))

# CR0 bits that VM entry and VM exit leave alone: ET, NW, CD and the reserved ones (SDM 3C 27.3.2.1, 28.5.1)
CR0_KEPT: Final = 0xFFFF_FFFF_7FFA_FFD0

_MASKS = {FieldWidth.W16: 0xFFFF, FieldWidth.W32: 0xFFFF_FFFF, FieldWidth.W64: ~0, FieldWidth.NATURAL: ~0}
MASK64 = (1 << 64) - 1
ACCESS_RIGHTS: Final = tuple(f"GUEST_{name}_AR_BYTES" for name in SEGMENTS)
_ACCESS_RIGHTS_SET = frozenset(ACCESS_RIGHTS)
_ACCESS_WORDS = tuple((WORD[name], L.i_flags(number)) for number, name in enumerate(ACCESS_RIGHTS))


class Vmcs:
    """The VMCS whose region is at physical `address`.

    `q`, `i`, `b` are views of the field data and of the model's words behind it. `checked`: a VM entry has passed its
    checks. `controls` and `host` are set by the first VM entry. `shadow`: the region's shadow-VMCS indicator.
    """

    __slots__ = ("_buffer", "address", "b", "checked", "controls", "host", "i", "judged", "launched", "pointer", "q",
                 "shadow")
    controls: Controls
    host: HostState

    def __init__(self, address: int, data: bytes = b"") -> None:
        self.address = address
        self.launched = self.shadow = False
        self.checked = False
        self.judged = False     # hvtests.vmx.quick has looked at the controls and host state as they are
        self._buffer = (ctypes.c_char * _BUFFER_SIZE)()
        self.pointer = ctypes.addressof(self._buffer)
        self.b = memoryview(self._buffer).cast("B")
        self.q, self.i = self.b.cast("Q"), self.b.cast("I")
        self.b[:len(data)] = data[:_DATA_SIZE]
        self.q[IDENTITY] = address

    @classmethod
    def load(cls, memory: Memory, address: int) -> Vmcs:
        """The VMCS that a region of memory holds: zeros in a fresh one, what VMCLEAR left there otherwise."""
        vmcs = cls(address, memory.read(address + DATA_AT, _DATA_SIZE))
        vmcs.shadow = bool(memory.u32(address + REVISION_AT) & SHADOW_INDICATOR)
        return vmcs

    def store(self, memory: Memory) -> None:
        """Write the field data back to the region, as VMCLEAR does."""
        self._freshen()
        memory.write(self.address + DATA_AT, bytes(self.b[:_DATA_SIZE]))

    # -- fields ----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """A field's value by name, full width."""
        if self.q[RIGHTS_STALE] and name in _ACCESS_RIGHTS_SET:
            self._freshen()
        index, narrow = PLACES[name]
        return self.i[index] if narrow else self.q[index]

    def set(self, name: str, value: int) -> None:
        """Store a field from inside the CPU: not a VMWRITE, so it does not become dirty."""
        field = arch.BY_NAME[name]
        value &= _MASKS[field.width] & MASK64
        index, narrow = PLACES[name]
        if narrow:
            self.i[index] = value
            return
        if name in _ACCESS_RIGHTS_SET:
            self._freshen()
            self.i[L.i_flags(ACCESS_RIGHTS.index(name))] = flags_from_access(value)
        self.q[index] = value

    def vmread(self, field: Field, high: bool) -> int:
        """VMREAD of a field that :func:`generator.arch.vmcs.decode` found."""
        value = self.read(field.name)
        return value >> 32 if high else value

    def vmwrite(self, field: Field, high: bool, value: int, by: int = 0) -> None:
        """VMWRITE, at linear address `by`, to a field that :func:`generator.arch.vmcs.decode` found."""
        if field.width is FieldWidth.W64 and high:
            value = self.read(field.name) & 0xFFFF_FFFF | (value & 0xFFFF_FFFF) << 32
        self.set(field.name, value)
        number = FIELD_NUMBER[field.name]
        self.q[WRITTEN_AT // 8 + number] = by
        self.b[DIRTY_AT + number] = 1
        if field.name not in UNCHECKED:
            self.q[CHECK] = 1

    def written_by(self, name: str) -> int | None:
        """Linear address of the VMWRITE that last wrote a field; None if none has since VMPTRLD of a cleared VMCS."""
        return self.q[WRITTEN_AT // 8 + FIELD_NUMBER[name]] or None

    def dirty(self) -> frozenset[str]:
        """Names of the fields that VMWRITE changed since the last VM entry that passed its checks."""
        return _names(bytes(self.b[DIRTY_AT:]))

    def pass_checks(self) -> None:
        """A VM entry has passed its checks."""
        self.checked = True
        self.q[CHECK] = 0
        self.b[DIRTY_AT:] = _CLEAN

    def _freshen(self) -> None:
        if self.q[RIGHTS_STALE]:
            self.q[RIGHTS_STALE] = 0
            for word, flags in _ACCESS_WORDS:
                self.q[word] = access_from_flags(self.i[flags])


_CLEAN = bytes(_BUFFER_SIZE - DIRTY_AT)


@lru_cache(maxsize=4096)
def _names(flags: bytes) -> frozenset[str]:
    return frozenset(field.name for field, flag in zip(arch.FIELDS, flags, strict=False) if flag)


def is_read_only(field: Field) -> bool:
    """Whether the field is VM-exit information."""
    return field.type is FieldType.READ_ONLY
