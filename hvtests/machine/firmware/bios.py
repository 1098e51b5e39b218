"""A tiny BIOS. Each interrupt vector points at a stub in ROM that writes a port; the service behind it is Python.

Only what boot loaders use is there. An interrupt for which nothing is registered returns at once, as in a PC's BIOS.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from hvtests.machine import layout as L
from hvtests.machine.clock import TSC_HZ, Clock
from hvtests.machine.cpu import Cpu, Mode
from hvtests.machine.devices.a20 import A20Gate
from hvtests.machine.devices.disk import Disk
from hvtests.machine.e820 import EBDA, EXTENDED, ROM
from hvtests.machine.firmware.call import ZF, Call
from hvtests.machine.firmware.int13 import DiskServices
from hvtests.machine.firmware.int15 import SystemServices
from hvtests.machine.memory import Memory
from hvtests.machine.ports import Ports
from hvtests.machine.stop import Stop, StopKind, StopRun

TRAP_PORT = 0xB2             # the APM command port of PC chipsets: firmware's own, never a guest's
STUBS = 0xE000               # offset in segment F000; stub n is 4 bytes at STUBS + 4 * n
STUB = bytes((0xE6, TRAP_PORT, 0xCF))  # out TRAP_PORT, al; iret
RESET_VECTOR = 0xFFFF0

BDA = 0x400                  # BIOS data area; offsets in it:
BDA_COM1, BDA_EBDA, BDA_EQUIPMENT, BDA_MEMORY_KIB, BDA_VIDEO_MODE, BDA_COLUMNS, BDA_DISKS = (
    0x00, 0x0E, 0x10, 0x13, 0x49, 0x4A, 0x75)  # fmt: skip
EQUIPMENT = 0x0226           # one serial port, 80x25 colour text, FPU
TICKS_PER_DAY = 0x1800B0     # of the timer: 1193182 / 65536 a second

# CPU exceptions that no interrupt line shares a vector with, and those whose line (IRQ 4, 5) nothing here drives.
EXCEPTIONS = {0x00: "#DE", 0x06: "#UD", 0x07: "#NM", 0x0C: "#SS", 0x0D: "#GP"}


class Bios:
    """Firmware of one machine. :meth:`install` puts it in place; ``screen`` collects what INT 10h printed."""

    def __init__(
        self, cpu: Cpu, memory: Memory, clock: Clock, gate: A20Gate,
        drives: Sequence[Disk] = (), boot_entry: bytes | None = None,
    ) -> None:  # fmt: skip
        self._cpu = cpu
        self._memory = memory
        self._clock = clock
        self._disks = sum(0x80 <= drive.number < 0xE0 for drive in drives)
        self.screen = bytearray()
        self._services: Mapping[int, Callable[[Call], None]] = {
            0x10: self._video,
            0x11: self._equipment,
            0x12: self._memory_size,
            0x13: DiskServices(drives, boot_entry),
            0x15: SystemServices(memory.size, gate, clock),
            0x16: self._keyboard,
            0x18: self._no_boot,
            0x19: self._no_boot,
            0x1A: self._time,
            **dict.fromkeys(EXCEPTIONS, self._exception),
        }

    def install(self, ports: Ports) -> None:
        """Write vectors, data areas and ROM into memory and listen at the trap port."""
        memory = self._memory
        memory.write(0, b"".join(struct.pack("<HH", STUBS + 4 * n, ROM >> 4) for n in range(256)))
        memory.write(BDA, bytes(0x100))
        memory.set_u16(BDA + BDA_COM1, 0x3F8)
        memory.set_u16(BDA + BDA_EBDA, EBDA >> 4)
        memory.set_u16(BDA + BDA_EQUIPMENT, EQUIPMENT)
        memory.set_u16(BDA + BDA_MEMORY_KIB, EBDA >> 10)
        memory.set_u8(BDA + BDA_VIDEO_MODE, 3)
        memory.set_u16(BDA + BDA_COLUMNS, 80)
        memory.set_u8(BDA + BDA_DISKS, self._disks)
        memory.set_u8(EBDA, 1)  # its own size in KiB
        memory.write(ROM, b"\xff" * (EXTENDED - ROM))
        memory.write(ROM + STUBS, STUB.ljust(4, b"\xf4") * 256)
        # A jump to the reset vector is a reboot: INT 19h's stub.
        memory.write(RESET_VECTOR, struct.pack("<BHH", 0xEA, STUBS + 4 * 0x19, ROM >> 4))
        ports.detach(TRAP_PORT, 1)
        ports.attach(TRAP_PORT, 1, self)

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0xFF

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        """The trap: RIP is behind a stub's OUT. A write from anywhere else means nothing."""
        cpu = self._cpu
        number, behind = divmod(cpu.rip - STUBS, 4)
        if behind != 2 or not 0 <= number < 256 or cpu.segment(L.CS).base != ROM or cpu.mode() is not Mode.REAL:
            return
        service = self._services.get(number)
        if service is not None:
            service(Call(cpu, self._memory))

    def _video(self, call: Call) -> None:
        if call.ah == 0x0E:
            self.screen.append(call.al)
        elif call.ah == 0x03:
            call.cx, call.dx = 0x0607, 0
        elif call.ah == 0x0F:
            call.ah, call.al, call.bh = 80, 3, 0

    def _equipment(self, call: Call) -> None:
        call.ax = EQUIPMENT

    def _memory_size(self, call: Call) -> None:
        call.ax = EBDA >> 10

    def _keyboard(self, call: Call) -> None:
        if call.ah in (0x00, 0x10):
            raise StopRun(Stop(StopKind.HALT, "INT 16h waits for a key, and there is no keyboard"))
        if call.ah in (0x01, 0x11):
            call.set_flag(ZF, True)
        elif call.ah == 0x02:
            call.al = 0

    def _time(self, call: Call) -> None:
        if call.ah != 0:
            call.fail(0)  # no real-time clock
            return
        days, ticks = divmod(self._clock.now() * 1193182 // (65536 * TSC_HZ), TICKS_PER_DAY)
        call.cx, call.dx, call.al = ticks >> 16, ticks, min(days, 1)

    def _no_boot(self, call: Call) -> None:
        cs, ip = call.caller
        raise StopRun(Stop(StopKind.SHUTDOWN, f"the image gave the machine back to the BIOS (from {cs:04x}:{ip:04x})"))

    def _exception(self, call: Call) -> None:
        """On a PC the BIOS would return to the faulting instruction for ever."""
        number = (self._cpu.rip - STUBS) // 4
        cs, ip = call.caller
        detail = f"{EXCEPTIONS[number]} in real mode at {cs:04x}:{ip:04x}: only the BIOS' vector, without a handler"
        raise StopRun(Stop(StopKind.HALT, detail))
