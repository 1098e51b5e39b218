"""EPT: translations, violations, misconfigurations, accessed and dirty flags. SDM 3C 29.3 [28.3], 28.2.1 [27.2.1]."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import EPT_TABLES, GUEST_CODE, GUEST_RAM, GUEST_TABLES, Lab, gate64
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.records import ExitRecord

R, W, X = 1, 2, 4
WB = 6 << 3
PAGE = 0x200000 - 0x1000        # a guest page that nothing else uses
HOST = GUEST_RAM + PAGE
HANDLER = 0x5000
LINEAR, FINAL = 1 << 7, 1 << 8


def access(kind: str) -> str:
    """Guest code that accesses PAGE + 8 in one way."""
    return f"mov ebx, {PAGE + 8:#x};" + {"read": "mov eax, [rbx]", "write": "mov [rbx], eax", "fetch": "jmp rbx"}[kind]


BITS = {"read": R, "write": W, "fetch": X}


@pytest.mark.parametrize("kind", ["read", "write", "fetch"])
@pytest.mark.parametrize("rights", [0, R, R | W, R | X, X, R | W | X])
def test_rights(kind: str, rights: int) -> None:
    """Qualification: the access, the rights of the page, linear address valid, final access (table 28-7)."""
    lab = Lab(access(kind) + "; hlt")
    lab.map_page(PAGE, HOST | WB | rights if rights else 0)
    lab.guest_load(PAGE + 8, "hlt")
    record = lab.first_exit()
    if BITS[kind] & rights:
        assert record.reason == 12
        return
    at = PAGE + 8 if kind == "fetch" else GUEST_CODE + 5
    assert (record.reason, record.rip) == (48, at)
    assert record.qualification == BITS[kind] | rights << 3 | LINEAR | FINAL
    assert lab.read("GUEST_PHYSICAL_ADDRESS") == PAGE + 8 and lab.read("GUEST_LINEAR_ADDRESS") == PAGE + 8
    assert lab.read("GUEST_RFLAGS") & 1 << 16


def test_rights_are_those_of_the_whole_walk() -> None:
    lab = Lab("mov ebx, 0x200000; mov [rbx], eax")
    entry = lab.machine.memory.u64(EPT_TABLES + 0x2008)
    lab.machine.memory.set_u64(EPT_TABLES + 0x2008, entry & ~W)
    record = lab.first_exit()
    assert record.qualification == W | (R | X) << 3 | LINEAR | FINAL


def test_execution_goes_on_after_the_host_maps_the_page() -> None:
    lab = Lab(access("write") + "; mov eax, [rbx - 8]; hlt")
    lab.map_page(PAGE, 0)

    def handler(lab: Lab, record: ExitRecord) -> bool:
        if record.reason == 48:
            lab.map_page(PAGE, HOST | WB | 7)
            return True
        return False

    lab.machine.memory.set_u32(HOST, 0x600DF00D)
    lab.run(handler)
    assert [record.reason for record in lab.exits] == [48, 12]
    assert lab.machine.cpu.gprs[L.Q_RAX] == 0x600DF00D


@pytest.mark.parametrize(("entry", "why"), [
    (HOST | WB | W, "write-only"), (HOST | WB | W | X, "write and execute without read"),
    (HOST | 2 << 3 | 7, "memory type 2"), (HOST | 7 << 3 | 7, "memory type 7"),
    (1 << 45 | WB | 7, "address beyond the physical width"),
])
def test_misconfiguration(entry: int, why: str) -> None:
    lab = Lab(access("read"))
    lab.map_page(PAGE, entry)
    record = lab.first_exit()
    assert (record.reason, record.qualification) == (49, 0), why
    assert lab.read("GUEST_PHYSICAL_ADDRESS") == PAGE + 8


def test_execute_only_is_a_misconfiguration_where_not_offered() -> None:
    lab = Lab(access("fetch"), cpu=CpuModel.default().without("EXECUTE_ONLY"))
    lab.map_page(PAGE, HOST | WB | X)
    assert lab.first_exit().reason == 49


@pytest.mark.parametrize(("at", "bits"), [
    (EPT_TABLES, 1 << 3), (EPT_TABLES, 1 << 7), (EPT_TABLES + 0x1000, 1 << 3), (EPT_TABLES + 0x2000, 1 << 6)])
def test_misconfigured_tables(at: int, bits: int) -> None:
    lab = Lab(access("read"))
    lab.machine.memory.set_u64(at, lab.machine.memory.u64(at) | bits)
    assert lab.first_exit().reason == 49


def large(lab: Lab, entry: int) -> None:
    """Replace the EPT's second 2 MiB by one page entry."""
    lab.machine.memory.set_u64(EPT_TABLES + 0x2008, entry)


