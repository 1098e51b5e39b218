"""CPUID bits as data: those that a hypervisor tests, passes on or hides.

SDM 2A, CPUID, tables 3-8 and following; SDM 2A 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class CpuidBit:
    """One feature bit: `register` is "eax", "ebx", "ecx" or "edx" after CPUID with EAX = `leaf`, ECX = `subleaf`."""

    leaf: int
    subleaf: int
    register: str
    bit: int
    name: str
    title: str

    @property
    def mask(self) -> int:
        """The bit's value in its register."""
        return 1 << self.bit

    @property
    def where(self) -> str:
        """The place as manuals write it: ``CPUID.1:ECX[5]``, with the sub-leaf where a leaf has several."""
        leaf = f"{self.leaf:X}H" if self.leaf > 9 else str(self.leaf)
        sub = f",{self.subleaf}" if self.leaf in WITH_SUBLEAVES else ""
        return f"CPUID.{leaf}{sub}:{self.register.upper()}[{self.bit}]"


WITH_SUBLEAVES = frozenset({0x04, 0x07, 0x0B, 0x0D, 0x0F, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1F})


def _bits(leaf: int, subleaf: int, register: str, *rows: tuple[int, str, str]) -> tuple[CpuidBit, ...]:
    return tuple(CpuidBit(leaf, subleaf, register, bit, name, title) for bit, name, title in rows)


_LEAF_1_ECX = _bits(1, 0, "ecx",
    ( 0, "SSE3",         "SSE3"),
    ( 1, "PCLMULQDQ",    "carry-less multiplication"),
    ( 2, "DTES64",       "64-bit DS area"),
    ( 3, "MONITOR",      "MONITOR and MWAIT"),
    ( 4, "DS_CPL",       "debug store by CPL"),
    ( 5, "VMX",          "virtual-machine extensions"),
    ( 6, "SMX",          "safer-mode extensions"),
    ( 7, "EIST",         "SpeedStep"),
    ( 8, "TM2",          "thermal monitor 2"),
    ( 9, "SSSE3",        "SSSE3"),
    (11, "SDBG",         "silicon debug interface"),
    (12, "FMA",          "fused multiply-add"),
    (13, "CMPXCHG16B",   "CMPXCHG16B"),
    (14, "XTPR",         "xTPR messages can be turned off"),
    (15, "PDCM",         "IA32_PERF_CAPABILITIES exists"),
    (17, "PCID",         "process-context identifiers"),
    (18, "DCA",          "direct cache access"),
    (19, "SSE4_1",       "SSE4.1"),
    (20, "SSE4_2",       "SSE4.2"),
    (21, "X2APIC",       "x2APIC"),
    (22, "MOVBE",        "MOVBE"),
    (23, "POPCNT",       "POPCNT"),
    (24, "TSC_DEADLINE", "APIC timer by TSC deadline"),
    (25, "AES",          "AES instructions"),
    (26, "XSAVE",        "XSAVE, XRSTOR, XSETBV, XGETBV"),
    (27, "OSXSAVE",      "CR4.OSXSAVE as it is now"),
    (28, "AVX",          "AVX"),
    (29, "F16C",         "16-bit floating point"),
    (30, "RDRAND",       "RDRAND"),
    (31, "HYPERVISOR",   "always 0 on a processor: a hypervisor is present"),
)

_LEAF_1_EDX = _bits(1, 0, "edx",
    ( 0, "FPU",          "x87"),
    ( 1, "VME",          "virtual-8086 extensions"),
    ( 2, "DE",           "debugging extensions"),
    ( 3, "PSE",          "4 MiB pages"),
    ( 4, "TSC",          "time-stamp counter"),
    ( 5, "MSR",          "RDMSR and WRMSR"),
    ( 6, "PAE",          "physical-address extension"),
    ( 7, "MCE",          "machine-check exception"),
    ( 8, "CX8",          "CMPXCHG8B"),
    ( 9, "APIC",         "local APIC"),
    (11, "SEP",          "SYSENTER and SYSEXIT"),
    (12, "MTRR",         "memory-type range registers"),
    (13, "PGE",          "global pages"),
    (14, "MCA",          "machine-check architecture"),
    (15, "CMOV",         "CMOV"),
    (16, "PAT",          "page-attribute table"),
    (17, "PSE36",        "36-bit 4 MiB pages"),
    (18, "PSN",          "processor serial number"),
    (19, "CLFSH",        "CLFLUSH"),
    (21, "DS",           "debug store"),
    (22, "ACPI",         "thermal control by MSRs"),
    (23, "MMX",          "MMX"),
    (24, "FXSR",         "FXSAVE and FXRSTOR"),
    (25, "SSE",          "SSE"),
    (26, "SSE2",         "SSE2"),
    (27, "SS",           "self snoop"),
    (28, "HTT",          "EBX[23:16] is valid"),
    (29, "TM",           "thermal monitor"),
    (31, "PBE",          "pending-break enable"),
)

_LEAF_6_EAX = _bits(6, 0, "eax",
    ( 2, "ARAT",         "the APIC timer always runs"),
)

