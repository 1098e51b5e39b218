"""The A20 gate and the CPU reset line: port 0x92 (system control port A) and the keyboard controller's output port."""

from __future__ import annotations

from collections.abc import Callable

FAST_RESET = 0x01
FAST_A20 = 0x02

# Keyboard controller (8042) commands at port 0x64.
READ_OUTPUT_PORT = 0xD0
WRITE_OUTPUT_PORT = 0xD1
SELF_TEST = 0xAA
PULSE_RESET = 0xFE
OUTPUT_PORT_NOT_RESET = 0x01
OUTPUT_PORT_A20 = 0x02
STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM_FLAG = 0x04  # self-test passed; input buffer (bit 1) is always empty: the controller is never busy


class A20Gate:
    """The line itself, switched by both devices below. ``on_change`` hears each change."""

    def __init__(self, on_change: Callable[[bool], None], enabled: bool = True) -> None:
        self._on_change = on_change
        self._enabled = enabled
        on_change(enabled)

    @property
    def enabled(self) -> bool:
        """Whether address bit 20 reaches memory."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value != self._enabled:
            self._enabled = value
            self._on_change(value)


class SystemControlA:
    """Port 0x92: bit 1 is A20, a 0 to 1 change of bit 0 resets the CPU."""

    def __init__(self, gate: A20Gate, on_reset: Callable[[str], None]) -> None:
        self._gate = gate
        self._on_reset = on_reset
        self._value = 0

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return self._value & ~FAST_A20 | (FAST_A20 if self._gate.enabled else 0)

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        reset = value & ~self._value & FAST_RESET
        self._value = value
        self._gate.enabled = bool(value & FAST_A20)
        if reset:
            self._on_reset("CPU reset by port 0x92")


class KeyboardController:
    """Ports 0x60 and 0x64 as far as A20 and reset need them; no keyboard is plugged in."""

    def __init__(self, gate: A20Gate, on_reset: Callable[[str], None]) -> None:
        self._gate = gate
        self._on_reset = on_reset
        self._answer: int | None = None
        self._expects_output_port = False

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        if port == 0x64:
            return STATUS_SYSTEM_FLAG | (STATUS_OUTPUT_FULL if self._answer is not None else 0)
        value, self._answer = self._answer, None
        return value or 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        if port == 0x60:
            if self._expects_output_port:
                self._expects_output_port = False
                self._gate.enabled = bool(value & OUTPUT_PORT_A20)
                if not value & OUTPUT_PORT_NOT_RESET:
                    self._on_reset("CPU reset by the keyboard controller")
            return
        self._expects_output_port = value == WRITE_OUTPUT_PORT
        if value == READ_OUTPUT_PORT:
            self._answer = OUTPUT_PORT_NOT_RESET | (OUTPUT_PORT_A20 if self._gate.enabled else 0)
        elif value == SELF_TEST:
            self._answer = 0x55
        elif value == PULSE_RESET:
            self._on_reset("CPU reset by the keyboard controller")
