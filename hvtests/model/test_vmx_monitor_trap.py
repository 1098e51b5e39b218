"""The monitor trap flag: SDM 3C 26.5.2 [25.5.2], 27.6.2 [26.6.2]; priorities 26.2, SDM 3A table 7-2. Bochs has none."""

from __future__ import annotations

import pytest

from hvtests.machine import layout as L
from hvtests.model.asm import CODE64, GUEST_CODE, Lab, assemble, gate64
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.records import ExitRecord

MTF, VALID, HANDLER, FAR, DATA = 37, 1 << 31, 0x5000, 0x212345, 0x310000
ON = ("MONITOR_TRAP_FLAG",)


def steps(lab: Lab, count: int = 100) -> list[int]:
    """RIPs of the MTF exits up to `count`, or to the guest's HLT."""
    def handler(lab: Lab, record: ExitRecord) -> bool:
        return record.reason == MTF and len(lab.exits) < count

    stop = lab.run(handler)
    assert lab.exits, stop
    assert {record.reason for record in lab.exits} <= {MTF, 12}, stop
    assert all((record.qualification, record.instruction_length) == (0, 0) for record in lab.exits[:-1])
    return [record.rip for record in lab.exits if record.reason == MTF]


def places(*instructions: str, start: int = GUEST_CODE, bits: int = 64) -> list[int]:
    """Where each of these instructions ends."""
    ends = []
    for text in instructions:
        start += len(assemble(text, start, bits))
        ends.append(start)
    return ends


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_one_exit_after_each_instruction(mode: int) -> None:
    """Also after those that the model makes itself (RDTSC, OUT), and those whose pages EPT's shadow lacks as yet."""
    at = "bx" if mode == 16 else "ebx"
    code = ("nop", "mov esi, 1", "push si", "mov cx, 0x3000", f"mov {at}, 0x7000", f"mov [{at}], cx",
            f"inc word ptr [{at}]", "rdtsc", "out 0x80, al", "pop di", "pushf", "popf")
    lab = Lab("; ".join((*code, "hlt")), mode=mode, proc=ON)
    assert steps(lab) == places(*code, bits=mode)
    assert lab.machine.cpu.gprs[L.Q_RDI] & 0xFFFF == 1 and lab.guest_u64(0x7000) & 0xFFFF == 0x3001


def test_jumps_to_pages_that_were_never_fetched_from() -> None:
    """The exit comes before anything that the next instruction's fetch causes."""
    lab = Lab(f"mov eax, {FAR}; jmp rax", proc=ON)
    lab.guest_load(FAR, "inc esi; jmp rax")
    assert steps(lab, 6) == [GUEST_CODE + 5, FAR, FAR + 2, FAR, FAR + 2, FAR]
    assert lab.machine.cpu.gprs[L.Q_RSI] == 2
    lab = Lab(f"mov eax, {FAR}; jmp rax", proc=ON)
    lab.map_page(FAR, 0)
    seen = []

    def handler(_lab: Lab, record: ExitRecord) -> bool:
        seen.append((record.reason, record.rip))
        return len(seen) < 3

    lab.run(handler)
    assert seen == [(MTF, GUEST_CODE + 5), (MTF, FAR), (48, FAR)]


def test_an_instruction_across_two_pages() -> None:
    start = 0x212FFE
    lab = Lab(f"mov eax, {start:#x}; jmp rax", proc=ON)
    lab.guest_load(start, "mov esi, 7; mov edi, 8; hlt")
    assert steps(lab) == [GUEST_CODE + 5, start, start + 5, start + 10]


def test_a_repeated_string_instruction_exits_after_each_iteration() -> None:
    lab = Lab(f"mov ecx, 3; mov edi, {DATA:#x}; rep stosb; hlt", proc=ON)
    at = GUEST_CODE + 10    # the exit after MOV EDI is there too
    assert steps(lab) == [GUEST_CODE + 5, at, at, at, at + 2]
    assert lab.machine.cpu.gprs[L.Q_RCX] == 0


@pytest.mark.parametrize(("code", "vector"), [
    ("ud2", 6), ("int 0x50", 0x50), ("int3", 3), ("mov eax, 0x10000000; mov eax, [rax]", 14),
    ("mov eax, 0x10000000; jmp rax", 14), ("mov eax, 0x10; mov cr8, rax", 13), ("mov eax, 0x48; mov ds, ax", 13)])
def test_delivery_of_an_event_stands_for_the_instruction(code: str, vector: int) -> None:
    """The exit comes before the handler's first instruction."""
    lab = Lab(code, proc=ON)
    lab.idt({vector: gate64(HANDLER, CODE64)})
    lab.guest_load(HANDLER, "mov esi, 1; hlt")
    rips = steps(lab, 8)
    assert HANDLER in rips and rips[-1] == HANDLER + 5
    if code.endswith("jmp rax"):
        assert rips[:3] == [GUEST_CODE + 5, 0x10000000, HANDLER]


