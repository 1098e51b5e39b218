"""What went wrong in VMX, put into words at the moment it happens, while all that led to it can still be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hvtests.vmx.checks import HOST_LMA, EntryState, Failure
from hvtests.vmx.diagnose import explain_failure, explain_instruction_error
from hvtests.vmx.vmcs import Vmcs

KEPT: Final = 32    # of each kind: software that fails for ever fails for the same reason
Words = tuple[str, ...]


def address_in_words(address: int) -> str:
    """A place of which nothing but its address is known."""
    return f"{address:#x}"


class Complaints:
    """`entries`: failed VM entries, each several lines; `instructions`: VMX instructions that failed, a line each.

    `place` tells in words where a linear address of the host is: a template's line, a symbol. The first KEPT of each
    kind are kept; `failed_entries` and `failed_instructions` count all.
    """

    def __init__(self, place: Callable[[int], str] = address_in_words) -> None:
        self.place = place
        self.entries: list[Words] = []
        self.instructions: list[str] = []
        self.failed_entries = 0
        self.failed_instructions = 0

    def entry(self, vmcs: Vmcs, failure: Failure, state: EntryState) -> None:
        """A VM entry broke a rule."""
        self.failed_entries += 1
        if len(self.entries) == KEPT:
            return

        def written_at(name: str) -> str | None:
            by = None if name == HOST_LMA else vmcs.written_by(name)
            return None if by is None else self.place(by)

        self.entries.append(tuple(explain_failure(failure, state, written_at)))

    def msr_loading(self, vmcs: Vmcs, number: int) -> None:
        """A VM entry could not load an MSR: exit reason 34 (SDM 3C 27.4)."""
        self.failed_entries += 1
        if len(self.entries) < KEPT:
            where = vmcs.read("VM_ENTRY_MSR_LOAD_ADDR") + 16 * (number - 1)
            self.entries.append((
                f"VM entry failed (reason 34): entry {number} of the VM-entry MSR-load area, at {where:#x}, cannot be "
                "loaded (SDM 3C 27.4)",))

    def instruction(self, name: str, address: int, error: int | None) -> None:
        """A VMX instruction at linear `address` ended in VMfailValid with `error`, or (None) in VMfailInvalid."""
        self.failed_instructions += 1
        if len(self.instructions) < KEPT:
            why = "VMfailInvalid" if error is None else explain_instruction_error(error)
            self.instructions.append(f"{name} at {self.place(address)}: {why}")
