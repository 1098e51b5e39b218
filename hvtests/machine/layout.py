"""Where Unicorn 2.1.4 keeps a CPU's state: word indexes into the struct, and the codes its intercepts report.

Only :mod:`hvtests.machine.fabric` opens the struct; it compares this table with what the public API writes before
anything else is done. The names are those of the registers. Two views of the same memory are used: `q` in 64-bit
words and `i` in 32-bit words; a name says which by its prefix (Q_ or I_), a byte offset by its suffix (_AT).
"""

from __future__ import annotations

ENGINE_VERSION = (2, 1, 4)

# From the engine handle to the CPU's struct, in bytes.
CPU_POINTER_AT = 440        # engine -> CPU
ENV_POINTER_AT = 296        # CPU -> registers ("env")
TLB_END_POINTER_AT = 304    # CPU -> what follows the descriptors of the three TLBs
BACK_POINTER_AT = 7000      # env -> engine: closes the circle
ENV_SIZE = 7008

# A TLB descriptor is {mask of entry offset, address of entries}; the TLBs of supervisor code under SMAP, of user code
# and of supervisor code without SMAP follow each other.
TLB_COUNT = 3
TLB_DESCRIPTOR_SIZE = 16
TLB_ENTRY_SHIFT = 6
TLB_ENTRY_CODE_AT = 16      # linear page that may be fetched, then the physical page
TLB_INVALID = 0x800         # as a page: never matches
TLB_ENTRY_ADDEND_AT = 32    # linear address to address in this process

# In the CPU (byte offsets).
CFLAGS_NEXT_TB_AT = 24      # u32: flags of the next translated block only; ~0 = the usual ones
INTERRUPT_REQUEST_AT = 28   # u32
EXCEPTION_INDEX_AT = 33184  # i32
CLASS_POINTER_AT = 33200
TLB_FILL_AT = 72            # in the class: function pointer

# env: general registers in hardware order (RAX RCX RDX RBX RSP RBP RSI RDI R8..R15) from word 0.
Q_RAX, Q_RCX, Q_RDX, Q_RBX, Q_RSP, Q_RBP, Q_RSI, Q_RDI = range(8)
Q_RIP = 128 // 8
Q_RFLAGS = 136 // 8         # without the status flags and DF while code runs
Q_CC_SRC = 152 // 8
I_CC_OP = 168 // 4
I_DF = 172 // 4             # 1 or -1
I_HFLAGS = 176 // 4
I_HFLAGS2 = 180 // 4
SEGMENT_AT = 184            # ES CS SS DS FS GS LDTR TR GDTR IDTR: selector, base +8, limit +16, flags +20
SEGMENT_SIZE = 24
Q_CR = 424 // 8             # CR0..CR8
I_A20_MASK = 496 // 4
Q_EFER = 592 // 8
I_MXCSR = 832 // 4
I_SYSENTER_CS = 4800 // 4
Q_SYSENTER_ESP = 4808 // 8
Q_SYSENTER_EIP = 4816 // 8
Q_STAR = 4824 // 8
Q_LSTAR = 4840 // 8
Q_CSTAR = 4848 // 8
Q_FMASK = 4856 // 8
Q_KERNEL_GS_BASE = 4864 // 8
Q_TSC_AUX = 4896 // 8
Q_XCR0 = 4904 // 8
Q_PAT = 5280 // 8
I_ERROR_CODE = 5384 // 4
Q_DR = 5400 // 8            # DR0..DR7
I_OLD_EXCEPTION = 5496 // 4
Q_VMCB = 5504 // 8
Q_INTERCEPT = 5520 // 8
CR_READ_MASK_AT = 5528      # four u16: CR read, CR write, DR read, DR write
Q_INTERCEPT_CR_DR = 5528 // 8
I_INTERCEPT_EXCEPTIONS = 5536 // 4
Q_NESTED_CR3 = 5544 // 8
I_NESTED_MODE = 5552 // 4
Q_FEATURES = 5632 // 8      # words of CPUID feature bits, in the order of FEATURE_WORDS

ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR = range(10)


def i_selector(segment: int) -> int:
    """Index in the 32-bit view of a segment register's selector."""
    return (SEGMENT_AT + SEGMENT_SIZE * segment) // 4


def q_base(segment: int) -> int:
    """Index in the 64-bit view of a segment or descriptor-table register's base."""
    return (SEGMENT_AT + SEGMENT_SIZE * segment + 8) // 8


def i_limit(segment: int) -> int:
    """Index in the 32-bit view of a segment or descriptor-table register's limit."""
    return (SEGMENT_AT + SEGMENT_SIZE * segment + 16) // 4


