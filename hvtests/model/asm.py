"""For the tests of the model: assembly text to bytes, and a laboratory with one hypervisor and one guest.

In the :class:`Lab` a fixed 64-bit host enters a guest and hands each VM exit to a Python function through a port, so
that a test is: guest code, VMCS fields, and what is expected of each exit. Host and guest memory are set up from here;
the host's own instructions (VMXON, VMCLEAR, VMPTRLD, VMLAUNCH, VMRESUME) run in the machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache

from keystone import KS_ARCH_X86, KS_MODE_16, KS_MODE_32, KS_MODE_64, Ks

from generator.arch import controls
from generator.arch import vmcs as arch
from hvtests.machine import layout as L
from hvtests.machine.cpu import Segment
from hvtests.machine.stop import Limits, Stop, StopKind
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.model import VmxMachine
from hvtests.vmx.records import ExitRecord
from hvtests.vmx.vmcs import Vmcs

_MODES = {16: KS_MODE_16, 32: KS_MODE_32, 64: KS_MODE_64}
RAM = 16 << 20
HOST_TABLES, HOST_GDT, HOST_CODE, HOST_STACK = 0x10000, 0x15000, 0x20000, 0x2F000
VMXON_REGION, VMCS_REGION, IO_BITMAPS, MSR_BITMAP, EPT_TABLES = 0x30000, 0x31000, 0x32000, 0x34000, 0x40000
GUEST_RAM, GUEST_SIZE = 4 << 20, 4 << 20        # guest-physical 0 is host-physical GUEST_RAM
GUEST_TABLES, GUEST_GDT, GUEST_IDT, GUEST_TSS = 0x100000, 0x108000, 0x109000, 0x10A000     # guest-physical
GUEST_CODE, GUEST_STACK = 0x4000, 0x8000
EXIT_PORT = 0x77
# Selectors in the guest's GDT (and the host's): 64-bit code, data, 32-bit code, 16-bit code, TSS (two entries)
CODE64, DATA, CODE32, CODE16, TASK, USER_DATA, USER_CODE = 0x08, 0x10, 0x18, 0x20, 0x28, 0x3B, 0x43
_GDT = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF, 0x00009B000000FFFF)
_USER = (0x00CFF3000000FFFF, 0x00AFFB000000FFFF)


@lru_cache(maxsize=512)
def assemble(text: str, address: int = 0, bits: int = 64) -> bytes:
    """The bytes of `text` (Intel syntax, statements separated by `;` or line ends) at `address`."""
    code, _ = Ks(KS_ARCH_X86, _MODES[bits]).asm(text, address, as_bytes=True)
    assert code is not None, text
    return bytes(code)


def gdt(tss: int, limit: int = 0x67) -> bytes:
    """The GDT of host and guest; TSS (64-bit, busy) at `tss`."""
    low = limit & 0xFFFF | (tss & 0xFFFFFF) << 16 | 0x8B << 40 | (tss >> 24 & 0xFF) << 56
    return struct.pack("<9Q", *_GDT, low, tss >> 32, *_USER)


def gate64(offset: int, selector: int = CODE64, kind: int = 14, dpl: int = 0, ist: int = 0) -> bytes:
    """A 64-bit IDT entry."""
    return struct.pack("<HHBBHII", offset & 0xFFFF, selector, ist, 0x80 | dpl << 5 | kind, offset >> 16 & 0xFFFF,
                       offset >> 32, 0)


def gate32(offset: int, selector: int = CODE32, kind: int = 14, dpl: int = 0) -> bytes:
    """A 32-bit IDT entry (kind 6 or 7: 16-bit; 5: task gate)."""
    return struct.pack("<HHBBH", offset & 0xFFFF, selector, 0, 0x80 | dpl << 5 | kind, offset >> 16)


def long_mode(machine: VmxMachine, rip: int, *, tables: int = HOST_TABLES, rsp: int = HOST_STACK) -> None:
    """Put the CPU into 64-bit mode at `rip`, CPL 0, interrupts off, the low gigabyte mapped to itself."""
    memory, cpu = machine.memory, machine.cpu
    memory.write(tables, struct.pack("<Q", tables + 0x1003))
    memory.write(tables + 0x1000, struct.pack("<Q", tables + 0x2003))
    memory.write(tables + 0x2000, b"".join(struct.pack("<Q", n << 21 | 0x83) for n in range(512)))
    memory.write(HOST_GDT, gdt(HOST_GDT + 0x800))
    cpu.set_table(L.GDTR, HOST_GDT, 0x47)
    cpu.set_table(L.IDTR, HOST_GDT + 0x400, 0)
    machine.fabric.q[L.Q_CR + 3] = tables
    cpu.cr4 = 0x20 | 0x2000 | 0x600
    cpu.efer = 0x900
    cpu.cr0 = 0x80000033
    cpu.set_segment(L.CS, Segment(CODE64, 0, 0xFFFFFFFF, 0xA09B))
    for number in (L.SS, L.DS, L.ES, L.FS, L.GS):
        cpu.set_segment(number, Segment(DATA, 0, 0xFFFFFFFF, 0xC093))
    cpu.set_segment(L.TR, Segment(TASK, HOST_GDT + 0x800, 0x67, 0x8B))
    cpu.rflags = 2
    cpu.gprs[L.Q_RSP] = rsp
    cpu.rip = rip


# RAX, RCX and RDX keep their values through the host; the port write is what calls Python.
HOST = f"""
    mov rax, {VMXON_REGION}; push rax; vmxon [rsp]; jbe failed
    mov rax, {VMCS_REGION}; mov [rsp], rax; vmclear [rsp]; jbe failed
    vmptrld [rsp]; jbe failed
    out {EXIT_PORT}, al
    vmlaunch
    jmp failed
