"""VMX instructions in root operation: VMsucceed, VMfailInvalid, VMfailValid and faults. SDM 3C chapter 31 [30]."""

from __future__ import annotations

import pytest

from generator.arch import vmcs as arch
from hvtests.machine import layout as L
from hvtests.machine.stop import Limits, StopKind
from hvtests.model.asm import HOST_CODE, HOST_STACK, HOST_TABLES, RAM, assemble, gate64, long_mode
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.model import VmxMachine
from hvtests.vmx.vmcs import Vmcs

REGION, FIRST, SECOND, DATA = 0x30000, 0x31000, 0x32000, 0x38000
CF, ZF = 1, 1 << 6
STATUS = 0x8D5
RESULTS = DATA + 0x800
GATES, HANDLERS = 0x50000, 0x51000

# After each instruction under test its flags go to the next word of RESULTS (R15 points there).
SAVE = "pushfq; pop qword ptr [r15]; add r15, 8;"
ON = f"mov rax, {REGION}; mov [{DATA}], rax; lea rbx, [rip]; mov rbx, {DATA}; vmxon [rbx];"


def pointer(name: str, address: int) -> str:
    return f"mov rax, {address}; mov rbx, {DATA}; mov [rbx], rax; {name} [rbx]; {SAVE}"


class Root:
    """Root code run to its HLT; faults go to handlers that save vector and error code and halt."""

    def __init__(self, code: str, cpu: CpuModel | None = None) -> None:
        self.machine = machine = VmxMachine(RAM, cpu)
        long_mode(machine, HOST_CODE)
        machine.memory.write(HOST_CODE, assemble(f"mov r15, {RESULTS};" + code + "; hlt", HOST_CODE))
        for region in (REGION, FIRST, SECOND):
            machine.memory.set_u32(region, machine.vmx.model.vmcs_revision)
        for vector in range(32):
            at = HANDLERS + 16 * vector
            machine.memory.write(GATES + 16 * vector, gate64(at))
            machine.memory.write(at, assemble(f"mov r14d, {vector + 1}; mov r13, [rsp]; hlt", at))
        machine.cpu.set_table(L.IDTR, GATES, 0xFFF)

    def run(self) -> Root:
        stop = self.machine.run(Limits(seconds=10))
        assert stop.kind is StopKind.HALT, stop
        return self

    @property
    def fault(self) -> tuple[int, int] | None:
        """Vector and the word on top of the handler's stack."""
        vector = self.machine.cpu.gprs[14]
        return (vector - 1, self.machine.cpu.gprs[13]) if vector else None

    def flags(self) -> list[int]:
        """Status flags after each instruction."""
        count = (self.machine.cpu.gprs[15] - RESULTS) // 8
        return [self.machine.memory.u64(RESULTS + 8 * n) & STATUS for n in range(count)]

    def error(self) -> int:
        """VM_INSTRUCTION_ERROR of the current VMCS."""
        current = self.machine.vmx.current
        assert current is not None
        return current.read("VM_INSTRUCTION_ERROR")


VMXON = pointer("vmxon", REGION)
CURRENT = VMXON + pointer("vmclear", FIRST) + pointer("vmptrld", FIRST)


def test_vmxon_succeeds_and_clears_the_status_flags() -> None:
    root = Root("stc;" + VMXON).run()
    assert root.fault is None and root.flags() == [0] and root.machine.vmx.on


@pytest.mark.parametrize("address", [REGION + 8, 1 << 41])
def test_vmxon_with_a_bad_address_is_vmfail_invalid(address: int) -> None:
    root = Root(pointer("vmxon", address)).run()
    assert root.flags() == [CF] and not root.machine.vmx.on


def test_vmxon_with_another_revision_is_vmfail_invalid() -> None:
    root = Root(VMXON)
    root.machine.memory.set_u32(REGION, root.machine.vmx.model.vmcs_revision ^ 1)
    assert root.run().flags() == [CF]


def test_vmxon_in_vmx_operation() -> None:
    """Error 15 with a current VMCS, VMfailInvalid without (SDM 3C 31.2)."""
    assert Root(VMXON + VMXON).run().flags() == [0, CF]
    root = Root(CURRENT + VMXON).run()
    assert root.flags()[-1] == ZF and root.error() == 15


def test_vmxon_without_cr4_vmxe_is_undefined() -> None:
    root = Root("mov rax, cr4; btr rax, 13; mov cr4, rax;" + VMXON).run()
    assert root.fault is not None and root.fault[0] == 6


