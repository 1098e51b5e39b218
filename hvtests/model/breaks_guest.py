"""One way or more to break each rule on guest registers and segments (SDM 3C 27.3.1.1, 27.3.1.2)."""

from __future__ import annotations

from hvtests.model.breaking import Break, broken, flip, off, on, put
from hvtests.model.valid_state import Mode

NONCANONICAL = 0x8000_0000_0000
RESTRICTED = off("UNRESTRICTED_GUEST")
CET = on("ENTRY.LOAD_CET_STATE")
SEGMENTS = ("CS", "SS", "DS", "ES", "FS", "GS")
DATA = ("DS", "ES", "FS", "GS")
RPL3 = {f"GUEST_{r}_SELECTOR": 3 for r in ("CS", "SS")}

REGISTERS: tuple[Break, ...] = (
    broken("guest.cr0.fixed", flip(GUEST_CR0=1 << 5)),                          # NE must be 1
    broken("guest.cr0.fixed", RESTRICTED, flip(GUEST_CR0=1), flip(GUEST_CR0=1 << 31), mode=Mode.PROTECTED),
    broken("guest.cr0.fixed", flip(GUEST_CR0=1 << 32)),
    broken("guest.cr0.pg_without_pe", flip(GUEST_CR0=1), mode=Mode.PROTECTED),
    broken("guest.cr4.fixed", flip(GUEST_CR4=1 << 13)),
    broken("guest.cr4.fixed", flip(GUEST_CR4=1 << 22)),                         # this CPU has no protection keys
    broken("guest.cr4.cet_needs_wp", flip(GUEST_CR4=1 << 23), cpu="everything"),
    broken("guest.debugctl.reserved", put(GUEST_IA32_DEBUGCTL=1 << 3)),
    broken("guest.ia32e.needs_paging", flip(GUEST_CR0=1 << 31)),
    broken("guest.ia32e.needs_pae", flip(GUEST_CR4=1 << 5)),
    broken("guest.cr4.pcide_needs_ia32e", flip(GUEST_CR4=1 << 17), mode=Mode.PROTECTED),
    broken("guest.cr3.width", flip(GUEST_CR3=1 << 40)),
    broken("guest.dr7.upper", flip(GUEST_DR7=1 << 32)),
    broken("guest.sysenter_esp.canonical", put(GUEST_SYSENTER_ESP=NONCANONICAL)),
    broken("guest.sysenter_eip.canonical", put(GUEST_SYSENTER_EIP=NONCANONICAL)),
    broken("guest.s_cet.valid", CET, put(GUEST_S_CET=0xC00), cpu="everything"),
    broken("guest.ssp_table.canonical", CET, put(GUEST_INTR_SSP_TABLE=NONCANONICAL), cpu="everything"),
    broken("guest.perf_global_ctrl.reserved", on("ENTRY.LOAD_IA32_PERF_GLOBAL_CTRL"),
           put(GUEST_IA32_PERF_GLOBAL_CTRL=1 << 35)),                           # this CPU has fixed counters 0 to 2
    broken("guest.pat.types", put(GUEST_IA32_PAT=0x0007_0406_0007_0402)),
    broken("guest.pat.types", put(GUEST_IA32_PAT=0x0807_0406_0007_0406)),
    broken("guest.efer.reserved", flip(GUEST_IA32_EFER=1 << 9)),
    broken("guest.efer.lma", flip(GUEST_IA32_EFER=0x500)),
    broken("guest.efer.lma", flip(GUEST_IA32_EFER=0x500), mode=Mode.PROTECTED),
    broken("guest.efer.lme", flip(GUEST_IA32_EFER=0x100)),
    broken("guest.bndcfgs.valid", on("LOAD_IA32_BNDCFGS"), put(GUEST_BNDCFGS=4), cpu="everything"),
    broken("guest.bndcfgs.valid", on("LOAD_IA32_BNDCFGS"), put(GUEST_BNDCFGS=NONCANONICAL), cpu="everything"),
    broken("guest.rtit_ctl.reserved", on("LOAD_IA32_RTIT_CTL"), put(GUEST_IA32_RTIT_CTL=1 << 18), cpu="everything"),
    broken("guest.lbr_ctl.reserved", on("LOAD_IA32_LBR_CTL"), put(GUEST_IA32_LBR_CTL=1 << 4), cpu="everything"),
    broken("guest.pkrs.upper", on("ENTRY.LOAD_PKRS"), put(GUEST_IA32_PKRS=1 << 32), cpu="everything"),
    broken("guest.uinv.upper", on("LOAD_UINV"), put(GUEST_UINV=0x100), cpu="everything"),
)

