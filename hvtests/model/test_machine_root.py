"""The machine without a guest: modes, exceptions, interrupts. SDM 3A 7 [6], SDM 1 21.1.4."""

from __future__ import annotations

import struct

import pytest

from hvtests.machine import layout as L
from hvtests.machine.cpu import Mode, Segment
from hvtests.machine.stop import StopKind
from hvtests.model.asm import (
    CODE64,
    DATA,
    HOST_CODE,
    HOST_GDT,
    HOST_STACK,
    HOST_TABLES,
    RAM,
    assemble,
    gate32,
    gate64,
    gdt,
)
from hvtests.model.bare import HANDLER, RAX, RBP, RBX, RDI, RDX, RSI, RSP, TSS, long, protected, real, run
from hvtests.vmx.model import VmxMachine

# -- modes ---------------------------------------------------------------------------------------------------------

def test_from_real_mode_to_long_mode_and_back_to_the_wall() -> None:
    """Real, protected, 64-bit, each with its own code; Mode follows."""
    machine = real(b"")
    memory = machine.memory
    memory.write(0x6000, struct.pack("<HI", 0x47, HOST_GDT))
    memory.write(HOST_GDT, gdt(TSS))
    memory.write(HOST_TABLES, struct.pack("<Q", HOST_TABLES + 0x1003))
    memory.write(HOST_TABLES + 0x1000, struct.pack("<Q", HOST_TABLES + 0x2003))
    memory.write(HOST_TABLES + 0x2000, struct.pack("<Q", 0x83))
    code = b"\x0f\x01\x16\x00\x60" + assemble("mov eax, cr0; or al, 1; mov cr0, eax", 0x7C05, 16)
    memory.write(0x7C00, code + b"\xea\x00\x80\x18\x00")
    code = assemble(f"mov ax, 0x10; mov ds, ax; mov ss, ax; mov eax, 0x20; mov cr4, eax; mov eax, {HOST_TABLES};"
                    "mov cr3, eax; mov ecx, 0xc0000080; rdmsr; or ah, 1; wrmsr; mov eax, 0x80000011; mov cr0, eax",
                    0x8000, 32)
    memory.write(0x8000, code + b"\xea\x00\x90\x00\x00\x08\x00")
    memory.write(0x9000, assemble("mov rsi, 0x1122334455667788; mov ecx, 0xc0000080; rdmsr; hlt", 0x9000))
    run(machine)
    assert machine.cpu.mode() is Mode.LONG and machine.cpu.code_bits == 64
    assert machine.cpu.gprs[RSI] == 0x1122334455667788 and machine.cpu.gprs[RAX] == 0x500


def test_registers_after_reset() -> None:
    machine = VmxMachine(RAM)
    cpu = machine.cpu
    assert (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.rflags) == (0x60000010, 0, 0, 0, 2)
    assert cpu.mode() is Mode.REAL and cpu.segment(L.CS) == Segment(0, 0, 0xFFFF, 0x9B)
    assert (cpu.dr[6], cpu.dr[7], cpu.xcr0) == (0xFFFF0FF0, 0x400, 1)


# -- events --------------------------------------------------------------------------------------------------------

def test_software_interrupt_in_real_mode() -> None:
    machine = real("sti; std; int 0x21; nop; hlt")
    machine.memory.write(0x21 * 4, struct.pack("<HH", 0x20, 0x500))
    # MOV BP, SP; MOV SI, [BP]; MOV DI, [BP+4]; PUSHF; POP AX; IRET
    machine.memory.write(0x5020, b"\x89\xe5\x8b\x76\x00\x8b\x7e\x04\x9c\x58\xcf")
    run(machine)
    gprs = machine.cpu.gprs
    assert gprs[RSI] == 0x7C04 and gprs[RDI] & 0x600 == 0x600 and not gprs[RAX] & 0x200
    assert gprs[RSP] == 0x7000 and machine.cpu.rflags & 0x200


def test_exception_in_real_mode_pushes_no_error_code() -> None:
    machine = real("xor cx, cx; div cx; hlt")
    machine.memory.write(0, struct.pack("<HH", 0x5000, 0))
    machine.memory.write(0x5000, b"\xf4")
    run(machine)
    assert machine.memory.u16(0x7000 - 6) == 0x7C02 and machine.cpu.gprs[RSP] == 0x7000 - 6