def test_vmxon_with_cr0_ne_clear_is_gp() -> None:
    """CR0.NE must be 1 in VMX operation (SDM 3C 24.8)."""
    root = Root("mov rax, cr0; btr rax, 5; mov cr0, rax;" + VMXON).run()
    assert root.fault == (13, 0)


def test_vmxon_when_firmware_locked_it_out_is_gp() -> None:
    """IA32_FEATURE_CONTROL: lock bit 1, VMX outside SMX 0 (SDM 3C 24.7)."""
    root = Root(VMXON, CpuModel.default().with_msr("IA32_FEATURE_CONTROL", 1)).run()
    assert root.fault == (13, 0)


@pytest.mark.parametrize("bit", [0, 5, 31])
def test_cr0_bits_are_fixed_in_vmx_operation(bit: int) -> None:
    root = Root(VMXON + f"mov rax, cr0; btr rax, {bit}; mov cr0, rax").run()
    assert root.fault == (13, 0)


def test_cr4_vmxe_is_fixed_in_vmx_operation() -> None:
    root = Root(VMXON + "mov rax, cr4; btr rax, 13; mov cr4, rax").run()
    assert root.fault == (13, 0)


def test_other_instructions_outside_vmx_operation_are_undefined() -> None:
    for text in ("vmxoff", "vmlaunch", "vmresume", "vmread rax, rbx", "vmwrite rax, rbx", f"vmclear [{DATA:#x}]"):
        root = Root(f"mov rbx, {DATA};" + text.replace(f"[{DATA:#x}]", "[rbx]")).run()
        assert root.fault is not None and root.fault[0] == 6, text


@pytest.mark.parametrize(("name", "address", "error"), [
    ("vmclear", FIRST + 1, 2), ("vmclear", 1 << 40, 2), ("vmclear", REGION, 3),
    ("vmptrld", FIRST + 8, 9), ("vmptrld", 1 << 40, 9), ("vmptrld", REGION, 10), ("vmptrld", 0x39000, 11),
])
def test_pointer_errors(name: str, address: int, error: int) -> None:
    root = Root(CURRENT + pointer(name, address)).run()
    assert root.flags()[-1] == ZF and root.error() == error


def test_errors_without_a_current_vmcs_are_vmfail_invalid() -> None:
    root = Root(VMXON + pointer("vmptrld", REGION) + f"vmlaunch; {SAVE} mov eax, 0; vmread rbx, rax; {SAVE}"
                f"vmwrite rax, rbx; {SAVE} vmcall; {SAVE}").run()
    assert root.flags() == [0, CF, CF, CF, CF, CF]


def test_vmptrst_stores_the_current_pointer() -> None:
    store = f"mov rbx, {DATA + 0x100}; vmptrst [rbx]; {SAVE}"
    root = Root(VMXON + store).run()
    assert root.machine.memory.u64(DATA + 0x100) == (1 << 64) - 1
    root = Root(CURRENT + store).run()
    assert root.machine.memory.u64(DATA + 0x100) == FIRST and root.flags()[-1] == 0


def test_vmclear_of_the_current_vmcs_leaves_none_current() -> None:
    root = Root(CURRENT + pointer("vmclear", FIRST)).run()
    assert root.machine.vmx.current is None


def test_fields_survive_vmclear_and_another_vmcs() -> None:
    """VMCLEAR writes the data to the region; VMPTRLD brings it back (SDM 3C 25.11.3)."""
    code = (CURRENT + f"mov eax, 0x681c; mov rbx, 0x1122334455667788; vmwrite rax, rbx; {SAVE}"
            + pointer("vmclear", SECOND) + pointer("vmptrld", SECOND) + f"mov eax, 0x681c; vmread rsi, rax; {SAVE}"
            + pointer("vmclear", FIRST) + pointer("vmptrld", FIRST) + f"mov eax, 0x681c; vmread rdi, rax; {SAVE}")
    root = Root(code).run()
    assert set(root.flags()) == {0}
    assert root.machine.cpu.gprs[L.Q_RSI] == 0 and root.machine.cpu.gprs[L.Q_RDI] == 0x1122334455667788


@pytest.mark.parametrize("field", [f for f in arch.FIELDS if f.type is not arch.FieldType.READ_ONLY],
                         ids=lambda field: field.name)
