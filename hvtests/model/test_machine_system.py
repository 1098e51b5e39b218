"""The machine without a guest: system registers, memory, ports, time, and how a run ends. SDM 3A 2.5, SDM 2."""

from __future__ import annotations

import pytest

from hvtests.machine.stop import Limits, StopKind
from hvtests.model.asm import (
    HOST_TABLES,
    RAM,
    assemble,
    gate64,
)
from hvtests.model.bare import HANDLER, RAX, RBP, RBX, RCX, RDI, RDX, RSI, long, real, run
from hvtests.vmx.model import VmxMachine

# -- system registers ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code", [
    "mov eax, 0x80000000; mov cr0, rax", "mov rax, 0x100000010; mov cr0, rax",
    "mov rax, cr4; btr rax, 5; mov cr4, rax", "mov rax, cr4; bts rax, 31; mov cr4, rax",
    "mov ecx, 0x12345678; rdmsr", "mov ecx, 0x480; wrmsr", "mov ecx, 0; rdpmc",
    "mov ecx, 0xc0000080; rdmsr; and eax, 0xfffffeff; wrmsr", "mov ecx, 0x277; mov eax, 2; wrmsr",
    "mov ecx, 0xc0000082; mov edx, 0x8000; wrmsr", "mov rax, 0x10000000000; mov cr3, rax",
    "mov rax, 0x1f00000000; mov dr7, rax", "mov eax, 16; mov cr8, rax",
])
def test_what_the_cpu_refuses(code: str) -> None:
    machine = long(code, {13: gate64(HANDLER)}, "pop rsi; hlt")
    run(machine)
    assert machine.cpu.rip == HANDLER + 1 and machine.cpu.gprs[RSI] == 0      # at the handler's HLT, after POP


def test_msrs_hold_what_is_written() -> None:
    machine = long("mov ecx, 0xc0000100; mov eax, 0x66660; xor edx, edx; wrmsr; xor ebx, ebx; mov rsi, fs:[rbx];"
                   "mov ecx, 0xc0000102; mov eax, 0x77; wrmsr; swapgs; mov ecx, 0xc0000101; rdmsr; mov edi, eax; hlt")
    machine.memory.set_u64(0x66660, 0xABCDEF)
    run(machine)
    assert machine.cpu.gprs[RSI] == 0xABCDEF and machine.cpu.gprs[RDI] == 0x77


def test_xsetbv() -> None:
    code = ("mov rax, cr4; bts rax, 18; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 3; xsetbv; xgetbv;"
            "mov esi, eax;")
    machine = long(code + "mov eax, 2; xsetbv", {13: gate64(HANDLER)})
    run(machine)
    assert machine.cpu.gprs[RSI] == 3 and machine.cpu.rip == HANDLER
    machine = long("xor ecx, ecx; mov eax, 1; xsetbv", {6: gate64(HANDLER)})     # CR4.OSXSAVE = 0
    run(machine)


def test_debug_registers() -> None:
    machine = long("mov rax, 0x123456789; mov dr0, rax; mov rbx, dr0; mov rcx, dr6; mov rdx, dr7; hlt")
    run(machine)
    assert machine.cpu.gprs[RBX] == 0x123456789
    assert (machine.cpu.gprs[RCX], machine.cpu.gprs[RDX]) == (0xFFFF0FF0, 0x400)
    machine = long("mov eax, 0x401; mov dr7, rax")
    assert "breakpoint" in run(machine, StopKind.UNMODELLED).detail
    machine = long("mov rax, cr4; bts rax, 3; mov cr4, rax; mov rax, dr4", {6: gate64(HANDLER)})     # CR4.DE
    run(machine)


def test_general_detect() -> None:
    """DR7.GD: #DB before a MOV DR, DR6.BD set and GD cleared."""
    machine = long("mov eax, 0x2400; mov dr7, rax; mov rbx, dr0", {1: gate64(HANDLER)},
                   "mov rsi, dr6; mov rdi, dr7; hlt")
    run(machine)
    assert machine.cpu.gprs[RSI] & 1 << 13 and machine.cpu.gprs[RDI] == 0x400


