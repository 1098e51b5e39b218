"""Physical memory of the machine, seen from outside the CPU."""

from __future__ import annotations

from typing import Protocol

from hvtests.machine.fabric import Fabric


class PhysicalMemory(Protocol):
    """What page walks and operand accesses need: :class:`Memory` in root mode, the memory behind its EPT in a guest."""

    def read(self, address: int, size: int) -> bytes: ...

    def fetch(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...

    def u32(self, address: int) -> int: ...

    def u64(self, address: int) -> int: ...

    def set_u32(self, address: int, value: int) -> None: ...

    def set_u64(self, address: int, value: int) -> None: ...


class Memory:
    """RAM from physical address 0 to `size`. Where there is none, reads give ones and writes are lost.

    A write from here makes the CPU forget code that it had translated from the same bytes. Accesses of several bytes
    need no alignment. Values are unsigned.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._ram = fabric.ram
        self._words = fabric.ram.cast("Q")
        self.size = len(fabric.ram)

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes from physical `address`."""
        if address + size <= self.size:
            return bytes(self._ram[address:address + size])
        inside = bytes(self._ram[address:self.size]) if address < self.size else b""
        return inside + b"\xff" * (size - len(inside))

    def fetch(self, address: int, size: int) -> bytes:
        """Code bytes: the same as `read`."""
        return self.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at physical `address`."""
        end = min(address + len(data), self.size)
        if address < end:
            self._ram[address:end] = data[:end - address]
            self._fabric.invalidate(address, end)

    def u8(self, address: int) -> int:
        return self._ram[address] if address < self.size else 0xFF

    def u16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        if not address & 7 and address < self.size:
            return self._words[address >> 3]
        return int.from_bytes(self.read(address, 8), "little")

    def set_u8(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(1, "little"))

    def set_u16(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(2, "little"))

    def set_u32(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(4, "little"))

    def set_u64(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(8, "little"))
