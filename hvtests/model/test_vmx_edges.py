"""Edges of instructions in a guest: which of two events comes first, and what an exit or an event saves."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import CODE64, DATA, GUEST_STACK, USER_CODE, USER_DATA, Lab, assemble, gate64
from hvtests.vmx.records import ExitRecord

GP, PF, UD = 13, 14, 6
FAULTS = 1 << GP | 1 << PF | 1 << UD
MOV_SS = 2
TO_USER = f"push {USER_DATA}; push {GUEST_STACK}; push {{flags}}; push {USER_CODE}; push {{rip:#x}}; iretq"
USER = 0x5000


def user(code: str, cr4: int = 0, flags: int = 2) -> Lab:
    """A guest that runs `code` at CPL 3."""
    lab = Lab(f"mov rax, cr4; or eax, {cr4:#x}; mov cr4, rax;" + TO_USER.format(flags=flags, rip=USER),
              proc=("RDPMC_EXITING",), fields={"EXCEPTION_BITMAP": FAULTS, "GUEST_RFLAGS": 0x40002})
    lab.guest_load(USER, code)
    return lab


@pytest.mark.parametrize(("code", "control", "reason"), [
    ("monitor", "MONITOR_EXITING", 39), ("mwait", "MWAIT_EXITING", 36)])
@pytest.mark.parametrize("hint", [0, 1])
def test_monitor_and_mwait_exit_before_ecx_is_looked_at(code: str, control: str, reason: int, hint: int) -> None:
    """Bochs exits too; SDM 3C 26.1.1: only #UD, and faults by privilege, come before."""
    lab = Lab(f"mov ecx, {hint}; {code}", proc=(control,), fields={"EXCEPTION_BITMAP": FAULTS})
    record = lab.first_exit()
    assert (record.reason, record.instruction_length) == (reason, 3)


def test_monitor_with_ecx_is_a_fault_where_it_does_not_exit() -> None:
    lab = Lab("mov ecx, 1; monitor", without=("MONITOR_EXITING",), fields={"EXCEPTION_BITMAP": FAULTS})
    assert lab.first_exit().interruption_info & 0xFF == GP


@pytest.mark.parametrize(("pce", "reason"), [(0, 0), (1 << 8, 15)])
def test_rdpmc_at_cpl_3_needs_cr4_pce(pce: int, reason: int) -> None:
    assert user("rdpmc", cr4=pce).first_exit().reason == reason


def test_outs_exits_before_it_loads() -> None:
    lab = Lab("mov esi, 0x10000000; mov edx, 0x80; outsw; hlt", proc=("UNCONDITIONAL_IO_EXITING",),
              fields={"EXCEPTION_BITMAP": FAULTS})
    record = lab.first_exit()
    assert record.reason == 30 and record.qualification == 1 | 1 << 4 | 0x80 << 16
    assert lab.read("GUEST_LINEAR_ADDRESS") == 0x10000000


def test_outs_exits_before_ept_is_asked() -> None:
    lab = Lab("mov esi, 0x200000; mov edx, 0x80; outsb; hlt", proc=("UNCONDITIONAL_IO_EXITING",))
    lab.map_page(0x200000, 0)
    assert lab.first_exit().reason == 30


def test_outs_faults_where_it_does_not_exit() -> None:
    lab = Lab("mov esi, 0x10000000; mov edx, 0x80; outsb; hlt", fields={"EXCEPTION_BITMAP": FAULTS})
    assert lab.first_exit().interruption_info & 0xFF == PF


IRET = assemble(f"push {DATA}; push {GUEST_STACK}; pushfq; push {CODE64}; push {USER:#x}; iretq")


@pytest.mark.parametrize(("pin", "blocked"), [
    ((), 0), (("NMI_EXITING",), 8), (("NMI_EXITING", "VIRTUAL_NMIS"), 0)])
@pytest.mark.parametrize("after", ["cpuid", "nop; jmp 0x5003; cpuid"])
def test_iret_unblocks_nmis_unless_they_exit(pin: tuple[str, ...], blocked: int, after: str) -> None:
    """SDM 3C 26.3 [25.3], IRET."""
    lab = Lab(IRET, pin=pin, fields={"GUEST_INTERRUPTIBILITY_INFO": 8})
    lab.guest_load(USER, after)
    assert lab.first_exit().reason == 10
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == blocked


STEP = "mov eax, 0x10; pushfq; or qword ptr [rsp], 0x100; popfq; mov ss, eax; {then}"