def test_2m_pages_and_their_reserved_bits() -> None:
    code = "mov ebx, 0x200000; mov eax, [rbx]; mov [rbx + 0x1000], eax; hlt"
    lab = Lab(code)
    large(lab, GUEST_RAM + 0x200000 | WB | 7 | 1 << 7)
    lab.machine.memory.set_u32(GUEST_RAM + 0x200000, 0xFEED)
    assert lab.first_exit().reason == 12
    assert lab.machine.memory.u32(GUEST_RAM + 0x201000) == 0xFEED
    lab = Lab(code)
    large(lab, GUEST_RAM + 0x200000 | WB | 7 | 1 << 7 | 1 << 13)
    assert lab.first_exit().reason == 49
    lab = Lab(code)
    large(lab, GUEST_RAM + 0x200000 | WB | R | 1 << 7)
    assert lab.first_exit().qualification == W | R << 3 | LINEAR | FINAL


def test_1g_pages() -> None:
    """Offered by the modelled CPU: guest-physical 1 GiB and up is host-physical 0 and up."""
    lab = Lab(f"mov ebx, 0x40000000; mov eax, [rbx + {GUEST_RAM + 0x3000}]; hlt")
    lab.machine.memory.set_u64(EPT_TABLES + 0x1008, WB | 7 | 1 << 7)
    lab.guest_load(GUEST_TABLES + 0x1008, (0x40000087).to_bytes(8, "little"))
    lab.guest_load(0x3000, b"\x78\x56\x34\x12")
    assert lab.first_exit().reason == 12
    assert lab.machine.cpu.gprs[L.Q_RAX] == 0x12345678


def test_1g_pages_where_not_offered() -> None:
    lab = Lab("mov ebx, 0x40000000; mov eax, [rbx]", cpu=CpuModel.default().without("PAGE_1G"))
    lab.machine.memory.set_u64(EPT_TABLES + 0x1008, WB | 7 | 1 << 7)
    lab.guest_load(GUEST_TABLES + 0x1008, (0x40000087).to_bytes(8, "little"))
    assert lab.first_exit().reason == 49


# -- accessed and dirty flags --------------------------------------------------------------------------------------

A, D = 1 << 8, 1 << 9


def test_accessed_and_dirty_flags() -> None:
    lab = Lab(f"mov ebx, {PAGE:#x}; mov eax, [rbx]; cpuid; mov ebx, {PAGE:#x}; mov [rbx], eax; hlt", ept_flags=True)
    seen = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        seen.append(lab.ept_entry(PAGE) & (A | D))
        lab.skip()
        return record.reason != 12

    lab.run(handler)
    assert seen == [A, A | D]
    memory = lab.machine.memory
    assert all(memory.u64(at) & A for at in (EPT_TABLES, EPT_TABLES + 0x1000, EPT_TABLES + 0x2000))
    assert not memory.u64(EPT_TABLES) & D


def test_without_the_flags_nothing_is_set() -> None:
    lab = Lab(access("write") + "; hlt")
    lab.first_exit()
    assert not lab.ept_entry(PAGE) & (A | D)


def test_guest_paging_structures_count_as_written() -> None:
    """With accessed and dirty flags each access to a guest paging structure is a write (SDM 3C 29.3.5)."""
    lab = Lab("hlt", ept_flags=True)
    lab.first_exit()
    assert lab.ept_entry(GUEST_TABLES) & D and not lab.ept_entry(GUEST_CODE) & D


# -- guest page tables ---------------------------------------------------------------------------------------------

TABLE = GUEST_TABLES + 0x9000        # page table for linear 0x40000000


def with_table(code: str, rights: int, **keywords: object) -> Lab:
    """A guest whose page table for linear 0x40000000 lies in a page with these EPT rights."""
    lab = Lab(code, **keywords)  # type: ignore[arg-type]
    lab.guest_load(GUEST_TABLES + 0x1008, (GUEST_TABLES + 0x8007).to_bytes(8, "little"))
    lab.guest_load(GUEST_TABLES + 0x8000, (TABLE | 7).to_bytes(8, "little"))
    lab.guest_load(TABLE, (PAGE | 0x67).to_bytes(8, "little"))
    lab.map_page(TABLE, GUEST_RAM + TABLE | WB | rights if rights else 0)
    return lab


def test_violation_by_a_page_walk() -> None:
    """Bit 8 is 0: the access was to a paging structure; the linear address is that of the original access."""
    lab = with_table("mov ebx, 0x40000010; mov [rbx], eax", 0)
    record = lab.first_exit()
    assert (record.reason, record.qualification) == (48, R | LINEAR)
    assert lab.read("GUEST_PHYSICAL_ADDRESS") == TABLE and lab.read("GUEST_LINEAR_ADDRESS") == 0x40000010
    lab = with_table("mov ebx, 0x40000010; mov eax, [rbx]", R, ept_flags=True)
    record = lab.first_exit()
    assert record.qualification == R | W | R << 3 | LINEAR


