"""Bits of paging-structure entries, of EPT entries and of EPTP; page-fault error codes; memory types.

SDM 3A 4.3 to 4.7 (paging), 12.3 (memory types), 12.12 (PAT); SDM 3C 29.3 [28.3] (EPT), 25.6.11 [24.6.11] (EPTP).
"""

from __future__ import annotations

PAGE_4K = 1 << 12
PAGE_2M = 1 << 21
PAGE_4M = 1 << 22          # 32-bit paging with CR4.PSE
PAGE_1G = 1 << 30
ENTRIES = 512              # of a table with 8-byte entries
ENTRIES_32 = 1024          # of a table of 32-bit paging

# Entries of 4-level paging (SDM 3A 4.5.4); 32-bit paging has the same bits 11:0
PTE_P = 1 << 0             # present
PTE_RW = 1 << 1            # writes allowed
PTE_US = 1 << 2            # user-mode accesses allowed
PTE_PWT = 1 << 3
PTE_PCD = 1 << 4
PTE_A = 1 << 5             # accessed
PTE_D = 1 << 6             # dirty; only where a page is mapped
PTE_PS = 1 << 7            # maps a page; not in the last level
PTE_PAT = 1 << 7           # in the last level
PTE_G = 1 << 8             # global
PTE_PAT_LARGE = 1 << 12    # in an entry that maps a large page
PTE_XD = 1 << 63           # execute disable, with IA32_EFER.NXE
PTE_ADDRESS = 0x000F_FFFF_FFFF_F000
PTE_ADDRESS_2M = 0x000F_FFFF_FFE0_0000
PTE_ADDRESS_1G = 0x000F_FFFF_C000_0000

# Page-fault error code (SDM 3A 4.7)
PF_P = 1 << 0              # by protection, not by absence
PF_WRITE = 1 << 1
PF_USER = 1 << 2
PF_RSVD = 1 << 3           # a reserved bit was 1
PF_FETCH = 1 << 4
PF_PK = 1 << 5             # protection key
PF_SS = 1 << 6             # shadow stack
PF_HLAT = 1 << 7
PF_SGX = 1 << 15

# EPT entries (SDM 3C 29.3.2)
EPT_R = 1 << 0
EPT_W = 1 << 1
EPT_X = 1 << 2             # with mode-based execute control: in supervisor mode
EPT_RWX = EPT_R | EPT_W | EPT_X
EPT_MEMTYPE_SHIFT = 3      # where a page is mapped
EPT_MEMTYPE_MASK = 7 << EPT_MEMTYPE_SHIFT
EPT_IGNORE_PAT = 1 << 6
EPT_PS = 1 << 7            # maps a page; not in the last level
EPT_A = 1 << 8             # accessed, with EPTP_AD
EPT_D = 1 << 9             # dirty, with EPTP_AD
EPT_XU = 1 << 10           # execution in user mode, with mode-based execute control
EPT_VGP = 1 << 57          # verify guest paging
EPT_PW = 1 << 58           # paging-write access
EPT_SSS = 1 << 60          # supervisor shadow stack
EPT_SPP = 1 << 61          # sub-page write permissions
EPT_SUPPRESS_VE = 1 << 63
EPT_ADDRESS = PTE_ADDRESS
EPT_ADDRESS_2M = PTE_ADDRESS_2M
EPT_ADDRESS_1G = PTE_ADDRESS_1G

# EPTP (SDM 3C 25.6.11)
EPTP_MEMTYPE_MASK = 7      # of the EPT structures: UC or WB
EPTP_WALK_SHIFT = 3        # levels less one
EPTP_WALK_MASK = 7 << EPTP_WALK_SHIFT
EPTP_WALK_4 = 3 << EPTP_WALK_SHIFT
EPTP_WALK_5 = 4 << EPTP_WALK_SHIFT
EPTP_AD = 1 << 6           # accessed and dirty flags
EPTP_SSS = 1 << 7          # access rights for supervisor shadow-stack pages
EPTP_ADDRESS = PTE_ADDRESS

# Memory types (SDM 3A 12.3, table 12-2; PAT alone knows UC-)
MEMTYPE_UC = 0
MEMTYPE_WC = 1
MEMTYPE_WT = 4
MEMTYPE_WP = 5
MEMTYPE_WB = 6
MEMTYPE_UC_MINUS = 7
PAT_RESET = 0x0007_0406_0007_0406  # IA32_PAT after reset (SDM 3A 12.12.4)

# PAE paging: bits of a PDPTE that are reserved when it is present (SDM 3A 4.4.1)
PDPTE_RESERVED_LOW = 0x1E6


def eptp(table: int, *, accessed_dirty: bool) -> int:
    """An EPTP for four levels of write-back EPT structures at physical address `table`. ValueError if misaligned."""
    if table & ~EPTP_ADDRESS:
        raise ValueError(f"EPT table at {table:#x} is not on a page boundary below 2^52")
    return table | EPTP_WALK_4 | MEMTYPE_WB | (EPTP_AD if accessed_dirty else 0)


def index(address: int, level: int) -> int:
    """Which of the 512 entries of the table at `level` (1 = last, 4 = first) translates `address`."""
    return address >> 12 + 9 * (level - 1) & 0x1FF
