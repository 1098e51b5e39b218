"""What VM entry loads and VM exit saves and loads: SDM 3C 27.3 [26.3], 28.3 to 28.5 [27.3 to 27.5], 27.8 [26.8]."""

from __future__ import annotations

from typing import Any

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import (
    DATA,
    GUEST_CODE,
    GUEST_TABLES,
    HANDLER_AT,
    HOST_GDT,
    HOST_STACK,
    HOST_TABLES,
    TASK,
    Lab,
    assemble,
    gdt,
)
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.records import ExitRecord

RSI = L.Q_RSI


def test_guest_registers_are_loaded() -> None:
    """RSP, segments, CR2's survival, general registers pass through."""
    lab = Lab("mov rsi, rsp; mov ax, fs; mov bx, gs; xor edx, edx; mov rcx, fs:[rdx]; str dx; hlt", fields={
        "GUEST_FS_BASE": 0x6000, "GUEST_RSP": 0x1234567890, "GUEST_FS_SELECTOR": 0x33, "GUEST_GS_SELECTOR": 0x23})
    lab.guest_load(0x6000, b"\x11\x22\x33\x44\x55\x66\x77\x88")
    lab.until_halt()
    gprs = lab.machine.cpu.gprs
    assert gprs[RSI] == 0x1234567890 and gprs[0] & 0xFFFF == 0x33 and gprs[3] & 0xFFFF == 0x23
    assert gprs[1] == 0x8877665544332211 and gprs[2] & 0xFFFF == TASK


def test_guest_state_is_saved() -> None:
    lab = Lab("mov ax, 0; mov fs, ax; mov ax, 0x10; mov gs, ax; push 0x246; popfq; mov rax, cr4; bts rax, 7;"
              "mov cr4, rax; mov ebx, 0x5000; lgdt [rbx]; hlt")
    lab.guest_load(0x5000, b"\x34\x12" + (0x77000).to_bytes(8, "little"))
    lab.until_halt()
    assert lab.read("GUEST_FS_SELECTOR") == 0 and lab.read("GUEST_FS_AR_BYTES") & 0x10000
    assert lab.read("GUEST_GS_SELECTOR") == DATA and lab.read("GUEST_GS_AR_BYTES") == 0xC093
    assert lab.read("GUEST_GS_LIMIT") == 0xFFFFFFFF
    assert lab.read("GUEST_RFLAGS") == 0x246 and lab.read("GUEST_CR4") == 0x26A0
    assert lab.read("GUEST_GDTR_BASE") == 0x77000 and lab.read("GUEST_GDTR_LIMIT") == 0x1234
    assert lab.read("GUEST_RSP") == 0x8000


