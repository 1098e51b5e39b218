"""VM exits by instructions: which control causes them, and what they record. SDM 3C 26.1 [25.1], 28.2 [27.2]."""

from __future__ import annotations

import pytest

from generator.arch.exits import BY_NAME
from hvtests.machine import layout as L
from hvtests.machine.stop import StopKind
from hvtests.model.asm import GUEST_CODE, GUEST_TSS, IO_BITMAPS, MSR_BITMAP, Lab
from hvtests.vmx.records import ExitRecord

RAX, RCX, RDX, RBX = range(4)


def only(code: str, **keywords: object) -> tuple[Lab, list[ExitRecord]]:
    """Run guest code to its HLT; the exits before."""
    lab = Lab(code + "; hlt", **keywords)  # type: ignore[arg-type]
    return lab, lab.until_halt()


# (code, controls, reason, instruction length, qualification); code runs at CPL 0 in 64-bit mode
ALWAYS = [
    ("cpuid", 2, "CPUID", 0), ("invd", 2, "INVD", 0), ("vmcall", 3, "VMCALL", 0), ("vmlaunch", 3, "VMLAUNCH", 0),
    ("vmresume", 3, "VMRESUME", 0), ("vmxoff", 3, "VMXOFF", 0), ("xsetbv", 3, "XSETBV", 0),
    ("vmread rax, rbx", 3, "VMREAD", 0), ("vmwrite rax, rbx", 3, "VMWRITE", 0),
    ("vmptrst [rbx + 0x12]", 4, "VMPTRST", 0x12), ("vmptrld [rbx - 0x12]", 4, "VMPTRLD", (1 << 64) - 0x12),
    ("vmclear [rbx]", 4, "VMCLEAR", 0), ("vmxon [rbx + rcx*2 + 0x1000]", 9, "VMXON", 0x1000),
    ("vmread [rbx + 8], rax", 4, "VMREAD", 8),
    ("invept rax, [rbx]", 5, "INVEPT", 0), ("invvpid rax, [rbx]", 5, "INVVPID", 0),
]


@pytest.mark.parametrize(("code", "length", "name", "qualification"), ALWAYS)
def test_unconditional_exits(code: str, length: int, name: str, qualification: int) -> None:
    lab, exits = only(code, fields={"GUEST_CR4": 0x42620, "CR4_GUEST_HOST_MASK": 0x2000})
    assert exits == [ExitRecord(0x31000, BY_NAME[name].number, qualification, GUEST_CODE, length, 0)]
    assert lab.read("IDT_VECTORING_INFO_FIELD") == 0


CONDITIONAL = [
    ("hlt", "proc", "HLT_EXITING", "HLT", 1, 0),
    ("rdtsc", "proc", "RDTSC_EXITING", "RDTSC", 2, 0),
    ("rdpmc", "proc", "RDPMC_EXITING", "RDPMC", 2, 0),
    ("pause", "proc", "PAUSE_EXITING", "PAUSE", 2, 0),
    ("invlpg [rbx + 0x1234]", "proc", "INVLPG_EXITING", "INVLPG", 7, 0x1234),
    ("mov cr8, rbx", "proc", "CR8_LOAD_EXITING", "CR_ACCESS", 4, 0x308),
    ("mov r9, cr8", "proc", "CR8_STORE_EXITING", "CR_ACCESS", 4, 0x918),
    ("mov dr3, rsi", "proc", "MOV_DR_EXITING", "DR_ACCESS", 3, 0x603),
    ("mov rdi, dr7", "proc", "MOV_DR_EXITING", "DR_ACCESS", 3, 0x717),
    ("wbinvd", "proc2", "WBINVD_EXITING", "WBINVD", 2, 0),
]