def test_every_field_holds_what_was_written(field: arch.Field) -> None:
    """Each field keeps exactly its width; one machine would do, but a failing field should have a name."""
    vmcs = Vmcs(0x1000)
    value = 0xF1E2D3C4B5A69788
    vmcs.vmwrite(field, False, value)
    assert vmcs.vmread(field, False) == value & (1 << field.bits) - 1
    if field.high_encoding is not None:
        vmcs.vmwrite(field, True, 0x12345678)
        assert vmcs.vmread(field, True) == 0x12345678
        assert vmcs.vmread(field, False) == 0x12345678_B5A69788


@pytest.mark.parametrize(("name", "control"), [
    ("VIRTUAL_PROCESSOR_ID", "ENABLE_VPID"), ("EPT_POINTER", "ENABLE_EPT"), ("MSR_BITMAP", "USE_MSR_BITMAPS"),
    ("VMX_PREEMPTION_TIMER_VALUE", "ACTIVATE_PREEMPTION_TIMER"), ("GUEST_PDPTR2", "ENABLE_EPT"),
    ("SECONDARY_VM_EXEC_CONTROL", "ACTIVATE_SECONDARY_CONTROLS")])
def test_fields_exist_with_the_control_that_uses_them(name: str, control: str) -> None:
    """SDM 3D Appendix B: VMfailValid(12) where the CPU does not have the field; natively and in Python."""
    code = CURRENT + f"mov eax, {arch.BY_NAME[name].encoding}; vmread rbx, rax; {SAVE} vmwrite rax, rbx; {SAVE}"
    assert Root(code).run().flags()[-2:] == [0, 0]
    root = Root(code, CpuModel.default().without(control)).run()
    assert root.flags()[-2:] == [ZF, ZF] and root.error() == 12


def test_fields_above_the_highest_index_do_not_exist() -> None:
    """IA32_VMX_VMCS_ENUM bits 9:1 (SDM 3D A.9); 2018H needs "EPT violation #VE" besides."""
    model = CpuModel.default().with_msr("IA32_VMX_VMCS_ENUM", 0x20)     # highest index 16
    code = CURRENT + f"mov eax, 0x6820; vmread rbx, rax; {SAVE} mov eax, 0x6822; vmread rbx, rax; {SAVE}"
    assert Root(code, model).run().flags()[-2:] == [0, ZF]