def test_host_state_is_loaded() -> None:
    """SDM 3C 28.5: fixed attributes, cleared flags, DR7 and DEBUGCTL."""
    lab = Lab("mov eax, 0x400; mov dr7, rax; std; stc; hlt", fields={
        "HOST_FS_SELECTOR": 0x10, "HOST_FS_BASE": 0x123456789A, "HOST_GS_BASE": 0xFFFF800000001000,
        "HOST_DS_SELECTOR": 0, "HOST_IDTR_BASE": 0x88000, "HOST_IA32_SYSENTER_EIP": 0x99000,
        "HOST_IA32_SYSENTER_CS": 8})
    seen: dict[str, Any] = {}

    def handler(lab: Lab, record: ExitRecord) -> bool:  # noqa: ARG001
        cpu = lab.machine.cpu
        for name, number in (("cs", L.CS), ("ss", L.SS), ("ds", L.DS), ("fs", L.FS), ("gs", L.GS), ("tr", L.TR),
                             ("ldtr", L.LDTR)):
            seen[name] = cpu.segment(number)
        seen["rip"], seen["rsp"], seen["flags"] = cpu.rip, cpu.gprs[L.Q_RSP], cpu.rflags
        seen["cr"] = cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer
        seen["tables"] = cpu.table(L.GDTR), cpu.table(L.IDTR)
        seen["dr7"] = cpu.dr[7]
        seen["msrs"] = lab.machine.msrs.read(0x174), lab.machine.msrs.read(0x176), lab.machine.msrs.read(0x1D9)
        return False

    lab.run(handler)
    cs, ss, ds, fs, gs, tr, ldtr = (seen[name] for name in ("cs", "ss", "ds", "fs", "gs", "tr", "ldtr"))
    assert (cs.selector, cs.base, cs.limit, cs.access) == (8, 0, 0xFFFFFFFF, 0xA09B)
    assert (ss.selector, ss.access) == (0x10, 0xC093)
    assert ds.selector == 0 and ds.access & 0x10000
    assert (fs.selector, fs.base) == (0x10, 0x123456789A) and gs.base == 0xFFFF800000001000
    assert (tr.selector, tr.base, tr.limit, tr.access) == (TASK, HOST_GDT + 0x800, 0x67, 0x8B)
    assert ldtr.selector == 0 and ldtr.access & 0x10000
    # the handler has executed its OUT: two bytes
    assert (seen["rip"], seen["rsp"], seen["flags"]) == (HANDLER_AT + 2, HOST_STACK, 2)
    assert seen["cr"] == (0x80000033, HOST_TABLES, 0x2620, 0xD00)
    assert seen["tables"] == ((HOST_GDT, 0xFFFF), (0x88000, 0xFFFF))
    assert seen["dr7"] == 0x400 and seen["msrs"] == (8, 0x99000, 0)


@pytest.mark.parametrize(("control", "field", "msr", "value"), [
    ("SAVE_IA32_PAT", "GUEST_IA32_PAT", 0x277, 0x0007040600070405),
    ("SAVE_IA32_EFER", "GUEST_IA32_EFER", 0xC0000080, 0x501)])
def test_msrs_are_saved_by_control(control: str, field: str, msr: int, value: int) -> None:
    code = f"mov ecx, {msr}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; wrmsr; hlt"
    for on in (True, False):
        lab = Lab(code, proc=("USE_MSR_BITMAPS",), exit_=(control,) if on else (), without=() if on else (control,))
        before = lab.fields.get(field, 0)
        lab.until_halt()
        assert lab.read(field) == (value if on else before)


def test_pat_is_loaded_by_both_sides() -> None:
    lab = Lab("mov ecx, 0x277; rdmsr; hlt", proc=("USE_MSR_BITMAPS",), entry=("LOAD_IA32_PAT",),
              exit_=("LOAD_IA32_PAT",),
              fields={"GUEST_IA32_PAT": 0x0606060606060606, "HOST_IA32_PAT": 0x0007040600070406})
    lab.until_halt()
    assert lab.machine.cpu.gprs[0] == 0x06060606
    assert lab.machine.msrs.read(0x277) == 0x0007040600070406


def test_debug_controls() -> None:
    fields = {"GUEST_DR7": 0x2400 & ~0x2000}
    lab = Lab("mov rsi, dr7; mov eax, 0x700; mov dr7, rax; hlt", entry=("LOAD_DEBUG_CONTROLS",),
              exit_=("SAVE_DEBUG_CONTROLS",), fields=fields)
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == 0x400 and lab.read("GUEST_DR7") == 0x700


def test_efer_without_the_load_control_follows_ia32e_mode_guest() -> None:
    """LMA and LME are set to the "IA-32e mode guest" control, the rest stays (SDM 3C 27.3.2.1)."""
    lab = Lab("mov ecx, 0xc0000080; rdmsr; hlt", proc=("USE_MSR_BITMAPS",), without=("LOAD_IA32_EFER",))
    lab.until_halt()
    assert lab.machine.cpu.gprs[0] == 0xD00        # the host's NXE stays