def test_cpuid_follows_the_model() -> None:
    machine = long("mov eax, 1; cpuid; mov esi, ecx; mov rax, cr4; bts rax, 18; mov cr4, rax; mov eax, 1; cpuid; hlt")
    run(machine)
    before, after = machine.cpu.gprs[RSI], machine.cpu.gprs[RCX]
    assert before >> 5 & 1 and not before >> 27 & 1 and after >> 27 & 1      # VMX; OSXSAVE follows CR4


def test_rdtscp_reads_tsc_aux_and_tsd_is_obeyed() -> None:
    machine = long("mov ecx, 0xc0000103; mov eax, 0x55; xor edx, edx; wrmsr; rdtscp; mov esi, ecx; hlt")
    run(machine)
    assert machine.cpu.gprs[RSI] == 0x55


def test_the_tsc_can_be_written() -> None:
    machine = long("mov ecx, 0x10; xor eax, eax; mov edx, 0x100; wrmsr; rdtsc; hlt")
    run(machine)
    assert machine.cpu.gprs[RDX] == 0x100 and machine.cpu.gprs[RAX] < 100


# -- memory --------------------------------------------------------------------------------------------------------

def test_code_written_from_outside_is_seen() -> None:
    machine = long("again: call 0x51000; inc edi; cmp edi, 2; je 0x51010; out 0x78, al; jmp again")
    machine.memory.write(HANDLER, assemble("mov esi, 1; ret", HANDLER))
    machine.memory.write(HANDLER + 16, b"\xf4")

    class Patch:
        def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
            return 0

        def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
            machine.memory.set_u8(HANDLER + 1, 7)

    machine.ports.attach(0x78, 1, Patch())
    run(machine)
    assert machine.cpu.gprs[RSI] == 7


def test_memory_beyond_ram() -> None:
    machine = VmxMachine(RAM)
    assert machine.memory.read(RAM - 2, 4) == b"\0\0\xff\xff" and machine.memory.u64(1 << 38) == (1 << 64) - 1
    machine.memory.write(RAM - 1, b"ab")
    assert machine.memory.u8(RAM - 1) == ord("a")
    machine = long("mov ebx, 0x30000000; mov eax, [rbx]; hlt")
    stop = run(machine, StopKind.UNMODELLED)
    assert "0x30000000" in stop.detail and "no memory" in stop.detail


def test_a20() -> None:
    # MOV AX, 0xFFFF; MOV DS, AX; MOV AL, [0x20]; HLT: linear 0x100010
    machine = real(assemble("in al, 0x92; and al, 0xfd; out 0x92, al", 0x7C00, 16)
                   + b"\xb8\xff\xff\x8e\xd8\xa0\x20\x00\xf4")
    machine.memory.set_u8(0x10, 0x55)
    machine.memory.set_u8(0x100010, 0x66)
    run(machine)
    assert machine.cpu.gprs[RAX] & 0xFF == 0x55


def test_linear_access_walks_the_page_tables() -> None:
    machine = long("hlt")
    machine.memory.set_u64(HOST_TABLES + 0x2018, 0x200083)      # linear 0x600000 is physical 0x200000
    machine.memory.write(0x200FFE, b"\x01\x02\x03\x04")
    assert machine.cpu.translate(0x600FFE) == 0x200FFE
    assert machine.cpu.read_linear(0x600FFE, 4) == b"\x01\x02\x03\x04"
    machine.cpu.write_linear(0x600FFF, b"\xaa\xbb")
    assert machine.memory.read(0x200FFE, 4) == b"\x01\xaa\xbb\x04"


# -- ports and time ------------------------------------------------------------------------------------------------

def test_string_io() -> None:
    machine = long("mov esi, 0x60000; mov ecx, 3; mov dx, 0xe9; rep outsb; mov edi, 0x61000; mov ecx, 2; mov dx, 0x79;"
                   "std; rep insw; hlt")

    class Counter:
        value = 0x1110

        def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
            self.value += 1
            return self.value

        def port_write(self, port: int, size: int, value: int) -> None: ...

    machine.ports.attach(0x79, 2, Counter(), width=2)
    machine.memory.write(0x60000, b"abc")
    run(machine)
    assert bytes(machine.debugcon) == b"abc"
    assert machine.memory.read(0x60FFE, 4) == b"\x12\x11\x11\x11"
    gprs = machine.cpu.gprs
    assert (gprs[RSI], gprs[RDI], gprs[RCX]) == (0x60003, 0x60FFC, 0)


