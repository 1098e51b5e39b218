"""Which VMX instruction an encoding is, its operands, and the instruction information that an exit by it gives."""

from __future__ import annotations

from generator.arch import exits
from hvtests.machine import layout as L
from hvtests.machine.cpu import Cpu, Mode
from hvtests.machine.decode import OPERAND_SIZE, REP, REPNE, Instruction
from hvtests.machine.delivery import Fault

GP, SS = 13, 12
_BY_MODRM = {0xC1: "VMCALL", 0xC2: "VMLAUNCH", 0xC3: "VMRESUME", 0xC4: "VMXOFF"}
REASON = {name: exits.BY_NAME[name].number for name in (
    "VMCALL", "VMCLEAR", "VMLAUNCH", "VMPTRLD", "VMPTRST", "VMREAD", "VMRESUME", "VMWRITE", "VMXOFF", "VMXON",
    "INVEPT", "INVVPID", "INVPCID")}
_SIZE_CODE = {16: 0, 32: 1, 64: 2}


def classify(found: Instruction) -> str | None:
    """Name of the VMX instruction (or INVPCID), None if it is none (SDM 3C 31.3 [30.3], SDM 2A for INVPCID)."""
    mandatory = found.prefixes & {OPERAND_SIZE, REPNE, REP}
    if found.opcode == 0x0F01:
        return _BY_MODRM.get(found.modrm_byte) if not mandatory else None
    if found.opcode in (0x0F78, 0x0F79):
        return None if mandatory else "VMREAD" if found.opcode == 0x0F78 else "VMWRITE"
    if found.opcode == 0x0FC7 and found.memory is not None:
        if found.reg & 7 == 7:
            return "VMPTRST" if not mandatory else None
        if found.reg & 7 == 6 and REPNE not in mandatory:
            return "VMXON" if REP in mandatory else "VMCLEAR" if OPERAND_SIZE in mandatory else "VMPTRLD"
        return None
    if found.opcode in (0x0F3880, 0x0F3881, 0x0F3882) and found.memory is not None and mandatory == {OPERAND_SIZE}:
        return {0x0F3880: "INVEPT", 0x0F3881: "INVVPID", 0x0F3882: "INVPCID"}[found.opcode]
    return None


def linear_operand(cpu: Cpu, found: Instruction) -> int:
    """Linear address of the memory operand. Raises Fault #GP(0) or #SS(0) for one that is not canonical."""
    assert found.memory is not None
    linear = cpu.linear_address(found.memory.segment, cpu.effective_offset(found.memory, found.length))
    if cpu.mode() is Mode.LONG and linear >> 47 not in (0, 0x1FFFF):
        raise Fault(SS if found.memory.segment == L.SS else GP, 0)
    return linear


def read_memory(cpu: Cpu, found: Instruction, size: int) -> int:
    """The memory operand's value, `size` bytes. Raises Fault or PageFault."""
    return int.from_bytes(cpu.read_linear(linear_operand(cpu, found), size), "little")


def displacement(cpu: Cpu, found: Instruction) -> int:
    """EXIT_QUALIFICATION of an instruction with a memory operand: its displacement, as an address for RIP-relative
    ones (SDM 3C 28.2.1 [27.2.1])."""
    if found.memory is None:
        return 0
    value = found.memory.displacement
    if found.memory.rip_relative:
        value += cpu.rip + found.length
    return value & (1 << 64) - 1


def instruction_information(found: Instruction, register: int | None = None) -> int:
    """VMX_INSTRUCTION_INFO of an exit by an instruction with a ModRM operand (SDM 3C tables 28-8 to 28-15).

    `register` is what bits 31:28 tell (Reg2); by default the ModRM byte's reg field.
    """
    value = _SIZE_CODE[found.address_size] << 7 | (found.reg if register is None else register) << 28
    memory = found.memory
    if memory is None:
        return value | 1 << 10 | found.rm << 3
    value |= memory.scale | memory.segment << 15
    value |= 1 << 22 if memory.index is None else memory.index << 18
    return value | (1 << 27 if memory.base is None else memory.base << 23)