@pytest.mark.parametrize("start", [64, 16])
def test_the_mode_at_exit_is_stored_in_ia32e_mode_guest(start: int) -> None:
    """IA32_VMX_MISC bit 5: EFER.LMA goes to the VM-entry controls (SDM 3C 28.2, A.6)."""
    lab = Lab("hlt", mode=start)
    lab.first_exit()
    assert bool(lab.read("VM_ENTRY_CONTROLS") >> 9 & 1) is (start == 64)


def test_a_guest_climbs_from_real_mode_to_long_mode() -> None:
    """Unrestricted guest: PE, paging and IA-32e mode are the guest's own affair; the last exit sees the new mode."""
    lab = Lab("hlt", mode=16, proc=("USE_MSR_BITMAPS",))
    real = ("lgdt [0x5000]; mov eax, 0x2020; mov cr4, eax; mov eax, 0x100000; mov cr3, eax; mov ecx, 0xc0000080;"
            "rdmsr; or ax, 0x100; wrmsr; mov eax, 0x80000031; mov cr0, eax")
    lgdt = b"\x0f\x01\x16\x00\x50"
    rest = assemble(real.split(";", 1)[1], GUEST_CODE + 5, 16)
    far_jump = b"\x66\xea" + (0x6000).to_bytes(4, "little") + b"\x08\x00"
    lab.guest_load(GUEST_CODE, lgdt + rest + far_jump)
    lab.guest_load(0x5000, b"\x47\x00" + (0x108000).to_bytes(4, "little"))
    lab.guest_load(0x108000, gdt(0x10A000))
    lab.guest_load(0x6000, "mov rsi, 0x123456789abcdef0; hlt", 64)
    record = lab.first_exit()
    assert record.reason == 12 and lab.machine.cpu.gprs[RSI] == 0x123456789ABCDEF0
    assert lab.read("VM_ENTRY_CONTROLS") >> 9 & 1 and lab.read("GUEST_IA32_EFER") == 0x500
    assert lab.read("GUEST_CR0") == 0x80000031 and lab.read("GUEST_CS_AR_BYTES") == 0xA09B


def test_cr0_bits_that_entry_and_exit_leave_alone() -> None:
    """ET, NW, CD stay as they are on both ways (SDM 3C 27.3.2.1, 28.5.1)."""
    lab = Lab("mov rsi, cr0; hlt", fields={"GUEST_CR0": 0xE0000021})
    lab.until_halt()
    assert lab.machine.cpu.gprs[RSI] == 0x80000031


def test_an_exit_during_a_write_to_cr3_shows_the_new_value() -> None:
    lab = Lab(f"mov rax, {GUEST_TABLES}; mov cr3, rax; hlt", fields={"GUEST_CR3": GUEST_TABLES | 0x18})
    lab.until_halt()
    assert lab.read("GUEST_CR3") == GUEST_TABLES


# -- entry failures ------------------------------------------------------------------------------------------------

def failing(fields: dict[str, int], **keywords: object) -> tuple[Lab, ExitRecord]:
    lab = Lab("nop", fields=fields, **keywords)  # type: ignore[arg-type]
    return lab, lab.first_exit()


def test_invalid_guest_state_is_reason_33_and_saves_nothing() -> None:
    lab, record = failing({"GUEST_RFLAGS": 0, "VM_ENTRY_INTR_INFO_FIELD": 0x80000306})
    assert (record.reason, record.qualification) == (0x80000021, 0)
    assert lab.read("GUEST_RFLAGS") == 0 and not lab.vmcs.launched
    assert lab.read("VM_ENTRY_INTR_INFO_FIELD") == 0x80000306      # the valid bit is not cleared
    assert lab.machine.vmx.last_failure is not None


def test_bad_link_pointer_has_qualification_4() -> None:
    _, record = failing({"VMCS_LINK_POINTER": 0x1001})
    assert (record.reason, record.qualification) == (0x80000021, 4)


