"""Page-modification logging. SDM 3C 29.3.6 [28.3.6], 25.4.2 (PML index), 28.2.1."""

from __future__ import annotations

import pytest

from hvtests.model.asm import (
    EPT_TABLES,
    GUEST_CODE,
    GUEST_GDT,
    GUEST_IDT,
    GUEST_RAM,
    GUEST_STACK,
    GUEST_TABLES,
    Lab,
    gate64,
)
from hvtests.vmx.records import ExitRecord

PML_FULL, LOG, INDEX = 62, 0x38000, "GUEST_PML_INDEX"
ACCESSED, DIRTY = 1 << 8, 1 << 9
TABLES = [GUEST_TABLES, GUEST_TABLES + 0x1000, GUEST_TABLES + 0x2000]
A, B = 0x310000, 0x320000


def lab(code: str, index: int = 511, *, flags: bool = True, **fields: int) -> Lab:
    return Lab(code, proc2=("ENABLE_PML",), ept_flags=flags, fields={"PML_ADDRESS": LOG, INDEX: index, **fields})


def log(of: Lab, first: int = 511) -> list[int]:
    """Entries written from index `first` down to the present index."""
    index = of.read(INDEX)
    index = index - 0x10000 if index > 511 else index
    return [of.machine.memory.u64(LOG + 8 * number) for number in range(first, index, -1)]


def test_each_page_that_becomes_dirty_is_logged_once() -> None:
    """Guest paging structures count as written when they are walked; bits 11:0 are 0; the index goes down."""
    one = lab(f"mov ebx, {A + 0x123:#x}; mov [rbx], eax; mov [rbx + 8], eax; mov ecx, {B:#x}; mov eax, [rcx];"
              "mov [rcx], eax; mov [rbx], eax; hlt")
    assert one.first_exit().reason == 12
    assert log(one) == [*TABLES, A, B] and one.read(INDEX) == 511 - 5
    assert one.ept_entry(A) & one.ept_entry(B) & DIRTY and not one.ept_entry(GUEST_CODE) & DIRTY


def test_reading_logs_nothing() -> None:
    one = lab(f"mov ebx, {A:#x}; mov eax, [rbx]; hlt")
    one.first_exit()
    assert log(one) == TABLES and one.ept_entry(A) & (ACCESSED | DIRTY) == ACCESSED


def test_full() -> None:
    """Index 0 is used, then becomes FFFFH: the next page is exit 62, the access not made, its flags not set."""
    one = lab(f"mov ebx, {A:#x}; mov [rbx], ebx; mov [rbx + 0x10000], ebx; hlt", 3)
    record = one.first_exit()
    assert record == ExitRecord(0x31000, PML_FULL, 0, GUEST_CODE + 7, 0, 0)
    assert one.read(INDEX) == 0xFFFF and log(one, 3) == [*TABLES, A]
    assert one.guest_u64(B) == 0 and one.ept_entry(B) & (ACCESSED | DIRTY) == 0
    assert one.read("GUEST_RFLAGS") & 1 << 16 and one.read("IDT_VECTORING_INFO_FIELD") == 0


def test_going_on_after_the_log_was_emptied() -> None:
    one = lab(f"mov ebx, {A:#x}; mov [rbx], ebx; mov [rbx + 0x10000], ebx; hlt", 3)

    def handler(one: Lab, record: ExitRecord) -> bool:
        one.write(INDEX, 511)
        return record.reason == PML_FULL

    one.run(handler)
    assert [record.reason for record in one.exits] == [PML_FULL, 12]
    assert one.guest_u64(B) & 0xFFFFFFFF == A and one.machine.memory.u64(LOG + 8 * 511) == B


@pytest.mark.parametrize("index", [512, 0x1000, 0xFFFF])
def test_an_index_out_of_range_stops_accessed_flags_too(index: int) -> None:
    """The first fetch needs accessed flags."""
    one = lab("hlt", index)
    record = one.first_exit()
    assert (record.reason, record.rip) == (PML_FULL, GUEST_CODE) and one.read(INDEX) == index


def test_nothing_is_logged_without_accessed_and_dirty_flags() -> None:
    one = lab(f"mov ebx, {A:#x}; mov [rbx], ebx; hlt", 0xFFFF, flags=False)
    assert one.first_exit().reason == 12 and one.read(INDEX) == 0xFFFF


def test_full_during_the_delivery_of_an_event() -> None:
    """The stack's page is not dirty yet: the event is in the IDT-vectoring information (SDM 3C 28.2.4)."""
    one = lab("ud2", 2)
    for page in (GUEST_CODE, GUEST_IDT, GUEST_GDT):
        one.map_page(page, one.ept_entry(page) | ACCESSED)
    one.idt({6: gate64(0x5000)})
    record = one.first_exit()
    assert (record.reason, record.rip) == (PML_FULL, GUEST_CODE)
    assert one.read("IDT_VECTORING_INFO_FIELD") == 1 << 31 | 3 << 8 | 6
    assert not one.ept_entry(GUEST_STACK - 8) & DIRTY


def test_a_large_page_is_logged_by_the_address_of_the_access() -> None:
    one = lab(f"mov ebx, {A:#x}; mov [rbx], ebx; mov [rbx + 0x10000], ebx; hlt")
    one.machine.memory.set_u64(EPT_TABLES + 0x2008, GUEST_RAM + 0x200000 | 6 << 3 | 7 | 1 << 7)
    one.first_exit()
    assert log(one) == [*TABLES, A]
