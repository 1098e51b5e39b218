"""Runs one routine of a built image alone, in plain Unicorn, and tells what it changed.

This is no PC: memory holds the hypervisor's own segments, ports answer as an idle UART, VMREAD gives a number made from
the field, VMWRITE is remembered, RDMSR and WRMSR are Unicorn's own. Enough to hold a routine to what it declares.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import capstone
from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_MEM_WRITE,
    UC_MODE_64,
    Uc,
    UcError,
)
from unicorn import x86_const as x86

from generator.core import Core
from generator.records import VCPU_INITIAL
from generator.render import Proc

REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)
_IDS = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in (*REGISTERS, "rsp", "rflags")}
_PARTS = {"al": "rax", "bl": "rbx", "cl": "rcx", "dl": "rdx"}
STAND_IN_START = 0x0010_0000   # memory of the stand-in: the hypervisor and the first VMs
STAND_IN_SIZE = 0x0070_0000
_RETURN = 0x0050_0000       # in memory that holds a VM: nothing of the hypervisor's is there
_STACK = 0x0051_0000
_STATUS_FLAGS = 0x8D5
_IDLE_LSR = 0x60
_LIMIT = 3_000_000          # instructions


def full(name: str) -> str:
    """The 64-bit register that ``name`` is part of; "flags" and "memory" stay."""
    return _PARTS.get(name, name)


@dataclass
class Change:
    """What one call did."""

    registers: set[str] = field(default_factory=set)     # that differ from before
    flags: bool = False
    memory: list[int] = field(default_factory=list)      # addresses written outside the stack
    returned: bool = False
    detail: str = ""


def call(core: Core, proc: Proc, inputs: dict[str, int], seed: int) -> Change:
    """Call ``proc`` with ``inputs`` in its registers and random values in all others."""
    chance = random.Random(seed)
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(STAND_IN_START, STAND_IN_SIZE)
    for address, data in core.segments:
        uc.mem_write(address, data)
    # What the image does at its start: the first vCPU gets its initial values.
    row = VCPU_INITIAL.stop - VCPU_INITIAL.start
    uc.mem_write(core.symbols["vcpus"] + VCPU_INITIAL.start, bytes(uc.mem_read(core.symbols["vcpu_rows"], row)))
    uc.reg_write(x86.UC_X86_REG_GS_BASE, core.symbols["cpu0"])
    uc.reg_write(x86.UC_X86_REG_CR4, 0x600)              # OSFXSR, OSXMMEXCPT: FXSAVE is allowed
    before = {name: chance.getrandbits(64) for name in REGISTERS}
    before.update(inputs)
    for name, value in before.items():
        uc.reg_write(_IDS[name], value)
    flags = 2 | chance.getrandbits(12) & _STATUS_FLAGS
    uc.reg_write(_IDS["rflags"], flags)
    uc.mem_write(_STACK, _RETURN.to_bytes(8, "little"))
    uc.reg_write(_IDS["rsp"], _STACK)
    change = Change()

    def wrote(_uc: Uc, _access: int, address: int, _size: int, _value: int, _data: object) -> None:
        if not _STACK - 0x1000 <= address < _STACK:
            change.memory.append(address)

    uc.hook_add(UC_HOOK_MEM_WRITE, wrote)
    uc.hook_add(UC_HOOK_INSN, lambda *_: _IDLE_LSR, None, 1, 0, x86.UC_X86_INS_IN)
    uc.hook_add(UC_HOOK_INSN, lambda *_: None, None, 1, 0, x86.UC_X86_INS_OUT)
    uc.hook_add(UC_HOOK_INSN_INVALID, VmxStandIn({}, chance.getrandbits(32)).instruction)
    try:
        uc.emu_start(core.symbols[proc.name], _RETURN, count=_LIMIT)
    except UcError as error:
        change.detail = f"{error} at {uc.reg_read(x86.UC_X86_REG_RIP):#x}"
        return change
    change.returned = uc.reg_read(x86.UC_X86_REG_RIP) == _RETURN and uc.reg_read(_IDS["rsp"]) == _STACK + 8
    change.registers = {name for name in REGISTERS if uc.reg_read(_IDS[name]) != before[name]}
    change.flags = (uc.reg_read(_IDS["rflags"]) ^ flags) & _STATUS_FLAGS != 0
    return change


class VmxStandIn:
    """Stands in for VMX instructions: they succeed (CF = ZF = 0) and do no more; VMRESUME ends the run.

    ``fields``: encoding -> value; a field that is not there reads as a number made from ``seed``.
    """

    def __init__(self, fields: dict[int, int], seed: int = 0) -> None:
        self._seed = seed
        self._written = dict(fields)
        self.resumed = False
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True

    def instruction(self, uc: Uc, _data: object) -> bool:
        rip = uc.reg_read(x86.UC_X86_REG_RIP)
        decoded = next(self._decoder.disasm(bytes(uc.mem_read(rip, 15)), rip, 1), None)
        if decoded is None:
            return False
        operands = [decoded.reg_name(item.reg) for item in decoded.operands if item.type == capstone.x86.X86_OP_REG]
        if decoded.mnemonic == "vmread":
            field_number = uc.reg_read(_IDS[operands[1]])
            value = self._written.get(field_number, random.Random(self._seed ^ field_number).getrandbits(32))
            uc.reg_write(_IDS[operands[0]], value)
        elif decoded.mnemonic == "vmwrite":
            self._written[uc.reg_read(_IDS[operands[0]])] = uc.reg_read(_IDS[operands[1]])
        elif decoded.mnemonic == "vmresume":
            self.resumed = True
            uc.emu_stop()
        elif decoded.mnemonic not in ("vmptrld", "vmclear", "invept", "invvpid"):
            return False
        uc.reg_write(_IDS["rflags"], uc.reg_read(_IDS["rflags"]) & ~_STATUS_FLAGS)
        uc.reg_write(x86.UC_X86_REG_RIP, rip + decoded.size)
        return True