def test_page_tables_in_memory_without_execute_permission() -> None:
    """Such guests are common: data pages are mapped without execute permission."""
    lab = with_table("mov ebx, 0x40000010; mov eax, [rbx]; hlt", R | W)
    lab.machine.memory.set_u32(HOST + 0x10, 0xCAFE)
    assert lab.first_exit().reason == 12
    assert lab.machine.cpu.gprs[L.Q_RAX] == 0xCAFE


def test_a_page_without_execute_permission_holds_data_and_then_refuses_to_run() -> None:
    """The right to execute is lacking even when the page is in the TLB for data."""
    lab = Lab(f"mov ebx, {PAGE:#x}; mov eax, [rbx]; mov [rbx + 0x100], eax; jmp rbx")
    lab.map_page(PAGE, HOST | WB | R | W)
    record = lab.first_exit()
    assert (record.reason, record.rip) == (48, PAGE)
    assert record.qualification == X | (R | W) << 3 | LINEAR | FINAL


def test_an_execute_only_page_runs_and_cannot_be_read() -> None:
    lab = Lab(f"mov ebx, {PAGE:#x}; call rbx; mov eax, [rbx]; hlt")
    lab.map_page(PAGE, HOST | WB | X)
    lab.guest_load(PAGE, "mov esi, 5; ret")
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[L.Q_RSI]) == (48, GUEST_CODE + 7, 5)
    assert record.qualification == R | X << 3 | LINEAR | FINAL


def test_read_only_page_tables_without_flags_are_not_modelled() -> None:
    lab = with_table("mov ebx, 0x40000010; mov eax, [rbx]", R)
    stop = lab.run()
    assert stop.kind is StopKind.UNMODELLED and "page tables" in stop.detail


def test_code_that_runs_into_a_missing_page() -> None:
    """The fault is at the first instruction that needs the page, not at the start of the block before it."""
    lab = Lab("nop", fields={"GUEST_RIP": PAGE - 4})
    lab.guest_load(PAGE - 4, b"\x90\x90\xb8\x01\x02\x03\x04")      # two NOPs, then MOV EAX across the border
    lab.map_page(PAGE, 0)
    record = lab.first_exit()
    assert (record.reason, record.rip) == (48, PAGE - 2)
    assert record.qualification == X | LINEAR | FINAL
    assert lab.read("GUEST_LINEAR_ADDRESS") >> 12 == PAGE >> 12


# -- events and EPT ------------------------------------------------------------------------------------------------

def test_violation_while_an_event_is_delivered() -> None:
    """IDT in a page that is not mapped: IDT-vectoring information holds the event."""
    lab = Lab("int 0x21", fields={"GUEST_IDTR_BASE": PAGE})
    lab.map_page(PAGE, 0)
    record = lab.first_exit()
    assert (record.reason, record.qualification, record.rip) == (48, R | LINEAR | FINAL, GUEST_CODE)
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0x80000421 and record.instruction_length == 2
    assert lab.read("GUEST_PHYSICAL_ADDRESS") == PAGE + 0x210


def test_violation_on_the_stack_of_a_handler() -> None:
    lab = Lab("ud2", fields={"GUEST_RSP": PAGE + 0x800})
    lab.idt({6: gate64(HANDLER)})
    lab.map_page(PAGE, HOST | WB | R)
    record = lab.first_exit()
    assert record.qualification == W | R << 3 | LINEAR | FINAL
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0x80000306


# -- INVEPT --------------------------------------------------------------------------------------------------------

def test_changed_rights_hold_after_invept() -> None:
    """The host takes away write permission, INVEPT, and the next write exits."""
    lab = Lab(f"mov ebx, {PAGE:#x}; mov [rbx], eax; vmcall; mov [rbx], eax; hlt")

    def handler(lab: Lab, record: ExitRecord) -> bool:
        if record.reason == 18:
            lab.map_page(PAGE, HOST | WB | R)
            lab.machine.vmx.ept.invalidate(None)
            lab.skip()
            return True
        return False

    lab.run(handler)
    assert [record.reason for record in lab.exits] == [18, 48]


def test_many_pages() -> None:
    """Every 4 KiB page of almost 3 MiB, mapped one by one."""
    code = "mov ebx, 0x120000; again: mov [rbx], rbx; add ebx, 0x1000; cmp ebx, 0x400000; jb again; hlt"
    lab = Lab(code)
    assert lab.first_exit().reason == 12
    assert [lab.guest_u64(at) for at in (0x120000, 0x200000, 0x3FF000)] == [0x120000, 0x200000, 0x3FF000]


def test_ept_to_memory_that_is_not_there() -> None:
    lab = Lab(access("read"))
    lab.map_page(PAGE, 0x7000_0000 | WB | 7)
    stop = lab.run()
    assert stop.kind is StopKind.UNMODELLED and "0x70000" in stop.detail
