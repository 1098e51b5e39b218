"""The initial VMCS of each VM as rows (field, operation, value), and the control words the image wants.

A row's operation says what the running machine adds to the value; templates/vmx/vmcs.asm.j2 has one short piece of
code for each. Guest state follows SDM 3C 27.3.1 (checks on the guest-state area), host state 27.2.2 and 27.2.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from generator.arch import controls, cr, events, paging, vmcs
from generator.arch import descriptors as d
from generator.arch.msrs import BY_NAME as MSR
from generator.errors import TemplateError
from generator.layout import PAGE
from generator.records import VCPU
from generator.spec import GuestMode, ImageSpec, Schedule, VmSpec
from generator.suggest import nearest
from generator.tables import CODE64, DATA64, TSS64

# In the order of the code's jump table.
OPERATIONS = (
    "literal", "control", "guest_cr0", "guest_cr4", "eptp", "timer", "host_cr0", "host_cr4", "host_msr", "host_rip",
)

# CR0 and CR4 bits that a guest changes without an exit; the others are the hypervisor's, seen through the shadow.
CR0_GUEST_OWNED = cr.CR0_PE | cr.CR0_MP | cr.CR0_EM | cr.CR0_TS | cr.CR0_WP | cr.CR0_AM
CR4_GUEST_OWNED = (
    cr.CR4_VME | cr.CR4_PVI | cr.CR4_TSD | cr.CR4_DE | cr.CR4_PSE | cr.CR4_PAE | cr.CR4_PGE | cr.CR4_PCE
    | cr.CR4_OSFXSR | cr.CR4_OSXMMEXCPT | cr.CR4_FSGSBASE
)
# What a guest may turn on in CR4 at all, if the machine supports it.
CR4_ALLOWED = CR4_GUEST_OWNED | cr.CR4_UMIP | cr.CR4_OSXSAVE | cr.CR4_SMEP | cr.CR4_SMAP
CR0_DEFINED = CR0_GUEST_OWNED | cr.CR0_ET | cr.CR0_NE | cr.CR0_NW | cr.CR0_CD | cr.CR0_PG
# Exceptions that always exit: a machine check is the host's; #DB and #AC may raise themselves for ever.
ALWAYS_INTERCEPTED = ("#DB", "#AC", "#MC")
_NATURAL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One VMWRITE: ``value`` as a number, or the name of a symbol whose address it is."""

    field: str
    operation: str
    value: int | str

    @property
    def encoding(self) -> int:
        return vmcs.BY_NAME[self.field].encoding


@dataclass(frozen=True, slots=True)
class Wanted:
    """One control word of one VM: bits without which the image refuses to start, and bits it takes where offered."""

    word: controls.ControlWord
    required: int
    optional: int


def wanted_controls(spec: ImageSpec, vm: VmSpec, mode: GuestMode) -> tuple[Wanted, ...]:
    """The five control words of a VM, in the order pin, processor, secondary processor, exit, entry."""
    processor = [
        "HLT_EXITING", "MWAIT_EXITING", "RDPMC_EXITING", "MONITOR_EXITING", "CR8_LOAD_EXITING", "CR8_STORE_EXITING",
        "USE_TSC_OFFSETTING", "USE_IO_BITMAPS", "USE_MSR_BITMAPS", "ACTIVATE_SECONDARY_CONTROLS",
    ]
    if vm.rdtsc_exiting:
        processor.append("RDTSC_EXITING")
    leave = [
        "SAVE_DEBUG_CONTROLS", "HOST_ADDRESS_SPACE_SIZE", "SAVE_IA32_PAT", "LOAD_IA32_PAT", "SAVE_IA32_EFER",
        "LOAD_IA32_EFER",
    ]
    if spec.image.schedule is Schedule.ROUND_ROBIN:
        leave.append("SAVE_PREEMPTION_TIMER")
    enter = ["LOAD_DEBUG_CONTROLS", "LOAD_IA32_PAT", "LOAD_IA32_EFER"]
    if mode is GuestMode.LONG:
        enter.append("IA32E_MODE_GUEST")
    secondary = ["ENABLE_EPT", "ENABLE_RDTSCP", "ENABLE_VPID", "WBINVD_EXITING", "UNRESTRICTED_GUEST"]
    rows = (
        (controls.PINBASED, ["EXTERNAL_INTERRUPT_EXITING", "NMI_EXITING", "ACTIVATE_PREEMPTION_TIMER"], ()),
        (controls.PROCBASED, processor, ()),
        (controls.PROCBASED2, secondary, ()),
        (controls.EXIT, leave, ()),
        (controls.ENTRY, enter, ()),
    )
    return tuple(Wanted(word, _mask(word, required), _mask(word, optional)) for word, required, optional in rows)


