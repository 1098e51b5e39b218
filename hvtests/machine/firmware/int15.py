"""INT 15h: memory sizes, the memory map, A20, block moves (Ralf Brown's list; ACPI 6.4, 15.1 for E820)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from hvtests.machine.clock import TSC_HZ, Clock
from hvtests.machine.devices.a20 import A20Gate
from hvtests.machine.e820 import EXTENDED, RegionType, memory_map
from hvtests.machine.firmware.call import Call

SMAP = 0x534D4150
E820_ENTRY = struct.Struct("<QQI")
UNSUPPORTED = 0x86
SIXTEEN_MIB = 16 << 20
MICROSECOND = TSC_HZ // 1_000_000


class SystemServices:
    """Services of a machine with ``ram`` bytes of RAM."""

    def __init__(self, ram: int, gate: A20Gate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._map = memory_map(ram)
        self._top = next(r.base + r.length for r in self._map if r.base == EXTENDED and r.type is RegionType.RAM)
        self._by_ax: Mapping[int, Callable[[Call], None]] = {
            0x2400: self._a20,
            0x2401: self._a20,
            0x2402: self._a20_status,
            0x2403: self._a20_support,
            0xE801: self._sizes,
            0xE820: self._entry,
        }
        self._by_ah: Mapping[int, Callable[[Call], None]] = {
            0x86: self._wait,
            0x87: self._move,
            0x88: self._extended_size,
        }

    def __call__(self, call: Call) -> None:
        service = self._by_ax.get(call.ax) or self._by_ah.get(call.ah)
        if service is None:
            call.fail(UNSUPPORTED)
        else:
            service(call)

    def _entry(self, call: Call) -> None:
        index = call.ebx
        if call.edx != SMAP or call.ecx < E820_ENTRY.size or index >= len(self._map):
            call.fail(UNSUPPORTED)
            return
        region = self._map[index]
        call.memory.write(call.es + call.di, E820_ENTRY.pack(region.base, region.length, region.type))
        call.eax, call.ecx = SMAP, E820_ENTRY.size
        call.ebx = (index + 1) % len(self._map)
        call.succeed()

    def _sizes(self, call: Call) -> None:
        call.ax = call.cx = (min(self._top, SIXTEEN_MIB) - EXTENDED) >> 10
        call.bx = call.dx = max(0, self._top - SIXTEEN_MIB) >> 16
        call.succeed()

    def _extended_size(self, call: Call) -> None:
        call.ax = min((self._top - EXTENDED) >> 10, 0xFFFF)
        call.succeed()

    def _a20(self, call: Call) -> None:
        self._gate.enabled = bool(call.al)
        call.ah = 0
        call.succeed()

    def _a20_status(self, call: Call) -> None:
        call.ax = int(self._gate.enabled)
        call.succeed()

    def _a20_support(self, call: Call) -> None:
        call.ah = 0
        call.bx = 3  # by the keyboard controller and by port 92h
        call.succeed()

    def _wait(self, call: Call) -> None:
        self._clock.add((call.cx << 16 | call.dx) * MICROSECOND)
        call.succeed()

    def _move(self, call: Call) -> None:
        """Copies CX words between the segments of two descriptors in the table at ES:SI."""
        source, target = (_descriptor_base(call, index) for index in (2, 3))
        call.memory.write(target, call.memory.read(source, call.cx * 2))
        call.ah = 0
        call.succeed()


def _descriptor_base(call: Call, index: int) -> int:
    low, middle, high = struct.unpack("<xxHBxxB", call.memory.read(call.es + call.si + 8 * index, 8))
    return int(low | middle << 16 | high << 24)
