"""A PC: CPU, memory, ports, clock and devices, booted from a file and run until something ends it.

:class:`Machine` has no VMX; ``hvtests.vmx.model.VmxMachine``, which `hvtests` exports as `Machine`, adds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hvtests.machine import layout as L
from hvtests.machine.clock import Clock
from hvtests.machine.cpu import Cpu
from hvtests.machine.devices.pc import attach_pc
from hvtests.machine.fabric import NEVER, Fabric
from hvtests.machine.fabric_probe import limit_features
from hvtests.machine.instructions import Instructions
from hvtests.machine.memory import Memory
from hvtests.machine.paging import FETCH, AccessFault
from hvtests.machine.ports import Ports
from hvtests.machine.registers import Cpuid, CpuModel, MsrFile
from hvtests.machine.root import RootMode
from hvtests.machine.sigint import sigint_calls
from hvtests.machine.stop import Limits, Stop, StopKind, StopRun, unmodelled

# Ticks between two looks at the real-time limit: fitted to take about WATCH seconds, whatever the software does.
SLICE_MIN, SLICE_MAX = 1 << 14, 1 << 22
WATCH = 0.05
_ACCESS_KINDS = {19: "read", 20: "write", 21: "fetch", 22: "write", 23: "read", 24: "fetch"}


class Machine:
    """A PC with `ram` bytes of memory and the CPU `cpu`; `console` gets what is written to COM1 as it comes.

    `serial` and `debugcon` hold all bytes written to COM1 and port 0xE9. A machine runs once from reset; it may be
    stopped by limits and run on. Raises EngineError if the engine is not the one it was written for.
    """

    def __init__(self, ram: int = 256 << 20, cpu: CpuModel | None = None,
                 console: Callable[[bytes], None] | None = None) -> None:
        if cpu is None:
            raise ValueError("a Machine needs a CpuModel; hvtests.Machine has one by default")
        self.model = cpu
        self.console = console
        self.fabric = Fabric(ram)
        self.memory = Memory(self.fabric)
        self.cpu = Cpu(self.fabric, self.memory)
        self.cpu.physical_bits = cpu.maxphyaddr
        self.clock = Clock(lambda: self.fabric.ticks)
        self.ports = Ports()
        self.serial = bytearray()
        self.debugcon = bytearray()
        self.stopped: Stop | None = None
        self._interrupts: list[int] = []
        self.nmi_pending = False
        self._alarms: dict[str, tuple[int, Callable[[], None]]] = {}
        self._interrupted = False
        self.on_cpuid: Callable[[int, int, int, Cpuid], None] = lambda _leaf, _subleaf, _cr4, _values: None
        self.on_guest_deadline: Callable[[], None] = lambda: None
        self.check_cr: Callable[[int, int], None] = _any_value
        self.reset()
        limit_features(self.fabric.q, {key: cpu.cpuid(key[0], 0)[key[1]] for key in L.FEATURE_WORDS.values()})
        self.msrs = MsrFile(cpu, self.fabric, self.cpu, self.clock)
        self.instructions = Instructions(self)
        self.root = RootMode(self)
        self.root.enable()
        self.root.handlers[L.CODE_DEADLINE] = self.on_deadline
        self.fabric.dispatch = self.root.handlers
        self.fabric.other = self._on_other
        self.fabric.unmapped = self._on_unmapped
        self.devices = attach_pc(
            self.ports, on_serial=self._on_serial, on_debugcon=self.debugcon.extend,
            on_debug_exit=lambda code: self.stop(Stop(StopKind.DEBUG_EXIT, f"debug exit {code:#04x}", code)),
            on_shutdown=lambda how: self.stop(Stop(StopKind.SHUTDOWN, how)),
            on_reset=lambda how: self.stop(Stop(StopKind.SHUTDOWN, how)), on_a20=self._on_a20)

    def reset(self) -> None:
        """Put the CPU in the state after power-up, but at 0000:0000 with IF = 0 (SDM 3A 10.1.1 [9.1.1])."""
        fabric, cpu = self.fabric, self.cpu
        for register in range(16):
            cpu.gprs[register] = 0
        fabric.q[L.Q_EFER] = 0
        fabric.set_cr4(0)
        fabric.set_cr0(0x6000_0010)
        for number in range(6):
            access = 0x9B if number == L.CS else 0x93
            fabric.i[L.i_selector(number)], fabric.q[L.q_base(number)] = 0, 0
            fabric.i[L.i_limit(number)], fabric.i[L.i_flags(number)] = 0xFFFF, access << 8
        for number, access in ((L.LDTR, 0x82), (L.TR, 0x8B)):
            fabric.i[L.i_selector(number)], fabric.q[L.q_base(number)] = 0, 0
            fabric.i[L.i_limit(number)], fabric.i[L.i_flags(number)] = 0xFFFF, access << 8
        cpu.set_table(L.GDTR, 0, 0xFFFF)
        cpu.set_table(L.IDTR, 0, 0x3FF)
        for number in range(4):
            cpu.dr[number] = 0
        cpu.dr[6], cpu.dr[7] = 0xFFFF_0FF0, 0x400
        cpu.cr2, fabric.q[L.Q_CR + 3], cpu.cr8, cpu.xcr0 = 0, 0, 0, 1
        cpu.rip, cpu.rflags = 0, 2
        fabric.refresh()
        fabric.flush()

    def boot(self, path: Path) -> None:
        """Load a bootable file and set the CPU as its loader leaves it. Raises ImageFileError."""
        from hvtests.machine import boot  # the loaders need the Machine type

        boot.load(self, path)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, limit: Limits | None = None) -> Stop:
        """Run until the software ends or `limit` is reached. A machine that ended otherwise stays ended."""
        limit = limit or Limits()
        if self.stopped is not None:
            return self.stopped
        end = None if limit.seconds is None else time.monotonic() + limit.seconds
        if limit.ticks is not None:
            self.set_alarm("limit", self.fabric.ticks + limit.ticks, _tick_limit)
        self._real_time_end = end
        self._slice, self._watched = SLICE_MIN, time.monotonic()
        self._interrupted = False
        try:
            with sigint_calls(self._interrupt):
                self._watch()
                self.fabric.run()
        except StopRun as ended:
            if ended.stop.kind is not StopKind.TIMEOUT:
                self.stopped = ended.stop
            return ended.stop
        finally:
            self.cancel_alarm("limit")
        if self.stopped is None:
            raise unmodelled("the engine stopped by itself")
        return self.stopped

    def stop(self, stop: Stop) -> None:
        """End the run with `stop`, at once if code is running."""
        self.stopped = stop
        if self.fabric.running:
            raise StopRun(stop)

    def _interrupt(self) -> None:
        """SIGINT: come to `on_deadline` before the next block of code starts."""
        self._interrupted = True
        self.fabric.alarm = 0

    def _watch(self) -> None:
        now = time.monotonic()
        if self._real_time_end is not None and now > self._real_time_end:
            raise StopRun(Stop(StopKind.TIMEOUT, "the real-time limit was reached"))
        taken, self._watched = now - self._watched, now
        if taken < WATCH / 2:
            self._slice = min(2 * self._slice, SLICE_MAX)
        elif taken > 2 * WATCH:
            self._slice = max(self._slice // 2, SLICE_MIN)
        self.set_alarm("watch", self.fabric.ticks + self._slice, self._watch)

    def _on_other(self, code: int) -> None:
        raise unmodelled(f"engine event {code:#x} at {self.cpu.code_linear:#x}")

    def _on_unmapped(self, kind: int, address: int) -> None:
        what = _ACCESS_KINDS.get(kind, "access")
        raise unmodelled(f"{what} at physical address {address:#x}, where the machine has no memory "
                         f"(linear {self.fabric.fault_linear:#x}, RIP {self.cpu.rip:#x})")

    def retry_split_fetch(self, error_code: int, linear: int | None = None) -> bool:
        """Whether a page fault is a fetch further on in the block of code that the engine was about to translate.

        RIP is still at the block's start then, and what stands before the fault must run first: one instruction.
        """
        linear = self.fabric.fault_address if linear is None else linear
        start = self.cpu.code_linear
        if not (error_code & FETCH or self.fabric.fault_access == 2) or linear >> 12 == start >> 12:
            return False
        try:
            found = self.cpu.read_linear(start, min(15, 0x1000 - (start & 0xFFF)), fetch=True)
        except AccessFault:
            return False    # the block's start cannot be fetched any more: the fault is its own
        if len(found) < 15 and not complete(found, self.cpu.code_bits):
            return False
        self.fabric.single_instruction()
        return True

    # -- virtual time ----------------------------------------------------------------------------------------------

    def set_alarm(self, name: str, ticks: int, action: Callable[[], None]) -> None:
        """Call `action` when the fabric's tick counter has reached `ticks`, before the next block of code starts."""
        self._alarms[name] = ticks, action
        self._set_deadline()

    def cancel_alarm(self, name: str) -> None:
        """Forget an alarm."""
        self._alarms.pop(name, None)
        self._set_deadline()

    def after_one_instruction(self, action: Callable[[], None]) -> None:
        """Call `action` before the second instruction from here."""
        self.fabric.single_instruction()
        self.set_alarm("instruction", self.fabric.ticks + 1, action)

    def run_without_smap(self) -> None:
        """Let the instruction at RIP run without SMAP, alone."""
        if "instruction" in self._alarms:
            raise unmodelled(f"far return at CPL 3 under CR4.SMAP while it is watched, at {self.cpu.code_linear:#x}")
        self.fabric.i[L.I_HFLAGS] &= ~L.HF_SMAP
        self.fabric.single_instruction()
        self.set_alarm("smap", self.fabric.ticks + 1, self.fabric.refresh)

    def _set_deadline(self) -> None:
        self.fabric.alarm = min((ticks for ticks, _ in self._alarms.values()), default=NEVER)

    def on_deadline(self) -> None:
        """Call the alarms that are due."""
        if self._interrupted:
            raise KeyboardInterrupt
        now = self.fabric.ticks
        if self.fabric.guest_deadline <= now:
            self.fabric.guest_deadline = NEVER
            self.on_guest_deadline()
        due = sorted((ticks, name) for name, (ticks, _) in self._alarms.items() if ticks <= now)
        for _, name in due:
            _, action = self._alarms.pop(name)
            action()
        self._set_deadline()

    # -- interrupts ------------------------------------------------------------------------------------------------

    def raise_interrupt(self, vector: int) -> None:
        """An external interrupt: taken as soon as RFLAGS.IF, or the guest's controls, allow. Several queue up."""
        self._interrupts.append(vector)
        self.update_lines()

    def raise_nmi(self) -> None:
        """A non-maskable interrupt; a second one before the first is taken is lost."""
        self.nmi_pending = True
        self.update_lines()

    @property
    def interrupt_pending(self) -> bool:
        """Whether an external interrupt is waiting."""
        return bool(self._interrupts)

    def update_lines(self) -> None:
        """Tell the engine which events are waiting."""
        self.fabric.set_requests((L.REQUEST_HARD if self._interrupts else 0)
                                 | (L.REQUEST_NMI if self.nmi_pending else 0))

    def take_interrupt(self) -> int:
        """Acknowledge the interrupt that waited longest: its vector."""
        vector = self._interrupts.pop(0)
        self.update_lines()
        return vector

    def take_nmi(self) -> None:
        """Acknowledge the NMI."""
        self.nmi_pending = False
        self.update_lines()

    # -- devices ---------------------------------------------------------------------------------------------------

    def _on_serial(self, data: bytes) -> None:
        self.serial.extend(data)
        if self.console is not None:
            self.console(data)

    def _on_a20(self, enabled: bool) -> None:
        self.fabric.i[L.I_A20_MASK] = 0xFFFF_FFFF if enabled else 0xFFEF_FFFF
        self.fabric.flush()


def _any_value(_number: int, _value: int) -> None:
    """Control registers outside VMX operation have no fixed bits."""


def _tick_limit() -> None:
    raise StopRun(Stop(StopKind.TIMEOUT, "the limit of virtual time was reached"))


def complete(code: bytes, bits: int) -> int:
    """Length of the instruction that `code` begins with; 0 if it is cut off."""
    import capstone
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    return next((size for _, size, _, _ in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm_lite(code, 0, 1)), 0)