def _mask(word: controls.ControlWord, names: Iterable[str]) -> int:
    known = [bit.name for bit in word.bits]
    for name in names:
        if name not in known:
            raise TemplateError(f"{word.name} has no control {name!r}" + nearest(name, known), "generator/vmcs_init.py")
    return word.mask(*names)


def guest_rows(mode: GuestMode, entry: int, stack: int, page_tables: int) -> list[Row]:
    """Registers with which a guest starts: ``entry`` and ``stack`` are offsets, ``page_tables`` the gpa for CR3."""
    present = d.AR_P | d.AR_S | d.AR_ACCESSED
    data = present | d.AR_WRITABLE
    code = present | d.AR_CODE | d.AR_READABLE
    flat = (d.AR_G | d.AR_DB, 0xFFFF_FFFF)
    extra, limit = {GuestMode.REAL: (0, 0xFFFF), GuestMode.PROTECTED: flat, GuestMode.LONG: flat}[mode]
    code_extra = d.AR_G | d.AR_L if mode is GuestMode.LONG else extra
    selectors = (0, 0) if mode is GuestMode.REAL else (0x08, 0x10)
    code_base = 0
    if mode is GuestMode.REAL and entry > 0xFFFF:
        selectors, code_base, entry = (entry >> 4, 0), entry & ~0xF, entry & 0xF
    cr0 = {GuestMode.REAL: 0, GuestMode.PROTECTED: cr.CR0_PE, GuestMode.LONG: cr.CR0_PE | cr.CR0_PG}[mode] | cr.CR0_ET
    long = mode is GuestMode.LONG
    cr4 = cr.CR4_PAE if long else 0
    rows = [
        Row("GUEST_CR0", "guest_cr0", cr0),
        Row("CR0_READ_SHADOW", "literal", cr0),
        Row("CR0_GUEST_HOST_MASK", "literal", _NATURAL & ~CR0_GUEST_OWNED),
        Row("GUEST_CR3", "literal", page_tables if long else 0),
        Row("GUEST_CR4", "guest_cr4", cr4),
        Row("CR4_READ_SHADOW", "literal", cr4),
        Row("CR4_GUEST_HOST_MASK", "literal", _NATURAL & ~CR4_GUEST_OWNED),
        Row("GUEST_IA32_EFER", "literal", cr.EFER_LME | cr.EFER_LMA if long else 0),
        Row("GUEST_RIP", "literal", entry),
        Row("GUEST_RSP", "literal", stack),
        Row("GUEST_RFLAGS", "literal", cr.RFLAGS_FIXED),
        Row("GUEST_DR7", "literal", cr.DR7_RESET),
    ]
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        is_code = name == "CS"
        rows += [
            Row(f"GUEST_{name}_SELECTOR", "literal", selectors[0] if is_code else selectors[1]),
            Row(f"GUEST_{name}_BASE", "literal", code_base if is_code else 0),
            Row(f"GUEST_{name}_LIMIT", "literal", limit),
            Row(f"GUEST_{name}_AR_BYTES", "literal", code | code_extra if is_code else data | extra),
        ]
    rows += [
        Row("GUEST_LDTR_SELECTOR", "literal", 0),
        Row("GUEST_LDTR_BASE", "literal", 0),
        Row("GUEST_LDTR_LIMIT", "literal", 0),
        Row("GUEST_LDTR_AR_BYTES", "literal", d.AR_UNUSABLE),
        Row("GUEST_TR_SELECTOR", "literal", 0),
        Row("GUEST_TR_BASE", "literal", 0),
        Row("GUEST_TR_LIMIT", "literal", d.TSS64_SIZE - 1),
        Row("GUEST_TR_AR_BYTES", "literal", d.AR_TSS_BUSY),
        Row("GUEST_GDTR_BASE", "literal", 0),
        Row("GUEST_GDTR_LIMIT", "literal", 0),
        Row("GUEST_IDTR_BASE", "literal", 0),
        Row("GUEST_IDTR_LIMIT", "literal", 0x3FF if mode is GuestMode.REAL else 0),
    ]
    rows += [Row(name, "literal", 0) for name in (
        "GUEST_SYSENTER_CS", "GUEST_SYSENTER_ESP", "GUEST_SYSENTER_EIP", "GUEST_IA32_DEBUGCTL",
        "GUEST_INTERRUPTIBILITY_INFO", "GUEST_ACTIVITY_STATE", "GUEST_PENDING_DBG_EXCEPTIONS",
        "GUEST_PDPTR0", "GUEST_PDPTR1", "GUEST_PDPTR2", "GUEST_PDPTR3",
    )]
    rows += [
        Row("GUEST_IA32_PAT", "literal", paging.PAT_RESET),
        Row("VMCS_LINK_POINTER", "literal", _NATURAL),
    ]
    return rows