"""
HANDLER = f"""
    out {EXIT_PORT}, al
    vmresume
    hlt
"""
FAILED_AT, HANDLER_AT = HOST_CODE + 0x100, HOST_CODE + 0x200


def control(word: controls.ControlWord, model: CpuModel, *names: str) -> int:
    """The control word that has the named bits, and what the CPU demands."""
    return (word.mask(*names) | model.allowed0(word)) & model.allowed1(word)


Handler = Callable[["Lab", ExitRecord], bool | None]


class Lab:
    """One host, one guest with EPT. `code`: the guest's, text or bytes, at GUEST_CODE; `mode` 64, 32 paged, 16 real.

    `pin`, `proc`, `proc2`, `exit`, `entry`: names of controls beyond the usual ones. `fields`: VMCS fields by name.
    `exits` grows as the guest runs; `vmcs` is its VMCS.
    """

    def __init__(self, code: str | bytes = "hlt", *, mode: int = 64, pin: tuple[str, ...] = (),
                 proc: tuple[str, ...] = (), proc2: tuple[str, ...] = (), exit_: tuple[str, ...] = (),
                 entry: tuple[str, ...] = (), without: tuple[str, ...] = (), fields: dict[str, int] | None = None,
                 cpu: CpuModel | None = None, ept_rights: int = 7, ept_flags: bool = False) -> None:
        self.machine = VmxMachine(RAM, cpu)
        self.mode = mode
        self.exits: list[ExitRecord] = []
        self._started = False
        self._stop: Stop | None = None
        machine = self.machine
        long_mode(machine, HOST_CODE)
        self.load(HOST_CODE, HOST.replace("failed", hex(FAILED_AT)))
        self.load(FAILED_AT, "hlt")
        self.load(HANDLER_AT, HANDLER)
        revision = machine.vmx.model.vmcs_revision
        for region in (VMXON_REGION, VMCS_REGION):
            machine.memory.set_u32(region, revision)
        self._ept(ept_rights)
        self._guest_memory(code)
        self.fields = {**self._fields(pin, proc, proc2, exit_, entry, without, ept_flags), **(fields or {})}
        machine.ports.attach(EXIT_PORT, 1, self)
        self._handler: Handler | None = None

    # -- set-up ----------------------------------------------------------------------------------------------------

    def load(self, address: int, text: str | bytes, bits: int = 64) -> None:
        """Put code at a host-physical address."""
        self.machine.memory.write(address, text if isinstance(text, bytes) else assemble(text, address, bits))

    def guest_load(self, address: int, text: str | bytes, bits: int | None = None) -> None:
        """Put code or data at a guest-physical address."""
        data = text if isinstance(text, bytes) else assemble(text, address, bits or self.mode)
        self.machine.memory.write(GUEST_RAM + address, data)

    def guest_u64(self, address: int) -> int:
        """The 64-bit word at a guest-physical address."""
        return self.machine.memory.u64(GUEST_RAM + address)

    def _ept(self, rights: int) -> None:
        memory = self.machine.memory
        memory.set_u64(EPT_TABLES, EPT_TABLES + 0x1007)
        memory.set_u64(EPT_TABLES + 0x1000, EPT_TABLES + 0x2007)
        for number in range(GUEST_SIZE >> 21):
            memory.set_u64(EPT_TABLES + 0x2000 + 8 * number, EPT_TABLES + 0x3000 + 0x1000 * number | 7)
        for page in range(GUEST_SIZE >> 12):
            memory.set_u64(EPT_TABLES + 0x3000 + 8 * page, GUEST_RAM + (page << 12) | 0x30 | rights)

    def map_page(self, address: int, entry: int) -> None:
        """Replace the EPT entry of one guest-physical 4 KiB page."""
        self.machine.memory.set_u64(EPT_TABLES + 0x3000 + (address >> 12) * 8, entry)

    def ept_entry(self, address: int) -> int:
        """The EPT entry of one guest-physical 4 KiB page."""
        return self.machine.memory.u64(EPT_TABLES + 0x3000 + (address >> 12) * 8)

    def _guest_memory(self, code: str | bytes) -> None:
        self.guest_load(GUEST_CODE, code)
        tables = b"".join(struct.pack("<Q", entry) for entry in (GUEST_TABLES + 0x1007,))
        self.guest_load(GUEST_TABLES, tables)
        self.guest_load(GUEST_TABLES + 0x1000, struct.pack("<Q", GUEST_TABLES + 0x2007))
        self.guest_load(GUEST_TABLES + 0x2000, b"".join(struct.pack("<Q", n << 21 | 0x87) for n in range(4)))
        # 32-bit paging with 4 MiB pages: two pages
        self.guest_load(GUEST_TABLES + 0x3000, struct.pack("<II", 0x87, 0x400087))
        self.guest_load(GUEST_GDT, gdt(GUEST_TSS))

    def idt(self, gates: dict[int, bytes]) -> None:
        """Fill the guest's IDT: vector -> gate."""
        for vector, gate in gates.items():
            self.guest_load(GUEST_IDT + vector * len(gate), gate)

    def _fields(self, pin: tuple[str, ...], proc: tuple[str, ...], proc2: tuple[str, ...], exit_: tuple[str, ...],
                entry: tuple[str, ...], without: tuple[str, ...], ept_flags: bool) -> dict[str, int]:
        model, mode = self.machine.vmx.model, self.mode

        def names(usual: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in (*usual, *more) if name not in without)

        entry_names = names(("LOAD_IA32_EFER", *(("IA32E_MODE_GUEST",) if mode == 64 else ())), entry)
        values = {
            "PIN_BASED_VM_EXEC_CONTROL": control(controls.PINBASED, model, *names((), pin)),
            "CPU_BASED_VM_EXEC_CONTROL": control(controls.PROCBASED, model, *names(
                ("ACTIVATE_SECONDARY_CONTROLS", "HLT_EXITING"), proc)),
            "SECONDARY_VM_EXEC_CONTROL": control(controls.PROCBASED2, model, *names(
                ("ENABLE_EPT", "UNRESTRICTED_GUEST"), proc2)),
            "VM_EXIT_CONTROLS": control(controls.EXIT, model, *names(
                ("HOST_ADDRESS_SPACE_SIZE", "SAVE_IA32_EFER", "LOAD_IA32_EFER"), exit_)),
            "VM_ENTRY_CONTROLS": control(controls.ENTRY, model, *entry_names),
            "EPT_POINTER": EPT_TABLES | 0x1E | (0x40 if ept_flags else 0), "IO_BITMAP_A": IO_BITMAPS,
            "IO_BITMAP_B": IO_BITMAPS + 0x1000, "MSR_BITMAP": MSR_BITMAP, "VMCS_LINK_POINTER": (1 << 64) - 1,
            "HOST_CR0": 0x80000033, "HOST_CR3": HOST_TABLES, "HOST_CR4": 0x2620, "HOST_IA32_EFER": 0xD00,
            "HOST_CS_SELECTOR": CODE64, "HOST_SS_SELECTOR": DATA, "HOST_DS_SELECTOR": DATA, "HOST_ES_SELECTOR": DATA,
            "HOST_TR_SELECTOR": TASK, "HOST_TR_BASE": HOST_GDT + 0x800, "HOST_GDTR_BASE": HOST_GDT,
            "HOST_RSP": HOST_STACK, "HOST_RIP": HANDLER_AT,
            "GUEST_CR0": 0x30 if mode == 16 else 0x80000031, "GUEST_CR4": {64: 0x2620, 32: 0x2010, 16: 0x2000}[mode],
            "GUEST_CR3": {64: GUEST_TABLES, 32: GUEST_TABLES + 0x3000, 16: 0}[mode],
            "GUEST_IA32_EFER": 0x500 if mode == 64 else 0, "GUEST_DR7": 0x400, "GUEST_RFLAGS": 2,
            "GUEST_RIP": GUEST_CODE, "GUEST_RSP": GUEST_STACK,
            "GUEST_GDTR_BASE": GUEST_GDT, "GUEST_GDTR_LIMIT": 0x47,
            "GUEST_IDTR_BASE": 0 if mode == 16 else GUEST_IDT, "GUEST_IDTR_LIMIT": 0x3FF if mode == 16 else 0xFFF,
            "GUEST_TR_SELECTOR": TASK, "GUEST_TR_BASE": GUEST_TSS, "GUEST_TR_LIMIT": 0x67, "GUEST_TR_AR_BYTES": 0x8B,
            "GUEST_LDTR_AR_BYTES": 0x10000,
        }
        for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
            code = name == "CS"
            limit, access = (0xFFFF, 0x9B if code else 0x93) if mode == 16 else (
                0xFFFFFFFF, (0xA09B if mode == 64 else 0xC09B) if code else 0xC093)
            selector = 0 if mode == 16 else (CODE64 if mode == 64 else CODE32) if code else DATA
            values.update({f"GUEST_{name}_SELECTOR": selector, f"GUEST_{name}_LIMIT": limit,
                           f"GUEST_{name}_AR_BYTES": access})
        return values

    # -- running ---------------------------------------------------------------------------------------------------

    @property
    def vmcs(self) -> Vmcs:
        """The guest's VMCS."""
        found = self.machine.vmx.current
        assert found is not None
        return found

    def read(self, name: str) -> int:
        """A VMCS field."""
        return self.vmcs.read(name)

    def write(self, name: str, value: int) -> None:
        """VMWRITE."""
        self.vmcs.vmwrite(arch.BY_NAME[name], False, value)

    def skip(self) -> None:
        """Move GUEST_RIP past the instruction that exited."""
        self.write("GUEST_RIP", self.read("GUEST_RIP") + self.read("VM_EXIT_INSTRUCTION_LEN"))

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        """The host calls: once before VMLAUNCH, then at each VM exit."""
        if not self._started:
            self._started = True
            for name, content in self.fields.items():
                self.write(name, content)
            return
        record = self.machine.vmx.exits[-1]
        self.exits.append(record)
        if self._handler is None or self._handler(self, record) is False:
            self.machine.stop(Stop(StopKind.SHUTDOWN, "the test has what it wants"))

    def run(self, handler: Handler | None = None, seconds: float = 10.0) -> Stop:
        """Run; `handler` sees each exit and returns False to end. Without one the first exit ends the run."""
        self._handler = handler
        return self.machine.run(Limits(seconds=seconds))

    def first_exit(self) -> ExitRecord:
        """Run to the first exit; return it."""
        stop = self.run()
        assert self.exits, stop
        return self.exits[0]

    def until_halt(self) -> list[ExitRecord]:
        """Run, stepping over each instruction that exits, to the guest's HLT; the exits before it."""
        def handler(lab: Lab, record: ExitRecord) -> bool:
            if record.reason == 12:
                return False
            lab.skip()
            return True
        stop = self.run(handler)
        assert self.exits and self.exits[-1].reason == 12, (stop, self.exits)
        return self.exits[:-1]