def i_flags(segment: int) -> int:
    """Index in the 32-bit view of a segment register's flags: the high half of its descriptor."""
    return (SEGMENT_AT + SEGMENT_SIZE * segment + 20) // 4


# Index in the feature words -> (CPUID leaf, register 0..3 = EAX..EDX).
FEATURE_WORDS: dict[int, tuple[int, int]] = {
    0: (0x0000_0001, 3),
    1: (0x0000_0001, 2),
    2: (0x0000_0007, 1),
    3: (0x0000_0007, 2),
    6: (0x8000_0001, 3),
    7: (0x8000_0001, 2),
}
FEATURE_1_ECX, FEATURE_MONITOR = 1, 1 << 3  # the engine executes MONITOR and MWAIT where this bit is set
FEATURE_XSAVE_COMPONENTS = 21  # 0 here: XSETBV always reaches the model

# The run of env that holds RIP, flags, segments, descriptor tables, control registers and EFER.
STATE_AT = 128
STATE_END = 600

HF_CPL = 3
HF_CS32 = 1 << 4
HF_PE = 1 << 7
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_FROM_RFLAGS = 1 << 8 | 3 << 12 | 1 << 17   # TF, IOPL, VM: the engine adds the live ones where it needs them
HF_INHIBIT_IRQ = 1 << 3     # the instruction after STI or MOV SS
HF_SOFTMMU = 1 << 2
HF_GUEST = 1 << 21          # intercepts are active; always set here
HF_SMAP = 1 << 23
HF2_GIF = 1 << 0
HF2_HIF = 1 << 1
HF2_NMI = 1 << 2            # NMIs are blocked
HF2_VINTR = 1 << 3          # with HIF: external interrupts are taken whatever IF says
HF2_NPT = 1 << 6

REQUEST_HARD = 0x002        # bits of interrupt_request
REQUEST_VIRQ = 0x100
REQUEST_NMI = 0x200

CC_OP_EFLAGS = 1            # cc_src holds the status flags themselves
STATUS_FLAGS = 0x8D5
SPLIT_FLAGS = 0xCD5         # status flags and DF: kept apart while code runs

SCRATCH = 1 << 39           # physical memory that no software of the machine can see; below 2^40
SCRATCH_SIZE = 4 << 20
FAULT_ADDRESS_AT = 0x80     # in the first scratch page: address of the last page fault or nested page fault
MSR_MAP_AT = 0x2000         # three pages of ones: every RDMSR and WRMSR is intercepted
NESTED_ROOT_AT = 0x10000    # nested page tables from here to the end

# Codes that reach the handler: 0x100 + the intercept's code, and our own from 0x600.
CODE_CR_READ = 0x100        # + register number
CODE_CR_WRITE = 0x110
CODE_DR_READ = 0x120
CODE_DR_WRITE = 0x130
CODE_EXCEPTION = 0x140      # + vector
CODE_INTERRUPT = 0x160
CODE_NMI = 0x161
CODE_INTERRUPT_WINDOW = 0x164
CODE_IDTR_READ = 0x166
CODE_GDTR_READ = 0x167
CODE_LDTR_READ = 0x168
CODE_TR_READ = 0x169
CODE_IDTR_WRITE = 0x16A
CODE_GDTR_WRITE = 0x16B
CODE_LDTR_WRITE = 0x16C
CODE_TR_WRITE = 0x16D
CODE_RDTSC = 0x16E
CODE_RDPMC = 0x16F
CODE_CPUID = 0x172
CODE_RSM = 0x173
CODE_IRET = 0x174
CODE_SOFTWARE_INTERRUPT = 0x175
CODE_INVD = 0x176
CODE_PAUSE = 0x177
CODE_HLT = 0x178
CODE_INVLPG = 0x179
CODE_MSR = 0x17C            # error code 1 = write
CODE_SHUTDOWN = 0x17F
CODE_ICEBP = 0x188
CODE_WBINVD = 0x189
CODE_MONITOR = 0x18A
CODE_MWAIT = 0x18B
CODE_NESTED_FAULT = 0x500
CODE_IN = 0x600
CODE_OUT = 0x601
CODE_SYSCALL = 0x602
CODE_SYSENTER = 0x603
CODE_DEADLINE = 0x604
CODE_RETRY = 0x606           # nothing happened; the same instruction again
CODE_RESTRICTED = 0x605      # a page that EPT makes not executable, or execute-only


def intercept_bits(*codes: int) -> int:
    """The 64-bit intercept word that makes these codes (0x160..0x19F) arrive."""
    return sum(1 << (code - 0x160) for code in codes)