def test_the_trap_of_mov_ss_is_pending_in_an_exit_behind_it() -> None:
    """SDM 3C 28.3.4; a VM entry with this state wants it so (27.3.1.5)."""
    lab = Lab(STEP.format(then="cpuid; hlt"), fields={"EXCEPTION_BITMAP": 2})
    lab.first_exit()
    assert (lab.read("GUEST_INTERRUPTIBILITY_INFO"), lab.read("GUEST_PENDING_DBG_EXCEPTIONS")) == (MOV_SS, 1 << 14)


def test_the_pending_trap_of_mov_ss_comes_behind_the_next_instruction() -> None:
    lab = Lab(STEP.format(then="mov ebx, [0x200000]; hlt"), fields={"EXCEPTION_BITMAP": 2})
    entry = lab.ept_entry(0x200000)
    lab.map_page(0x200000, 0)
    seen = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        seen.append(record)
        lab.map_page(0x200000, entry)
        return len(seen) < 2

    lab.run(handler)
    assert [record.reason for record in seen] == [48, 0]
    assert seen[1].rip == seen[0].rip + 6 and seen[1].qualification == 1 << 14


@pytest.mark.parametrize("code", ["mov ss, [rbp - 5]", "sti"])
def test_mov_ss_that_ends_like_sti(code: str) -> None:
    """8E 55 FB ends in the opcode of STI."""
    lab = Lab(f"mov ebp, 0x9000; mov dword ptr [rbp - 5], {DATA}; {code}; cpuid")
    lab.first_exit()
    assert lab.read("GUEST_INTERRUPTIBILITY_INFO") == (1 if code == "sti" else MOV_SS)


@pytest.mark.parametrize("code", ["int 0x30", "int3"])
def test_software_events_push_rf_as_0(code: str) -> None:
    """IRET sets RF for one instruction, which the INT is (SDM 3B 18.3.1.1)."""
    lab = Lab(f"push {DATA}; push {GUEST_STACK}; push 0x10002; push {CODE64}; push {USER:#x}; iretq")
    lab.guest_load(USER, code)
    lab.idt({3: gate64(0x6000), 0x30: gate64(0x6000)})
    lab.guest_load(0x6000, "mov rdx, [rsp + 16]; hlt")
    lab.first_exit()
    assert lab.machine.cpu.gprs[2] == 2


def test_an_instruction_of_the_model_ends_rf() -> None:
    lab = Lab(f"push {DATA}; push {GUEST_STACK}; push 0x10002; push {CODE64}; push {USER:#x}; iretq",
              proc=("USE_MSR_BITMAPS",))
    lab.guest_load(USER, "mov ecx, 0xc0000080; rdmsr; hlt")
    lab.guest_load(USER, "rdtsc; pushfq; pop rdx; hlt")
    lab.first_exit()
    assert lab.machine.cpu.gprs[2] == 2


@pytest.mark.parametrize("code", ["mov rcx, 0x800000000000; mov r11d, 2; sysretq", "mov rax, 0x800000000000; jmp rax"])
def test_a_transfer_to_an_address_that_is_not_canonical_is_not_modelled(code: str) -> None:
    data = assemble(code) if "sysret" not in code else assemble(code.replace("sysretq", "nop"))[:-1] + b"\x48\x0f\x07"
    lab = Lab(b"\xb9\x80\x00\x00\xc0\x0f\x32\x0c\x01\x0f\x30" + data, proc=("USE_MSR_BITMAPS",),
              fields={"EXCEPTION_BITMAP": FAULTS})      # RDMSR EFER; or al, 1; WRMSR
    stop = lab.run()
    assert stop is not None and stop.kind is StopKind.UNMODELLED and "not canonical" in stop.detail


@pytest.mark.parametrize("code", ["retfq", "iretq"])
def test_far_returns_of_user_code_read_their_stack_under_smap(code: str) -> None:
    """SDM 3A 4.6.1: SMAP is for accesses of supervisor mode. Behind the return it holds again."""
    frame = f"push {USER_DATA}; push 0x7000; pushfq; push {USER_CODE}; push 0x6000;" if code == "iretq" else (
        f"push {USER_DATA}; push 0x7000; push {USER_CODE}; push 0x6000;")
    lab = user(frame + code, cr4=1 << 21)
    lab.guest_load(0x6000, "ud2")
    record = lab.first_exit()
    assert (record.rip, record.interruption_info & 0xFF) == (0x6000, UD)
    assert lab.read("GUEST_RFLAGS") & 0x40000 == 0
    assert lab.vmcs.i[L.I_HFLAGS] & L.HF_SMAP
