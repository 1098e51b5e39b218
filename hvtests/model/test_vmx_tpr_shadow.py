"""The TPR shadow: MOV CR8 and the TPR threshold. SDM 3C 30.1.1 to 30.3 [29.1.1 to 29.3], 27.2.1.1."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.model.asm import GUEST_CODE, Lab
from hvtests.vmx.records import ExitRecord

BELOW, PAGE = 43, 0x38000
VTPR = PAGE + 0x80


def lab(code: str, *, threshold: int = 0, vtpr: int = 0, proc: tuple[str, ...] = (), **fields: int) -> Lab:
    made = Lab(code, proc=("USE_TPR_SHADOW", *proc),
               fields={"VIRTUAL_APIC_PAGE_ADDR": PAGE, "TPR_THRESHOLD": threshold, **fields})
    made.machine.memory.set_u32(VTPR, vtpr)
    return made


@pytest.mark.parametrize(("vtpr", "seen"), [(0, 0), (0x50, 5), (0xFF, 15), (0xFFFFFF0F, 0), (0x1A0, 10)])
def test_mov_from_cr8_gives_bits_7_to_4_of_vtpr(vtpr: int, seen: int) -> None:
    one = lab("mov rsi, -1; mov rsi, cr8; hlt", vtpr=vtpr)
    one.machine.cpu.cr8 = 9
    assert one.first_exit().reason == 12 and one.machine.cpu.gprs[L.Q_RSI] == seen


@pytest.mark.parametrize("value", range(16))
def test_mov_to_cr8_and_the_threshold(value: int) -> None:
    """VTPR's other bits become 0; below the threshold exit 43 follows the instruction. The CPU's own CR8 stays."""
    one = lab(f"mov eax, {value}; mov cr8, rax; hlt", threshold=7, vtpr=0xFFFFFFFF)
    one.machine.cpu.cr8 = 9
    record = one.first_exit()
    assert one.machine.memory.u32(VTPR) == value << 4 and one.machine.cpu.cr8 == 9
    if value < 7:
        assert record == ExitRecord(0x31000, BELOW, 0, GUEST_CODE + 5 + 4, 0, 0)
    else:
        assert record.reason == 12


def test_reserved_bits_of_cr8_fault() -> None:
    one = lab("mov eax, 0x10; mov cr8, rax; hlt", threshold=7, vtpr=0xF0, EXCEPTION_BITMAP=1 << 13)
    record = one.first_exit()
    assert (record.reason, record.rip, one.machine.memory.u32(VTPR)) == (0, GUEST_CODE + 5, 0xF0)


@pytest.mark.parametrize(("control", "code"), [
    ("CR8_LOAD_EXITING", "mov cr8, rax"), ("CR8_STORE_EXITING", "mov rax, cr8")])
def test_cr8_exiting_comes_first(control: str, code: str) -> None:
    one = lab(f"{code}; hlt", threshold=7, vtpr=0x90, proc=(control,))
    assert one.first_exit().reason == 28 and one.machine.memory.u32(VTPR) == 0x90


def test_single_stepping_leaves_its_trap_pending() -> None:
    """The exit is trap-like: BS is saved (SDM 3C 28.4)."""
    one = lab("mov cr8, rbx; hlt", threshold=7, vtpr=0x90, GUEST_RFLAGS=0x102)
    assert one.first_exit().reason == BELOW and one.read("GUEST_PENDING_DBG_EXCEPTIONS") == 1 << 14


@pytest.mark.parametrize(("threshold", "vtpr", "entered"), [
    (5, 0x50, True), (5, 0x4F, False), (0, 0, True), (15, 0xF0, True)])
def test_an_entry_needs_a_threshold_no_higher_than_vtpr(threshold: int, vtpr: int, entered: bool) -> None:
    one = lab("hlt", threshold=threshold, vtpr=vtpr)
    one.run()
    assert bool(one.exits) is entered
    assert entered or one.read("VM_INSTRUCTION_ERROR") == 7


def test_the_entry_after_looks_at_the_page_again() -> None:
    """The guest lowered VTPR under the threshold: VMRESUME fails until the host lowers the threshold."""
    one = lab("mov cr8, rbx; hlt", threshold=7, vtpr=0x90)

    def handler(_one: Lab, record: ExitRecord) -> bool:
        return record.reason == BELOW

    one.run(handler)
    assert [record.reason for record in one.exits] == [BELOW] and one.read("VM_INSTRUCTION_ERROR") == 7