def control_rows(spec: ImageSpec, vm: VmSpec, index: int) -> list[Row]:
    """Everything that decides what exits, and how: controls, bitmaps, EPT, VPID, timer."""
    names = ("pin", "processor", "secondary", "exit", "entry")
    words = (controls.PINBASED, controls.PROCBASED, controls.PROCBASED2, controls.EXIT, controls.ENTRY)
    ticks = spec.image.slice_ticks if spec.image.schedule is Schedule.ROUND_ROBIN else spec.image.watchdog_ticks
    always = sum(1 << events.BY_MNEMONIC[mnemonic].number for mnemonic in ALWAYS_INTERCEPTED)
    rows = [
        Row(word.field, "control", f"control_{index}_{name}") for word, name in zip(words, names, strict=True)
    ]
    rows += [
        Row("EXCEPTION_BITMAP", "literal", vm.exception_bitmap | always),
        Row("IO_BITMAP_A", "literal", "io_bitmaps"),
        Row("IO_BITMAP_B", "literal", "io_bitmap_b"),
        Row("MSR_BITMAP", "literal", "msr_bitmap"),
        Row("TSC_OFFSET", "literal", vm.tsc_offset & _NATURAL),
        Row("EPT_POINTER", "eptp", f"ept_{index}"),
        Row("VIRTUAL_PROCESSOR_ID", "literal", index + 1),
        Row("HOST_RSP", "literal", f"vcpu_{index}_registers_end"),
        Row("VMX_PREEMPTION_TIMER_VALUE", "timer", ticks),
    ]
    rows += [Row(name, "literal", 0) for name in (
        "PAGE_FAULT_ERROR_CODE_MASK", "PAGE_FAULT_ERROR_CODE_MATCH", "CR3_TARGET_COUNT", "VM_EXIT_MSR_STORE_COUNT",
        "VM_EXIT_MSR_LOAD_COUNT", "VM_ENTRY_MSR_LOAD_COUNT", "VM_ENTRY_INTR_INFO_FIELD",
        "VM_ENTRY_EXCEPTION_ERROR_CODE", "VM_ENTRY_INSTRUCTION_LEN",
    )]
    return rows


def host_rows() -> list[Row]:
    """What an exit loads: this hypervisor's own registers, but for RSP, which is each vCPU's."""
    return [
        Row("HOST_CR0", "host_cr0", 0),
        Row("HOST_CR3", "literal", "host_pml4"),
        Row("HOST_CR4", "host_cr4", 0),
        Row("HOST_CS_SELECTOR", "literal", CODE64),
        Row("HOST_SS_SELECTOR", "literal", DATA64),
        Row("HOST_DS_SELECTOR", "literal", DATA64),
        Row("HOST_ES_SELECTOR", "literal", DATA64),
        Row("HOST_FS_SELECTOR", "literal", 0),
        Row("HOST_GS_SELECTOR", "literal", 0),
        Row("HOST_TR_SELECTOR", "literal", TSS64),
        Row("HOST_FS_BASE", "literal", 0),
        Row("HOST_GS_BASE", "literal", "cpu0"),
        Row("HOST_TR_BASE", "literal", "tss"),
        Row("HOST_GDTR_BASE", "literal", "gdt"),
        Row("HOST_IDTR_BASE", "literal", "idt"),
        Row("HOST_IA32_SYSENTER_CS", "literal", 0),
        Row("HOST_IA32_SYSENTER_ESP", "literal", 0),
        Row("HOST_IA32_SYSENTER_EIP", "literal", 0),
        Row("HOST_IA32_PAT", "host_msr", MSR["IA32_PAT"].address),
        Row("HOST_IA32_EFER", "host_msr", MSR["IA32_EFER"].address),
        Row("HOST_RIP", "host_rip", 0),
    ]


def resolve(row: Row, symbols: Mapping[str, int]) -> int:
    """The row's value as a number; EPT pointers get walk length and memory type here (SDM 3C 25.6.11)."""
    value = symbols[row.value] if isinstance(row.value, str) else row.value
    if row.field == "EPT_POINTER":
        value |= paging.MEMTYPE_WB | 3 << paging.EPTP_WALK_SHIFT
    return value


def vm_symbols(index: int, symbols: Mapping[str, int]) -> dict[str, int]:
    """Symbols that are made from others: parts of blobs."""
    base = symbols["vcpus"] + index * VCPU.size
    return {
        f"vcpu_{index}_registers_end": base + VCPU.offset("stack"),
        "io_bitmap_b": symbols["io_bitmaps"] + PAGE,
    }
