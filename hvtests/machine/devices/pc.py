"""The devices of the harness' PC and the ports where they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvtests.machine.devices.a20 import A20Gate, KeyboardController, SystemControlA
from hvtests.machine.devices.debug import AcpiPm1aControl, BochsShutdown, DebugConsole, DebugExit
from hvtests.machine.devices.pic import MASTER, SLAVE, Pic
from hvtests.machine.devices.post import PostPort
from hvtests.machine.devices.uart import Uart
from hvtests.machine.ports import Ports


@dataclass(frozen=True, slots=True)
class PcDevices:
    """What :func:`attach_pc` put on the ports, for whoever wants to look at or feed a device."""

    com1: Uart
    pic: Pic
    a20: A20Gate
    post: PostPort


def attach_pc(
    ports: Ports,
    *,
    on_serial: Callable[[bytes], None],
    on_debugcon: Callable[[bytes], None],
    on_debug_exit: Callable[[int], None],
    on_shutdown: Callable[[str], None],
    on_reset: Callable[[str], None],
    on_a20: Callable[[bool], None],
) -> PcDevices:
    """Attach every device of the PC to ``ports``.

    ``on_serial`` and ``on_debugcon`` get the bytes of COM1 and port 0xE9; ``on_debug_exit`` the value written to port
    0xF4; ``on_shutdown`` and ``on_reset`` a sentence that says how; ``on_a20`` each state of the gate (once at the
    start: enabled, as firmware leaves it).
    """
    com1, pic, post = Uart(on_serial), Pic(), PostPort()
    gate = A20Gate(on_a20)
    keyboard = KeyboardController(gate, on_reset)
    ports.attach(MASTER, 2, pic)
    ports.attach(SLAVE, 2, pic)
    ports.attach(0x60, 1, keyboard)
    ports.attach(0x64, 1, keyboard)
    ports.attach(0x80, 1, post)
    ports.attach(0x92, 1, SystemControlA(gate, on_reset))
    ports.attach(0xE9, 1, DebugConsole(on_debugcon))
    ports.attach(0xF4, 4, DebugExit(on_debug_exit), width=4)
    ports.attach(0x3F8, 8, com1)
    ports.attach(0x604, 2, AcpiPm1aControl(on_shutdown), width=2)
    ports.attach(0x8900, 1, BochsShutdown(on_shutdown))
    return PcDevices(com1, pic, gate, post)
