"""Bits of the control registers, RFLAGS, EFER, DR6 and DR7.

SDM 3A 2.5 (control registers), 2.2.1 (IA32_EFER), SDM 1 3.4.3 (EFLAGS), SDM 3B 18.2 [17.2] (debug registers),
SDM 1 13.3 (XCR0).
"""

from __future__ import annotations

# CR0, SDM 3A 2.5
CR0_PE = 1 << 0   # protection enable
CR0_MP = 1 << 1   # monitor coprocessor
CR0_EM = 1 << 2   # x87 emulation
CR0_TS = 1 << 3   # task switched
CR0_ET = 1 << 4   # extension type: always 1
CR0_NE = 1 << 5   # x87 errors by exception, not by PIC
CR0_WP = 1 << 16  # write protection holds at CPL 0
CR0_AM = 1 << 18  # alignment mask
CR0_NW = 1 << 29  # not write-through
CR0_CD = 1 << 30  # cache disable
CR0_PG = 1 << 31  # paging

# CR3, SDM 3A 4.3 and 4.5
CR3_PWT = 1 << 3
CR3_PCD = 1 << 4
CR3_PCID_MASK = 0xFFF       # with CR4.PCIDE
CR3_LAM_U57 = 1 << 61
CR3_LAM_U48 = 1 << 62
CR3_NO_FLUSH = 1 << 63      # only in the source operand of MOV to CR3, with CR4.PCIDE

# CR4, SDM 3A 2.5
CR4_VME = 1 << 0          # virtual-8086 extensions
CR4_PVI = 1 << 1          # protected-mode virtual interrupts
CR4_TSD = 1 << 2          # RDTSC at CPL 0 only
CR4_DE = 1 << 3           # debugging extensions
CR4_PSE = 1 << 4          # 4 MiB pages
CR4_PAE = 1 << 5          # physical-address extension
CR4_MCE = 1 << 6          # machine check
CR4_PGE = 1 << 7          # global pages
CR4_PCE = 1 << 8          # RDPMC at any CPL
CR4_OSFXSR = 1 << 9       # FXSAVE and SSE
CR4_OSXMMEXCPT = 1 << 10  # #XM
CR4_UMIP = 1 << 11        # user-mode instruction prevention
CR4_LA57 = 1 << 12        # 5-level paging
CR4_VMXE = 1 << 13        # VMX
CR4_SMXE = 1 << 14        # SMX
CR4_FSGSBASE = 1 << 16    # RDFSBASE and its family
CR4_PCIDE = 1 << 17       # process-context identifiers
CR4_OSXSAVE = 1 << 18     # XSAVE, XGETBV, XSETBV
CR4_KL = 1 << 19          # Key Locker
CR4_SMEP = 1 << 20        # supervisor-mode execution prevention
CR4_SMAP = 1 << 21        # supervisor-mode access prevention
CR4_PKE = 1 << 22         # protection keys, user pages
CR4_CET = 1 << 23         # control-flow enforcement
CR4_PKS = 1 << 24         # protection keys, supervisor pages
CR4_UINTR = 1 << 25       # user interrupts
CR4_LASS = 1 << 27        # linear-address-space separation
CR4_LAM_SUP = 1 << 28     # linear-address masking, supervisor
CR4_FRED = 1 << 32        # flexible return and event delivery

CR8_TPR_MASK = 0xF        # bits 7:4 of the APIC's TPR

# IA32_EFER, SDM 3A 2.2.1
EFER_SCE = 1 << 0   # SYSCALL
EFER_LME = 1 << 8   # IA-32e mode enable
EFER_LMA = 1 << 10  # IA-32e mode active
EFER_NXE = 1 << 11  # execute disable

# RFLAGS, SDM 1 3.4.3
RFLAGS_CF = 1 << 0
RFLAGS_FIXED = 1 << 1  # always 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_IOPL = 3 << 12
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
RFLAGS_VIF = 1 << 19
RFLAGS_VIP = 1 << 20
RFLAGS_ID = 1 << 21
RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
RFLAGS_RESERVED_ZERO = ~0x3F_7FD7 & 0xFFFF_FFFF_FFFF_FFFF  # 63:22, 15, 5, 3

# DR6 and DR7, SDM 3B 18.2 [17.2]
DR6_B0_TO_B3 = 0xF
DR6_BLD = 1 << 11           # 0 = bus lock detected
DR6_BD = 1 << 13            # debug-register access
DR6_BS = 1 << 14            # single step
DR6_BT = 1 << 15            # task switch
DR6_RTM = 1 << 16           # 0 = inside a transaction
DR6_RESET = 0xFFFF_0FF0
DR7_FIXED = 1 << 10         # always 1
DR7_LE = 1 << 8
DR7_GE = 1 << 9
DR7_RTM = 1 << 11
DR7_GD = 1 << 13
DR7_RESET = 0x400

# XCR0, SDM 1 13.3
XCR0_X87 = 1 << 0    # always 1
XCR0_SSE = 1 << 1
XCR0_AVX = 1 << 2
XCR0_BNDREGS = 1 << 3
XCR0_BNDCSR = 1 << 4
XCR0_OPMASK = 1 << 5
XCR0_ZMM_HI256 = 1 << 6
XCR0_HI16_ZMM = 1 << 7
XCR0_PKRU = 1 << 9
XCR0_TILECFG = 1 << 17
XCR0_TILEDATA = 1 << 18
