"""Instructions that start again because memory was not there: flags, and the kind of access that is told.

Expected values are those of the same instructions where nothing has to start again, and the manual's.
"""

from __future__ import annotations

import itertools

import pytest

from hvtests.machine.restart import reads_and_writes
from hvtests.model.asm import GUEST_CODE, GUEST_RAM, GUEST_TABLES, Lab, assemble, gate64

PAGE = 0x200000
TOUCH = "mov bl, [rcx]; mov [rcx], bl;"
BEFORE = {"carry": "mov eax, 0xffffffff; add eax, 11", "overflow": "mov eax, 0x7fffffff; add eax, 1",
          "below": "mov eax, 5; cmp eax, 7", "equal": "mov eax, 5; sub eax, 5",
          "shift": "mov eax, 0x80000000; shl eax, 1", "and": "mov al, 0xf0; and al, 0x30"}
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
BLOCK_END = b"\xeb\x00"     # JMP to the next instruction


def outcome(before: str, instruction: str, *, touched: bool, between: bytes) -> tuple[int, int]:
    """What is stored, and the flags after it."""
    lab = Lab(assemble(f"mov ecx, {PAGE}; {TOUCH if touched else ''} {before}") + between
              + assemble(f"{instruction}; pushfq; pop rdx; hlt"))
    assert lab.first_exit().reason == 12
    return lab.guest_u64(PAGE), lab.machine.cpu.gprs[2]


@pytest.mark.parametrize("between", [b"", BLOCK_END], ids=["one block", "two blocks"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_setcc_into_a_page_that_ept_fills_late(before: str, between: bytes) -> None:
    for condition in CONDITIONS:
        instruction = f"set{condition} byte ptr [rcx]"
        assert outcome(before, instruction, touched=False, between=between) == outcome(
            before, instruction, touched=True, between=between), condition


@pytest.mark.parametrize("between", [b"", BLOCK_END], ids=["one block", "two blocks"])
@pytest.mark.parametrize("instruction", ["rcl dword ptr [rcx], 1", "rcr byte ptr [rcx], 1", "adc [rcx], eax",
                                         "sbb [rcx], eax", "inc dword ptr [rcx]"])
def test_instructions_that_read_flags_and_memory(instruction: str, between: bytes) -> None:
    outcomes = {outcome(before, instruction, touched=touched, between=between)
                for before, touched in itertools.product([BEFORE["carry"]], [False, True])}
    assert len(outcomes) == 1


@pytest.mark.parametrize("condition", ["be", "o", "p", "g"])
def test_setcc_that_faults_has_its_flags_in_the_frame(condition: str) -> None:
    """#PF is a fault: the handler's frame has the flags from before (SDM 3A 6.5)."""
    lab = Lab(f"mov ecx, 0xfff00000; mov eax, 0xffffffff; add eax, 11; set{condition} byte ptr [rcx]")
    lab.idt({14: gate64(0x5000)})
    lab.guest_load(0x5000, "mov rdx, [rsp + 24]; hlt")
    lab.first_exit()
    assert lab.machine.cpu.gprs[2] & 0x8D5 == 0x11 | 0x04    # CF, AF; the sum's low byte is 0AH: PF


@pytest.mark.parametrize(("code", "present", "error_code"), [
    ("inc dword ptr [rcx]", False, 2), ("lock xadd [rcx], edx", False, 2), ("cmp [rcx], eax", False, 0),
    ("test [rcx], eax", False, 0), ("inc dword ptr [rcx]", True, 3), ("mov [rcx], eax", True, 3)])
def test_page_fault_of_a_read_modify_write_is_a_write(code: str, present: bool, error_code: int) -> None:
    """SDM 3A 4.7: W/R is 1 if the access was a write; a read-modify-write needs that right at once."""
    lab = Lab(f"mov ecx, {PAGE}; mov rax, cr0; or eax, 0x10000; mov cr0, rax; {code}",
              fields={"EXCEPTION_BITMAP": 1 << 14})
    lab.guest_load(GUEST_TABLES + 0x2008, (PAGE | 0x81 if present else 0).to_bytes(8, "little"))
    record = lab.first_exit()
    assert record.reason == 0 and lab.read("VM_EXIT_INTR_ERROR_CODE") == error_code


@pytest.mark.parametrize("code", ["inc dword ptr [rcx]", "lock inc dword ptr [rcx]", "xchg [rcx], ebx"])
@pytest.mark.parametrize("rights", [0, 1])
def test_ept_violation_of_a_read_modify_write(code: str, rights: int) -> None:
    """SDM 3C table 28-7: bits 0 and 1 are both set for an access that reads and writes."""
    lab = Lab(f"mov ecx, {PAGE}; {code}")
    lab.map_page(PAGE, GUEST_RAM + PAGE | 0x30 | rights if rights else 0)
    record = lab.first_exit()
    assert (record.reason, record.rip) == (48, GUEST_CODE + 5)
    assert record.qualification == 0x183 | rights << 3


def test_the_guest_s_own_tables_come_before_ept() -> None:
    lab = Lab(f"mov ecx, {PAGE}; mov rax, cr0; or eax, 0x10000; mov cr0, rax; inc dword ptr [rcx]",
              fields={"EXCEPTION_BITMAP": 1 << 14})
    lab.guest_load(GUEST_TABLES + 0x2008, (PAGE | 0x81).to_bytes(8, "little"))
    lab.map_page(PAGE, 0)
    assert lab.first_exit().reason == 0


@pytest.mark.parametrize(("text", "expected"), [
    ("add [rcx], eax", True), ("cmp [rcx], eax", False), ("add eax, [rcx]", False), ("add eax, ecx", False),
    ("lock cmpxchg [r9], rdx", True), ("bt [rcx], eax", False), ("btr dword ptr [rcx], 3", True),
    ("shld [rcx], eax, 4", True), ("not word ptr [rcx]", True), ("mul dword ptr [rcx]", False),
    ("push qword ptr [rcx]", False), ("xchg [rcx], al", True), ("mov [rcx], al", False), ("cmpxchg8b [rcx]", True)])
def test_which_instructions_read_and_write(text: str, expected: bool) -> None:
    assert reads_and_writes(assemble(text) + b"\x90", 64) is expected
