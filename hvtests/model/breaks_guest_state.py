"""One way or more to break each rule on the guest's tables, RIP, RFLAGS, non-register state and PDPTEs."""

from __future__ import annotations

from hvtests.model.breaking import Break, broken, flip, off, on, put
from hvtests.model.breaks_controls import event
from hvtests.model.valid_state import GUEST_TABLES, VMCS_POINTER, Mode

NONCANONICAL = 0x8000_0000_0000
REVISION = 0x2B  # of corei7_skylake_x
LINKED = 0x32_0000
STI, MOV_SS, SMI, NMI, ENCLAVE = (1 << bit for bit in range(5))
HLT, SHUTDOWN, WAIT_FOR_SIPI = 1, 2, 3
IF, TF, VM = 0x202, 0x102, 0x2_0002
BS, RTM, ENABLED = 1 << 14, 1 << 16, 1 << 12
CET = on("ENTRY.LOAD_CET_STATE")

FLOW: tuple[Break, ...] = (
    *(broken(f"guest.{r.lower()}.base_canonical", put(**{f"GUEST_{r}_BASE": NONCANONICAL})) for r in ("GDTR", "IDTR")),
    *(broken(f"guest.{r.lower()}.limit_upper", put(**{f"GUEST_{r}_LIMIT": 0x1_0000})) for r in ("GDTR", "IDTR")),
    broken("guest.rip.upper", put(GUEST_RIP=1 << 32), mode=Mode.PROTECTED),
    broken("guest.rip.upper", put(GUEST_RIP=1 << 32), mode=Mode.COMPATIBILITY),
    broken("guest.rip.canonical", put(GUEST_RIP=1 << 48)),
    broken("guest.rip.canonical", put(GUEST_RIP=0xFFFE_0000_0000_0000)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0x2 | 1 << 3)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0x2 | 1 << 5)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0x2 | 1 << 15)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0x2 | 1 << 22)),
    broken("guest.rflags.reserved", put(GUEST_RFLAGS=0x2 | 1 << 63)),
    broken("guest.rflags.vm_in_ia32e", on("IA32E_MODE_GUEST"), flip(GUEST_CR4=0x20), put(GUEST_IA32_EFER=0x500),
           mode=Mode.V8086),
    broken("guest.rflags.vm_without_pe", flip(GUEST_CR0=0x8000_0001), mode=Mode.V8086),
    broken("guest.rflags.if_for_interrupt", event(0x20, 0)),
    broken("guest.ssp.valid", CET, put(GUEST_SSP=0x1002), cpu="everything"),
    broken("guest.ssp.valid", CET, put(GUEST_SSP=1 << 48), cpu="everything"),
    broken("guest.ssp.valid", CET, put(GUEST_SSP=1 << 32), cpu="everything", mode=Mode.PROTECTED),
)

ACTIVITY: tuple[Break, ...] = (
    broken("guest.activity.supported", put(GUEST_ACTIVITY_STATE=4)),
    broken("guest.activity.supported", put(GUEST_ACTIVITY_STATE=HLT), without=("ACTIVITY_HLT",)),
    broken("guest.activity.supported", put(GUEST_ACTIVITY_STATE=SHUTDOWN), without=("ACTIVITY_SHUTDOWN",)),
    broken("guest.activity.supported", put(GUEST_ACTIVITY_STATE=WAIT_FOR_SIPI), without=("ACTIVITY_WAIT_SIPI",)),
    broken("guest.activity.hlt_cpl", put(GUEST_ACTIVITY_STATE=HLT, GUEST_SS_AR_BYTES=0xC0F3, GUEST_CS_AR_BYTES=0xA0FB)),
    broken("guest.activity.with_blocking", put(GUEST_ACTIVITY_STATE=SHUTDOWN, GUEST_INTERRUPTIBILITY_INFO=STI,
                                               GUEST_RFLAGS=IF)),
    broken("guest.activity.with_blocking", put(GUEST_ACTIVITY_STATE=HLT, GUEST_INTERRUPTIBILITY_INFO=MOV_SS)),
    broken("guest.activity.event_in_hlt", put(GUEST_ACTIVITY_STATE=HLT), event(6, 3)),
    broken("guest.activity.event_in_hlt", put(GUEST_ACTIVITY_STATE=HLT), event(0x80, 4, length=2)),
    broken("guest.activity.event_in_shutdown", put(GUEST_ACTIVITY_STATE=SHUTDOWN), event(1, 3)),
    broken("guest.activity.event_in_shutdown", put(GUEST_ACTIVITY_STATE=SHUTDOWN, GUEST_RFLAGS=IF), event(0x20, 0)),
    broken("guest.activity.event_in_wait_for_sipi", put(GUEST_ACTIVITY_STATE=WAIT_FOR_SIPI), event(2, 2)),
)

