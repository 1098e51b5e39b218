"""What a run leaves behind: every VM exit and every injected event, as many of them as were asked for."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, overload

WORDS: Final = 6                # 64-bit words of one record
ALL: Final = 1 << 22            # what "all" means: 192 MiB of address space, used as it fills


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """One VM exit, or failed VM entry (reason with bit 31)."""

    vmcs: int                # physical address of the VMCS
    reason: int              # VM_EXIT_REASON, 32 bits
    qualification: int
    rip: int                 # GUEST_RIP as saved
    instruction_length: int  # 0 where the exit has none
    interruption_info: int


@dataclass(frozen=True, slots=True)
class Injection:
    """One event injected by VM entry."""

    vmcs: int
    interruption_info: int
    error_code: int


class ExitLog(Sequence[ExitRecord]):
    """The last `limit` exits, oldest first (None: the last four million; 0: none), and `total` of all.

    Kept in a ring that native code writes too: `start` and `end` are its addresses, `cursor` those of the next record.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = ALL if limit is None else limit
        slots = max(self.limit, 1)      # native code always writes somewhere
        self._memory = mmap.mmap(-1, slots * WORDS * 8)
        self._words = memoryview(self._memory).cast("Q")
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.end = self.start + slots * WORDS * 8
        self.state = memoryview(bytearray(16)).cast("Q")     # address of the next record, number of all exits
        self.state[0] = self.start

    @property
    def total(self) -> int:
        """How many exits there were."""
        return self.state[1]

    def use_state(self, state: memoryview) -> None:
        """Keep cursor and total in two words that native code shares."""
        state[0], state[1] = self.state[0], self.state[1]
        self.state = state

    def add(self, *row: int) -> None:
        """Append one exit: the fields of ExitRecord in order."""
        state = self.state
        state[1] += 1
        at = state[0] - self.start >> 3
        for word in row:
            self._words[at] = word
            at += 1
        following = state[0] + WORDS * 8
        state[0] = self.start if following == self.end else following

    def __len__(self) -> int:
        return min(self.total, self.limit)

    def _record(self, index: int) -> ExitRecord:
        first = self.total - len(self)
        at = (first + index) % self.limit * WORDS
        return ExitRecord(*self._words[at:at + WORDS])

    @overload
    def __getitem__(self, index: int) -> ExitRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExitRecord]: ...
    def __getitem__(self, index: int | slice) -> ExitRecord | list[ExitRecord]:
        if isinstance(index, slice):
            return [self._record(each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._record(index % len(self))

    def __iter__(self) -> Iterator[ExitRecord]:
        return (self._record(index) for index in range(len(self)))
