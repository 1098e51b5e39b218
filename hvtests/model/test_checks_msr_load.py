"""What the VM-entry MSR-load area may not ask for (SDM 3C 27.4)."""

from __future__ import annotations

import pytest

from hvtests.vmx.checks.msr_load import fault


def accepts(address: int, value: int) -> bool:
    """A WRMSR that takes IA32_LSTAR below 2^47 and nothing else."""
    return address == 0xC000_0082 and value < 1 << 47


@pytest.mark.parametrize(("index", "reserved", "value", "words"), [
    (0xC000_0082, 0, 0x1000, None),
    (0xC000_0082, 1, 0x1000, "bits 63:32 of the entry must be 0"),
    (0xC000_0082, 0, 1 << 47, "would cause #GP"),
    (0xC000_0081, 0, 0, "would cause #GP"),
    (0xC000_0100, 0, 0, "IA32_FS_BASE"),
    (0xC000_0101, 0, 0, "IA32_GS_BASE"),
    (0x800, 0, 0, "x2APIC"),
    (0x8FF, 0, 0, "x2APIC"),
    (0x9B, 0, 0, "SMM"),
])
def test_entries(index: int, reserved: int, value: int, words: str | None) -> None:
    told = fault(index, reserved, accepts, value)
    assert told is None if words is None else told is not None and words in told