def test_vector_beyond_the_ivt_in_real_mode_is_a_triple_fault_in_the_end() -> None:
    machine = real("int 0x80")
    machine.cpu.set_table(L.IDTR, 0, 0)
    assert "vector 128" in run(machine, StopKind.TRIPLE_FAULT).detail


@pytest.mark.parametrize(("code", "vector", "error", "rip"), [
    ("ud2", 6, None, 0), ("int3", 3, None, 1), ("int 0x30", 0x30, None, 2), ("mov ax, 0x58; mov ds, ax", 13, 0x58, 4),
    ("xor ecx, ecx; div ecx", 0, None, 2), (b"\xf1", 1, None, 1),
])
def test_frame_in_64_bit_mode(code: str | bytes, vector: int, error: int | None, rip: int) -> None:
    machine = long(code, {vector: gate64(HANDLER)})
    machine.cpu.gprs[RSP] = HOST_STACK + 9
    run(machine)
    memory, rsp = machine.memory, machine.cpu.gprs[RSP]
    base = (HOST_STACK + 9 & ~15) - 40
    assert rsp == base - (0 if error is None else 8)
    if error is not None:
        assert memory.u64(rsp) == error
    frame = [memory.u64(base + 8 * number) for number in range(5)]
    fault = vector in (6, 13, 0)
    assert frame[0] == HOST_CODE + rip and frame[1] == CODE64 and frame[3:] == [HOST_STACK + 9, DATA]
    assert bool(frame[2] >> 16 & 1) is fault


def test_page_fault_error_codes_and_cr2() -> None:
    for code, error in (("mov ebx, 0x40000000; mov eax, [rbx]", 0), ("mov ebx, 0x40000000; mov [rbx], eax", 2),
                        ("mov ebx, 0x400000; mov [rbx], eax", 3)):
        machine = long(code, {14: gate64(HANDLER)}, "pop rsi; mov rdi, cr2; hlt")
        machine.memory.set_u64(HOST_TABLES + 0x2010, 0x400081)
        machine.cpu.cr0 |= 1 << 16
        run(machine)
        assert machine.cpu.gprs[RSI] == error and machine.cpu.gprs[RDI] in (0x40000000, 0x400000)


def test_execute_disable() -> None:
    machine = long("mov ecx, 0xc0000080; rdmsr; or eax, 0x800; wrmsr; mov ebx, 0x400000; jmp rbx",
                   {14: gate64(HANDLER)}, "pop rsi; hlt")
    machine.memory.set_u64(HOST_TABLES + 0x2010, 0x400083 | 1 << 63)
    run(machine)
    assert machine.cpu.gprs[RSI] == 0x11 and machine.cpu.cr2 == 0x400000


def test_code_that_runs_into_a_page_that_is_absent() -> None:
    """The instructions before the border run; the fault is at the one that needs the page."""
    start = 0x400000 - 4
    machine = long(f"mov eax, {start}; jmp rax", {14: gate64(HANDLER)}, "mov rdi, [rsp + 8]; hlt")
    machine.memory.write(start, b"\xff\xc3\xb8\x01\x02\x03\x04")      # INC EBX; MOV EAX, imm32 across the border
    machine.memory.set_u64(HOST_TABLES + 0x2010, 0)
    run(machine)
    assert machine.cpu.gprs[RBX] == 1 and machine.cpu.gprs[RDI] == start + 2 and machine.cpu.cr2 == 0x400000


def test_interrupt_stack_table() -> None:
    machine = long("ud2", {6: gate64(HANDLER, ist=2)})
    machine.memory.set_u64(TSS + 0x24 + 8, 0x60000)
    run(machine)
    assert machine.cpu.gprs[RSP] == 0x60000 - 40


def test_double_fault_and_triple_fault() -> None:
    machine = long("mov ax, 0x58; mov ds, ax", {13: gate64(HANDLER, 0x58), 8: gate64(HANDLER)}, "pop rsi; hlt")
    run(machine)
    assert machine.cpu.gprs[RSI] == 0
    machine = long("mov ax, 0x58; mov ds, ax", {13: gate64(HANDLER, 0x58)})
    stop = run(machine, StopKind.TRIPLE_FAULT)
    assert "vector 13, error code 0x58" in stop.detail and f"{HOST_CODE + 4:#x}" in stop.detail


