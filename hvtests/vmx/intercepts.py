"""Which event of a running guest becomes which VM exit: SDM 3C 26.1 [25.1] (instructions), 28.2.1 (qualifications)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvtests.machine import layout as L
from hvtests.machine.decode import Instruction
from hvtests.machine.delivery import GP, Fault
from hvtests.machine.fabric import ALWAYS
from hvtests.machine.paging import PageFault
from hvtests.machine.restart import keep_flags, load_of_a_write
from hvtests.machine.syscalls import syscall, sysenter
from hvtests.vmx import bits as c
from hvtests.vmx.accesses import Accesses
from hvtests.vmx.ept import EXECUTE, READ, WRITE, EptExit
from hvtests.vmx.operands import REASON, classify, displacement, instruction_information
from hvtests.vmx.prepared import Controls

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

DB, UD = 1, 6
RFLAGS_TF, DR6_BS = 1 << 8, 1 << 14
CPUID, GETSEC, HLT, INVD, INVLPG, RDPMC, RDTSC = 10, 11, 12, 13, 14, 15, 16
MWAIT, MONITOR, PAUSE, GDTR_IDTR, LDTR_TR, RDTSCP, PREEMPTION_TIMER, WBINVD, XSETBV = 36, 39, 40, 46, 47, 51, 52, 54, 55
VMFUNC = 59
CR4_PCE, CR4_VMXE, CR4_SMXE = 1 << 8, 1 << 13, 1 << 14
_XSETBV, _VMFUNC, _RDPMC = b"\x0f\x01\xd1", b"\x0f\x01\xd4", b"\x0f\x33"
# Bytes -> control and exit reason
_WAITS = {b"\x0f\x01\xc8": (c.MONITOR_EXITING, MONITOR), b"\x0f\x01\xc9": (c.MWAIT_EXITING, MWAIT)}
FUNCTIONS, EPTP_SWITCHING, EPTP_ENTRIES = 64, 0, 512
_NO_REGISTER_2 = frozenset(("VMCLEAR", "VMPTRLD", "VMPTRST", "VMXON"))
_OPERANDLESS = frozenset(("VMCALL", "VMLAUNCH", "VMRESUME", "VMXOFF"))
_TABLES = L.intercept_bits(L.CODE_IDTR_READ, L.CODE_GDTR_READ, L.CODE_LDTR_READ, L.CODE_TR_READ, L.CODE_IDTR_WRITE,
                           L.CODE_GDTR_WRITE, L.CODE_LDTR_WRITE, L.CODE_TR_WRITE)
# CR and DR intercepts, 16 bits each: CR read, CR write, DR read, DR write
_CR_DR_ALWAYS = 1 << 8 | (1 | 1 << 4 | 1 << 8) << 16 | 0xFF << 32 | 0xFF << 48


class Intercepts:
    """Handlers by event code while a guest runs."""

    def __init__(self, vmx: Vmx) -> None:
        self.vmx, self.machine = vmx, vmx.machine
        self.fabric, self.cpu, self.do = vmx.machine.fabric, vmx.machine.cpu, vmx.machine.instructions
        self.accesses = Accesses(vmx)
        events, access = vmx.events, self.accesses
        self.handlers: dict[int, Callable[[], None]] = {
            L.CODE_CPUID: self.cpuid,
            L.CODE_DEADLINE: vmx.machine.on_deadline,
            L.CODE_INTERRUPT: events.interrupt,
            L.CODE_NMI: events.nmi,
            L.CODE_INTERRUPT_WINDOW: events.interrupt_window,
            L.CODE_IRET: events.iret,
            L.CODE_SHUTDOWN: events.triple_fault,
            L.CODE_NESTED_FAULT: self.nested_fault,
            L.CODE_RESTRICTED: self.restricted_page,
            # Their handler begins with TF = 0: no trap of single-stepping is due behind them.
            L.CODE_SOFTWARE_INTERRUPT: events.software_interrupt,
            L.CODE_ICEBP: events.software_interrupt,
        }
        for code, action in {
            L.CODE_MSR: access.msr, L.CODE_IN: access.port, L.CODE_OUT: access.port, L.CODE_HLT: self.hlt,
            L.CODE_RDTSC: self.rdtsc, L.CODE_RDPMC: self.rdpmc, L.CODE_INVD: self.invalidate_caches,
            L.CODE_WBINVD: self.invalidate_caches, L.CODE_INVLPG: self.invlpg, L.CODE_PAUSE: self.pause,
            L.CODE_MONITOR: lambda: self.optional(c.MONITOR_EXITING, MONITOR),
            L.CODE_MWAIT: lambda: self.optional(c.MWAIT_EXITING, MWAIT),
            L.CODE_RSM: self.do.undefined,
            L.CODE_SYSCALL: lambda: syscall(self.cpu), L.CODE_SYSENTER: lambda: sysenter(self.cpu),
            **{L.CODE_CR_READ + number: access.read_cr for number in (0, 3, 4, 8)},
            **{L.CODE_CR_WRITE + number: access.write_cr for number in (0, 3, 4, 8)},
            **{L.CODE_DR_READ + number: access.read_dr for number in range(8)},
            **{L.CODE_DR_WRITE + number: access.write_dr for number in range(8)},
            **dict.fromkeys(range(L.CODE_IDTR_READ, L.CODE_TR_WRITE + 1), self.descriptor_table),
        }.items():
            self.handlers[code] = lambda action=action: self.attempt(action)  # type: ignore[misc]
        for vector in range(32):
            self.handlers[L.CODE_EXCEPTION + vector] = lambda vector=vector: events.raised(vector)  # type: ignore[misc]
        self.handlers[L.CODE_EXCEPTION + UD] = self.undefined
        self.handlers[L.CODE_EXCEPTION + GP] = self.general_protection

    def enable(self, controls: Controls) -> None:
        """Set the intercepts that these controls need."""
        q = self.fabric.q
        words = ALWAYS | L.intercept_bits(L.CODE_TR_WRITE)
        if controls.proc & c.PAUSE_EXITING:
            words |= L.intercept_bits(L.CODE_PAUSE)
        if controls.proc2 & c.DESCRIPTOR_TABLE_EXITING:
            words |= _TABLES
        q[L.Q_INTERCEPT] = words
        masks = _CR_DR_ALWAYS
        if controls.cr0_mask:
            masks |= 1
        if controls.cr4_mask:
            masks |= 1 << 4
        if controls.proc & c.CR3_STORE_EXITING:
            masks |= 1 << 3
        if controls.proc & c.CR3_LOAD_EXITING:
            masks |= 1 << 3 + 16
        q[L.Q_INTERCEPT_CR_DR] = masks

    def intercept_iret(self, wanted: bool) -> None:
        """Stop before the guest's next IRET, or no longer."""
        bit = L.intercept_bits(L.CODE_IRET)
        q = self.fabric.q
        q[L.Q_INTERCEPT] = q[L.Q_INTERCEPT] & ~bit | (bit if wanted else 0)

    def attempt(self, action: Callable[[], None]) -> None:
        """Do an instruction; what it raises is delivered, or exits, and so is the trap of single-stepping after it."""
        stepping = self.fabric.q[L.Q_RFLAGS] & RFLAGS_TF
        try:
            action()
            if stepping and self.vmx.guest is not None:
                self.cpu.dr[6] |= DR6_BS
                self.vmx.events.raised(DB)
        except (Fault, PageFault) as fault:
            self.vmx.events.fault(fault)
        except EptExit as failure:
            self.vmx.exit.ept(failure)

    # -- EPT -------------------------------------------------------------------------------------------------------

    def nested_fault(self) -> None:
        """The engine lacks the translation of a guest-physical page, or EPT forbids the access."""
        shadow, fabric = self.vmx.shadow, self.fabric
        assert shadow is not None
        address, error_code = fabric.fault_address, fabric.i[L.I_ERROR_CODE]
        access = EXECUTE if error_code & 16 else WRITE if error_code & 2 else READ
        if access == EXECUTE and self.vmx.monitor_trap.first():
            return
        keep_flags(self.cpu, fabric)
        try:
            if access == READ and load_of_a_write(self.cpu, fabric):
                self.cpu.translate(fabric.fault_linear, write=True)     # what the guest's own tables forbid comes first
                access |= WRITE
            self.vmx.ept.fill(shadow, address, access)
            self.vmx.monitor_trap.again()
        except EptExit as failure:
            if error_code & 16 and self.machine.retry_split_fetch(16, fabric.fault_linear):
                return
            if access & READ and self.accesses.outs_exits():
                return
            if failure.walk:
                return self.vmx.exit.ept(failure)
            self.vmx.exit.ept(failure if failure.log_full else self.vmx.ept.explain(shadow, address))
        except PageFault as fault:
            self.vmx.events.fault(fault)

    def restricted_page(self) -> None:
        """A fetch from a page that may not be executed, or a read from one that may only be executed."""
        shadow = self.vmx.shadow
        assert shadow is not None
        if self.fabric.fault_access == 2 and self.vmx.monitor_trap.first():
            return
        if self.fabric.fault_access == 2 and self.machine.retry_split_fetch(16, self.fabric.fault_linear):
            return
        keep_flags(self.cpu, self.fabric)
        try:
            self.vmx.exit.ept(self.vmx.ept.explain(shadow, self.fabric.fault_linear))
        except PageFault as fault:
            self.vmx.events.fault(fault)

    # -- instructions ----------------------------------------------------------------------------------------------

    def cpuid(self) -> None:
        self.vmx.exit.instruction(CPUID, self.do.current().length)

    def optional(self, control: int, reason: int) -> None:
        """An instruction that exits if a processor-based control says so, and else does nothing here."""
        if self.vmx.controls.proc & control:
            self.vmx.exit.instruction(reason, self.do.current().length)
        else:
            self.do.skip()

    def hlt(self) -> None:
        length = self.do.current().length
        if self.vmx.controls.proc & c.HLT_EXITING:
            self.vmx.exit.instruction(HLT, length)
        else:
            self.vmx.events.halted(length)

    def pause(self) -> None:
        self.vmx.exit.instruction(PAUSE, self.do.current().length)

    def rdtsc(self) -> None:
        found, controls = self.do.current(), self.vmx.controls
        if found.opcode == 0x0F01 and not controls.proc2 & c.ENABLE_RDTSCP:
            raise Fault(UD)
        if controls.proc & c.RDTSC_EXITING:
            self.vmx.exit.instruction(RDTSCP if found.opcode == 0x0F01 else RDTSC, found.length)
        else:
            self.do.rdtsc(controls.tsc)

    def rdpmc(self) -> None:
        if self.cpu.cpl and not self.cpu.cr4 & CR4_PCE:
            raise Fault(GP, 0)
        if self.vmx.controls.proc & c.RDPMC_EXITING:
            self.vmx.exit.instruction(RDPMC, self.do.current().length)
        else:
            self.do.rdpmc()

    def invalidate_caches(self) -> None:
        """INVD always exits, WBINVD by control."""
        found = self.do.current()
        if found.opcode == 0x0F08:
            self.vmx.exit.instruction(INVD, found.length)
        elif self.vmx.controls.proc2 & c.WBINVD_EXITING:
            self.vmx.exit.instruction(WBINVD, found.length)
        else:
            self.do.skip()

    def invlpg(self) -> None:
        found = self.do.current()
        if not self.vmx.controls.proc & c.INVLPG_EXITING:
            return self.do.invlpg()
        assert found.memory is not None
        linear = self.cpu.linear_address(found.memory.segment, self.cpu.effective_offset(found.memory, found.length))
        self.vmx.exit.instruction(INVLPG, found.length, linear)

    def descriptor_table(self) -> None:
        """LGDT, LIDT, SGDT, SIDT (46), LLDT, LTR, SLDT, STR (47) by descriptor-table exiting; LTR always comes here."""
        if not self.vmx.controls.proc2 & c.DESCRIPTOR_TABLE_EXITING:
            self.do.ltr()
            return self.vmx.exit.expect_task()
        found = self.do.current()
        if found.opcode == 0x0F01:
            information = instruction_information(found, 0) | (found.reg & 3) << 28
            if self.cpu.code_bits == 64 or found.operand_size == 32:
                information |= 1 << 11
            reason = GDTR_IDTR
        else:
            information = instruction_information(found, 0) | (found.reg & 3) << 28
            reason = LDTR_TR
        self.vmx.exit.instruction(reason, found.length, displacement(self.cpu, found), information)

    # -- what the engine does not know -----------------------------------------------------------------------------

    def undefined(self) -> None:
        """#UD: VMX instructions and GETSEC exit; the rest is the guest's exception."""
        found = self.cpu.instruction()
        if self.vmx.controls.proc2 & c.ENABLE_VM_FUNCTIONS and self.cpu.code()[:3] == _VMFUNC:
            self.attempt(self.vmfunc)
        elif found is not None and found.opcode == 0xF1:      # INT1, unknown to the engine
            self.vmx.events.software_interrupt()
        elif found is None or not self._exits_as_undefined(found):
            self.vmx.events.raised(UD)

    def vmfunc(self) -> None:
        """VMFUNC with "enable VM functions", SDM 3C 26.5.6 [25.5.6]: a function that is off, or fails, exits."""
        function, argument = (self.fabric.q[register] & 0xFFFF_FFFF for register in (L.Q_RAX, L.Q_RCX))
        if function >= FUNCTIONS:
            raise Fault(UD)
        enabled = self.vmx.controls.functions >> function & 1
        if not (enabled and function == EPTP_SWITCHING and self._switch_eptp(argument)):
            return self.vmx.exit.instruction(VMFUNC, len(_VMFUNC))
        self.cpu.advance(len(_VMFUNC))

    def _switch_eptp(self, number: int) -> bool:
        """SDM 3C 26.5.6.3 [25.5.6.3]. False, and nothing changed, for an EPTP that is not in the list or not valid."""
        vmx = self.vmx
        if number >= EPTP_ENTRIES:
            return False
        pointer = self.machine.memory.u64(vmx.controls.eptp_list + 8 * number)
        if not vmx.valid_eptp(pointer):
            return False
        assert vmx.guest is not None
        vmx.guest.set("EPT_POINTER", pointer)
        vmx.controls.eptp = pointer
        vmx.ept.leave()
        vmx.shadow = vmx.ept.use(pointer)
        self.cpu.physical = vmx.shadow.memory
        self.fabric.flush()
        return True

    def _exits_as_undefined(self, found: Instruction) -> bool:
        name = classify(found)
        if found.opcode == 0x0F37 and self.cpu.cr4 & CR4_SMXE:
            self.vmx.exit.instruction(GETSEC, found.length)
            return True
        if name is None or name == "INVPCID" or (name in ("INVEPT", "INVVPID") and not self._offers(name)):
            return False
        if name != "VMCALL" and self.vmx.instructions.undefined_in_mode():
            return False
        if name in _OPERANDLESS:
            self.vmx.exit.instruction(REASON[name], found.length)
            return True
        if name in ("VMREAD", "VMWRITE") and self.vmx.instructions.shadowed(name, found):
            self.attempt(lambda: self.vmx.instructions.shadow_access(name, found))
            return True
        information = instruction_information(found, 0 if name in _NO_REGISTER_2 else None)
        if name in ("VMREAD", "VMWRITE") and found.memory is None:
            information &= ~(7 << 7)
        self.vmx.exit.instruction(REASON[name], found.length, displacement(self.cpu, found), information)
        return True

    def _offers(self, name: str) -> bool:
        return bool(self.vmx.model.ept_vpid >> (20 if name == "INVEPT" else 32) & 1)

    def general_protection(self) -> None:
        """#GP: XSETBV, MONITOR and MWAIT at CPL 0 exit before their operands are looked at, and the engine takes
        CR4.PCE the wrong way round; the rest is the guest's exception."""
        code, cpl = self.cpu.code()[:3], self.cpu.cpl
        control, reason = _WAITS.get(code, (0, 0))
        if code == _XSETBV and cpl == 0:
            self.vmx.exit.instruction(XSETBV, 3)
        elif self.vmx.controls.proc & control and cpl == 0:
            self.vmx.exit.instruction(reason, 3)
        elif code[:2] == _RDPMC and cpl and self.cpu.cr4 & CR4_PCE:
            self.attempt(self.rdpmc)
        else:
            self.machine.root.check_target()
            self.vmx.events.raised(GP)