def test_an_injected_event_is_followed_by_the_exit_before_any_instruction() -> None:
    lab = Lab("hlt", proc=ON, fields={"VM_ENTRY_INTR_INFO_FIELD": VALID | 0x60, "GUEST_RFLAGS": 0x202})
    lab.idt({0x60: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.guest_u64(0x8000 - 40)) == (MTF, HANDLER, GUEST_CODE)
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0


@pytest.mark.parametrize("activity", [0, 1])
def test_a_pending_mtf_exit_is_injected_as_other_event(activity: int) -> None:
    """It happens at once, whether the control is 1 or 0, and leaves the guest as it was."""
    lab = Lab("mov esi, 1", fields={"VM_ENTRY_INTR_INFO_FIELD": VALID | 7 << 8, "GUEST_ACTIVITY_STATE": activity,
                                    "GUEST_PENDING_DBG_EXCEPTIONS": 1 << 14, "GUEST_RFLAGS": 0x102})
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[L.Q_RSI]) == (MTF, GUEST_CODE, 0)
    assert lab.read("GUEST_ACTIVITY_STATE") == activity and not lab.read("VM_ENTRY_INTR_INFO_FIELD") & VALID
    assert lab.read("GUEST_PENDING_DBG_EXCEPTIONS") == 1 << 14


def test_other_event_needs_the_control_to_be_offered() -> None:
    """SDM 3C 27.2.1.3: VMfailValid, error 7."""
    lab = Lab("hlt", cpu=CpuModel.default().without("MONITOR_TRAP_FLAG"),
              fields={"VM_ENTRY_INTR_INFO_FIELD": VALID | 7 << 8})
    lab.run()
    assert not lab.exits and lab.read("VM_INSTRUCTION_ERROR") == 7


@pytest.mark.parametrize("instruction", ["nop", "rdtsc"])
def test_it_comes_before_the_single_step_trap_which_stays_pending(instruction: str) -> None:
    """RFLAGS.TF = 1: BS is saved as a pending debug exception, DR6 is not changed; the next entry delivers it, and
    another MTF exit follows that."""
    lab = Lab(f"{instruction}; hlt", proc=ON, fields={"GUEST_RFLAGS": 0x102})
    lab.idt({1: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    before = lab.machine.cpu.dr[6]
    pending = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        pending.append((record.reason, record.rip, lab.read("GUEST_PENDING_DBG_EXCEPTIONS"),
                        lab.machine.cpu.dr[6] ^ before))
        return len(pending) < 2

    lab.run(handler)
    end = GUEST_CODE + len(assemble(instruction))
    assert pending == [(MTF, end, 1 << 14, 0), (MTF, HANDLER, 0, 1 << 14)]


def test_an_instruction_that_exits_gives_its_own_exit_alone() -> None:
    lab = Lab("cpuid; nop; hlt", proc=ON)
    reasons = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        reasons.append(record.reason)
        if record.reason == 10:
            lab.skip()
        return record.reason != 12

    lab.run(handler)
    assert reasons == [10, MTF, 12]


def test_hlt_that_does_not_exit() -> None:
    lab = Lab("hlt", proc=ON, without=("HLT_EXITING",))
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.read("GUEST_ACTIVITY_STATE")) == (MTF, GUEST_CODE + 1, 1)


class Line:
    """A port at which the guest raises an interrupt."""

    def __init__(self, lab: Lab) -> None:
        self.machine = lab.machine
        lab.machine.ports.attach(0x78, 1, self)

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self.machine.raise_interrupt(0x31)


def test_it_comes_before_interrupts_and_the_preemption_timer() -> None:
    """Priorities: MTF, then the timer, then the interrupt (SDM 3A table 7-2, SDM 3C 26.2)."""
    lab = Lab("out 0x78, al; hlt", proc=ON, pin=("EXTERNAL_INTERRUPT_EXITING", "ACTIVATE_PREEMPTION_TIMER"),
              exit_=("ACKNOWLEDGE_INTERRUPT_ON_EXIT", "SAVE_PREEMPTION_TIMER"),
              fields={"VMX_PREEMPTION_TIMER_VALUE": 1})
    Line(lab)
    reasons = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        reasons.append((record.reason, record.rip - GUEST_CODE))
        if record.reason == 52:
            lab.write("VMX_PREEMPTION_TIMER_VALUE", 1000)
        return record.reason != 12 and len(reasons) < 6

    stop = lab.run(handler)
    assert reasons, stop
    assert reasons == [(MTF, 2), (52, 2), (1, 2), (12, 2)]


def test_an_interrupt_that_waits_at_entry_is_delivered_first() -> None:
    lab = Lab("mov esi, 1", proc=ON, fields={"GUEST_RFLAGS": 0x202})
    lab.idt({0x31: gate64(HANDLER)})
    lab.guest_load(HANDLER, "hlt")
    lab.machine.raise_interrupt(0x31)
    record = lab.first_exit()
    assert (record.reason, record.rip, lab.machine.cpu.gprs[L.Q_RSI]) == (MTF, HANDLER, 0)


def test_without_the_control_nothing_stops_the_guest_again() -> None:
    """The control turned off at the third exit."""
    lab = Lab("nop; nop; nop; nop; nop; hlt", proc=ON)

    def handler(lab: Lab, record: ExitRecord) -> bool:
        if len(lab.exits) == 3:
            lab.write("CPU_BASED_VM_EXEC_CONTROL", lab.read("CPU_BASED_VM_EXEC_CONTROL") & ~(1 << 27))
        return record.reason == MTF

    lab.run(handler)
    assert [record.reason for record in lab.exits] == [MTF, MTF, MTF, 12]


def test_the_timer_that_expired_is_saved_as_zero() -> None:
    """SDM 3C 28.4."""
    lab = Lab("again: inc esi; jmp again", pin=("ACTIVATE_PREEMPTION_TIMER",), exit_=("SAVE_PREEMPTION_TIMER",),
              fields={"VMX_PREEMPTION_TIMER_VALUE": 1000})
    assert lab.first_exit().reason == 52 and lab.read("VMX_PREEMPTION_TIMER_VALUE") == 0
