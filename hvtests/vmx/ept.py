"""Extended page tables: the walk of SDM 3C 29.3 [28.3], and guest memory as it is seen through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvtests.machine.memory import Memory
from hvtests.machine.paging import AccessFault
from hvtests.vmx.capabilities import CpuModel

READ, WRITE, EXECUTE = 1, 2, 4
ACCESSED, DIRTY, LARGE = 1 << 8, 1 << 9, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000
EPTP_AD = 1 << 6
EXECUTE_ONLY_CAP = 1
PAGE_2M_CAP, PAGE_1G_CAP = 1 << 16, 1 << 17
_MEMORY_TYPES = frozenset((0, 1, 4, 5, 6))
# Exit qualification of an EPT violation, SDM 3C table 28-7 [27-7]
QUALIFICATION_RIGHTS_SHIFT = 3
LINEAR_VALID, FINAL_ACCESS = 1 << 7, 1 << 8


class EptExit(AccessFault):
    """An access that EPT does not allow. `access`: READ, WRITE, EXECUTE bits of it; `rights`: of the translation;
    `walk`: the access was to a guest paging structure; `misconfigured`: the entries themselves are wrong; `log_full`:
    the page-modification log has no room.
    """

    def __init__(self, address: int, access: int, rights: int, *, misconfigured: bool = False,
                 log_full: bool = False) -> None:
        super().__init__(f"EPT: access {access} to guest-physical {address:#x}, rights {rights}")
        self.address = address
        self.access = access
        self.rights = rights
        self.misconfigured = misconfigured
        self.log_full = log_full
        self.walk = False


@dataclass(frozen=True, slots=True)
class Translation:
    """A guest-physical page: where it is, its size, its rights (READ | WRITE | EXECUTE), and where its entry stands."""

    base: int           # host-physical address of the page
    size: int
    rights: int
    entry_at: int
    entry: int


class Ept:
    """The walk of one EPTP. `memory` is host-physical memory.

    `log`: the page-modification log of the running guest, None without: told the guest-physical address of an access
    that needs a flag set, and whether that is a dirty flag; False where the access must not be made.
    """

    def __init__(self, memory: Memory, model: CpuModel, pointer: int) -> None:
        self._memory = memory
        self.pointer = pointer
        self.flags_used = bool(pointer & EPTP_AD)
        self.log: Callable[[int, bool], bool] | None = None
        self._root = pointer & ADDRESS
        self._reserved = model.physical_reserved & ADDRESS
        self._execute_only = bool(model.ept_vpid & EXECUTE_ONLY_CAP)
        self._large = {21: bool(model.ept_vpid & PAGE_2M_CAP), 30: bool(model.ept_vpid & PAGE_1G_CAP)}

    def walk(self, address: int, access: int) -> Translation:
        """Translate a guest-physical address for an access; sets EPT accessed and dirty flags where they are in use.

        Raises EptExit for a violation or a misconfiguration.
        """
        table, rights, path = self._root, READ | WRITE | EXECUTE, []
        for shift in (39, 30, 21, 12):
            at = table + (address >> shift & 511) * 8
            entry = self._memory.u64(at)
            rights &= entry
            if not entry & 7:
                raise EptExit(address, access, 0)
            leaf = shift == 12 or (entry & LARGE and shift < 39)
            if self._misconfigured(entry, shift, bool(leaf)):
                raise EptExit(address, access, rights, misconfigured=True)
            path.append((at, entry))
            if leaf:
                break
            table = entry & ADDRESS
        if access & ~rights:
            raise EptExit(address, access, rights)
        if self.flags_used:
            if self.log is not None:
                dirty = bool(access & WRITE and not entry & DIRTY)
                if (dirty or any(not entry & ACCESSED for _, entry in path)) and not self.log(address, dirty):
                    raise EptExit(address, access, rights, log_full=True)
            entry = self._mark(path, bool(access & WRITE))
        size = 1 << shift
        return Translation(entry & ADDRESS & -size, size, rights, at, entry)

    def _mark(self, path: list[tuple[int, int]], write: bool) -> int:
        entry = 0
        for level, (at, entry) in enumerate(path, 1):
            marks = ACCESSED | (DIRTY if write and level == len(path) else 0)
            if entry & marks != marks:
                self._memory.set_u64(at, entry | marks)
                entry |= marks
        return entry

    def _misconfigured(self, entry: int, shift: int, leaf: bool) -> bool:
        """SDM 3C 29.3.3.1 [28.3.3.1]."""
        if entry & 3 == WRITE or (entry & 7 == EXECUTE and not self._execute_only):
            return True
        if entry & self._reserved:
            return True
        if not leaf:
            return bool(entry & (0xF8 if shift == 39 else 0x78)) or bool(entry & LARGE)
        if shift > 12 and (not self._large[shift] or entry & ((1 << shift) - 1) & ADDRESS):
            return True
        return entry >> 3 & 7 not in _MEMORY_TYPES


class GuestMemory:
    """Guest-physical memory for accesses that the model makes on the guest's behalf.

    `u32`, `u64`, `set_u32` and `set_u64` are accesses to paging structures. All may raise EptExit.
    """

    def __init__(self, memory: Memory, ept: Ept) -> None:
        self._memory, self._ept = memory, ept
        self._walk_access = READ | WRITE if ept.flags_used else READ
        self._mark_access = READ | WRITE if ept.flags_used else WRITE

    def _at(self, address: int, access: int) -> int:
        found = self._ept.walk(address, access)
        return found.base | address & (found.size - 1)

    def _walk_at(self, address: int, access: int) -> int:
        try:
            return self._at(address, access)
        except EptExit as failure:
            failure.walk = True
            raise

    def read(self, address: int, size: int) -> bytes:
        return self._memory.read(self._at(address, READ), size)

    def fetch(self, address: int, size: int) -> bytes:
        """Code bytes."""
        return self._memory.read(self._at(address, EXECUTE), size)

    def write(self, address: int, data: bytes) -> None:
        self._memory.write(self._at(address, WRITE), data)

    def u32(self, address: int) -> int:
        return self._memory.u32(self._walk_at(address, self._walk_access))

    def u64(self, address: int) -> int:
        return self._memory.u64(self._walk_at(address, self._walk_access))

    def set_u32(self, address: int, value: int) -> None:
        self._memory.set_u32(self._walk_at(address, self._mark_access), value)

    def set_u64(self, address: int, value: int) -> None:
        self._memory.set_u64(self._walk_at(address, self._mark_access), value)
