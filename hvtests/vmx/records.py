"""What a run leaves behind: every VM exit and every injected event, as many of them as were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload


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
    """The last `limit` exits, oldest first (None: all of them; 0: none), and `total` of all."""

    def __init__(self, limit: int | None) -> None:
        self._rows: deque[tuple[int, int, int, int, int, int]] = deque(maxlen=limit)
        self.total = 0

    def add(self, *row: int) -> None:
        """Append one exit: the fields of ExitRecord in order."""
        self.total += 1
        self._rows.append(row)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ExitRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExitRecord]: ...
    def __getitem__(self, index: int | slice) -> ExitRecord | list[ExitRecord]:
        if isinstance(index, slice):
            return [ExitRecord(*row) for row in list(self._rows)[index]]
        return ExitRecord(*self._rows[index])

    def __iter__(self) -> Iterator[ExitRecord]:
        return (ExitRecord(*row) for row in list(self._rows))