@pytest.mark.parametrize(("code", "word", "control", "name", "length", "qualification"), CONDITIONAL)
def test_exits_by_control(code: str, word: str, control: str, name: str, length: int, qualification: int) -> None:
    keywords = {word: (control,)} if control != "HLT_EXITING" else {}
    lab = Lab(code, **keywords)  # type: ignore[arg-type]
    assert lab.first_exit() == ExitRecord(0x31000, BY_NAME[name].number, qualification, GUEST_CODE, length, 0)


@pytest.mark.parametrize("code", ["rdtsc", "pause", "invlpg [rbx]", "mov cr8, rbx", "mov rbx, cr8", "wbinvd",
                                  "mov dr3, rsi", "mov rdi, dr7", "mov rax, cr3", "mov cr3, rax", "mov rax, cr0",
                                  "sgdt [rsp]", "str ax", "sldt ax"])
def test_without_their_control_they_do_not_exit(code: str) -> None:
    setup = "mov rax, cr3; xor ebx, ebx;"
    _, exits = only(setup + code, without=("CR8_LOAD_EXITING", "CR8_STORE_EXITING"))
    assert exits == []


def test_rdtscp_is_undefined_unless_enabled() -> None:
    _, exits = only("rdtscp", proc=("RDTSC_EXITING",), proc2=("ENABLE_RDTSCP",))
    assert [record.reason for record in exits] == [BY_NAME["RDTSCP"].number]
    lab = Lab("rdtscp", fields={"EXCEPTION_BITMAP": 1 << 6})
    assert lab.first_exit().interruption_info == 0x80000306


def test_rdtsc_adds_the_offset() -> None:
    """RDTSC and RDMSR of the TSC (SDM 3C 26.3)."""
    offset = 1 << 40
    code = "rdtsc; mov esi, edx; mov ecx, 0x10; rdmsr; mov edi, edx"
    lab, exits = only(code, proc=("USE_TSC_OFFSETTING", "USE_MSR_BITMAPS"), fields={"TSC_OFFSET": offset})
    gprs = lab.machine.cpu.gprs
    assert exits == [] and gprs[L.Q_RSI] == 1 << 8 and gprs[L.Q_RDI] == 1 << 8


def test_rdtsc_is_the_virtual_clock() -> None:
    """One tick a byte of code: two RDTSC with 16 bytes between are 16 to 48 ticks apart, by block boundaries."""
    lab, _ = only("rdtsc; mov esi, eax;" + "nop;" * 16 + "rdtsc; sub eax, esi")
    assert 16 <= lab.machine.cpu.gprs[RAX] <= 64


def test_mov_from_a_masked_cr0_and_smsw_read_the_shadow() -> None:
    """SDM 3C 25.6.6: bits that the host owns come from the shadow."""
    code = "mov rax, cr0; smsw ebx; smsw [rsp]; movzx ecx, word ptr [rsp]; mov rdx, cr4"
    lab, exits = only(code, fields={"CR0_GUEST_HOST_MASK": 0x80000029, "CR0_READ_SHADOW": 0x8,
                                    "CR4_GUEST_HOST_MASK": 0x2000, "CR4_READ_SHADOW": 0})
    gprs = lab.machine.cpu.gprs
    assert exits == []
    assert gprs[RAX] == 0x18 and gprs[RBX] == 0x18 and gprs[RCX] == 0x18 and gprs[RDX] == 0x620


def test_mov_to_cr0_exits_when_a_masked_bit_differs_from_the_shadow() -> None:
    fields = {"CR0_GUEST_HOST_MASK": 0x8, "CR0_READ_SHADOW": 0}
    lab, exits = only("mov rax, cr0; or eax, 8; mov cr0, rax", fields=fields)
    assert exits == [ExitRecord(0x31000, 28, 0x000, GUEST_CODE + 6, 3, 0)]
    lab, exits = only("mov rax, cr0; or eax, 4; mov cr0, rax; mov rbx, cr0", fields=fields)
    assert exits == [] and lab.machine.cpu.gprs[RBX] & 4