def test_vmread_and_vmwrite_of_what_is_no_field() -> None:
    root = Root(CURRENT + f"mov eax, 0x7ffe; vmread rbx, rax; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 12
    root = Root(CURRENT + f"mov eax, 0x0803; vmwrite rax, rbx; {SAVE}").run()      # high half of a 16-bit field
    assert root.flags()[-1] == ZF and root.error() == 12
    root = Root(CURRENT + f"mov rax, 0x10000681e; vmread rbx, rax; {SAVE}").run()  # bits 63:32 count in 64-bit mode
    assert root.flags()[-1] == ZF and root.error() == 12


def test_read_only_fields_are_writable_only_where_the_cpu_says_so() -> None:
    """IA32_VMX_MISC bit 29 (SDM 3D A.6)."""
    write = CURRENT + f"mov eax, 0x4402; mov ebx, 48; vmwrite rax, rbx; {SAVE} vmread rcx, rax; {SAVE}"
    root = Root(write, CpuModel.default().without("VMWRITE_ANY")).run()
    assert root.flags()[-2:] == [ZF, 0] and root.error() == 13
    root = Root(write).run()
    assert root.flags()[-2:] == [0, 0] and root.machine.cpu.gprs[L.Q_RCX] == 48


def test_vmread_and_vmwrite_with_memory_operands() -> None:
    code = CURRENT + (f"mov rbx, {DATA + 0x200}; mov rcx, 0xABCDEF0123456789; mov [rbx], rcx; mov eax, 0x6c16;"
                      f"vmwrite rax, [rbx]; {SAVE} mov r8, 2; vmread [rbx + r8*4 + 8], rax; {SAVE}")
    root = Root(code).run()
    assert root.flags()[-2:] == [0, 0]
    assert root.machine.memory.u64(DATA + 0x210) == 0xABCDEF0123456789


def test_memory_operand_faults() -> None:
    root = Root(CURRENT + "mov rbx, 0x40000000; mov eax, 0x6c16; vmread [rbx], rax").run()   # not mapped
    assert root.fault == (14, 2) and root.machine.cpu.cr2 == 0x40000000
    root = Root(CURRENT + "mov rbx, 0x800000000000; vmptrld [rbx]").run()                     # not canonical
    assert root.fault == (13, 0)


def test_high_and_full_access_to_a_64_bit_field() -> None:
    code = CURRENT + ("mov eax, 0x2010; mov rbx, 0x1111111122222222; vmwrite rax, rbx; mov eax, 0x2011;"
                      f"mov ebx, 0x33333333; vmwrite rax, rbx; {SAVE} vmread rcx, rax;"
                      "mov eax, 0x2010; vmread rdx, rax")
    root = Root(code).run()
    assert root.machine.cpu.gprs[L.Q_RCX] == 0x33333333
    assert root.machine.cpu.gprs[L.Q_RDX] == 0x3333333322222222


def test_vmcall_in_root_operation_is_error_1() -> None:
    root = Root(CURRENT + f"vmcall; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 1


def test_vmresume_needs_a_launched_vmcs() -> None:
    root = Root(CURRENT + f"vmresume; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 5


def test_vmlaunch_with_empty_fields_is_a_controls_error() -> None:
    root = Root(CURRENT + f"vmlaunch; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 7
    assert root.machine.vmx.last_failure is not None


def test_vmlaunch_after_mov_ss_is_error_26() -> None:
    root = Root(CURRENT + f"mov ax, ss; mov ss, ax; vmlaunch; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 26


def test_vmlaunch_after_sti_is_not_error_26() -> None:
    root = Root(CURRENT + f"sti; vmlaunch; cli; {SAVE}").run()
    assert root.flags()[-1] == ZF and root.error() == 7


def descriptor(name: str, kind: int, low: int, high: int) -> str:
    return (f"mov rbx, {DATA + 0x300}; mov rax, {low:#x}; mov [rbx], rax; mov rax, {high:#x}; mov [rbx + 8], rax;"
            f"mov eax, {kind}; {name} rax, [rbx]; {SAVE}")


@pytest.mark.parametrize(("kind", "pointer_", "error"), [
    (1, 0x40000 | 0x1E, None), (2, 0, None), (0, 0, 28), (3, 0, 28),
    (1, 0x40000 | 0x1F, 28),      # memory type 7
    (1, 0x40000 | 0x16, 28),      # page-walk length 3
    (1, 1 << 45 | 0x1E, 28),      # beyond the physical-address width
])
def test_invept(kind: int, pointer_: int, error: int | None) -> None:
    root = Root(CURRENT + descriptor("invept", kind, pointer_, 0)).run()
    assert root.fault is None
    assert (root.flags()[-1], root.error() if error else None) == (ZF if error else 0, error)


@pytest.mark.parametrize(("kind", "low", "high", "error"), [
    (0, 1, 0x1000, None), (1, 1, 0, None), (2, 0, 0, None), (3, 1, 0, None),
    (4, 1, 0, 28), (0, 0, 0, 28), (1, 0, 0, 28), (3, 0, 0, 28),
    (1, 0x10001, 0, 28),                     # reserved bits of the descriptor
    (0, 1, 0x800000000000, 28),              # linear address not canonical
])
def test_invvpid(kind: int, low: int, high: int, error: int | None) -> None:
    root = Root(CURRENT + descriptor("invvpid", kind, low, high)).run()
    assert root.fault is None
    assert (root.flags()[-1], root.error() if error else None) == (ZF if error else 0, error)


def test_invept_without_the_capability_is_undefined() -> None:
    root = Root(CURRENT + descriptor("invept", 2, 0, 0), CpuModel.default().without("INVEPT")).run()
    assert root.fault is not None and root.fault[0] == 6


def test_vmxoff_ends_vmx_operation() -> None:
    root = Root(CURRENT + f"vmxoff; {SAVE} mov rax, cr4; btr rax, 13; mov cr4, rax;").run()
    assert root.flags()[-1] == 0 and not root.machine.vmx.on and root.fault is None


def test_privilege_and_mode() -> None:
    """At CPL 3 #GP(0); in compatibility mode #UD (SDM 3C 31.3)."""
    user = VMXON + f"push 0x3b; push {HOST_STACK}; push 2; push 0x43; lea rax, [rip + 4]; push rax; iretq;"
    root = Root(user + "nop; nop; nop; nop; vmxoff")
    memory = root.machine.memory
    for table in (HOST_TABLES, HOST_TABLES + 0x1000):
        memory.set_u64(table, memory.u64(table) | 4)
    memory.set_u64(HOST_TABLES + 0x2000, 0x87)
    memory.set_u64(0x15800 + 4, 0x60000)     # RSP0
    assert root.run().fault == (13, 0)
    root = Root(VMXON + "push 0x18; lea rax, [rip + 4]; push rax; retfq; nop; nop; nop; vmxoff").run()
    assert root.fault is not None and root.fault[0] == 6
