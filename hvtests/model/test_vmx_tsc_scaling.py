"""TSC scaling. SDM 3C 25.6.5, 26.3 [25.3] "RDMSR", "RDTSC", "RDTSCP"."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.model.asm import Lab

ONE, MASK = 1 << 48, (1 << 64) - 1
READ = {"rdtsc": "rdtsc; hlt", "rdtscp": "rdtscp; hlt", "rdmsr": "mov ecx, 0x10; rdmsr; hlt"}
TICKS = 0x1234_5678_9ABC


def tsc(how: str, *, offsetting: bool = True, scaling: bool = True, rdtsc_exiting: bool = False,
        multiplier: int = ONE, offset: int = 0) -> int:
    """What the guest reads; time is virtual, so every run reads the TSC at the same tick."""
    proc = ("USE_MSR_BITMAPS", *(("USE_TSC_OFFSETTING",) if offsetting else ()),
            *(("RDTSC_EXITING",) if rdtsc_exiting else ()))
    lab = Lab(READ[how], proc=proc, proc2=("ENABLE_RDTSCP", *(("USE_TSC_SCALING",) if scaling else ())),
              fields={"TSC_OFFSET": offset, "TSC_MULTIPLIER": multiplier})
    lab.machine.clock.add(TICKS)
    assert lab.first_exit().reason == 12
    gprs = lab.machine.cpu.gprs
    return gprs[L.Q_RDX] << 32 | gprs[L.Q_RAX]


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize(("multiplier", "offset"), [
    (ONE, 0), (3 << 47, 0), (1 << 47, 5), (1, 0), (MASK, 0), (0x1_5555_5555_5555, -1000 & MASK), (7 << 48, 1 << 63)])
def test_product_first_then_the_offset(how: str, multiplier: int, offset: int) -> None:
    """Bits 111:48 of the 128-bit product, plus the offset, modulo 2^64."""
    plain = tsc(how, offsetting=False, scaling=False)
    assert TICKS < plain < TICKS + 10_000
    assert tsc(how, multiplier=multiplier, offset=offset) == (plain * multiplier >> 48) + offset & MASK


@pytest.mark.parametrize("how", READ)
def test_without_offsetting_the_multiplier_has_no_effect(how: str) -> None:
    plain = tsc(how, offsetting=False, scaling=False)
    assert tsc(how, offsetting=False, multiplier=5 * ONE, offset=99) == plain
    assert tsc(how, scaling=False, multiplier=5 * ONE, offset=99) == plain + 99


def test_a_multiplier_of_zero_fails_the_entry() -> None:
    """SDM 3C 27.2.1.1: VMfailValid, error 7."""
    lab = Lab("hlt", proc2=("USE_TSC_SCALING",), fields={"TSC_MULTIPLIER": 0})
    lab.run()
    assert not lab.exits and lab.read("VM_INSTRUCTION_ERROR") == 7


def test_wrmsr_is_not_scaled() -> None:
    """The guest's own WRMSR sets the TSC itself; RDMSR then sees it scaled."""
    lab = Lab("mov ecx, 0x10; mov edx, 0x100; xor eax, eax; wrmsr; rdmsr; hlt",
              proc=("USE_MSR_BITMAPS", "USE_TSC_OFFSETTING"), proc2=("USE_TSC_SCALING",),
              fields={"TSC_MULTIPLIER": 2 * ONE})
    lab.first_exit()
    assert lab.machine.cpu.gprs[L.Q_RDX] == 0x200 and lab.machine.clock.now() >> 32 == 0x100
