"""The data of the image as blobs: strings, tables of names, the structs' initial values. tables.py has the formats of
the CPU; here is everything that is only ours.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from generator import records, tables, vmcs_init
from generator.arch import abi, cpuid, events, instruction_errors, msr_bits, msrs, vmcs
from generator.arch import descriptors as d
from generator.layout import IST_STACK_SIZE, PAGE, STACK_SIZE, Blob, Kind
from generator.names import CPUID_ANY_SUBLEAF, CPUID_ROWS_END, FEATURE_STOP, UART, reason_rows
from generator.spec import GuestMode, ImageSpec
from generator.vmcs_init import Row, Wanted

Symbols = Mapping[str, int]


@dataclass(frozen=True)
class GuestPlan:
    """What is known of a VM's guest before the layout: how it starts, and where its pieces lie (gpa, bytes)."""

    mode: GuestMode
    entry: int
    stack: int
    page_tables: int                       # gpa; 0 where the guest starts without paging
    segments: tuple[tuple[int, bytes], ...]


@dataclass
class StringPool:
    """Zero-terminated strings of the image, each once; ``add`` gives the symbol that stands for its address."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, text: str) -> str:
        for name, known in self.texts.items():
            if known == text:
                return name
        slug = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:28].strip("_") or "blank"
        name, count = f"str_{slug}", 2
        while name in self.texts:
            name, count = f"str_{slug}_{count}", count + 1
        self.texts[name] = text
        return name

    def blobs(self) -> list[Blob]:
        return [
            Blob(name, Kind.RODATA, len(text) + 1, 1, _constant(text.encode("ascii") + b"\0"))
            for name, text in self.texts.items()
        ]


def _constant(data: bytes) -> Callable[[Symbols], bytes]:
    return lambda _: data


def _pointers(names: Sequence[str]) -> Callable[[Symbols], bytes]:
    """A table of 32-bit addresses; an empty name is 0."""
    return lambda symbols: b"".join(struct.pack("<I", symbols[name] if name else 0) for name in names)


def _pointer_table(name: str, strings: Sequence[str]) -> Blob:
    return Blob(name, Kind.RODATA, 4 * len(strings), 4, _pointers(strings))


def name_tables(pool: StringPool) -> list[Blob]:
    """Tables that turn a number into a word: exit reasons, errors, outcomes, ends, exceptions, registers."""
    errors = {error.number: error.title for error in instruction_errors.INSTRUCTION_ERRORS}
    exceptions = {vector.number: f"{vector.mnemonic}" for vector in events.EXCEPTIONS}
    fields = [
        ("RIP", "GUEST_RIP"), ("RSP", "GUEST_RSP"), ("RFLAGS", "GUEST_RFLAGS"), ("CR0", "GUEST_CR0"),
        ("CR3", "GUEST_CR3"), ("CR4", "GUEST_CR4"), ("EFER", "GUEST_IA32_EFER"), ("CS", "GUEST_CS_SELECTOR"),
        ("CS base", "GUEST_CS_BASE"), ("CS rights", "GUEST_CS_AR_BYTES"), ("SS rights", "GUEST_SS_AR_BYTES"),
        ("exit reason", "VM_EXIT_REASON"), ("qualification", "EXIT_QUALIFICATION"),
        ("guest-linear address", "GUEST_LINEAR_ADDRESS"), ("guest-physical address", "GUEST_PHYSICAL_ADDRESS"),
        ("interruption information", "VM_EXIT_INTR_INFO"), ("IDT-vectoring information", "IDT_VECTORING_INFO_FIELD"),
        ("instruction length", "VM_EXIT_INSTRUCTION_LEN"), ("interruptibility", "GUEST_INTERRUPTIBILITY_INFO"),
    ]
    rows = [(vmcs.BY_NAME[name].encoding, pool.add(f"  {label} ")) for label, name in fields]
    frame = [pool.add(f"  {item.name} ") for item, _ in records.DUMP_FRAME]
    return [
        _pointer_table("exit_reason_names", [pool.add(reason.name) for reason in reason_rows()]),
        _pointer_table("instruction_error_names", [
            pool.add(errors.get(number, "not a number of the manual")) for number in range(max(errors) + 1)]),
        _pointer_table("outcome_names", [pool.add(outcome.name) for outcome in abi.Outcome]),
        _pointer_table("vm_end_names", [pool.add(end.spelling) for end in abi.VmEnd]),
        _pointer_table("exception_names", [pool.add(exceptions.get(number, "reserved")) for number in range(32)]),
        _pointer_table("register_names", [pool.add(f"  {name.upper()} ") for name in records.GPR_NAMES]),
        _pointer_table("frame_names", [*frame, ""]),
        Blob("dump_rows", Kind.RODATA, records.DUMP_ROW.size * (len(rows) + 1), 8, lambda symbols: b"".join(
            [records.DUMP_ROW.pack(field=encoding, name=symbols[name]) for encoding, name in rows]
            + [records.DUMP_ROW.pack()])),
    ]


# Capability bits that are not controls: (MSR, bit, what it is, rows that make no sense without it).
_FEATURES = (
    ("IA32_VMX_BASIC", msr_bits.VMX_BASIC_TRUE_CTLS, "the TRUE capability MSRs", FEATURE_STOP),
    ("IA32_VMX_PROCBASED_CTLS", 1 << 63, "secondary processor-based controls", FEATURE_STOP),
    ("IA32_VMX_PROCBASED_CTLS2", 1 << 33, "", 6),  # EPT: its control names it; the rows below need it
    ("IA32_VMX_EPT_VPID_CAP", 1 << 6, "EPT page walks of length 4", 0),
    ("IA32_VMX_EPT_VPID_CAP", msr_bits.EPT_CAP_WB, "write-back EPT structures", 0),
    ("IA32_VMX_EPT_VPID_CAP", 1 << 16, "2 MiB EPT pages", 0),
    ("IA32_VMX_EPT_VPID_CAP", msr_bits.EPT_CAP_INVEPT_ALL, "INVEPT for all contexts", 0),
    ("IA32_VMX_EPT_VPID_CAP", msr_bits.EPT_CAP_INVVPID_SINGLE, "INVVPID for a single context", 0),
    ("IA32_VMX_EPT_VPID_CAP", msr_bits.EPT_CAP_INVVPID_ALL, "INVVPID for all contexts", 0),
)


def feature_rows(pool: StringPool) -> Blob:
    """The table of features_check, ended by MSR 0."""
    rows = []
    for name, mask, what, skip in _FEATURES:
        address, bit = msrs.BY_NAME[name].address, mask.bit_length() - 1
        text = pool.add(f"{name} ({address:#x}) bit {bit} ({what}) is not offered by this CPU") if what else ""
        rows.append((address, text, bit, skip))
    return Blob("feature_rows", Kind.RODATA, records.FEATURE_ROW.size * (len(rows) + 1), 4, lambda symbols: b"".join(
        [records.FEATURE_ROW.pack(msr=address, sentence=symbols[text] if text else 0, bit=bit, skip=skip)
         for address, text, bit, skip in rows] + [records.FEATURE_ROW.pack()]))


# CPUID leaves besides 1 that a VM has: (leaf, sub-leaf, masks of EAX, EBX, ECX, EDX, limit of EAX). Any other leaf
# reads as zero. Leaf 7 keeps what needs no control, MSR or XCR0 bit that a VM lacks; leaf 4 keeps no sharing of caches.
_ALL = 0xFFFF_FFFF
_LEAF7_EBX = ("FSGSBASE", "BMI1", "AVX2", "SMEP", "BMI2", "ERMS", "RDSEED", "ADX", "SMAP", "CLFLUSHOPT", "CLWB")
_LEAF7_ECX = ("UMIP",)
_EXTENDED_EDX = ("SYSCALL", "NX", "PAGE1GB", "RDTSCP", "LM")
_EXTENDED_ECX = ("LAHF64", "LZCNT", "PREFETCHW")
_INVARIANT_TSC = 1 << 8
_MAX_BASIC, _MAX_EXTENDED = 0xD, 0x8000_0008


def _bits(leaf: int, register: str, names: Sequence[str]) -> int:
    return sum(bit.mask for bit in cpuid.CPUID_BITS
               if (bit.leaf, bit.subleaf, bit.register) == (leaf, 0, register) and bit.name in names)


_CPUID_ROWS = (
    (0x0, CPUID_ANY_SUBLEAF, _ALL, _ALL, _ALL, _ALL, _MAX_BASIC),
    (0x2, CPUID_ANY_SUBLEAF, _ALL, _ALL, _ALL, _ALL, _ALL),
    (0x4, CPUID_ANY_SUBLEAF, 0x3FFF, _ALL, _ALL, _ALL, _ALL),
    (0x7, 0, 0, _bits(7, "ebx", _LEAF7_EBX), _bits(7, "ecx", _LEAF7_ECX), 0, _ALL),
    (0xD, 0, 0x7, _ALL, 0x3FF, 0, _ALL),               # XCR0: x87, SSE, AVX; 832 bytes for all of them
    (0xD, 1, 0x1, 0, 0, 0, _ALL),                      # XSAVEOPT
    (0xD, 2, _ALL, _ALL, _ALL, _ALL, _ALL),            # AVX
    (0x8000_0000, CPUID_ANY_SUBLEAF, _ALL, 0, 0, 0, _MAX_EXTENDED),
    (0x8000_0001, CPUID_ANY_SUBLEAF, _ALL, 0, _bits(0x8000_0001, "ecx", _EXTENDED_ECX),
     _bits(0x8000_0001, "edx", _EXTENDED_EDX), _ALL),
    *((leaf, CPUID_ANY_SUBLEAF, _ALL, _ALL, _ALL, _ALL, _ALL) for leaf in range(0x8000_0002, 0x8000_0007)),  # brand
    (0x8000_0007, CPUID_ANY_SUBLEAF, 0, 0, 0, _INVARIANT_TSC, _ALL),
    (0x8000_0008, CPUID_ANY_SUBLEAF, 0xFFFF, 0, 0, 0, _ALL),
)


def cpuid_rows() -> Blob:
    """The masks of cpuid.asm.j2, ended by a leaf that no row masks."""
    data = b"".join(
        records.CPUID_ROW.pack(leaf=leaf, subleaf=sub, eax=eax, ebx=ebx, ecx=ecx, edx=edx, eax_limit=limit)
        for leaf, sub, eax, ebx, ecx, edx, limit in _CPUID_ROWS
    ) + records.CPUID_ROW.pack(leaf=CPUID_ROWS_END)
    return Blob("cpuid_rows", Kind.RODATA, len(data), 4, _constant(data))


def control_blobs(pool: StringPool, wanted: Sequence[Sequence[Wanted]]) -> list[Blob]:
    """The control words of all VMs, one after another, and the tables that name their bits."""
    blobs: list[Blob] = []
    bit_tables: dict[str, str] = {}
    unions: dict[str, int] = {}
    for word in wanted[0]:
        union = 0
        for words in wanted:
            union |= next(item.required for item in words if item.word is word.word)
        names = [""] * 32
        for bit in word.word.bits:
            if union & bit.mask:
                names[bit.bit] = pool.add(bit.name)
        unions[word.word.name] = union
        bit_tables[word.word.name] = f"bit_names_{word.word.name.lower()}"
        blobs.append(_pointer_table(bit_tables[word.word.name], names))
    def row(name: str, item: Wanted) -> Blob:
        msr = msrs.BY_NAME[item.word.true_msr or item.word.msr]
        title = pool.add(f"{msr.name} ({msr.address:#x})")
        return Blob(name, Kind.RODATA, records.CONTROL_ROW.size, 4, _control_row(
            msr.address, item, title, bit_tables[item.word.name]))

    # What any VM needs, checked once before the first starts; then each VM's own words.
    short = ("pin", "processor", "secondary", "exit", "entry")
    rows: list[Blob] = [
        row(f"control_check_{name}", Wanted(item.word, unions[item.word.name], 0))
        for item, name in zip(wanted[0], short, strict=True)
    ]
    rows += [
        row(f"control_{index}_{name}", item)
        for index, words in enumerate(wanted) for item, name in zip(words, short, strict=True)
    ]
    return [*blobs, Blob("control_checks", Kind.RODATA, 0, 4), *rows]


def _control_row(address: int, item: Wanted, title: str, bit_names: str) -> Callable[[Symbols], bytes]:
    return lambda symbols: records.CONTROL_ROW.pack(
        msr=address, required=item.required, optional=item.optional, name=symbols[title], bit_names=symbols[bit_names])


def vmcs_blobs(rows: Sequence[Sequence[Row]]) -> list[Blob]:
    """Rows that all VMs share, in one table; what differs, in one per VM. Both end with an operation of no meaning."""
    shared = [row for row in rows[0] if all(row in table for table in rows)]
    own = [[row for row in table if row not in shared] for table in rows]

    def fill(table: Sequence[Row]) -> Callable[[Symbols], bytes]:
        return lambda symbols: b"".join(
            [records.VMCS_ROW.pack(field=row.encoding, operation=vmcs_init.OPERATIONS.index(row.operation),
                                   value=vmcs_init.resolve(row, symbols)) for row in table]
            + [records.VMCS_ROW.pack(operation=len(vmcs_init.OPERATIONS))])
    tables_by_name = {"vmcs_rows_shared": shared, **{f"vmcs_rows_{index}": table for index, table in enumerate(own)}}
    return [
        Blob(name, Kind.RODATA, records.VMCS_ROW.size * (len(table) + 1), 8, fill(table))
        for name, table in tables_by_name.items()
    ]


def range_table(name: str, ranges: Callable[[], Sequence[tuple[int, int]]], count: int) -> Blob:
    """(start, end) rows, ended by zeros; ``ranges`` is asked when the layout is known."""
    size = records.MEMORY_RANGE.size * (count + 1)
    return Blob(name, Kind.RODATA, size, 8, lambda _: b"".join(
        records.MEMORY_RANGE.pack(start=start, end=end) for start, end in ranges()).ljust(size, b"\0"))


def cpu_blobs() -> list[Blob]:
    """GDT, IDT, TSS and the per-CPU struct, with the stacks and their guard pages."""
    def tss(symbols: Symbols) -> bytes:
        return d.tss64(ist=tuple(symbols[f"ist{number}_stack_end"] for number in range(len(tables.VECTORS_ON_IST))))

    def cpu(symbols: Symbols) -> bytes:
        # The scheduler looks behind `current`: before the first VM that is the one in front of it.
        return records.CPU.pack(address=symbols["cpu0"], current=symbols["vcpus"] - records.VCPU.size,
                                vmxon_region=symbols["vmxon_region"])

    gdt_size, idt_size = 40, 256 * 16
    return [
        Blob("gdt", Kind.DATA, gdt_size, 8, lambda s: tables.gdt(s["tss"])),
        Blob("gdtr", Kind.RODATA, 10, 8, lambda s: tables.table_register(gdt_size - 1, s["gdt"])),
        Blob("idtr", Kind.RODATA, 10, 8, lambda s: tables.table_register(idt_size - 1, s["idt"])),
        Blob("zero_descriptor", Kind.RODATA, 16, 16),
        Blob("tss", Kind.DATA, d.TSS64_SIZE, 16, tss),
        Blob("idt", Kind.RODATA, idt_size, 16, lambda s: tables.idt(s["isr_stubs"], s["isr_interrupt"])),
        Blob("cpu0", Kind.DATA, records.CPU.size, 64, cpu),
        Blob("console_patience", Kind.DATA, 4, 4, _constant(struct.pack("<I", UART["SPIN_LIMIT"]))),
        Blob("memory_map", Kind.BSS, records.MAP_ENTRY.size * records.MEMORY_MAP_LIMIT, 16),
        Blob("memory_map_count", Kind.BSS, 8, 8),
        Blob("boot_stack", Kind.BSS, 256, 16),
        Blob("vmxon_region", Kind.BSS, PAGE, PAGE),
        *(blob for number in range(len(tables.VECTORS_ON_IST)) for blob in (
            Blob(f"ist{number}_guard", Kind.GUARD, PAGE, PAGE),
            Blob(f"ist{number}_stack", Kind.BSS, IST_STACK_SIZE, PAGE))),
        Blob("cpu0_guard", Kind.GUARD, PAGE, PAGE),
        Blob("cpu0_stack", Kind.BSS, STACK_SIZE, PAGE),
    ]


def vm_blobs(spec: ImageSpec, guests: Callable[[], Sequence[tuple[int, int]]]) -> list[Blob]:
    """The Vm and Vcpu structs, a VMCS region and EPT per VM, and the bitmaps that all share."""
    def vms(_: Symbols) -> bytes:
        return b"".join(
            records.VM.pack(id=index, expect=vm.expect, memory_base=base, memory_size=size,
                            name=vm.name.encode("ascii"))
            for index, (vm, (base, size)) in enumerate(zip(spec.vms, guests(), strict=True)))

    def vcpu_rows(symbols: Symbols) -> bytes:
        return b"".join(
            records.VCPU.pack(
                # 16 bytes below the top: one word for the vCPU's address, and the alignment that calls expect.
                stack=symbols["cpu0_stack_end"] - 16, vm=symbols["vms"] + index * records.VM.size,
                vmcs=symbols[f"vmcs_{index}"], rows=symbols[f"vmcs_rows_{index}"],
                cpuid1_ecx=1 << 31, xcr0=1, dr6=0xFFFF_0FF0,
                fpu=struct.pack("<H22xI", 0x37F, 0x1F80),  # FCW and MXCSR as after reset (SDM 1 8.1.5, 10.2.3)
            )[records.VCPU_INITIAL]
            for index in range(len(spec.vms)))

    row = records.VCPU_INITIAL.stop - records.VCPU_INITIAL.start
    blobs = [
        Blob("vms", Kind.DATA, records.VM.size * len(spec.vms), 64, vms),
        Blob("vcpus", Kind.BSS, records.VCPU.size * len(spec.vms), 64),
        Blob("vcpu_rows", Kind.RODATA, row * len(spec.vms), 8, vcpu_rows),
        Blob("io_bitmaps", Kind.TABLES, 2 * PAGE, PAGE, _constant(tables.io_bitmaps())),
        Blob("msr_bitmap", Kind.TABLES, PAGE, PAGE, _constant(tables.msr_bitmap(tables.GUEST_MSRS))),
    ]
    for index in range(len(spec.vms)):
        blobs.append(Blob(f"ept_{index}", Kind.TABLES, 3 * PAGE, PAGE, _ept(index, guests)))
        blobs.append(Blob(f"vmcs_{index}", Kind.BSS, PAGE, PAGE))
    return blobs


def _ept(index: int, guests: Callable[[], Sequence[tuple[int, int]]]) -> Callable[[Symbols], bytes]:
    return lambda symbols: tables.ept_tables(symbols[f"ept_{index}"], *guests()[index])
