"""The I/O address space of the machine: which device answers at which port."""

from __future__ import annotations

from typing import Protocol

PORT_COUNT = 0x10000


class Device(Protocol):
    """What answers at a range of ports. ``size`` is 1, 2 or 4 bytes; values are unsigned and fit in it."""

    def port_read(self, port: int, size: int) -> int: ...

    def port_write(self, port: int, size: int, value: int) -> None: ...


class Ports:
    """A map from port to device. A read where nothing is attached gives all ones, a write there is lost,
    as on a PC's bus (SDM 1, 19.3; nobody drives the data lines).

    An access wider than the device takes, or one that runs out of its range, is split into single bytes, low
    address first, as the ISA bus does.
    """

    def __init__(self) -> None:
        # port -> (device, last port of its range, widest access)
        self._devices: dict[int, tuple[Device, int, int]] = {}

    def attach(self, first: int, count: int, device: Device, width: int = 1) -> None:
        """Let ``device`` answer at ports ``first`` .. ``first + count - 1``.

        ``width`` is the widest access in bytes that it is handed in one piece.
        Raises ValueError for a range outside the 64 Ki ports or one that is taken.
        """
        if count < 1 or first < 0 or first + count > PORT_COUNT:
            raise ValueError(f"ports {first:#x}..{first + count - 1:#x}: outside 0..0xffff")
        taken = [port for port in range(first, first + count) if port in self._devices]
        if taken:
            raise ValueError(f"port {taken[0]:#x}: taken by {type(self._devices[taken[0]][0]).__name__}")
        for port in range(first, first + count):
            self._devices[port] = (device, first + count - 1, width)

    def detach(self, first: int, count: int) -> None:
        """Leave ports ``first`` .. ``first + count - 1`` empty."""
        for port in range(first, first + count):
            self._devices.pop(port, None)

    def read(self, port: int, size: int) -> int:
        """Value of IN of ``size`` bytes (1, 2, 4) at ``port``."""
        found = self._devices.get(port)
        if found is not None:
            device, last, width = found
            if size == 1 or (size <= width and port + size - 1 <= last):
                return device.port_read(port, size) & ((1 << 8 * size) - 1)
        if size == 1:
            return 0xFF
        return sum(self.read((port + i) % PORT_COUNT, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes (1, 2, 4) at ``port``."""
        found = self._devices.get(port)
        if found is not None:
            device, last, width = found
            if size == 1 or (size <= width and port + size - 1 <= last):
                device.port_write(port, size, value & ((1 << 8 * size) - 1))
                return
        if size > 1:
            for i in range(size):
                self.write((port + i) % PORT_COUNT, 1, value >> 8 * i & 0xFF)
