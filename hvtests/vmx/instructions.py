"""The VMX instructions in root operation: conditions, VMsucceed and VMfail as SDM 3C chapter 31 [30] has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from generator.arch import vmcs as arch
from hvtests.machine import layout as L
from hvtests.machine.cpu import Mode
from hvtests.machine.decode import Instruction
from hvtests.machine.delivery import GP, Fault
from hvtests.vmx import bits as c
from hvtests.vmx.operands import classify, linear_operand, read_memory
from hvtests.vmx.vmcs import SHADOW_INDICATOR, Vmcs, is_read_only

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

UD = 6
CF, ZF = 1, 1 << 6
CR4_VMXE = 1 << 13
NO_POINTER = (1 << 64) - 1
# VM-instruction error numbers, SDM 3C 31.4 [30.4]
(VMCALL_IN_ROOT, VMCLEAR_ADDRESS, VMCLEAR_VMXON, LAUNCH_NOT_CLEAR, RESUME_NOT_LAUNCHED) = 1, 2, 3, 4, 5
(VMPTRLD_ADDRESS, VMPTRLD_VMXON, VMPTRLD_REVISION, NO_SUCH_FIELD, FIELD_READ_ONLY) = 9, 10, 11, 12, 13
(VMXON_IN_ROOT, ENTRY_BLOCKED_BY_MOV_SS, INVALID_OPERAND) = 15, 26, 28
VMWRITE_ANY_FIELD = 1 << 29      # IA32_VMX_MISC
INVEPT_TYPES = {1: 1 << 25, 2: 1 << 26}                                  # type -> bit of IA32_VMX_EPT_VPID_CAP
INVVPID_TYPES = {0: 1 << 40, 1: 1 << 41, 2: 1 << 42, 3: 1 << 43}
FEATURE_CONTROL = 0x3A


class VmxInstructions:
    """Executes the VMX instruction at RIP; `vmx` is the state they work on."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine, self.cpu = vmx, vmx.machine, vmx.machine.cpu
        self.memory, self.model = vmx.machine.memory, vmx.model
        self.fabric = vmx.machine.fabric
        self._actions: dict[str, Callable[[Instruction], None]] = {
            "VMXON": self.vmxon, "VMXOFF": self.vmxoff, "VMCLEAR": self.vmclear, "VMPTRLD": self.vmptrld,
            "VMPTRST": self.vmptrst, "VMREAD": self.vmread, "VMWRITE": self.vmwrite, "VMLAUNCH": self.vmlaunch,
            "VMRESUME": self.vmresume, "VMCALL": self.vmcall, "INVEPT": self.invept, "INVVPID": self.invvpid,
        }

    def on_undefined(self) -> bool:
        """Whether the #UD at RIP was a VMX instruction; then it has been executed, or its own fault delivered."""
        found = self.cpu.instruction()
        name = classify(found) if found is not None else None
        action = self._actions.get(name or "")
        if found is None or action is None:
            return False
        self.machine.root.attempt(lambda: self._execute(name or "", action, found))
        return True

    def _execute(self, name: str, action: Callable[[Instruction], None], found: Instruction) -> None:
        cpu = self.cpu
        if self.undefined_in_mode() or not cpu.cr4 & CR4_VMXE:
            raise Fault(UD)
        if not self.vmx.on and name != "VMXON":
            raise Fault(UD)
        if name in ("INVEPT", "INVVPID") and not self.model.ept_vpid >> (20 if name == "INVEPT" else 32) & 1:
            raise Fault(UD)
        if cpu.cpl:
            raise Fault(GP, 0)
        action(found)

    def undefined_in_mode(self) -> bool:
        """Whether the operating mode makes VMX instructions (VMCALL aside) #UD."""
        return self.cpu.mode() in (Mode.REAL, Mode.VIRTUAL_8086, Mode.COMPATIBILITY)

    # -- results ---------------------------------------------------------------------------------------------------

    def succeed(self, found: Instruction) -> None:
        """VMsucceed: the status flags are 0; on to the next instruction."""
        self.fabric.set_status_flags(0)
        self.cpu.advance(found.length)

    def fail_invalid(self, found: Instruction) -> None:
        """VMfailInvalid: CF = 1."""
        self.vmx.failures += 1
        self.vmx.complaints.instruction(classify(found) or "", self.cpu.code_linear, None)
        self.fabric.set_status_flags(CF)
        self.cpu.advance(found.length)

    def fail(self, found: Instruction, error: int) -> None:
        """VMfail: VMfailValid with `error` if there is a current VMCS, else VMfailInvalid."""
        current = self.vmx.current
        if current is None:
            return self.fail_invalid(found)
        self.vmx.failures += 1
        self.vmx.complaints.instruction(classify(found) or "", self.cpu.code_linear, error)
        current.set("VM_INSTRUCTION_ERROR", error)
        self.fabric.set_status_flags(ZF)
        self.cpu.advance(found.length)

    # -- VMX operation ---------------------------------------------------------------------------------------------

    def vmxon(self, found: Instruction) -> None:
        if self.vmx.on:
            return self.fail(found, VMXON_IN_ROOT)
        cpu, model = self.cpu, self.model
        control = self.machine.msrs.read(FEATURE_CONTROL)
        if not self.vmx.fixed_bits_hold(0, cpu.cr0) or not self.vmx.fixed_bits_hold(4, cpu.cr4):
            raise Fault(GP, 0)
        if control is None or control & 5 != 5 or not self.fabric.i[L.I_A20_MASK] >> 20 & 1:
            raise Fault(GP, 0)
        address = read_memory(cpu, found, 8)
        if self._bad_address(address) or self.memory.u32(address) != model.vmcs_revision:
            return self.fail_invalid(found)
        self.vmx.enter_operation(address)
        self.succeed(found)

    def vmxoff(self, found: Instruction) -> None:
        self.vmx.leave_operation()
        self.succeed(found)

    def _bad_address(self, address: int) -> bool:
        return bool(address & 0xFFF or address & self.model.physical_reserved)

    # -- VMCS pointers ---------------------------------------------------------------------------------------------

    def vmclear(self, found: Instruction) -> None:
        address = read_memory(self.cpu, found, 8)
        if self._bad_address(address):
            return self.fail(found, VMCLEAR_ADDRESS)
        if address == self.vmx.region:
            return self.fail(found, VMCLEAR_VMXON)
        vmcs = self.vmx.active.pop(address, None)
        if vmcs is not None:
            vmcs.store(self.memory)
            self.vmx.forget(vmcs)
        self.succeed(found)

    def vmptrld(self, found: Instruction) -> None:
        address = read_memory(self.cpu, found, 8)
        if self._bad_address(address):
            return self.fail(found, VMPTRLD_ADDRESS)
        if address == self.vmx.region:
            return self.fail(found, VMPTRLD_VMXON)
        word = self.memory.u32(address)
        if word & ~SHADOW_INDICATOR != self.model.vmcs_revision:
            return self.fail(found, VMPTRLD_REVISION)
        if word & SHADOW_INDICATOR and not self.model.has("VMCS_SHADOWING"):
            return self.fail(found, VMPTRLD_REVISION)
        self.vmx.set_current(self._active(address))
        self.succeed(found)

    def _active(self, address: int) -> Vmcs:
        """The VMCS at `address`, which becomes active if it is not."""
        vmcs = self.vmx.active.get(address)
        if vmcs is None:
            vmcs = self.vmx.active[address] = Vmcs.load(self.memory, address)
        return vmcs

    def _accessed(self) -> Vmcs | None:
        """The VMCS that VMREAD and VMWRITE access: the current one, or the shadow VMCS of a guest; None: no such."""
        guest = self.vmx.guest
        if guest is None:
            return self.vmx.current
        link = guest.read("VMCS_LINK_POINTER")
        return None if link == NO_POINTER else self._active(link)

    def vmptrst(self, found: Instruction) -> None:
        current = self.vmx.current
        pointer = NO_POINTER if current is None else current.address
        self.cpu.write_linear(linear_operand(self.cpu, found), pointer.to_bytes(8, "little"))
        self.succeed(found)

    # -- fields ----------------------------------------------------------------------------------------------------

    def _size(self) -> int:
        return 8 if self.cpu.code_bits == 64 else 4

    def shadowed(self, name: str, found: Instruction) -> bool:
        """Whether VMREAD or VMWRITE (`name`) in a guest is done rather than exits (SDM 3C 26.1.3 [25.1.3])."""
        controls = self.vmx.controls
        if not controls.proc2 & c.VMCS_SHADOWING:
            return False
        encoding = self.fabric.q[found.reg] & (1 << 8 * self._size()) - 1
        if encoding >> 15:
            return False
        bitmap = controls.vmread_bitmap if name == "VMREAD" else controls.vmwrite_bitmap
        return not self.memory.u8(bitmap + (encoding >> 3)) >> (encoding & 7) & 1

    def shadow_access(self, name: str, found: Instruction) -> None:
        """VMREAD or VMWRITE in a guest, of the shadow VMCS. Raises Fault or PageFault."""
        if self.cpu.cpl:
            raise Fault(GP, 0)
        self._actions[name](found)

    def vmread(self, found: Instruction) -> None:
        current, size = self._accessed(), self._size()
        if current is None:
            return self.fail_invalid(found)
        mask = (1 << 8 * size) - 1
        field = arch.decode(self.fabric.q[found.reg] & mask)
        if field is None or field[0].name not in self.vmx.fields:
            return self.fail(found, NO_SUCH_FIELD)
        value = current.vmread(*field)
        if found.memory is None:
            self.fabric.q[found.rm] = value & mask
        else:
            self.cpu.write_linear(linear_operand(self.cpu, found), (value & mask).to_bytes(size, "little"))
        self.succeed(found)

    def vmwrite(self, found: Instruction) -> None:
        current, size = self._accessed(), self._size()
        if current is None:
            return self.fail_invalid(found)
        mask = (1 << 8 * size) - 1
        value = self.fabric.q[found.rm] & mask if found.memory is None else read_memory(self.cpu, found, size)
        field = arch.decode(self.fabric.q[found.reg] & mask)
        if field is None or field[0].name not in self.vmx.fields:
            return self.fail(found, NO_SUCH_FIELD)
        if is_read_only(field[0]) and not self.model.misc & VMWRITE_ANY_FIELD:
            return self.fail(found, FIELD_READ_ONLY)
        current.vmwrite(*field, value, self.cpu.code_linear)
        self.succeed(found)

    # -- entering guests -------------------------------------------------------------------------------------------

    def vmlaunch(self, found: Instruction) -> None:
        self._enter(found, launch=True)

    def vmresume(self, found: Instruction) -> None:
        self._enter(found, launch=False)

    def _enter(self, found: Instruction, *, launch: bool) -> None:
        current = self.vmx.current
        if current is None or current.shadow:
            return self.fail_invalid(found)
        if self.vmx.blocked_by_mov_ss():
            return self.fail(found, ENTRY_BLOCKED_BY_MOV_SS)
        if launch and current.launched:
            return self.fail(found, LAUNCH_NOT_CLEAR)
        if not launch and not current.launched:
            return self.fail(found, RESUME_NOT_LAUNCHED)
        error = self.vmx.enter(current)
        if error is not None:
            self.fail(found, error)

    def vmcall(self, found: Instruction) -> None:
        """Without dual-monitor treatment of SMM: error 1."""
        self.fail(found, VMCALL_IN_ROOT)

    # -- invalidation ----------------------------------------------------------------------------------------------

    def invept(self, found: Instruction) -> None:
        kind = self.fabric.q[found.reg] & ((1 << 64) - 1 if self.cpu.code_bits == 64 else 0xFFFF_FFFF)
        descriptor = read_memory(self.cpu, found, 16)
        if kind not in INVEPT_TYPES or not self.model.ept_vpid & INVEPT_TYPES[kind]:
            return self.fail(found, INVALID_OPERAND)
        pointer = descriptor & (1 << 64) - 1
        if kind == 1 and not self.vmx.valid_eptp(pointer):
            return self.fail(found, INVALID_OPERAND)
        self.vmx.ept.invalidate(pointer if kind == 1 else None)
        self.succeed(found)

    def invvpid(self, found: Instruction) -> None:
        kind = self.fabric.q[found.reg] & ((1 << 64) - 1 if self.cpu.code_bits == 64 else 0xFFFF_FFFF)
        descriptor = read_memory(self.cpu, found, 16)
        if kind not in INVVPID_TYPES or not self.model.ept_vpid & INVVPID_TYPES[kind]:
            return self.fail(found, INVALID_OPERAND)
        vpid, reserved, linear = descriptor & 0xFFFF, descriptor >> 16 & 0xFFFF_FFFF_FFFF, descriptor >> 64
        if reserved or (kind != 2 and vpid == 0):
            return self.fail(found, INVALID_OPERAND)
        if kind == 0 and linear >> 47 not in (0, 0x1FFFF):
            return self.fail(found, INVALID_OPERAND)
        self.succeed(found)   # no translation outlives a VM entry or exit here