BLOCKING: tuple[Break, ...] = (
    broken("guest.blocking.reserved", put(GUEST_INTERRUPTIBILITY_INFO=1 << 5)),
    broken("guest.blocking.sti_and_mov_ss", put(GUEST_INTERRUPTIBILITY_INFO=STI | MOV_SS, GUEST_RFLAGS=IF)),
    broken("guest.blocking.sti_without_if", put(GUEST_INTERRUPTIBILITY_INFO=STI)),
    broken("guest.blocking.for_interrupt", put(GUEST_INTERRUPTIBILITY_INFO=STI, GUEST_RFLAGS=IF), event(0x20, 0)),
    broken("guest.blocking.for_interrupt", put(GUEST_INTERRUPTIBILITY_INFO=MOV_SS, GUEST_RFLAGS=IF), event(0x20, 0)),
    broken("guest.blocking.mov_ss_for_nmi", put(GUEST_INTERRUPTIBILITY_INFO=MOV_SS), event(2, 2)),
    broken("guest.blocking.smi", put(GUEST_INTERRUPTIBILITY_INFO=SMI)),
    broken("guest.blocking.sti_for_nmi", put(GUEST_INTERRUPTIBILITY_INFO=STI, GUEST_RFLAGS=IF), event(2, 2)),
    broken("guest.blocking.nmi_for_nmi", on("VIRTUAL_NMIS"), put(GUEST_INTERRUPTIBILITY_INFO=NMI), event(2, 2)),
    broken("guest.blocking.enclave", put(GUEST_INTERRUPTIBILITY_INFO=ENCLAVE)),
)

PENDING: tuple[Break, ...] = (
    *(broken("guest.pending_debug.reserved", put(GUEST_PENDING_DBG_EXCEPTIONS=1 << bit))
      for bit in (4, 10, 11, 13, 15, 17, 63)),
    broken("guest.pending_debug.bs_missing", put(GUEST_INTERRUPTIBILITY_INFO=MOV_SS, GUEST_RFLAGS=TF)),
    broken("guest.pending_debug.bs_missing", put(GUEST_ACTIVITY_STATE=HLT, GUEST_RFLAGS=TF)),
    broken("guest.pending_debug.bs_unexpected", put(GUEST_INTERRUPTIBILITY_INFO=MOV_SS,
                                                    GUEST_PENDING_DBG_EXCEPTIONS=BS)),
    broken("guest.pending_debug.bs_unexpected", put(GUEST_ACTIVITY_STATE=HLT, GUEST_RFLAGS=TF, GUEST_IA32_DEBUGCTL=2,
                                                    GUEST_PENDING_DBG_EXCEPTIONS=BS)),
    broken("guest.pending_debug.rtm", put(GUEST_PENDING_DBG_EXCEPTIONS=RTM)),  # this CPU has none
    broken("guest.pending_debug.rtm", put(GUEST_PENDING_DBG_EXCEPTIONS=RTM | ENABLED)),
)

OTHERS: tuple[Break, ...] = (
    broken("guest.link.align", put(VMCS_LINK_POINTER=LINKED | 0x10), memory={LINKED | 0x10: REVISION}),
    broken("guest.link.width", put(VMCS_LINK_POINTER=1 << 40), memory={1 << 40: REVISION}),
    broken("guest.link.revision", put(VMCS_LINK_POINTER=LINKED), memory={LINKED: REVISION + 1}),
    broken("guest.link.shadow", put(VMCS_LINK_POINTER=LINKED), memory={LINKED: 1 << 31 | REVISION}),
    broken("guest.link.shadow", on("VMCS_SHADOWING"), put(VMCS_LINK_POINTER=LINKED), memory={LINKED: REVISION}),
    broken("guest.link.current", put(VMCS_LINK_POINTER=VMCS_POINTER), memory={VMCS_POINTER: REVISION}),
    *(broken(f"guest.pdptr{n}.reserved", put(**{f"GUEST_PDPTR{n}": 1 | bit}), mode=Mode.PAE)
      for n, bit in enumerate((1 << 1, 1 << 5, 1 << 40, 1 << 63))),
    *(broken("guest.pdptes.memory", off("ENABLE_EPT", "UNRESTRICTED_GUEST"), mode=Mode.PAE,
             memory={GUEST_TABLES + 8 * n: 1 | 1 << 8}) for n in range(4)),
)

GUEST_STATE = FLOW + ACTIVITY + BLOCKING + PENDING + OTHERS
