"""VMFUNC and EPTP switching. SDM 3C 26.5.6 [25.5.6], 25.6.14."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import EPT_TABLES, GUEST_CODE, GUEST_RAM, Lab, gate64
from hvtests.vmx.records import ExitRecord

VMFUNC, LIST, OTHER, PAGE, HANDLER = 59, 0x38000, 0x50000, 0x310000, 0x5000
EPTP, WB = EPT_TABLES | 0x1E, 6 << 3
CALL = ".byte 0x0f, 0x01, 0xd4"


def lab(code: str, *, controls: int = 1, rights: int = 7, **fields: int) -> Lab:
    """EPTP 1 of the list maps PAGE to the host page behind the one that EPTP 0 maps it to."""
    made = Lab(code.replace("VMFUNC", CALL), proc2=("ENABLE_VM_FUNCTIONS",),
               fields={"VM_FUNCTION_CONTROL": controls, "EPTP_LIST_ADDRESS": LIST, **fields})
    memory = made.machine.memory
    memory.set_u64(OTHER, OTHER + 0x1007)
    memory.set_u64(OTHER + 0x1000, OTHER + 0x2007)
    memory.set_u64(OTHER + 0x2000, EPT_TABLES + 0x3007)
    memory.set_u64(OTHER + 0x2008, OTHER + 0x3007)
    for page in range(512):
        memory.set_u64(OTHER + 0x3000 + 8 * page, memory.u64(EPT_TABLES + 0x4000 + 8 * page))
    memory.set_u64(OTHER + 0x3000 + (PAGE - 0x200000 >> 12) * 8, GUEST_RAM + PAGE + 0x1000 | WB | rights)
    for number, pointer in enumerate((EPTP, OTHER | 0x1E, OTHER | 0x1D, OTHER | 0x16, OTHER | 0x9E, 0)):
        memory.set_u64(LIST + 8 * number, pointer)
    memory.set_u64(LIST + 8 * 511, OTHER | 0x1E)
    memory.set_u64(GUEST_RAM + PAGE, 0x11)
    memory.set_u64(GUEST_RAM + PAGE + 0x1000, 0x22)
    return made


SWITCH = f"mov ebx, {PAGE:#x}; mov esi, [rbx]; mov ecx, 1; xor eax, eax; VMFUNC; mov edi, [rbx]; hlt"


def test_switching_and_back() -> None:
    one = lab(SWITCH.replace("hlt", "xor ecx, ecx; VMFUNC; mov edx, [rbx]; mov ecx, 511; VMFUNC; mov ebp, [rbx]; hlt"))
    assert one.first_exit().reason == 12
    gprs = one.machine.cpu.gprs
    assert (gprs[L.Q_RSI], gprs[L.Q_RDI], gprs[L.Q_RDX], gprs[L.Q_RBP]) == (0x11, 0x22, 0x11, 0x22)


def test_the_new_eptp_is_in_the_vmcs_and_stays_for_the_next_entry() -> None:
    one = lab(SWITCH.replace("hlt", "cpuid; mov ebx, 0x310000; mov edi, [rbx]; hlt"))

    def handler(one: Lab, record: ExitRecord) -> bool:
        if record.reason == 10:
            assert one.read("EPT_POINTER") == OTHER | 0x1E
            one.skip()
        return record.reason == 10

    one.run(handler)
    assert [record.reason for record in one.exits] == [10, 12] and one.machine.cpu.gprs[L.Q_RDI] == 0x22


def test_the_new_ept_s_rights_apply() -> None:
    """A read-only page, and one that may not be executed, in the second EPT alone."""
    one = lab(SWITCH.replace("mov edi, [rbx]", "mov [rbx], edi"), rights=5)
    record = one.first_exit()
    assert (record.reason, record.qualification) == (48, 2 | 5 << 3 | 3 << 7)
    one = lab(SWITCH.replace("mov edi, [rbx]", "mov edi, [rbx]; xor ecx, ecx; VMFUNC; jmp rbx"), rights=3)
    one.guest_load(PAGE, "hlt")
    assert one.first_exit().rip == PAGE and one.exits[0].reason == 12


@pytest.mark.parametrize(("eax", "ecx", "why"), [
    (0, 2, "memory type 5"), (0, 3, "walk length 3"), (0, 4, "reserved bit 7"), (0, 5, "zero"),
    (0, 512, "beyond the list"), (0, 0xFFFFFFFF, "beyond the list"), (1, 0, "function 1"), (63, 0, "function 63")])
def test_failures_exit(eax: int, ecx: int, why: str) -> None:
    one = lab(f"mov eax, {eax}; mov ecx, {ecx:#x}; VMFUNC; hlt")
    assert one.first_exit() == ExitRecord(0x31000, VMFUNC, 0, GUEST_CODE + 10, 3, 0), why
    assert one.read("EPT_POINTER") == EPTP


def test_a_function_that_is_off_exits() -> None:
    assert lab(SWITCH, controls=0).first_exit().reason == VMFUNC


@pytest.mark.parametrize(("code", "enabled"), [("mov eax, 64; VMFUNC", True), ("mov eax, 0x80000000; VMFUNC", True),
                                               ("mov eax, 0; VMFUNC", False)])
def test_undefined(code: str, enabled: bool) -> None:
    """EAX beyond 63, or the control 0: #UD, whatever the functions' controls say."""
    one = lab(code)
    if not enabled:
        one.fields["SECONDARY_VM_EXEC_CONTROL"] &= ~(1 << 13)
    one.idt({6: gate64(HANDLER)})
    one.guest_load(HANDLER, "hlt")
    record = one.first_exit()
    assert (record.reason, record.rip) == (12, HANDLER)


def test_in_root_operation_it_is_undefined() -> None:
    """SDM 3C 31.3 "VMFUNC": with no handler for #UD the host triple-faults."""
    one = lab("cpuid; hlt")
    one.load(0x20200, "vmcall; " + CALL)
    stop = one.machine.run()
    assert stop.kind is StopKind.TRIPLE_FAULT and "vector 6" in stop.detail