def test_in_keeps_the_upper_bits_of_rax() -> None:
    machine = long("mov rax, -1; in al, 0x79; mov rsi, rax; mov rax, -1; in eax, 0x79; hlt")
    run(machine)
    assert machine.cpu.gprs[RSI] == (1 << 64) - 1 and machine.cpu.gprs[RAX] == 0xFFFFFFFF


def test_end_by_debug_exit_is_final() -> None:
    machine = long("mov al, 0x2a; out 0xf4, al; hlt")
    stop = machine.run()
    assert (stop.kind, stop.code) == (StopKind.DEBUG_EXIT, 0x2A) and machine.run() is stop


def test_limits() -> None:
    machine = long("again: inc rsi; jmp again")
    stop = machine.run(Limits(ticks=10_000))
    assert stop.kind is StopKind.TIMEOUT and machine.fabric.ticks == 10_000 and machine.cpu.gprs[RSI] == 2000
    machine.run(Limits(ticks=5_000))
    assert machine.cpu.gprs[RSI] == 3000
    assert machine.run(Limits(seconds=0.05)).kind is StopKind.TIMEOUT


def test_halts_are_told_apart() -> None:
    assert "interrupts off" in run(long("hlt")).detail
    assert "none to come" in run(long("sti; hlt")).detail


# -- code that is written while it runs ----------------------------------------------------------------------------

TWO_FUNCTIONS = """
    {execute_disable}
    mov ebx, 0x200000
    mov ecx, 3
again:
    call rbx; mov rsi, rax
    lea rdx, [rbx + 0x800]; call rdx; mov rdi, rax
    {between}
    mov r8d, {alias}
    inc byte ptr [r8 + 1]
    inc byte ptr [r8 + 0x801]
    inc byte ptr [r8 + 1]
    inc byte ptr [r8 + 0x801]
    dec ecx; jnz again
    call rbx; mov rsi, rax
    lea rdx, [rbx + 0x800]; call rdx; mov rdi, rax
    hlt
"""


@pytest.mark.parametrize("alias", [0x200000, 0x600000, 0xA00000], ids=["same", "executable", "no-execute"])
@pytest.mark.parametrize("between", ["nop", "mov rax, cr3; mov cr3, rax", "mov r9, [0x7ff000]"])
def test_code_stored_through_any_mapping_is_seen(alias: int, between: str) -> None:
    """Two functions in one page, each patched twice a round, through the same linear address or another."""
    between = between.replace("mov r9, [0x7ff000]", "mov r9d, 0x7ff000; mov r9, [r9]")
    machine = long(TWO_FUNCTIONS.format(alias=alias, between=between, execute_disable=(
        "mov ecx, 0xc0000080; rdmsr; or eax, 0x800; wrmsr")))
    memory = machine.memory
    memory.set_u64(HOST_TABLES + 0x2018, 0x200083)
    memory.set_u64(HOST_TABLES + 0x2028, 0x200083 | 1 << 63)
    for at in (0x200000, 0x200800):
        memory.write(at, assemble("mov eax, 10; ret", at))
    run(machine)
    assert (machine.cpu.gprs[RSI], machine.cpu.gprs[RDI]) == (16, 16)


def test_data_and_code_in_one_page() -> None:
    """A counter beside the loop that counts: slow, and right."""
    machine = long("mov ecx, 1000; again: inc dword ptr [rip + 0x40]; add esi, [rip + 0x3a]; dec ecx; jnz again; hlt")
    run(machine)
    assert machine.cpu.gprs[RSI] == 1000 * 1001 // 2


def test_a_page_of_data_becomes_code_and_data_again() -> None:
    machine = long("""
        mov ebx, 0x300000; mov dword ptr [rbx], 0xc3c0ff90; mov eax, 5; call rbx; mov esi, eax
        mov dword ptr [rbx], 0xc3c8ff90; mov eax, 5; call rbx; mov edi, eax
        mov dword ptr [rbx], 0x12345678; mov ebp, [rbx]; hlt""")      # NOP; INC EAX; RET and NOP; DEC EAX; RET
    run(machine)
    gprs = machine.cpu.gprs
    assert (gprs[RSI], gprs[RDI], gprs[RBP]) == (6, 4, 0x12345678)
