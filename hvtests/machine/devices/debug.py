"""Ports that exist for whoever debugs a kernel: a console without a UART, and ways to end the run.

Each is one that an emulator has: 0xE9 (Bochs, QEMU's isa-debugcon), 0xF4 (QEMU's isa-debug-exit), 0x8900 (Bochs),
PM1a_CNT at 0x604 (ACPI of QEMU's pc and q35 machines).
"""

from __future__ import annotations

from collections.abc import Callable

SHUTDOWN_WORD = b"Shutdown"
ACPI_SLP_EN = 0x2000   # PM1_CNT bit 13 (ACPI 6.4, 4.8.3.2.1)
ACPI_SLP_TYP = 0x1C00  # bits 12:10; S5 is type 0 on QEMU
ACPI_SCI_EN = 0x0001


class DebugConsole:
    """Port 0xE9: each byte written goes to ``sink``; a read gives 0xE9, by which software finds the port."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0xE9

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self._sink(bytes((value,)))


class DebugExit:
    """Port 0xF4: a write of ``code`` ends the run with it (QEMU's process would end with ``code << 1 | 1``)."""

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self._on_exit(value)


class BochsShutdown:
    """Port 0x8900: the bytes of "Shutdown" in order end the run; any other byte begins again."""

    def __init__(self, on_shutdown: Callable[[str], None]) -> None:
        self._on_shutdown = on_shutdown
        self._matched = 0

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        if value == SHUTDOWN_WORD[self._matched]:
            self._matched += 1
        else:
            self._matched = int(value == SHUTDOWN_WORD[0])
        if self._matched == len(SHUTDOWN_WORD):
            self._matched = 0
            self._on_shutdown("Shutdown written to port 0x8900")


class AcpiPm1aControl:
    """PM1a_CNT, 16 bits wide: SLP_EN with sleep type 0 is a soft power-off."""

    def __init__(self, on_shutdown: Callable[[str], None], base: int = 0x604) -> None:
        self.base = base
        self.value = ACPI_SCI_EN
        self._on_shutdown = on_shutdown

    def port_read(self, port: int, size: int) -> int:
        return self.value >> 8 * (port - self.base) & ((1 << 8 * size) - 1)

    def port_write(self, port: int, size: int, value: int) -> None:
        shift = 8 * (port - self.base)
        mask = ((1 << 8 * size) - 1) << shift
        new = (self.value & ~mask) | (value << shift & mask)
        self.value = new & ~ACPI_SLP_EN | ACPI_SCI_EN  # SLP_EN is write-only
        if new & ACPI_SLP_EN and new & ACPI_SLP_TYP == 0:
            self._on_shutdown("ACPI S5 by port 0x604")