def test_an_unmasked_write_leaves_masked_bits_alone() -> None:
    """The bit of the real CR0 stays, whatever the shadow says."""
    fields = {"CR0_GUEST_HOST_MASK": 0x20, "CR0_READ_SHADOW": 0}
    lab, exits = only("mov eax, 0x80000011; mov cr0, rax; mov rbx, cr0", fields=fields)
    assert exits == [] and lab.machine.cpu.gprs[RBX] == 0x80000011
    assert lab.read("GUEST_CR0") == 0x80000031


@pytest.mark.parametrize(("mask", "shadow", "exits_", "ts_after"), [
    (8, 8, True, True), (8, 0, False, True), (0, 8, False, False), (0, 0, False, False)])
def test_clts(mask: int, shadow: int, exits_: bool, ts_after: bool) -> None:
    """SDM 3C 26.1.3 and 26.3."""
    lab, exits = only("clts", fields={"CR0_GUEST_HOST_MASK": mask, "CR0_READ_SHADOW": shadow,
                                      "GUEST_CR0": 0x80000039})
    assert [(record.qualification, record.instruction_length) for record in exits] == ([(0x20, 2)] if exits_ else [])
    assert bool(lab.read("GUEST_CR0") & 8) is ts_after


@pytest.mark.parametrize(("mask", "shadow", "source", "qualification", "low_bits"), [
    (0x8, 0x0, 0x9, 0x0009_0030, None),       # TS masked, differs
    (0x8, 0x8, 0x8, None, 0x1),               # equal: no exit, TS of the real CR0 stays 0
    (0x1, 0x1, 0x0, None, 0x1),               # LMSW cannot clear PE: no exit
    (0x1, 0x0, 0x1, 0x0001_0030, None),       # PE masked and 0 in the shadow
    (0x0, 0x0, 0xE, None, 0xF),               # nothing masked
])
def test_lmsw(mask: int, shadow: int, source: int, qualification: int | None, low_bits: int | None) -> None:
    lab, exits = only(f"mov ax, {source}; lmsw ax", fields={"CR0_GUEST_HOST_MASK": mask, "CR0_READ_SHADOW": shadow})
    assert [record.qualification for record in exits] == ([] if qualification is None else [qualification])
    if low_bits is not None:
        assert lab.read("GUEST_CR0") & 0xF == low_bits


def test_lmsw_from_memory_gives_the_linear_address() -> None:
    lab, exits = only("mov word ptr [rsp - 16], 8; lmsw [rsp - 16]", fields={"CR0_GUEST_HOST_MASK": 8})
    assert [record.qualification for record in exits] == [0x0008_0070]
    assert lab.read("GUEST_LINEAR_ADDRESS") == 0x8000 - 16


def test_mov_to_cr4_by_mask() -> None:
    lab, exits = only("mov rax, cr4; btr rax, 13; mov cr4, rax", fields={"CR4_GUEST_HOST_MASK": 0x2000,
                                                                       "CR4_READ_SHADOW": 0x2000})
    assert [(record.reason, record.qualification) for record in exits] == [(28, 4)]
    lab, exits = only("mov rax, cr4; bts rax, 7; mov cr4, rax", fields={"CR4_GUEST_HOST_MASK": 0x2000})
    assert exits == [] and lab.read("GUEST_CR4") == 0x26A0


@pytest.mark.parametrize("code", [
    "mov rax, cr4; btr rax, 13; mov cr4, rax", "mov rax, cr0; btr rax, 5; mov cr0, rax",
    "mov rax, cr4; bts rax, 15; mov cr4, rax", "mov rax, cr4; btr rax, 5; mov cr4, rax",
    "mov rax, cr0; bts rax, 29; mov cr0, rax", "mov eax, 3; mov cr8, rax; mov al, 16; mov cr8, rax"])
def test_control_register_writes_that_the_cpu_refuses(code: str) -> None:
    """#GP(0), not an exit by masks: fixed bits in VMX operation, reserved bits, PAE in IA-32e mode, NW without CD."""
    lab = Lab(code, fields={"EXCEPTION_BITMAP": 1 << 13}, without=("CR8_LOAD_EXITING",))
    record = lab.first_exit()
    assert record.reason == 0 and record.interruption_info == 0x80000B0D
    assert lab.read("VM_EXIT_INTR_ERROR_CODE") == 0