def test_invalid_host_state_is_error_8_and_controls_error_7() -> None:
    for fields, error in (({"HOST_CR3": 1 << 60}, 8), ({"HOST_TR_SELECTOR": 0}, 8), ({"EPT_POINTER": 0}, 7)):
        lab = Lab("nop", fields=fields)
        assert lab.run().kind is StopKind.HALT         # the host's HLT after a failed VMLAUNCH
        assert lab.read("VM_INSTRUCTION_ERROR") == error
        assert lab.machine.cpu.rflags & 0x8D5 == 1 << 6


def test_only_changed_fields_are_checked_again_and_a_bad_change_is_found() -> None:
    lab = Lab("cpuid; hlt")

    def handler(lab: Lab, record: ExitRecord) -> bool:
        if record.reason == 10:
            lab.skip()
            lab.write("GUEST_RFLAGS", 0)
            return True
        return False

    lab.run(handler)
    assert [record.reason for record in lab.exits] == [10, 0x80000021]


# -- MSR areas -----------------------------------------------------------------------------------------------------

AREA = 0x38000


def area(lab: Lab, at: int, *entries: tuple[int, int]) -> None:
    for number, (index, value) in enumerate(entries):
        lab.machine.memory.set_u64(at + 16 * number, index)
        lab.machine.memory.set_u64(at + 16 * number + 8, value)


def test_msr_areas() -> None:
    lab = Lab("mov ecx, 0xc0000082; rdmsr; mov esi, eax; mov eax, 0x333; xor edx, edx; wrmsr; hlt",
              proc=("USE_MSR_BITMAPS",), fields={
                  "VM_ENTRY_MSR_LOAD_ADDR": AREA, "VM_ENTRY_MSR_LOAD_COUNT": 2, "VM_EXIT_MSR_STORE_ADDR": AREA + 0x100,
                  "VM_EXIT_MSR_STORE_COUNT": 1, "VM_EXIT_MSR_LOAD_ADDR": AREA + 0x200, "VM_EXIT_MSR_LOAD_COUNT": 1})
    area(lab, AREA, (0xC0000082, 0x111), (0xC0000081, 0x222))
    area(lab, AREA + 0x100, (0xC0000082, 0))
    area(lab, AREA + 0x200, (0xC0000082, 0x444))
    lab.first_exit()
    assert lab.machine.cpu.gprs[RSI] == 0x111
    assert lab.machine.memory.u64(AREA + 0x108) == 0x333
    assert lab.machine.msrs.read(0xC0000082) == 0x444 and lab.machine.msrs.read(0xC0000081) == 0x222


@pytest.mark.parametrize(("entry", "number"), [((0xC0000100, 0), 2), ((0x12345, 0), 2), ((0x9B, 0), 2)])
def test_a_bad_entry_of_the_load_area_is_reason_34(entry: tuple[int, int], number: int) -> None:
    lab = Lab("nop", fields={"VM_ENTRY_MSR_LOAD_ADDR": AREA, "VM_ENTRY_MSR_LOAD_COUNT": 2})
    area(lab, AREA, (0xC0000082, 0x111), entry)
    record = lab.first_exit()
    assert (record.reason, record.qualification) == (0x80000022, number)
    assert not lab.vmcs.launched


def test_a_bad_entry_of_the_exit_areas_is_a_vmx_abort_and_not_modelled() -> None:
    lab = Lab("hlt", fields={"VM_EXIT_MSR_STORE_ADDR": AREA, "VM_EXIT_MSR_STORE_COUNT": 1})
    area(lab, AREA, (0x12345, 0))
    stop = lab.run()
    assert stop.kind is StopKind.UNMODELLED and "VMX abort" in stop.detail


# -- paging modes --------------------------------------------------------------------------------------------------

def pae_guest(**fields: int) -> Lab:
    lab = Lab("mov eax, [0x5000]; hlt", mode=32, fields={"GUEST_CR4": 0x2020, "GUEST_CR3": 0x106000, **fields})
    lab.guest_load(GUEST_CODE, b"\xa1\x00\x50\x00\x00\xf4")
    lab.guest_load(0x106000, (0x107001).to_bytes(8, "little"))
    lab.guest_load(0x107000, (0x87).to_bytes(8, "little"))
    lab.guest_load(0x5000, b"\xef\xbe\xad\xde")
    return lab