def test_frame_in_protected_mode_and_return() -> None:
    machine = protected("mov eax, 5; int 0x40; mov ebx, 6; hlt", {0x40: gate32(HANDLER)})
    machine.memory.write(HANDLER, b"\x8b\x34\x24\xcf")      # MOV ESI, [ESP]; IRETD
    run(machine)
    assert machine.cpu.gprs[RSI] == HOST_CODE + 7 and machine.cpu.gprs[RBX] == 6


def test_task_gate_outside_a_guest_is_not_modelled() -> None:
    machine = protected("int 0x40", {0x40: gate32(0, 0x28, kind=5)})
    assert "task gate" in run(machine, StopKind.UNMODELLED).detail


def test_single_step_also_over_instructions_that_the_model_does() -> None:
    """Two traps: after NOP and after CPUID; RIP is past each."""
    machine = long("push 0x102; popfq; nop; cpuid; hlt", {1: gate64(HANDLER)},
                   "mov rsi, rdi; mov rdi, [rsp]; inc rbp; cmp ebp, 2; je 0x51020; iretq")
    machine.memory.write(HANDLER + 0x20, b"\xf4")
    run(machine)
    assert machine.cpu.gprs[RSI] == HOST_CODE + 7 and machine.cpu.gprs[RDI] == HOST_CODE + 9
    assert machine.cpu.dr[6] & 1 << 14


def test_external_interrupt_waits_for_if_and_wakes_hlt() -> None:
    machine = long("mov esi, 1; sti; mov esi, 2; mov esi, 3; hlt; mov esi, 9; cli; hlt", {0x41: gate64(HANDLER)},
                   "mov edi, esi; add rbp, 1; iretq")
    machine.raise_interrupt(0x41)
    stop = run(machine)
    assert machine.cpu.gprs[RDI] == 2 and machine.cpu.gprs[RBP] == 1 and "none to come" in stop.detail
    machine = long("out 0x78, al; sti; hlt; mov esi, 9; cli; hlt", {0x41: gate64(HANDLER)}, "iretq")
    machine.ports.attach(0x78, 1, _Raiser(machine))
    run(machine)
    assert machine.cpu.gprs[RSI] == 9


class _Raiser:
    def __init__(self, machine: VmxMachine) -> None:
        self.machine = machine

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self.machine.raise_interrupt(0x41)


def test_nmi_is_not_masked_and_blocks_the_next_until_iret() -> None:
    machine = long("mov esi, 1; hlt", {2: gate64(HANDLER)}, "inc edi; iretq")
    machine.raise_nmi()
    run(machine)
    assert machine.cpu.gprs[RDI] == 1 and not machine.cpu.nmi_blocked


def test_from_ring_3_to_ring_0_by_interrupt_and_syscall() -> None:
    user = ("mov ecx, 0xc0000081; mov edx, 0x00200008; xor eax, eax; wrmsr; inc ecx; mov eax, 0x51100; xor edx, edx;"
            "wrmsr; add ecx, 2; mov eax, 0x200; wrmsr; mov ecx, 0xc0000080; rdmsr; or eax, 1; wrmsr;"
            f"push 0x3b; push {HOST_STACK}; push 0x202; push 0x43; lea rax, [rip + 4]; push rax; iretq;"
            "nop; nop; nop; nop;")
    machine = long(user + "int 0x50; syscall", {0x50: gate64(HANDLER, dpl=3)},
                   "mov rsi, [rsp + 24]; mov rdi, cs; iretq")
    machine.memory.write(0x51100, assemble("mov rbp, rcx; mov rbx, cs; mov rdx, ss; pushfq; pop rax; hlt", 0x51100))
    for table in (HOST_TABLES, HOST_TABLES + 0x1000):
        machine.memory.set_u64(table, machine.memory.u64(table) | 4)
    machine.memory.set_u64(HOST_TABLES + 0x2000, 0x87)
    machine.memory.set_u64(TSS + 4, 0x60000)
    run(machine)
    gprs = machine.cpu.gprs
    assert gprs[RSI] == HOST_STACK and gprs[RDI] == CODE64
    assert (gprs[RBX], gprs[RDX]) == (0x8, 0x10) and machine.memory.read(gprs[RBP] - 2, 2) == b"\x0f\x05"
    assert gprs[11] & 0x200 and not gprs[RAX] & 0x200