def test_cr3_load_and_store_exiting_with_targets() -> None:
    target = 0x123000
    code = f"mov rax, cr3; mov ecx, {target}; mov rcx, cr3"
    _, exits = only(code, proc=("CR3_STORE_EXITING", "CR3_LOAD_EXITING"))
    assert [record.qualification for record in exits] == [0x013, 0x113]
    for count, expected in ((1, []), (0, [0x003])):
        _, exits = only("mov eax, 0x100000; mov cr3, rax", proc=("CR3_LOAD_EXITING",),
                        fields={"CR3_TARGET_COUNT": count, "CR3_TARGET_VALUE0": 0x100000})
        assert [record.qualification for record in exits] == expected


# -- ports ---------------------------------------------------------------------------------------------------------

IO = [
    ("out 0x21, al", 2, 0x0021_0040), ("in al, 0x60", 2, 0x0060_0048), ("mov dx, 0x3f8; out dx, al", 1, 0x03F8_0000),
    ("mov dx, 0x3f8; in ax, dx", 2, 0x03F8_0009), ("mov dx, 0xcf8; in eax, dx", 1, 0x0CF8_000B),
    ("mov dx, 0xcf8; out dx, eax", 1, 0x0CF8_0003),
]


@pytest.mark.parametrize(("code", "length", "qualification"), IO)
def test_unconditional_io_exiting(code: str, length: int, qualification: int) -> None:
    _, exits = only(code, proc=("UNCONDITIONAL_IO_EXITING",))
    assert [(r.reason, r.qualification, r.instruction_length) for r in exits] == [(30, qualification, length)]


def test_string_io_exits_before_anything_moved() -> None:
    code = "mov esi, 0x5000; mov edi, 0x6000; mov ecx, 5; mov dx, 0x1f0; rep insw; mov ecx, 2; rep outsb; outsd"
    lab = Lab(code + "; hlt", proc=("UNCONDITIONAL_IO_EXITING",))
    seen = []

    def handler(lab: Lab, record: ExitRecord) -> bool:
        if record.reason == 12:
            return False
        gprs = lab.machine.cpu.gprs
        seen.append((record.qualification, record.instruction_length, lab.read("GUEST_LINEAR_ADDRESS"), gprs[RCX],
                     lab.read("VMX_INSTRUCTION_INFO")))
        lab.skip()
        return True

    lab.run(handler)
    assert seen == [
        (0x01F0_0039, 3, 0x6000, 5, 0x100),           # REP INSW: input, string, REP; 64-bit addresses
        (0x01F0_0030, 2, 0x5000, 2, 0x18100),         # REP OUTSB from DS
        (0x01F0_0013, 1, 0x5000, 2, 0x18100),
    ]


def test_io_bitmaps_decide_by_every_byte_of_the_access() -> None:
    def run(code: str, ports: tuple[int, ...]) -> list[int]:
        lab = Lab(code + "; hlt", proc=("USE_IO_BITMAPS", "UNCONDITIONAL_IO_EXITING"))
        for port in ports:
            at = IO_BITMAPS + port // 8
            lab.machine.memory.set_u8(at, lab.machine.memory.u8(at) | 1 << (port & 7))
        return [record.qualification >> 16 for record in lab.until_halt()]

    assert run("in al, 0x60", (0x61,)) == []
    assert run("in ax, 0x60", (0x61,)) == [0x60]
    assert run("mov dx, 0x7ffe; in eax, dx", (0x8001,)) == [0x7FFE]
    assert run("mov dx, 0x8000; in al, dx", (0x8000,)) == [0x8000]
    assert run("mov dx, 0xfffe; in eax, dx", ()) == [0xFFFE]       # runs over the end: always exits


