"""The structs that the image keeps in memory, and those of the boot protocols: one definition for templates and Python.

Templates see the offsets (``vcpu.rax``, ``vcpu.SIZE``); Python packs initial values and views memory with the same
objects. Sizes in bytes; everything is little-endian.
"""

from __future__ import annotations

from generator.arch import abi, exits
from generator.structs import U8, U16, U32, U64, Array, Bytes, Struct, field

GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)

# Registers and MSRs that belong to a guest but are not in the VMCS: exchanged when another VM gets the CPU.
SWITCHED_REGISTERS = ("cr2", "dr0", "dr1", "dr2", "dr3", "dr6")
SWITCHED_MSRS = ("IA32_STAR", "IA32_LSTAR", "IA32_CSTAR", "IA32_FMASK", "IA32_KERNEL_GS_BASE")

EXIT_COUNT = max(reason.number for reason in exits.EXIT_REASONS) + 1
FPU_AREA = 1024  # XSAVE area of x87, SSE and AVX: 512 + 64 + 256, rounded up
NAME_LENGTH = 24

VCPU = Struct(
    "Vcpu",
    *(field(name, U64) for name in GPR_NAMES),         # in the order of the hardware's numbers: exit_stub pushes them
    # From here to VCPU_INITIAL.stop the image has initial values (vcpu_rows); everything else begins as zero.
    field("stack", U64, note="top word of the CPU's stack, which holds this vCPU's address"),
    field("vm", U64),
    field("vmcs", U64, note="physical address of the VMCS region"),
    field("rows", U64, note="the table that fills the VMCS"),
    field("cpuid1_ecx", U32, note="bits that are 1 in the guest's CPUID.1:ECX: hypervisor, OSXSAVE"),
    field("xcr0", U32),
    field("dr6", U64),
    field("cr8", U64),
    field("fpu", Bytes(FPU_AREA), align=64),
    *(field(name, U64) for name in SWITCHED_REGISTERS if name != "dr6"),
    *(field(name, U64) for name in SWITCHED_MSRS),
    field("tsc_aux", U32),
    field("launched", U32),
    field("timer_reload", U32, note="VMX-preemption timer ticks of one slice or watchdog period"),
    field("idle_slices", U32, note="round-robin: slices in a row without another exit"),
    field("slice_end", U64, note="round-robin: TSC at which the turn is over"),
    field("exits_seen", U64, note="round-robin: other exits at the last timer exit"),
    field("exits", Array(U64, EXIT_COUNT), note="how often each basic exit reason came"),
    align=64,
)
VCPU_INITIAL = slice(VCPU.offset("stack"), VCPU.offset("fpu") + 32)  # up to MXCSR in the FXSAVE area

VM = Struct(
    "Vm",
    field("id", U32, note="index in image.toml"),
    field("state", U32, note="abi.VmEnd"),
    field("expect", U32, note="the abi.VmEnd that image.toml expects"),
    field("status", U32, note="argument of the EXIT hypercall"),
    field("memory_base", U64, note="host-physical"),
    field("memory_size", U64),
    field("name", Bytes(NAME_LENGTH), note="zero-terminated"),
    field("uart", Bytes(8), note="what the guest wrote to its UART's registers"),
    field("line_length", U32),
    field("line", Bytes(abi.LINE_LIMIT + 8)),
    align=64,
)

CPU = Struct(
    "Cpu",
    field("address", U64, note="its own address: GS:0 gives the pointer"),
    field("current", U64, note="the vCPU that runs here"),
    field("vmxon_region", U64),
    field("revision", U32, note="VMCS revision identifier"),
    field("vmx_is_on", U32),
    field("xcr0_offered", U32, note="0 = no XSAVE"),
    field("panicking", U32),
    align=64,
)

VMCS_ROW = Struct("VmcsRow", field("field", U32), field("operation", U32), field("value", U64))
CONTROL_ROW = Struct(
    "ControlRow", field("msr", U32), field("required", U32), field("optional", U32), field("name", U32),
    field("bit_names", U32, note="32 addresses of strings"),
)
FEATURE_ROW = Struct(
    "FeatureRow", field("msr", U32), field("sentence", U32), field("bit", U8), field("skip", U8), align=4
)
CPUID_ROW = Struct(
    "CpuidRow", field("leaf", U32), field("subleaf", U32),
    *(field(name, U32, note="mask") for name in ("eax", "ebx", "ecx", "edx")),
    field("eax_limit", U32, note="EAX is at most this"),
)
MEMORY_RANGE = Struct("MemoryRange", field("start", U64), field("end", U64))
DUMP_ROW = Struct("DumpRow", field("field", U32), field("name", U32))
DUMP_REGISTERS = tuple(reversed([name for name in GPR_NAMES if name != "rsp"]))  # as pushed; rax ends up lowest
DUMP_FRAME = Struct(
    "DumpFrame",
    *(field(name, U64) for name in reversed(DUMP_REGISTERS)),
    *(field(name, U64) for name in ("vector", "error_code", "rip", "cs", "rflags", "rsp", "ss")),
)

# E820 entry as entry32 copies it (ACPI 15.4); type 1 is RAM.
MAP_ENTRY = Struct("MapEntry", field("base", U64), field("length", U64), field("type", U32), align=8)
MAP_RAM = 1
MEMORY_MAP_LIMIT = 128

# Multiboot1 information, as far as it is used (Multiboot Specification 0.6.96, 3.3).
MULTIBOOT_INFO = Struct(
    "MultibootInfo",
    field("flags", U32), field("head", Bytes(40)), field("mmap_length", U32), field("mmap_addr", U32),
)
MULTIBOOT_HAS_MMAP = 1 << 6
MULTIBOOT_BOOT_MAGIC = 0x2BADB002      # in EAX at the entry
MULTIBOOT_MMAP_STRIDE = 24             # of the entries that our loader writes: a size word and an E820 entry
MULTIBOOT_HEADER_MAGIC = 0x1BADB002
MULTIBOOT_HEADER_FLAGS = 0x0000_0002   # bit 1: memory information wanted

# Disk address packet of int 13h AH=42h.
DISK_PACKET = Struct(
    "DiskPacket", field("length", U8), field("zero", U8), field("count", U16), field("offset", U16),
    field("segment", U16), field("lba", U64),
)

# What the media stage tells the loader: where the payload's pieces lie and where they belong.
MEDIA_MAGIC = 0x42465648  # "HVFB"
MEDIA_TABLE = Struct(
    "MediaTable", field("magic", U32), field("sector_size", U32), field("boot_sectors", U32), field("count", U32)
)
MEDIA_ROW = Struct(
    "MediaRow", field("lba", U64), field("sectors", U32),
    field("checksum", U32, note="sum of the segment's whole 32-bit words, modulo 2^32"),
    field("destination", U64), field("length", U64),
)
LOADER_STATE = Struct(
    "LoaderState",
    *(field(name, U32) for name in ("row", "rows", "lba", "sectors", "destination", "left", "piece")),
)
