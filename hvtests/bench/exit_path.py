"""How many instructions the hypervisor takes from a VM exit to the next VM entry, by executing that path alone."""

from __future__ import annotations

from collections.abc import Mapping

from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_MODE_64, Uc
from unicorn import x86_const as x86

from generator.arch import abi, exits, msrs, vmcs
from generator.core import Core
from generator.records import GPR_NAMES, VCPU, VCPU_INITIAL
from hvtests.image.contracts import STAND_IN_SIZE, STAND_IN_START, VmxStandIn

_LIMIT = 100_000
_IO_OUT_COM1 = abi.PORT_COM1 << 16          # one byte, OUT, DX (SDM 3C table 28-5)

# Exits worth counting: reason, guest registers, VMCS fields.
PATHS: Mapping[str, tuple[str, Mapping[str, int], Mapping[str, int]]] = {
    "cpuid": ("CPUID", {"rax": 1}, {"VM_EXIT_INSTRUCTION_LEN": 2}),
    "io": ("IO_INSTRUCTION", {"rax": ord("x")}, {"VM_EXIT_INSTRUCTION_LEN": 1, "EXIT_QUALIFICATION": _IO_OUT_COM1}),
    "rdmsr": ("RDMSR", {"rcx": msrs.BY_NAME["IA32_EFER"].address}, {"VM_EXIT_INSTRUCTION_LEN": 2}),
    "wrmsr": ("WRMSR", {"rcx": msrs.BY_NAME["IA32_EFER"].address, "rax": 1, "rdx": 0}, {"VM_EXIT_INSTRUCTION_LEN": 2}),
    "hypercall": ("VMCALL", {"rax": abi.Hypercall.VM_ID}, {"VM_EXIT_INSTRUCTION_LEN": 3}),
}


def instructions(core: Core, path: str) -> int:
    """Instructions from exit_stub up to and including VMRESUME for one of PATHS."""
    reason, registers, fields = PATHS[path]
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(STAND_IN_START, STAND_IN_SIZE)
    for address, data in core.segments:
        uc.mem_write(address, data)
    vcpu = core.symbols["vcpus"]
    row = VCPU_INITIAL.stop - VCPU_INITIAL.start
    uc.mem_write(vcpu + VCPU_INITIAL.start, bytes(uc.mem_read(core.symbols["vcpu_rows"], row)))
    uc.mem_write(vcpu + VCPU.offset("launched"), (1).to_bytes(4, "little"))
    uc.reg_write(x86.UC_X86_REG_GS_BASE, core.symbols["cpu0"])
    for name in GPR_NAMES:
        uc.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), registers.get(name, 0))
    uc.reg_write(x86.UC_X86_REG_RSP, vcpu + VCPU.offset("stack"))
    known = {"VM_EXIT_REASON": exits.BY_NAME[reason].number, "GUEST_CR0": 1, "GUEST_SS_AR_BYTES": 0x93,
             "GUEST_INTERRUPTIBILITY_INFO": 0, "GUEST_IA32_EFER": 0, **fields}
    vmx = VmxStandIn({vmcs.BY_NAME[name].encoding: value for name, value in known.items()})
    count = 0

    def one(*_: object) -> None:
        nonlocal count
        count += 1

    uc.hook_add(UC_HOOK_CODE, one)
    uc.hook_add(UC_HOOK_INSN, lambda *_: 0x60, None, 1, 0, x86.UC_X86_INS_IN)
    uc.hook_add(UC_HOOK_INSN, lambda *_: None, None, 1, 0, x86.UC_X86_INS_OUT)
    uc.hook_add(UC_HOOK_INSN_INVALID, vmx.instruction)
    uc.emu_start(core.symbols["exit_stub"], 0, count=_LIMIT)
    if not vmx.resumed:
        raise RuntimeError(f"the {path} path did not reach VMRESUME: RIP {uc.reg_read(x86.UC_X86_REG_RIP):#x}")
    return count