def test_without_io_exiting_the_guest_reaches_the_devices() -> None:
    lab, exits = only("mov al, 3; mov dx, 0x3fb; out dx, al; mov al, 0x41; mov dx, 0x3f8; out dx, al")
    assert exits == [] and bytes(lab.machine.serial) == b"A"


def test_io_at_cpl_3_is_judged_by_the_guest_first() -> None:
    """#GP of IOPL and the TSS bit map comes before the exit (SDM 3C 26.1.1)."""
    fields = {"GUEST_CS_SELECTOR": 0x43, "GUEST_CS_AR_BYTES": 0xA0FB, "GUEST_SS_SELECTOR": 0x3B,
              "GUEST_SS_AR_BYTES": 0xC0F3, "EXCEPTION_BITMAP": 1 << 13}
    for base, allowed in ((0x68, False), (0, True)):    # the TSS ends at 0x67; a bit map of zeros allows all
        lab = Lab("in al, 0x60", proc=("UNCONDITIONAL_IO_EXITING",), fields=fields)
        lab.guest_load(GUEST_TSS + 102, base.to_bytes(2, "little"))
        assert lab.first_exit().interruption_info == (0 if allowed else 0x80000B0D)
    lab = Lab("in al, 0x60", proc=("UNCONDITIONAL_IO_EXITING",), fields={**fields, "GUEST_RFLAGS": 0x3002})
    assert lab.first_exit().reason == 30


# -- MSRs ----------------------------------------------------------------------------------------------------------

def test_rdmsr_and_wrmsr_exit_without_bitmaps() -> None:
    _, exits = only("mov ecx, 0x10; rdmsr; wrmsr")
    assert [(record.reason, record.instruction_length) for record in exits] == [(31, 2), (32, 2)]


