"""How tests break one rule: a valid VMCS, a few named changes, and the rules expected to fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from generator.arch.controls import BITS, BY_NAME
from hvtests.model.valid_state import VMCS_POINTER, Mode, everything, valid_state
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.checks import EntryState

Change = Callable[[dict[str, int]], None]


def put(**values: int) -> Change:
    """Write fields."""
    return lambda vmcs: vmcs.update(values)


def flip(**masks: int) -> Change:
    """Invert bits of fields."""
    def change(vmcs: dict[str, int]) -> None:
        for name, mask in masks.items():
            vmcs[name] = vmcs.get(name, 0) ^ mask
    return change


def _control(name: str) -> tuple[str, int]:
    word, _, short = name.rpartition(".")
    (bit,) = [bit for bit in BITS if bit.name == short and word in ("", bit.word)]
    return BY_NAME[bit.word].field, bit.mask


def on(*names: str) -> Change:
    """Set controls; ``"EXIT.LOAD_IA32_PAT"`` where two words have the name."""
    def change(vmcs: dict[str, int]) -> None:
        for vmcs_field, mask in map(_control, names):
            vmcs[vmcs_field] = vmcs.get(vmcs_field, 0) | mask
    return change


def off(*names: str) -> Change:
    """Clear controls."""
    def change(vmcs: dict[str, int]) -> None:
        for vmcs_field, mask in map(_control, names):
            vmcs[vmcs_field] = vmcs.get(vmcs_field, 0) & ~mask
    return change


class Words:
    """`size` bytes of memory of which only some 32-bit words are not 0; beyond them all bits are 1."""

    def __init__(self, words: Mapping[int, int], size: int = 1 << 52) -> None:
        self.words, self.size = words, size

    def u32(self, address: int) -> int:
        """The word at a multiple of 4."""
        return self.words.get(address, 0) if address < self.size else 0xFFFF_FFFF

    def u64(self, address: int) -> int:
        """Two words."""
        return self.u32(address + 4) << 32 | self.u32(address)


CPUS: dict[str, Callable[[], CpuModel]] = {"full": CpuModel.skylake_x, "everything": everything,
                                           "default": CpuModel.default}


@dataclass(frozen=True)
class Break:
    """One way to break a rule: `before` and `also` name the rules that cannot but fail with it, before and after it."""

    rule: str
    changes: tuple[Change, ...]
    mode: Mode = Mode.LONG
    cpu: str = "full"
    without: tuple[str, ...] = ()
    memory: Mapping[int, int] = field(default_factory=dict)
    host_lma: bool = True
    also: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    @property
    def expected(self) -> list[str]:
        """Every rule that fails, in order."""
        return [*self.before, self.rule, *self.also]

    def values(self, cap: CpuModel) -> dict[str, int]:
        """The broken VMCS."""
        vmcs = valid_state(self.mode, cap)
        for change in self.changes:
            change(vmcs)
        return vmcs

    def state(self) -> EntryState:
        """The broken entry."""
        cap = CPUS[self.cpu]()
        if self.without:
            cap = cap.without(*self.without)
        return EntryState.of(self.values(cap), cap, Words(self.memory), vmcs_pointer=VMCS_POINTER,
                             host_lma=self.host_lma)


def broken(rule: str, *changes: Change, mode: Mode = Mode.LONG, cpu: str = "full", without: tuple[str, ...] = (),
           memory: Mapping[int, int] | None = None, host_lma: bool = True, also: tuple[str, ...] = (),
           before: tuple[str, ...] = ()) -> Break:
    """A `Break` with its changes written in a row."""
    return Break(rule, changes, mode, cpu, without, memory or {}, host_lma, also, before)
