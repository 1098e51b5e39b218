"""EPT in the engine: its nested page tables as a shadow of the guest's EPT, filled page by page when first touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.paging import walk
from hvtests.machine.restart import ACCESS_FETCH, ACCESS_STORE, reads_and_writes
from hvtests.machine.stop import unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.ept import ADDRESS, EXECUTE, READ, WRITE, Ept, EptExit, GuestMemory, Translation
from hvtests.vmx.vmcs import WORD

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

_PRESENT_USER_ACCESSED_DIRTY = 0x65     # what the engine would set itself
_RW, _LARGE = 2, 1 << 7
_PAGES_FROM = L.NESTED_ROOT_AT
_ADDRESS = 0x000F_FFFF_FFFF_F000
PML_ENTRIES = 512
_PML_INDEX = WORD["GUEST_PML_INDEX"]


class Shadow:
    """The nested page tables that stand for one EPTP."""

    def __init__(self, ept: Ept, memory: GuestMemory, root: int) -> None:
        self.ept, self.memory, self.root = ept, memory, root
        self.plain: set[tuple[int, int]] = set()     # (host page, its size) filled with read and execute permission
        self.marked: set[tuple[int, int]] = set()    # the others
        self.no_fetch: bytearray | None = None       # bit maps of host pages, once there are any
        self.fetch_only: bytearray | None = None


class ShadowTables:
    """Every EPTP's nested page tables, in the engine's scratch memory."""

    def __init__(self, vmx: Vmx) -> None:
        self._vmx, self._machine = vmx, vmx.machine
        self._fabric = vmx.machine.fabric
        self._shadows: dict[int, Shadow] = {}
        self._next = _PAGES_FROM
        self._restricting = False

    def invalidate(self, pointer: int | None) -> None:
        """INVEPT: forget what was derived from one EPTP (None: from all); it goes by bits 51:12 (SDM 3C 29.4.3.1)."""
        if pointer is None or any(not (pointer ^ known) & ADDRESS for known in self._shadows):
            # Pages are not reused singly: dropping all is as correct, and INVEPT is rare.
            self._shadows.clear()
            self._vmx.quick.withdraw()
            self._next = _PAGES_FROM

    def use(self, pointer: int) -> Shadow:
        """Make the engine translate through the EPT that `pointer` (an EPTP) names."""
        shadow = self._shadows.get(pointer)
        if shadow is None:
            if self._next >= L.SCRATCH_SIZE:
                self.invalidate(None)
            ept = Ept(self._machine.memory, self._vmx.model, pointer)
            shadow = Shadow(ept, GuestMemory(self._machine.memory, ept), self._page())
            self._shadows[pointer] = shadow
        shadow.ept.log = self._log if self._vmx.controls.proc2 & c.ENABLE_PML else None
        q = self._fabric.q
        q[L.Q_NESTED_CR3] = L.SCRATCH + shadow.root
        if shadow.no_fetch is not None:
            self._fabric.restrict_pages(shadow.no_fetch, shadow.fetch_only)
            self._restricting = True
        return shadow

    def _log(self, address: int, dirty: bool) -> bool:
        """Page-modification logging, SDM 3C 29.3.6 [28.3.6]: the index must be good whichever flag is set."""
        vmx, vmcs = self._vmx, self._vmx.guest
        assert vmcs is not None
        index = vmcs.q[_PML_INDEX]
        if index >= PML_ENTRIES:
            return False
        if dirty:
            self._machine.memory.set_u64(vmx.controls.pml_address + 8 * index, address & ~0xFFF)
            vmcs.q[_PML_INDEX] = index - 1 & 0xFFFF
        return True

    def leave(self) -> None:
        """VM exit, or another EPTP: root mode has no restricted pages."""
        if self._restricting:
            self._fabric.restrict_pages(None, None)
            self._restricting = False

    def _page(self) -> int:
        if self._next >= L.SCRATCH_SIZE:
            raise _Full
        page = self._next
        self._next += 0x1000
        self._fabric.scratch[page:page + 0x1000] = bytes(0x1000)
        return page

    def fill(self, shadow: Shadow, address: int, access: int) -> None:
        """Let the engine make an access that it lacked the translation for. Raises EptExit if EPT forbids it."""
        found = shadow.ept.walk(address, access)
        writable = found.rights & WRITE and (not shadow.ept.flags_used or found.entry & 1 << 9)
        try:
            self._set(shadow, address, found, bool(writable))
        except _Full:
            self.invalidate(None)
            self._vmx.shadow = self.use(shadow.ept.pointer)
            self._fabric.flush()
            self._set(self._vmx.shadow, address, found, bool(writable))

    def _set(self, shadow: Shadow, address: int, found: Translation, writable: bool) -> None:
        words = self._fabric.scratch_q
        large = found.size > 0x1000
        page = 1 << 21 if large else 0x1000
        target = found.base | address & (found.size - 1) & -page
        if target >= self._machine.memory.size:
            raise unmodelled(f"EPT maps guest-physical {address:#x} to {target:#x}, where the machine has no memory")
        table = shadow.root
        for shift in (39, 30) if large else (39, 30, 21):
            at = (table >> 3) + (address >> shift & 511)
            entry = words[at]
            if not entry & 1 or entry & _LARGE:
                entry = words[at] = L.SCRATCH + self._page() | _PRESENT_USER_ACCESSED_DIRTY | _RW
            table = (entry & _ADDRESS) - L.SCRATCH
        words[(table >> 3) + (address >> (21 if large else 12) & 511)] = (
            target | _PRESENT_USER_ACCESSED_DIRTY | (_RW if writable else 0) | (_LARGE if large else 0))
        self._restrict(shadow, target, page, found.rights)

    def _restrict(self, shadow: Shadow, target: int, page: int, rights: int) -> None:
        """The engine's nested page tables know no execute-only page, and with an execute-disabled one it crashes where
        guest page tables lie in it. Its TLB fill takes such rights away instead, by host page."""
        plain = rights & (READ | EXECUTE) == READ | EXECUTE
        mark = target, page
        if mark in (shadow.plain if plain else shadow.marked):
            return
        others = shadow.marked if plain else shadow.plain
        if any(base < target + page and target < base + size for base, size in others):
            raise unmodelled(f"EPT maps host page {target:#x} twice, with different read or execute permission")
        if plain:
            shadow.plain.add(mark)
            return
        shadow.marked.add(mark)
        size = self._machine.memory.size >> 15
        if shadow.no_fetch is None or shadow.fetch_only is None:
            shadow.no_fetch, shadow.fetch_only = bytearray(size), bytearray(size)
            self._vmx.quick.withdraw()
            self._fabric.restrict_pages(shadow.no_fetch, shadow.fetch_only)
            self._restricting = True
        pages = shadow.fetch_only if rights & EXECUTE else shadow.no_fetch
        for number in range(target >> 12, target + page >> 12):
            pages[number >> 3] |= 1 << (number & 7)
        self._fabric.flush()

    def explain(self, shadow: Shadow, address: int) -> EptExit:
        """The EPT violation or misconfiguration of the access that the engine just tried, as the manual describes it.

        The engine treats every access to a guest paging structure as a write; the walk is made again as it should be.
        """
        fabric, cpu = self._fabric, self._machine.cpu
        access = fabric.fault_access
        both = access != ACCESS_FETCH and reads_and_writes(cpu.code(), cpu.code_bits)
        cpu.linear = fabric.fault_linear
        try:
            physical = walk(cpu.regime(), shadow.memory, cpu.linear, write=both or access == ACCESS_STORE,
                            fetch=access == ACCESS_FETCH, user=cpu.cpl == 3)
            shadow.ept.walk(physical, READ | WRITE if both else (READ, WRITE, EXECUTE)[access])
        except EptExit as failure:
            return failure
        raise unmodelled(f"guest page tables at guest-physical {address:#x} in memory that EPT makes read-only, "
                         "without accessed and dirty flags for EPT")


class _Full(Exception):
    """No scratch page is left."""