def test_msr_bitmap() -> None:
    """Four kilobits: read low, read high, write low, write high; outside both ranges it always exits (25.6.9)."""
    code = ("mov ecx, 0x174; rdmsr; wrmsr; mov ecx, 0xc0000081; rdmsr; wrmsr; mov ecx, 0x2000; rdmsr;"
            "mov ecx, 0xc0002000; wrmsr")
    lab = Lab(code + "; hlt", proc=("USE_MSR_BITMAPS",))
    memory = lab.machine.memory
    memory.set_u8(MSR_BITMAP + 0x174 // 8, 1 << (0x174 & 7))                 # read of 0x174
    memory.set_u8(MSR_BITMAP + 3072 + 0x81 // 8, 1 << (0x81 & 7))            # write of 0xc0000081
    exits = lab.until_halt()
    assert [record.reason for record in exits] == [31, 32, 31, 32]
    assert [record.rip - GUEST_CODE for record in exits] == [5, 16, 23, 30]


def test_msr_access_that_does_not_exit_is_checked_by_the_cpu() -> None:
    lab = Lab("mov ecx, 0x1234; rdmsr", proc=("USE_MSR_BITMAPS",), fields={"EXCEPTION_BITMAP": 1 << 13})
    assert lab.first_exit().interruption_info == 0x80000B0D


def test_guest_efer_and_bases_are_its_own() -> None:
    code = ("mov ecx, 0xc0000080; rdmsr; mov esi, eax; mov ecx, 0xc0000100; mov eax, 0x55550; xor edx, edx; wrmsr")
    lab, exits = only(code, proc=("USE_MSR_BITMAPS",))
    assert exits == [] and lab.machine.cpu.gprs[L.Q_RSI] == 0x500
    assert lab.read("GUEST_FS_BASE") == 0x55550


# -- descriptor tables, instruction information --------------------------------------------------------------------

@pytest.mark.parametrize(("code", "reason", "qualification", "identity"), [
    ("sgdt [rbx + 0x10]", 46, 0x10, 0), ("sidt [rbx]", 46, 0, 1), ("lgdt [rbx]", 46, 0, 2), ("lidt [rbx]", 46, 0, 3),
    ("sldt [rbx]", 47, 0, 0), ("str [rbx]", 47, 0, 1), ("lldt [rbx]", 47, 0, 2), ("ltr [rbx]", 47, 0, 3),
    ("str eax", 47, 0, 1),
])
def test_descriptor_table_exiting(code: str, reason: int, qualification: int, identity: int) -> None:
    lab = Lab(code, proc2=("DESCRIPTOR_TABLE_EXITING",))
    record = lab.first_exit()
    assert (record.reason, record.qualification) == (reason, qualification)
    information = lab.read("VMX_INSTRUCTION_INFO")
    assert information >> 28 & 3 == identity
    if code == "str eax":
        assert information & 1 << 10 and information >> 3 & 15 == RAX
    else:
        assert not information & 1 << 10 and information >> 23 & 15 == RBX and information >> 15 & 7 == 3


@pytest.mark.parametrize(("code", "fields"), [
    # scale, reg1, address size, memory 0/register 1, segment, index, index invalid, base, base invalid, reg2
    ("vmread [rbx + r9*4 + 8], rdx", {"scale": 2, "address": 2, "segment": 3, "index": 9, "base": 3, "reg2": 2}),
    ("vmwrite rdx, [rsp]", {"address": 2, "segment": 2, "no_index": 1, "base": 4, "reg2": 2}),
    ("vmread rsi, r12", {"register": 1, "reg1": 6, "reg2": 12}),
    ("vmptrld gs:[rax]", {"address": 2, "segment": 5, "no_index": 1, "base": 0}),
    ("invept r11, [rcx]", {"address": 2, "segment": 3, "no_index": 1, "base": 1, "reg2": 11}),
    ("vmptrld [eax]", {"address": 1, "segment": 3, "no_index": 1, "base": 0}),
])
def test_instruction_information(code: str, fields: dict[str, int]) -> None:
    """SDM 3C tables 28-13 and 28-14."""
    lab = Lab(code)
    lab.first_exit()
    value = lab.read("VMX_INSTRUCTION_INFO")
    found = {"register": value >> 10 & 1, "reg2": value >> 28}
    if found["register"]:
        found["reg1"] = value >> 3 & 15
    else:
        found |= {"scale": value & 3, "address": value >> 7 & 7, "segment": value >> 15 & 7,
                  "no_index": value >> 22 & 1}
        if not found["no_index"]:
            found["index"] = value >> 18 & 15
        if not value >> 27 & 1:
            found["base"] = value >> 23 & 15
    assert {key: number for key, number in found.items() if number or key in fields} == fields


def test_vmx_instructions_in_real_mode_are_undefined_but_vmcall_exits() -> None:
    """SDM 3C 31.3: VMCALL in a guest exits in every mode; the others check the mode first."""
    lab, exits = only("vmcall", mode=16)
    assert [record.reason for record in exits] == [18]
    lab = Lab("vmxoff", mode=16, fields={"EXCEPTION_BITMAP": 1 << 6})
    assert lab.first_exit().interruption_info == 0x80000306


def test_exits_by_prefixed_and_32_bit_code() -> None:
    _, exits = only("cpuid", mode=32)
    assert exits[0].instruction_length == 2
    lab = Lab(b"\x66\x0f\xa2\xf4", mode=32)
    assert lab.first_exit().instruction_length == 3


def test_an_instruction_across_two_pages() -> None:
    lab = Lab("hlt", fields={"GUEST_RIP": 0x5FFF})
    lab.guest_load(0x5FFF, b"\x0f\xa2\xf4")
    record = lab.first_exit()
    assert (record.reason, record.rip, record.instruction_length) == (10, 0x5FFF, 2)


def test_hlt_without_exiting_and_nothing_to_come_ends_the_run() -> None:
    stop = Lab("sti; hlt", without=("HLT_EXITING",)).run()
    assert stop.kind is StopKind.HALT and "nothing can wake it" in stop.detail
