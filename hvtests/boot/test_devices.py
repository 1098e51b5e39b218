"""Devices of the PC, register by register. Expected values: the chips' data sheets."""

import pytest

from hvtests.machine.devices.a20 import A20Gate, KeyboardController, SystemControlA
from hvtests.machine.devices.debug import AcpiPm1aControl, BochsShutdown, DebugConsole, DebugExit
from hvtests.machine.devices.disk import Disk
from hvtests.machine.devices.pc import attach_pc
from hvtests.machine.devices.pic import Pic
from hvtests.machine.devices.uart import Uart
from hvtests.machine.ports import Ports

COM1 = 0x3F8


class Line:
    """A UART with what it sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.uart = Uart(self.sent.extend)

    def write(self, register: int, value: int) -> None:
        self.uart.port_write(COM1 + register, 1, value)

    def read(self, register: int) -> int:
        return self.uart.port_read(COM1 + register, 1)


@pytest.fixture
def line() -> Line:
    found = Line()
    found.write(3, 0x03)  # eight bits, no parity
    return found


def test_uart_sends_what_is_written_and_is_always_ready(line: Line) -> None:
    for byte in b"ok\xff":
        assert line.read(5) == 0x60
        line.write(0, byte)
    assert line.sent == b"ok\xff"


def test_uart_sends_five_bit_words_until_lcr_says_otherwise() -> None:
    fresh = Line()
    fresh.write(0, ord("h"))
    assert fresh.sent == b"\x08"  # Bochs sends the same


def test_uart_divisor_latch_hides_data_and_ier(line: Line) -> None:
    line.write(3, 0x83)
    line.write(0, 0x01)
    line.write(1, 0x00)
    assert (line.read(0), line.read(1)) == (0x01, 0x00)
    assert line.uart.baud == 115200
    line.write(0, 0x0C)
    assert line.uart.baud == 9600
    line.write(3, 0x03)
    assert line.read(1) == 0
    assert line.sent == b""


def test_uart_receives_in_order(line: Line) -> None:
    line.uart.feed(b"ab")
    assert line.read(5) & 1
    assert (line.read(0), line.read(0)) == (ord("a"), ord("b"))
    assert not line.read(5) & 1
    assert line.read(0) == 0


def test_uart_fifo_bits_and_clearing(line: Line) -> None:
    assert line.read(2) == 0x01
    line.uart.feed(b"x")
    line.write(2, 0x03)
    assert line.read(2) == 0xC1
    assert not line.read(5) & 1


def test_uart_interrupts_received_first_then_transmitter_empty(line: Line) -> None:
    line.write(4, 0x08)
    line.write(1, 0x03)
    line.uart.feed(b"x")
    assert line.uart.interrupting
    assert line.read(2) == 0x04
    line.read(0)
    assert line.read(2) == 0x02  # enabled while empty: pending at once
    assert line.read(2) == 0x01  # reading IIR took it away
    assert not line.uart.interrupting
    line.write(0, 0x41)
    assert line.read(2) == 0x02


def test_uart_loopback_returns_data_and_modem_lines(line: Line) -> None:
    line.write(4, 0x1A)  # loopback, OUT2, RTS
    line.write(0, 0xA5)
    assert line.sent == b""
    assert line.read(0) == 0xA5
    assert line.read(6) == 0x90  # DCD from OUT2, CTS from RTS
    line.write(4, 0x00)
    assert line.read(6) == 0xB0


def test_uart_scratch_register_keeps_its_byte(line: Line) -> None:
    line.write(7, 0xAE)
    assert line.read(7) == 0xAE


def test_debug_console_tells_that_it_is_there() -> None:
    said = bytearray()
    console = DebugConsole(said.extend)
    console.port_write(0xE9, 1, 0x21)
    assert said == b"!"
    assert console.port_read(0xE9, 1) == 0xE9


def test_debug_exit_hands_on_the_whole_value() -> None:
    codes: list[int] = []
    ports = Ports()
    ports.attach(0xF4, 4, DebugExit(codes.append), width=4)
    ports.write(0xF4, 1, 0x10)
    ports.write(0xF4, 4, 0x12345678)
    assert codes == [0x10, 0x12345678]


@pytest.mark.parametrize(
    ("written", "times"),
    [(b"Shutdown", 1), (b"xShShutdown", 1), (b"SSShutdown", 1), (b"Shutdow", 0), (b"Shut down", 0)],
)
def test_bochs_shutdown_wants_the_whole_word(written: bytes, times: int) -> None:
    said: list[str] = []
    device = BochsShutdown(said.append)
    for byte in written:
        device.port_write(0x8900, 1, byte)
    assert len(said) == times


@pytest.mark.parametrize(
    ("value", "ends"), [(0x2000, True), (0x2001, True), (0x0000, False), (0x2400, False), (0x0C00, False)]
)
def test_acpi_power_off_is_slp_en_with_type_0(value: int, ends: bool) -> None:
    said: list[str] = []
    ports = Ports()
    ports.attach(0x604, 2, AcpiPm1aControl(said.append), width=2)
    ports.write(0x604, 2, value)
    assert bool(said) is ends
    assert ports.read(0x604, 2) & 0x2001 == 0x0001  # SLP_EN reads 0, SCI_EN 1


def test_acpi_power_off_by_the_high_byte_alone() -> None:
    said: list[str] = []
    AcpiPm1aControl(said.append).port_write(0x605, 1, 0x20)
    assert len(said) == 1


def gate() -> tuple[A20Gate, list[bool], list[str]]:
    changes: list[bool] = []
    return A20Gate(changes.append), changes, []


def test_port_92_switches_a20_and_resets_on_a_rising_bit_0() -> None:
    a20, changes, resets = gate()
    port = SystemControlA(a20, resets.append)
    assert port.port_read(0x92, 1) & 2
    port.port_write(0x92, 1, 0x00)
    port.port_write(0x92, 1, 0x02)
    assert changes == [True, False, True]
    assert resets == []
    port.port_write(0x92, 1, 0x03)
    port.port_write(0x92, 1, 0x03)
    assert len(resets) == 1


def test_keyboard_controller_switches_a20_and_resets() -> None:
    a20, changes, resets = gate()
    keyboard = KeyboardController(a20, resets.append)
    assert keyboard.port_read(0x64, 1) & 3 == 0
    keyboard.port_write(0x64, 1, 0xD0)
    assert keyboard.port_read(0x64, 1) & 1
    assert keyboard.port_read(0x60, 1) == 0x03
    assert not keyboard.port_read(0x64, 1) & 1
    keyboard.port_write(0x64, 1, 0xD1)
    keyboard.port_write(0x60, 1, 0x01)
    assert changes == [True, False]
    keyboard.port_write(0x60, 1, 0x03)  # not preceded by D1: for the keyboard
    assert not a20.enabled
    keyboard.port_write(0x64, 1, 0xFE)
    assert len(resets) == 1


def initialised_pic(auto_eoi: bool = False) -> Pic:
    pic = Pic()
    for port, values in ((0x20, (0x11,)), (0x21, (0x20, 0x04, 0x03 if auto_eoi else 0x01)),
                         (0xA0, (0x11,)), (0xA1, (0x28, 0x02, 0x03 if auto_eoi else 0x01))):  # fmt: skip
        for value in values:
            pic.port_write(port, 1, value)
    return pic


def test_pic_is_masked_before_initialisation_and_open_after() -> None:
    pic = Pic()
    assert pic.masks == 0xFFFF
    pic = initialised_pic()
    assert pic.masks == 0
    assert pic.vector_bases == (0x20, 0x28)


def test_pic_delivers_by_priority_and_waits_for_eoi() -> None:
    pic = initialised_pic()
    pic.set_irq(4, True)
    pic.set_irq(1, True)
    assert pic.acknowledge() == 0x21
    assert not pic.pending()          # IRQ 4 is below IRQ 1, which is in service
    pic.port_write(0x20, 1, 0x20)     # non-specific EOI
    assert pic.acknowledge() == 0x24
    pic.port_write(0x20, 1, 0x64)     # specific EOI for 4
    assert not pic.pending()


def test_pic_higher_priority_interrupts_a_lower_one() -> None:
    pic = initialised_pic()
    pic.set_irq(4, True)
    assert pic.acknowledge() == 0x24
    pic.set_irq(0, True)
    assert pic.acknowledge() == 0x20
    pic.port_write(0x20, 1, 0x0B)
    assert pic.port_read(0x20, 1) == 0x11  # ISR: 0 and 4


def test_pic_slave_comes_through_the_cascade() -> None:
    pic = initialised_pic()
    pic.set_irq(12, True)
    assert pic.acknowledge() == 0x2C
    pic.port_write(0xA0, 1, 0x20)
    pic.port_write(0x20, 1, 0x20)
    assert not pic.pending()


def test_pic_masked_line_stays_requested() -> None:
    pic = initialised_pic()
    pic.port_write(0x21, 1, 0x02)
    pic.set_irq(1, True)
    assert not pic.pending()
    pic.port_write(0x20, 1, 0x0A)
    assert pic.port_read(0x20, 1) == 0x02  # IRR
    pic.port_write(0x21, 1, 0x00)
    assert pic.pending()


def test_pic_request_gone_before_acknowledge_is_spurious() -> None:
    pic = initialised_pic()
    pic.set_irq(3, True)
    pic.set_irq(3, False)
    assert not pic.pending()
    assert pic.acknowledge() == 0x27


def test_pic_automatic_eoi_leaves_nothing_in_service() -> None:
    pic = initialised_pic(auto_eoi=True)
    pic.set_irq(0, True)
    pic.acknowledge()
    pic.set_irq(1, True)
    assert pic.acknowledge() == 0x21


def test_disk_reads_pads_and_keeps_writes_apart() -> None:
    data = bytes(range(256)) * 5  # 2.5 sectors
    disk = Disk(data, 512, 0x80)
    assert disk.sectors == 3
    assert disk.read(0, 1) == data[:512]
    assert disk.read(2, 1) == data[1024:] + bytes(256)
    disk.write(1, b"w" * 512)
    assert disk.read(0, 3) == data[:512] + b"w" * 512 + data[1024:] + bytes(256)
    with pytest.raises(IndexError, match=r"sectors 2\.\.3 of 3"):
        disk.read(2, 2)
    with pytest.raises(PermissionError, match="read-only"):
        Disk(data, 512, 0xE0, read_only=True).write(0, bytes(512))


def test_disk_geometry_addresses() -> None:
    disk = Disk(bytes(512 * 2016), 512, 0x80)
    assert disk.cylinders == 2
    assert disk.lba(0, 0, 1) == 0
    assert disk.lba(1, 1, 2) == 16 * 63 + 63 + 1


def test_every_device_of_the_pc_is_at_its_port() -> None:
    ports = Ports()
    serial, debug = bytearray(), bytearray()
    codes: list[int] = []
    ends: list[str] = []
    a20: list[bool] = []
    devices = attach_pc(
        ports, on_serial=serial.extend, on_debugcon=debug.extend, on_debug_exit=codes.append,
        on_shutdown=ends.append, on_reset=ends.append, on_a20=a20.append,
    )  # fmt: skip
    for port, value in ((0x3FB, 3), (0x3F8, 0x41), (0xE9, 0x42), (0xF4, 0x10), (0x92, 0), (0x80, 9)):
        ports.write(port, 1, value)
    for byte in b"Shutdown":
        ports.write(0x8900, 1, byte)
    ports.write(0x604, 2, 0x2000)
    ports.write(0x64, 1, 0xFE)
    assert (bytes(serial), bytes(debug), codes, a20, devices.post.code) == (b"A", b"B", [0x10], [True, False], 9)
    assert ends == ["Shutdown written to port 0x8900", "ACPI S5 by port 0x604", "CPU reset by the keyboard controller"]
    assert ports.read(0xA1, 1) == 0xFF == devices.pic.masks >> 8