_LEAF_7_EBX = _bits(7, 0, "ebx",
    ( 0, "FSGSBASE",     "RDFSBASE and its family"),
    ( 1, "TSC_ADJUST",   "IA32_TSC_ADJUST exists"),
    ( 2, "SGX",          "SGX"),
    ( 3, "BMI1",         "bit manipulation 1"),
    ( 4, "HLE",          "hardware lock elision"),
    ( 5, "AVX2",         "AVX2"),
    ( 7, "SMEP",         "supervisor-mode execution prevention"),
    ( 8, "BMI2",         "bit manipulation 2"),
    ( 9, "ERMS",         "enhanced REP MOVSB and STOSB"),
    (10, "INVPCID",      "INVPCID"),
    (11, "RTM",          "restricted transactions"),
    (14, "MPX",          "memory-protection extensions"),
    (16, "AVX512F",      "AVX-512 foundation"),
    (18, "RDSEED",       "RDSEED"),
    (19, "ADX",          "ADCX and ADOX"),
    (20, "SMAP",         "supervisor-mode access prevention"),
    (23, "CLFLUSHOPT",   "CLFLUSHOPT"),
    (24, "CLWB",         "CLWB"),
    (25, "INTEL_PT",     "Processor Trace"),
    (29, "SHA",          "SHA instructions"),
)

_LEAF_7_ECX = _bits(7, 0, "ecx",
    ( 2, "UMIP",         "user-mode instruction prevention"),
    ( 3, "PKU",          "protection keys for user pages"),
    ( 4, "OSPKE",        "CR4.PKE as it is now"),
    ( 5, "WAITPKG",      "UMONITOR, UMWAIT, TPAUSE"),
    ( 7, "CET_SS",       "shadow stacks"),
    (16, "LA57",         "57-bit linear addresses"),
    (22, "RDPID",        "RDPID and IA32_TSC_AUX"),
    (23, "KL",           "Key Locker"),
    (24, "BUS_LOCK_DETECT", "#DB for bus locks"),
    (28, "MOVDIR64B",    "MOVDIR64B"),
    (29, "ENQCMD",       "ENQCMD and ENQCMDS"),
    (31, "PKS",          "protection keys for supervisor pages"),
)

_LEAF_7_EDX = _bits(7, 0, "edx",
    ( 5, "UINTR",        "user interrupts"),
    (10, "MD_CLEAR",     "VERW clears buffers"),
    (14, "SERIALIZE",    "SERIALIZE"),
    (15, "HYBRID",       "cores of several kinds"),
    (18, "PCONFIG",      "PCONFIG"),
    (20, "CET_IBT",      "indirect-branch tracking"),
    (26, "SPEC_CTRL",    "IA32_SPEC_CTRL and IA32_PRED_CMD exist"),
    (27, "STIBP",        "single-thread indirect-branch predictors"),
    (28, "L1D_FLUSH",    "IA32_FLUSH_CMD exists"),
    (29, "ARCH_CAPABILITIES", "IA32_ARCH_CAPABILITIES exists"),
    (30, "CORE_CAPABILITIES", "IA32_CORE_CAPABILITIES exists"),
    (31, "SSBD",         "speculative store bypass can be turned off"),
)

_LEAF_D_1_EAX = _bits(0xD, 1, "eax",
    ( 0, "XSAVEOPT",     "XSAVEOPT"),
    ( 1, "XSAVEC",       "XSAVEC"),
    ( 2, "XGETBV_ECX1",  "XGETBV with ECX = 1"),
    ( 3, "XSAVES",       "XSAVES, XRSTORS and IA32_XSS"),
    ( 4, "XFD",          "IA32_XFD"),
)

_EXTENDED_1_ECX = _bits(0x8000_0001, 0, "ecx",
    ( 0, "LAHF64",       "LAHF and SAHF in 64-bit mode"),
    ( 2, "SVM",          "AMD's secure virtual machine (reserved on Intel)"),
    ( 5, "LZCNT",        "LZCNT"),
    ( 8, "PREFETCHW",    "PREFETCHW"),
)

_EXTENDED_1_EDX = _bits(0x8000_0001, 0, "edx",
    (11, "SYSCALL",      "SYSCALL and SYSRET in 64-bit mode"),
    (20, "NX",           "execute disable"),
    (26, "PAGE1GB",      "1 GiB pages"),
    (27, "RDTSCP",       "RDTSCP and IA32_TSC_AUX"),
    (29, "LM",           "Intel 64: long mode"),
)

_EXTENDED_7_EDX = _bits(0x8000_0007, 0, "edx",
    ( 8, "INVARIANT_TSC", "the TSC runs at one rate in all states"),
)

CPUID_BITS: tuple[CpuidBit, ...] = (
    *_LEAF_1_ECX, *_LEAF_1_EDX, *_LEAF_6_EAX, *_LEAF_7_EBX, *_LEAF_7_ECX, *_LEAF_7_EDX, *_LEAF_D_1_EAX,
    *_EXTENDED_1_ECX, *_EXTENDED_1_EDX, *_EXTENDED_7_EDX,
)
BY_NAME: Mapping[str, CpuidBit] = MappingProxyType({bit.name: bit for bit in CPUID_BITS})

LEAF_VENDOR = 0            # EAX = highest leaf; EBX, EDX, ECX = vendor
LEAF_FEATURES = 1
LEAF_STRUCTURED = 7
LEAF_TOPOLOGY = 0xB
LEAF_XSAVE = 0xD
LEAF_EXTENDED_MAX = 0x8000_0000
LEAF_EXTENDED_FEATURES = 0x8000_0001
LEAF_ADDRESS_SIZES = 0x8000_0008  # EAX[7:0] = physical-address bits, EAX[15:8] = linear-address bits
