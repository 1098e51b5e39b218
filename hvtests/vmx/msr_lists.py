"""The MSR areas of a VMCS: 16-byte entries of index, reserved word and value. SDM 3C 25.7.2, 25.8.2 [24.7.2]."""

from __future__ import annotations

import struct

from hvtests.machine.memory import Memory


def read_list(memory: Memory, address: int, count: int) -> list[tuple[int, int, int]]:
    """(MSR index, reserved bits, value) of each entry."""
    return [struct.unpack("<IIQ", memory.read(address + 16 * number, 16)) for number in range(count)]


def store_value(memory: Memory, address: int, number: int, value: int) -> None:
    """Write the value of entry `number` (from 0) of an MSR-store area."""
    memory.set_u64(address + 16 * number + 8, value)
