"""Ports: who answers where, and how accesses are split."""

import pytest

from hvtests.machine.clock import Clock
from hvtests.machine.ports import Ports


class Recorder:
    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.log: list[tuple[str, int, int, int]] = []

    def port_read(self, port: int, size: int) -> int:
        self.log.append(("r", port, size, self.value))
        return self.value

    def port_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("w", port, size, value))


@pytest.mark.parametrize(("size", "expected"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_nobody_answers_with_all_ones(size: int, expected: int) -> None:
    assert Ports().read(0x1234, size) == expected


def test_a_write_to_nobody_is_lost() -> None:
    Ports().write(0x1234, 4, 0xDEADBEEF)


def test_narrow_device_gets_bytes_low_address_first() -> None:
    ports, device = Ports(), Recorder()
    ports.attach(0x100, 4, device)
    ports.write(0x101, 2, 0xBBAA)
    assert device.log == [("w", 0x101, 1, 0xAA), ("w", 0x102, 1, 0xBB)]


def test_wide_device_gets_it_in_one_piece() -> None:
    ports, device = Ports(), Recorder(0x11223344)
    ports.attach(0x100, 4, device, width=4)
    assert ports.read(0x100, 4) == 0x11223344
    assert device.log == [("r", 0x100, 4, 0x11223344)]


def test_access_over_the_end_of_a_range_reaches_both_neighbours() -> None:
    ports, low, high = Ports(), Recorder(0x12), Recorder(0x34)
    ports.attach(0x100, 2, low, width=4)
    ports.attach(0x102, 2, high, width=4)
    assert ports.read(0x101, 2) == 0x3412
    assert ports.read(0x103, 4) == 0xFFFFFF34


def test_access_at_the_last_port_wraps_around() -> None:
    ports, device = Ports(), Recorder(0x77)
    ports.attach(0, 1, device)
    assert ports.read(0xFFFF, 2) == 0x77FF


def test_a_device_cannot_answer_with_more_than_was_asked() -> None:
    ports = Ports()
    ports.attach(0x100, 1, Recorder(0x1FF))
    assert ports.read(0x100, 1) == 0xFF


def test_taken_and_impossible_ranges_are_refused() -> None:
    ports = Ports()
    ports.attach(0x100, 4, Recorder())
    with pytest.raises(ValueError, match="port 0x103: taken by Recorder"):
        ports.attach(0x103, 2, Recorder())
    with pytest.raises(ValueError, match="outside"):
        ports.attach(0xFFFF, 2, Recorder())
    with pytest.raises(ValueError, match="outside"):
        ports.attach(0x10, 0, Recorder())


def test_detached_ports_are_free_again() -> None:
    ports = Ports()
    ports.attach(0x100, 4, Recorder(1))
    ports.detach(0x100, 4)
    assert ports.read(0x100, 1) == 0xFF
    ports.attach(0x100, 4, Recorder(2))
    assert ports.read(0x100, 1) == 2


def test_clock_adds_its_counter_and_what_passed_otherwise() -> None:
    ticks = [10]
    clock = Clock(lambda: ticks[0])
    clock.add(5)
    assert clock.now() == 15
    ticks[0] = 12
    assert clock.now() == 17
    clock.set(0)
    assert clock.now() == 0
    ticks[0] = 13
    assert clock.now() == 1
    clock.set(2**64 - 1)
    clock.add(2)
    assert clock.now() == 1
