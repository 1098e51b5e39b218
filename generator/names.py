"""The names that templates see: every constant of the architecture and of the image, by the name the manuals use.

``vmcs.GUEST_RIP`` is a field's encoding, ``msr.IA32_EFER`` an address, ``exits.CPUID`` a basic exit reason,
``cr.CR0_PG`` a mask, ``ctl.IA32E_MODE_GUEST`` a control's mask, ``vcpu.rax`` an offset, ``at.CORE`` an address. An
unknown name is a TemplateError with the template's line.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from generator import layout, records, tables, vmcs_init
from generator.arch import abi, controls, cpuid, cr, events, exits, instruction_errors, msr_bits, msrs, paging, vmcs
from generator.arch import descriptors as d
from generator.errors import TemplateError
from generator.spec import ImageSpec, Schedule
from generator.suggest import nearest


class Hex(int):
    """An int that prints as hexadecimal where it is more than a digit: constants in listings look like the manual's."""

    def __str__(self) -> str:
        return f"{int(self):#x}" if self > 9 else f"{int(self)}"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


def _names(values: Mapping[str, int]) -> SimpleNamespace:
    return SimpleNamespace(**{name: Hex(value) for name, value in values.items()})


def _constants(module: object) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}


# 16550 UART (data sheet PC16550D, table II) and how COM1 is set: 115200 baud is divisor 1.
UART: dict[str, Any] = {
    "IIR": 2, "LCR": 3, "LSR": 5, "MSR": 6,
    "LCR_DLAB": 0x80, "LSR_THRE": 0x20, "LSR_TEMT": 0x40, "IIR_NONE": 1,
    "MSR_CTS": 0x10, "MSR_DSR": 0x20, "MSR_DCD": 0x80,
    "SPIN_LIMIT": 1_000_000,
    "INIT": ((1, 0), (3, 0x80), (0, 115200 // abi.COM1_BAUD), (1, 0), (3, 0x03), (2, 0xC7), (4, 0x03)),
}

E820_SIGNATURE = 0x534D4150  # ACPI 15.1
APIC_BASE_DISABLED = 0xFEE0_0000 | msr_bits.APIC_BASE_BSP  # the architectural address, the bootstrap processor, off

# 8259A: ICW1 to ICW4 of both controllers, vectors 20h and 28h, cascade on line 2, 8086 mode; then all lines masked.
PIC_INIT = (
    (0x20, 0x11), (0xA0, 0x11), (0x21, 0x20), (0xA1, 0x28), (0x21, 4), (0xA1, 2), (0x21, 1), (0xA1, 1),
    (0x21, 0xFF), (0xA1, 0xFF),
)

# XCR0 bits (SDM 1 13.3); no more than these fit records.FPU_AREA.
XCR0_X87, XCR0_SSE, XCR0_AVX = 1, 2, 4

# Routines that handle an exit, by the reason's name. What is not here stops the VM with a dump (exit_unexpected).
HANDLERS = {
    "EXCEPTION_NMI": "exit_exception_nmi", "EXTERNAL_INTERRUPT": "exit_external_interrupt",
    "MACHINE_CHECK": "exit_machine_check",
    "TRIPLE_FAULT": "exit_triple_fault", "CPUID": "exit_cpuid", "HLT": "exit_hlt", "INVD": "exit_invd",
    "RDTSC": "exit_rdtsc", "RDTSCP": "exit_rdtscp", "VMCALL": "exit_vmcall", "CR_ACCESS": "exit_cr_access",
    "IO_INSTRUCTION": "exit_io", "RDMSR": "exit_rdmsr", "WRMSR": "exit_wrmsr", "XSETBV": "exit_xsetbv",
    "WBINVD": "exit_wbinvd", "EPT_VIOLATION": "exit_ept_violation",
    "EPT_MISCONFIGURATION": "exit_ept_misconfiguration", "PREEMPTION_TIMER": "exit_preemption_timer",
    "INVALID_GUEST_STATE": "entry_failure_exit", "MSR_LOADING": "entry_failure_exit",
    "RDPMC": "inject_gp",      # no counters: none has a valid number
    **dict.fromkeys((          # what a VM does not have does not exist there
        "VMCLEAR", "VMLAUNCH", "VMPTRLD", "VMPTRST", "VMREAD", "VMRESUME", "VMWRITE", "VMXOFF", "VMXON", "INVEPT",
        "INVVPID", "VMFUNC", "GETSEC", "MWAIT", "MONITOR",
    ), "inject_ud"),
}


def reason_rows() -> list[Any]:
    """Every basic exit reason from 0 to the highest, gaps filled, for the jump table and the table of names.

    Raises TemplateError for a handler whose exit reason does not exist.
    """
    for name in HANDLERS:
        if name not in exits.BY_NAME:
            raise TemplateError(f"HANDLERS has {name!r}, which is no exit reason" + nearest(name, exits.BY_NAME),
                                "generator/names.py")
    return [
        exits.BY_NUMBER.get(number, SimpleNamespace(number=number, name=f"RESERVED_{number}"))
        for number in range(records.EXIT_COUNT)
    ]


def _cpuid_masks() -> dict[str, int]:
    """What of CPUID leaf 1 a VM sees. Hidden is what it does not have (VMX, APIC, MTRR, ...) or must not use."""
    hidden_ecx = (
        "DTES64", "MONITOR", "DS_CPL", "VMX", "SMX", "EIST", "TM2", "SDBG", "XTPR", "PDCM", "PCID", "DCA", "X2APIC",
        "TSC_DEADLINE", "OSXSAVE", "HYPERVISOR",
    )
    hidden_edx = ("APIC", "MTRR", "MCE", "MCA", "PSN", "DS", "ACPI", "HTT", "TM", "PBE")
    return {
        "LEAF1_EBX": 0x0000_FFFF,  # brand and CLFLUSH size; no APIC id, one logical processor
        "LEAF1_ECX": _all_but(1, "ecx", hidden_ecx),
        "LEAF1_EDX": _all_but(1, "edx", hidden_edx),
    }


def _all_but(leaf: int, register: str, names: tuple[str, ...]) -> int:
    hidden = {bit.mask for bit in cpuid.CPUID_BITS
              if (bit.leaf, bit.subleaf, bit.register) == (leaf, 0, register) and bit.name in names}
    if len(hidden) != len(names):
        raise KeyError(f"CPUID.{leaf:X}H:{register} lacks one of {names}")
    return 0xFFFF_FFFF & ~sum(hidden)


def _events() -> dict[str, int]:
    """Interruption information (SDM 3C 25.8.3) of what the hypervisor injects, and masks to take it apart."""
    exception = events.EventType.HARDWARE_EXCEPTION
    contributory = [v.number for v in events.EXCEPTIONS if v.fault_class is events.FaultClass.CONTRIBUTORY]
    return {
        "UD": events.interruption_info(6, exception),
        "GP": events.interruption_info(13, exception, error_code=True),
        "DF": events.interruption_info(8, exception, error_code=True),
        "PENDING_BS": events.PENDING_BS,
        "VALID_BIT": events.INFO_VALID.bit_length() - 1,
        "ERROR_CODE_BIT": events.INFO_DELIVER_ERROR_CODE.bit_length() - 1,
        "TYPE_MASK": events.INFO_TYPE_MASK,
        "TYPE_NMI": events.EventType.NMI << events.INFO_TYPE_SHIFT,
        "TYPE_EXCEPTION": exception << events.INFO_TYPE_SHIFT,
        "CONTRIBUTORY": sum(1 << number for number in contributory),
        "INJECTABLE_MASK": events.INFO_VALID | events.INFO_DELIVER_ERROR_CODE | events.INFO_TYPE_MASK
        | events.INFO_VECTOR_MASK,
    }


def _watchdog_slices(spec: ImageSpec) -> int:
    """Round-robin: slices in a row without another exit that make a hang."""
    if spec.image.schedule is not Schedule.ROUND_ROBIN:
        return 0
    return -(-spec.image.watchdog_ticks // spec.image.slice_ticks)


def template_globals(spec: ImageSpec, version: str) -> dict[str, Any]:
    """All names for one image; ``proc`` and the byte helpers come from the renderer, ``s`` from the build."""
    ctl = {bit.name: bit.mask for bit in controls.BITS}
    ends = {f"END_{end.name}": end.value for end in abi.VmEnd}
    ar = {"DPL": d.AR_DPL_MASK, "L_BIT": d.AR_L.bit_length() - 1, "TYPE_BUSY_TSS64": d.TYPE_TSS_BUSY}
    structs = {
        "vcpu": records.VCPU, "vm": records.VM, "cpu": records.CPU, "vmcs_row": records.VMCS_ROW,
        "control_row": records.CONTROL_ROW, "feature_row": records.FEATURE_ROW, "cpuid_row": records.CPUID_ROW,
        "memory_range": records.MEMORY_RANGE, "dump_row": records.DUMP_ROW, "dump_frame": records.DUMP_FRAME,
        "map_entry": records.MAP_ENTRY, "mbi": records.MULTIBOOT_INFO, "dap": records.DISK_PACKET,
        "media_table": records.MEDIA_TABLE, "media_row": records.MEDIA_ROW, "loader_state": records.LOADER_STATE,
    }
    header_sum = records.MULTIBOOT_HEADER_MAGIC + records.MULTIBOOT_HEADER_FLAGS
    return {
        "spec": spec,
        "version": version,
        "vmcs": _names({field.name: field.encoding for field in vmcs.FIELDS}),
        "exits": _names({reason.name: reason.number for reason in exits.EXIT_REASONS}),
        "msr": _names({msr.name: msr.address for msr in msrs.MSRS}),
        "cr": _names(_constants(cr)),
        "ctl": _names(ctl),
        "ar": _names(ar),
        "at": _names(_constants(layout)),
        "event": _names(_events()),
        "vector": _names({vector.mnemonic.removeprefix("#"): vector.number for vector in events.EXCEPTIONS}),
        "interruptibility": _names({"STI_OR_MOV_SS": events.BLOCKING_BY_STI | events.BLOCKING_BY_MOV_SS}),
        "eptp": _names({"ACCESSED_DIRTY": paging.EPTP_AD}),
        "ept_cap": _names({"ACCESSED_DIRTY": msr_bits.EPT_CAP_AD.bit_length() - 1}),
        "feature_control": _names({
            "LOCK": msr_bits.FEATURE_CONTROL_LOCK, "VMX_OUTSIDE_SMX": msr_bits.FEATURE_CONTROL_VMX}),
        "cpuid_bit": _names({bit.name: bit.bit for bit in cpuid.CPUID_BITS}),
        "cpuid_masks": _names(_cpuid_masks()),
        "CPUID_ROWS_END": Hex(CPUID_ROWS_END),
        "CPUID_ANY_SUBLEAF": Hex(CPUID_ANY_SUBLEAF),
        "abi": SimpleNamespace(**{
            **{name: Hex(value) for name, value in _constants(abi).items()},
            **{name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, str)},
            **{f"OUTCOME_{item.name}": Hex(item) for item in abi.Outcome},
            **{f"HYPERCALL_{item.name}": Hex(item) for item in abi.Hypercall},
            **{f"STATUS_{item.name}": Hex(item) for item in abi.HypercallStatus},
            **{name: Hex(value) for name, value in ends.items()},
        }),
        "hypercalls": [item.name for item in abi.Hypercall],
        "signature": [Hex(int.from_bytes(abi.CPUID_SIGNATURE[i:i + 4], "little")) for i in (0, 4, 8)],
        "sel": _names({name: getattr(tables, name) for name in (
            "CODE64", "DATA64", "TSS64", "LOADER_CODE32", "LOADER_DATA32", "LOADER_CODE16", "LOADER_DATA16")}),
        "loader_descriptors": _names({
            name: tables.loader_descriptor(getattr(tables, f"AR_{name}"))
            for name in ("CODE32", "DATA32", "CODE16", "DATA16")}),
        "multiboot": _names({
            "HEADER_MAGIC": records.MULTIBOOT_HEADER_MAGIC, "FLAGS": records.MULTIBOOT_HEADER_FLAGS,
            "CHECKSUM": -header_sum & 0xFFFF_FFFF, "BOOT_MAGIC": records.MULTIBOOT_BOOT_MAGIC}),
        "E820_SIGNATURE": Hex(E820_SIGNATURE),
        "mmap_stride": records.MULTIBOOT_MMAP_STRIDE,
        "end_refused": abi.END_LINE.format(code=int(abi.Outcome.REFUSED), name=abi.Outcome.REFUSED.name),
        "mbi_has_mmap": Hex(records.MULTIBOOT_HAS_MMAP),
        "media_magic": Hex(records.MEDIA_MAGIC),
        "MAP_RAM": records.MAP_RAM,
        "MEMORY_MAP_LIMIT": records.MEMORY_MAP_LIMIT,
        "uart": SimpleNamespace(**{k: Hex(v) if isinstance(v, int) else v for k, v in UART.items()}),
        "pic": SimpleNamespace(
            INIT=[(Hex(port), Hex(value)) for port, value in PIC_INIT], MASTER=Hex(0x20), SLAVE=Hex(0xA0),
            END_OF_INTERRUPT=Hex(0x20)),
        "io": _names({"SIZE_MASK": 7, "IN": 1 << 3, "STRING": 1 << 4}),
        "XCR0_SSE": XCR0_SSE, "XCR0_AVX": XCR0_AVX, "XCR0_OFFERED": XCR0_X87 | XCR0_SSE | XCR0_AVX,
        "PDPTE_RESERVED_LOW": Hex(paging.PDPTE_RESERVED_LOW),
        "FEATURE_STOP": Hex(FEATURE_STOP),
        "round_robin": spec.image.schedule is Schedule.ROUND_ROBIN,
        "cr0_defined": Hex(vmcs_init.CR0_DEFINED),
        "msr_value": _names({"APIC_BASE_DISABLED": APIC_BASE_DISABLED}),
        "guest_cr4_allowed": vmcs_init.CR4_ALLOWED,
        "row_ops": vmcs_init.OPERATIONS,
        "watchdog_slices": _watchdog_slices(spec),
        "exit_reasons": reason_rows(),
        "handlers": HANDLERS,
        "instruction_errors": instruction_errors.INSTRUCTION_ERRORS,
        "exceptions": [
            events.BY_NUMBER.get(number, SimpleNamespace(has_error_code=False)) for number in range(32)],
        "dump_registers": records.DUMP_REGISTERS,
        "vcpu_initial": records.VCPU_INITIAL,
        "switched_registers": records.SWITCHED_REGISTERS,
        "switched_msrs": records.SWITCHED_MSRS,
        "gpr": SimpleNamespace(**{name: number for number, name in enumerate(records.GPR_NAMES)}),
        "bit_number": lambda mask: int(mask).bit_length() - 1,
        "wide_not": lambda mask: ~int(mask),
        **{name: struct.offsets for name, struct in structs.items()},
    }


CPUID_ROWS_END = 0xFFFF_FFFF     # a leaf that no row masks
CPUID_ANY_SUBLEAF = 0xFFFF_FFFF
FEATURE_STOP = 0xFF              # feature_row.skip: nothing after this row could even be read
