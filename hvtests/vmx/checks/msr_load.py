"""What an entry of the VM-entry MSR-load area must not ask for (SDM 3C 27.4); a failure is exit reason 34.

The exit qualification of the failure is the entry's number, counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable

FS_BASE, GS_BASE = 0xC000_0100, 0xC000_0101
SMM_MONITOR_CTL = 0x9B
X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF

WriteMsr = Callable[[int, int], bool]


def fault(index: int, reserved: int, write_ok: WriteMsr, value: int) -> str | None:
    """Why entry (index, reserved, value) cannot be loaded, as one sentence; None if it can.

    `index` is bits 31:0 of the entry, `reserved` bits 63:32, `value` bits 127:64. `write_ok(address, value)` tells
    whether WRMSR at CPL 0 would accept the value in the guest's state.
    """
    if index in (FS_BASE, GS_BASE):
        return f"MSR {index:#x} must not be IA32_FS_BASE or IA32_GS_BASE: the guest's segments set them"
    if X2APIC_FIRST <= index <= X2APIC_LAST:
        return f"MSR {index:#x} must not be an x2APIC register (800H to 8FFH)"
    if index == SMM_MONITOR_CTL:
        return "IA32_SMM_MONITOR_CTL (9BH) can be written in SMM only"
    if reserved:
        return f"bits 63:32 of the entry must be 0, not {reserved:#x}"
    if not write_ok(index, value):
        return f"WRMSR of {value:#x} to MSR {index:#x} would cause #GP(0)"
    return None