SELECTORS_AND_BASES: tuple[Break, ...] = (
    broken("guest.tr.ti", put(GUEST_TR_SELECTOR=0x1C)),
    broken("guest.ldtr.ti", put(GUEST_LDTR_SELECTOR=0x24, GUEST_LDTR_AR_BYTES=0x82)),
    broken("guest.ss.rpl", RESTRICTED, put(GUEST_CS_SELECTOR=0x0B)),
    *(broken(f"guest.{r.lower()}.v8086_base", flip(**{f"GUEST_{r}_BASE": 0x10}), mode=Mode.V8086) for r in SEGMENTS),
    *(broken(f"guest.{r.lower()}.base_canonical", put(**{f"GUEST_{r}_BASE": NONCANONICAL}))
      for r in ("TR", "FS", "GS")),
    broken("guest.ldtr.base_canonical", put(GUEST_LDTR_BASE=NONCANONICAL, GUEST_LDTR_AR_BYTES=0x82)),
    *(broken(f"guest.{r.lower()}.base_upper", put(**{f"GUEST_{r}_BASE": 1 << 32})) for r in ("CS", "SS", "DS", "ES")),
    *(broken(f"guest.{r.lower()}.v8086_limit", put(**{f"GUEST_{r}_LIMIT": 0xFFFE}), mode=Mode.V8086) for r in SEGMENTS),
    *(broken(f"guest.{r.lower()}.v8086_rights", put(**{f"GUEST_{r}_AR_BYTES": 0x93}), mode=Mode.V8086)
      for r in SEGMENTS),
)

RIGHTS: tuple[Break, ...] = (
    broken("guest.cs.type", put(GUEST_CS_AR_BYTES=0xA09A)),                     # code, not accessed
    broken("guest.cs.type", RESTRICTED, put(GUEST_CS_AR_BYTES=0xC093), mode=Mode.PROTECTED),
    broken("guest.cs.type", put(GUEST_CS_AR_BYTES=0xC097), mode=Mode.PROTECTED),
    broken("guest.ss.type", put(GUEST_SS_AR_BYTES=0xC091)),                     # read-only
    broken("guest.ss.type", put(GUEST_SS_AR_BYTES=0xC09B)),
    *(broken(f"guest.{r.lower()}.type_accessed", put(**{f"GUEST_{r}_AR_BYTES": 0xC092})) for r in DATA),
    *(broken(f"guest.{r.lower()}.type_readable", put(**{f"GUEST_{r}_AR_BYTES": 0xC099})) for r in DATA),
    *(broken(f"guest.{r.lower()}.s", flip(**{f"GUEST_{r}_AR_BYTES": 1 << 4})) for r in SEGMENTS),
    broken("guest.cs.dpl_data", put(GUEST_CS_AR_BYTES=0xC0F3), mode=Mode.PROTECTED),
    broken("guest.cs.dpl_nonconforming", put(GUEST_CS_AR_BYTES=0xA0FB)),
    broken("guest.cs.dpl_conforming", put(GUEST_CS_AR_BYTES=0xA0BF)),
    broken("guest.ss.dpl_rpl", RESTRICTED, put(GUEST_SS_SELECTOR=0x11, GUEST_CS_SELECTOR=0x09)),
    broken("guest.ss.dpl_zero", put(GUEST_SS_AR_BYTES=0xF3), mode=Mode.REAL),
    broken("guest.ss.dpl_zero", put(GUEST_CS_AR_BYTES=0xC093, GUEST_SS_AR_BYTES=0xC0B3), mode=Mode.PROTECTED),
    *(broken(f"guest.{r.lower()}.dpl_rpl", RESTRICTED, put(**{f"GUEST_{r}_SELECTOR": 0x13})) for r in DATA),
    *(broken(f"guest.{r.lower()}.p", flip(**{f"GUEST_{r}_AR_BYTES": 1 << 7})) for r in SEGMENTS),
    *(broken(f"guest.{r.lower()}.reserved", flip(**{f"GUEST_{r}_AR_BYTES": 1 << (8 if n % 2 else 17)}))
      for n, r in enumerate(SEGMENTS)),
    broken("guest.cs.db_with_l", put(GUEST_CS_AR_BYTES=0xE09B)),
    *(broken(f"guest.{r.lower()}.granularity", put(**{f"GUEST_{r}_LIMIT": 0xFFFF_FFFE})) for r in SEGMENTS),
    *(broken(f"guest.{r.lower()}.granularity", put(**{f"GUEST_{r}_LIMIT": 0x10_0000}), mode=Mode.REAL)
      for r in SEGMENTS),
    broken("guest.tr.type", put(GUEST_TR_AR_BYTES=0x83)),                       # 16-bit TSS in IA-32e mode
    broken("guest.tr.type", put(GUEST_TR_AR_BYTES=0x89), mode=Mode.PROTECTED),  # available
    broken("guest.tr.s", flip(GUEST_TR_AR_BYTES=1 << 4)),
    broken("guest.tr.p", flip(GUEST_TR_AR_BYTES=1 << 7)),
    broken("guest.tr.reserved", flip(GUEST_TR_AR_BYTES=1 << 11)),
    broken("guest.tr.granularity", flip(GUEST_TR_AR_BYTES=1 << 15)),
    broken("guest.tr.unusable", flip(GUEST_TR_AR_BYTES=1 << 16)),
    broken("guest.ldtr.type", put(GUEST_LDTR_AR_BYTES=0x83)),
    broken("guest.ldtr.s", put(GUEST_LDTR_AR_BYTES=0x92)),
    broken("guest.ldtr.p", put(GUEST_LDTR_AR_BYTES=0x02)),
    broken("guest.ldtr.reserved", put(GUEST_LDTR_AR_BYTES=0x182)),
    broken("guest.ldtr.granularity", put(GUEST_LDTR_AR_BYTES=0x82, GUEST_LDTR_LIMIT=0x10_0000)),
)

GUEST = REGISTERS + SELECTORS_AND_BASES + RIGHTS