def test_pae_guest_and_its_pdptes() -> None:
    lab = pae_guest(GUEST_PDPTR0=0x107001)
    assert lab.first_exit().reason == 12
    assert lab.machine.cpu.gprs[0] == 0xDEADBEEF and lab.read("GUEST_PDPTR0") == 0x107001


def test_pdptes_that_differ_from_memory_are_not_modelled() -> None:
    stop = pae_guest(GUEST_PDPTR0=0x103001).run()
    assert stop.kind is StopKind.UNMODELLED and "GUEST_PDPTR0" in stop.detail


def test_a_control_that_is_not_modelled_ends_the_run() -> None:
    model = CpuModel.skylake_x()
    lab = Lab("hlt", proc2=("RDRAND_EXITING",), cpu=model)
    stop = lab.run()
    assert stop.kind is StopKind.UNMODELLED and "SECONDARY_VM_EXEC_CONTROL" in stop.detail


# -- the preemption timer ------------------------------------------------------------------------------------------

LOOP = "again: inc rsi; jmp again"      # five bytes: one tick each


def test_preemption_timer_counts_ticks() -> None:
    lab = Lab(LOOP, pin=("ACTIVATE_PREEMPTION_TIMER",), fields={"VMX_PREEMPTION_TIMER_VALUE": 1000})
    record = lab.first_exit()
    assert (record.reason, record.qualification, record.rip) == (52, 0, GUEST_CODE)
    assert lab.machine.cpu.gprs[RSI] == 200


def test_preemption_timer_of_0_exits_before_the_first_instruction() -> None:
    lab = Lab("mov esi, 1; hlt", pin=("ACTIVATE_PREEMPTION_TIMER",), fields={"VMX_PREEMPTION_TIMER_VALUE": 0})
    assert lab.first_exit().reason == 52 and lab.machine.cpu.gprs[RSI] == 0


def test_preemption_timer_is_saved_by_control() -> None:
    for save in (True, False):
        lab = Lab("mov esi, 1; hlt", pin=("ACTIVATE_PREEMPTION_TIMER",),
                  exit_=("SAVE_PREEMPTION_TIMER",) if save else (), fields={"VMX_PREEMPTION_TIMER_VALUE": 1000})
        lab.first_exit()
        assert lab.read("VMX_PREEMPTION_TIMER_VALUE") == (1000 - 6 if save else 1000)


def test_preemption_timer_wakes_a_halted_guest() -> None:
    lab = Lab("hlt", pin=("ACTIVATE_PREEMPTION_TIMER",), without=("HLT_EXITING",),
              fields={"VMX_PREEMPTION_TIMER_VALUE": 1 << 30})
    before = lab.machine.clock.now()
    assert lab.first_exit().reason == 52
    assert lab.read("GUEST_ACTIVITY_STATE") == 1 and lab.read("GUEST_RIP") == GUEST_CODE + 1
    assert lab.machine.clock.now() - before >= 1 << 30


def test_the_run_is_the_same_every_time() -> None:
    """Ticks, exits and registers of two runs with timer, faults and page walks."""
    def run() -> list[object]:
        lab = Lab("mov ebx, 0x10000; again: inc rsi; mov [rbx], rsi; add ebx, 8; and ebx, 0x1fffff; or ebx, 0x10000;"
                  "test esi, 63; jne again; cpuid; mov ebx, 0x10000; jmp again",
                  pin=("ACTIVATE_PREEMPTION_TIMER",), fields={"VMX_PREEMPTION_TIMER_VALUE": 700})
        seen: list[object] = []

        def handler(lab: Lab, record: ExitRecord) -> bool:
            seen.append((record, lab.machine.fabric.ticks, lab.machine.cpu.gprs[RSI]))
            if record.reason == 10:
                lab.skip()
            return len(seen) < 50

        lab.run(handler)
        return seen

    assert run() == run()
