"""One way to break each rule on host state (SDM 3C 27.2.2 to 27.2.4)."""

from __future__ import annotations

from hvtests.model.breaking import Break, broken, flip, off, on, put
from hvtests.model.valid_state import Mode

NONCANONICAL = 0x8000_0000_0000  # bit 47 is 1, bits 63:48 are 0
CET = on("EXIT.LOAD_CET_STATE")

REGISTERS: tuple[Break, ...] = (
    broken("host.cr0.fixed", flip(HOST_CR0=1 << 5)),                  # NE must be 1
    broken("host.cr0.fixed", flip(HOST_CR0=1 << 32)),
    broken("host.cr4.fixed", flip(HOST_CR4=1 << 13)),                 # VMXE must be 1
    broken("host.cr4.fixed", flip(HOST_CR4=1 << 14)),                 # this CPU has no SMX
    broken("host.cr4.cet_needs_wp", flip(HOST_CR4=1 << 23), cpu="everything"),
    broken("host.cr3.width", flip(HOST_CR3=1 << 40)),
    broken("host.sysenter_esp.canonical", put(HOST_IA32_SYSENTER_ESP=NONCANONICAL)),
    broken("host.sysenter_eip.canonical", put(HOST_IA32_SYSENTER_EIP=NONCANONICAL)),
    broken("host.perf_global_ctrl.reserved", on("EXIT.LOAD_IA32_PERF_GLOBAL_CTRL"),
           put(HOST_IA32_PERF_GLOBAL_CTRL=1 << 4)),                   # this CPU has counters 0 to 3
    broken("host.pat.types", flip(HOST_IA32_PAT=4)),                  # byte 0 becomes 2
    broken("host.efer.reserved", flip(HOST_IA32_EFER=1 << 1)),
    broken("host.efer.lma", flip(HOST_IA32_EFER=1 << 10)),
    broken("host.efer.lme", flip(HOST_IA32_EFER=1 << 8)),
    broken("host.s_cet.valid", CET, put(HOST_S_CET=0xC00), cpu="everything"),
    broken("host.s_cet.valid", CET, put(HOST_S_CET=0x40), cpu="everything"),
    broken("host.ssp_table.canonical", CET, put(HOST_INTR_SSP_TABLE=NONCANONICAL), cpu="everything"),
    broken("host.ssp.valid", CET, put(HOST_SSP=0x1002), cpu="everything"),
    broken("host.pkrs.upper", on("EXIT.LOAD_PKRS"), put(HOST_IA32_PKRS=1 << 32), cpu="everything"),
)

SEGMENTS: tuple[Break, ...] = (
    *(broken(f"host.{r.lower()}.rpl", put(**{f"HOST_{r}_SELECTOR": 0x1C if number % 2 else 0x19}))
      for number, r in enumerate(("CS", "SS", "DS", "ES", "FS", "GS", "TR"))),
    broken("host.cs.null", put(HOST_CS_SELECTOR=0)),
    broken("host.tr.null", put(HOST_TR_SELECTOR=0)),
    broken("host.ss.null", off("HOST_ADDRESS_SPACE_SIZE"), put(HOST_SS_SELECTOR=0, HOST_IA32_EFER=0),
           mode=Mode.PROTECTED, host_lma=False),
    *(broken(f"host.{r.lower()}.base", put(**{f"HOST_{r}_BASE": NONCANONICAL}))
      for r in ("FS", "GS", "GDTR", "IDTR", "TR")),
)

SIZE: tuple[Break, ...] = (
    broken("host.size.ia32e_from_legacy", host_lma=False, also=("host.size.host64_from_legacy",)),
    broken("host.size.host64_from_legacy", mode=Mode.PROTECTED, host_lma=False),
    broken("host.size.host32_from_ia32e", off("HOST_ADDRESS_SPACE_SIZE"), put(HOST_IA32_EFER=0), mode=Mode.PROTECTED),
    broken("host.size.ia32e_guest", off("HOST_ADDRESS_SPACE_SIZE"), put(HOST_IA32_EFER=0),
           before=("host.size.host32_from_ia32e",)),                 # from whichever mode, another rule fails too
    broken("host.size.pcide", off("HOST_ADDRESS_SPACE_SIZE"), put(HOST_IA32_EFER=0), flip(HOST_CR4=1 << 17),
           mode=Mode.PROTECTED, host_lma=False),
    broken("host.size.rip_upper", off("HOST_ADDRESS_SPACE_SIZE"), put(HOST_IA32_EFER=0, HOST_RIP=1 << 32),
           mode=Mode.PROTECTED, host_lma=False),
    broken("host.size.pae", flip(HOST_CR4=1 << 5)),
    broken("host.size.rip_canonical", put(HOST_RIP=NONCANONICAL)),
)

HOST = REGISTERS + SEGMENTS + SIZE
