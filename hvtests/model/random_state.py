"""Random VMCS contents that the manual allows: each value is drawn from those that a rule's text permits."""

from __future__ import annotations

from hypothesis import strategies as st

from generator.arch.controls import EXIT, PINBASED, PROCBASED, PROCBASED2
from hvtests.model.valid_state import Mode, valid_state
from hvtests.vmx.capabilities import CpuModel

PAGES = st.integers(0, (1 << 28) - 1).map(lambda page: page << 12)
CANONICAL = st.one_of(st.integers(0, (1 << 47) - 1), st.integers((1 << 64) - (1 << 47), (1 << 64) - 1))
BASE32 = st.integers(0, (1 << 32) - 1)
LIMITS = st.one_of(
    st.integers(0, 0xF_FFFF).map(lambda limit: (limit, 0)),
    st.integers(0, 0xF_FFFF).map(lambda limit: (limit << 12 | 0xFFF, 1 << 15)))
PAT = st.lists(st.sampled_from((0, 1, 4, 5, 6, 7)), min_size=8, max_size=8).map(
    lambda types: sum(kind << 8 * place for place, kind in enumerate(types)))
DATA = ("DS", "ES", "FS", "GS")
HOST_SELECTORS = st.integers(1, 0x1FFF).map(lambda index: index << 3)

# (control word, those that may be on or off freely in any valid state)
FREE = (
    (PINBASED,  ("EXTERNAL_INTERRUPT_EXITING", "ACTIVATE_PREEMPTION_TIMER")),
    (PROCBASED, ("INTERRUPT_WINDOW_EXITING", "HLT_EXITING", "INVLPG_EXITING", "RDTSC_EXITING", "USE_IO_BITMAPS",
                 "USE_MSR_BITMAPS", "CR3_LOAD_EXITING", "MOV_DR_EXITING", "PAUSE_EXITING")),
    (EXIT,      ("ACKNOWLEDGE_INTERRUPT_ON_EXIT", "SAVE_IA32_PAT", "LOAD_IA32_PAT", "SAVE_IA32_EFER",
                 "LOAD_IA32_EFER", "SAVE_DEBUG_CONTROLS")),
)


def _data_segment(draw: st.DrawFn, register: str, dpl: int, rpl: int) -> dict[str, int]:
    if draw(st.booleans()):
        return {f"GUEST_{register}_AR_BYTES": 0x1_0000 | draw(st.integers(0, 0xFFFF)),
                f"GUEST_{register}_BASE": draw(CANONICAL if register in ("FS", "GS") else BASE32),
                f"GUEST_{register}_LIMIT": draw(BASE32), f"GUEST_{register}_SELECTOR": draw(st.integers(0, 0xFFFF))}
    limit, granularity = draw(LIMITS)
    kind = draw(st.sampled_from((1, 3, 5, 7, 11, 15)))
    free = draw(st.integers(0, 7)) << 12  # AVL, L, D/B
    return {f"GUEST_{register}_AR_BYTES": 0x90 | kind | dpl << 5 | free | granularity,
            f"GUEST_{register}_BASE": draw(CANONICAL if register in ("FS", "GS") else BASE32),
            f"GUEST_{register}_LIMIT": limit,
            f"GUEST_{register}_SELECTOR": draw(st.integers(0, 0x3FFF)) << 2 | rpl}


@st.composite
def random_states(draw: st.DrawFn, cap: CpuModel) -> dict[str, int]:
    """A VMCS that must be entered on `cap`."""
    mode = draw(st.sampled_from(Mode))
    values = valid_state(mode, cap)
    for word, names in FREE:
        chosen = draw(st.sets(st.sampled_from(names)))
        values[word.field] = (values[word.field] & ~word.mask(*names)) | word.mask(*chosen)
    if values[PINBASED.field] & PINBASED.mask("ACTIVATE_PREEMPTION_TIMER") and draw(st.booleans()):
        values[EXIT.field] |= EXIT.mask("SAVE_PREEMPTION_TIMER")
    restricted = mode is not Mode.REAL and draw(st.booleans())
    if restricted:
        values[PROCBASED2.field] &= ~PROCBASED2.mask("UNRESTRICTED_GUEST")
        if mode is not Mode.PAE and draw(st.booleans()):  # without EPT, PDPTEs would be read from memory
            values[PROCBASED2.field] &= ~PROCBASED2.mask("ENABLE_EPT")
    for name in ("IO_BITMAP_A", "IO_BITMAP_B", "MSR_BITMAP"):
        values[name] = draw(PAGES)
    values["EPT_POINTER"] = draw(PAGES) | 3 << 3 | draw(st.sampled_from((0, 6))) | draw(st.sampled_from((0, 1 << 6)))
    values["VIRTUAL_PROCESSOR_ID"] = draw(st.integers(1, 0xFFFF))
    values["CR3_TARGET_COUNT"] = draw(st.integers(0, 4))
    for prefix in ("HOST", "GUEST"):
        values[f"{prefix}_IA32_PAT"] = draw(PAT)
        values[f"{prefix}_CR3"] = draw(st.integers(0, (1 << 40) - 1))
    for name in ("HOST_FS_BASE", "HOST_GS_BASE", "HOST_TR_BASE", "HOST_GDTR_BASE", "HOST_IDTR_BASE", "HOST_RIP",
                 "HOST_IA32_SYSENTER_ESP", "HOST_IA32_SYSENTER_EIP", "GUEST_SYSENTER_ESP", "GUEST_SYSENTER_EIP",
                 "GUEST_GDTR_BASE", "GUEST_IDTR_BASE", "GUEST_TR_BASE", "GUEST_LDTR_BASE"):
        values[name] = draw(CANONICAL)
    for register in ("CS", "SS", "DS", "ES", "FS", "GS", "TR"):
        values[f"HOST_{register}_SELECTOR"] = draw(HOST_SELECTORS)
    values["GUEST_GDTR_LIMIT"] = draw(st.integers(0, 0xFFFF))
    values["GUEST_IDTR_LIMIT"] = draw(st.integers(0, 0xFFFF))
    values["GUEST_CR0"] |= draw(st.integers(0, 7)) << 1 | draw(st.sampled_from((0, 1 << 16, 1 << 18, 3 << 29)))
    values["GUEST_DR7"] = draw(st.integers(0, (1 << 32) - 1))
    flags = draw(st.integers(0, 0xFF)) & 0xD5 | draw(st.sampled_from((0, 0x200))) | draw(st.sampled_from((0, 0x100)))
    values["GUEST_RFLAGS"] |= flags
    if mode is Mode.V8086:
        values["GUEST_RFLAGS"] |= draw(st.integers(0, 3)) << 12
    elif mode is not Mode.REAL:
        dpl = draw(st.integers(0, 3))
        code = values["GUEST_CS_AR_BYTES"] & ~0xF | draw(st.sampled_from((9, 11)))
        values["GUEST_CS_AR_BYTES"] = code | dpl << 5
        values["GUEST_CS_SELECTOR"] = draw(st.integers(1, 0x1FFF)) << 3 | dpl
        values["GUEST_SS_AR_BYTES"] = draw(st.sampled_from((0xC093, 0xC097, 0x1_0000))) | dpl << 5
        values["GUEST_SS_SELECTOR"] = draw(st.integers(0, 0x1FFF)) << 3 | dpl
        values["GUEST_TR_SELECTOR"] = draw(st.integers(0, 0x1FFF)) << 3 | draw(st.integers(0, 3))
        for register in DATA:
            values |= _data_segment(draw, register, dpl, draw(st.integers(0, dpl)))
    if mode is Mode.LONG:
        values["GUEST_RIP"] = draw(CANONICAL)
    else:
        values["GUEST_RIP"] = draw(BASE32)
    _blocking(draw, values)
    return values


def _blocking(draw: st.DrawFn, values: dict[str, int]) -> None:
    """Interruptibility, activity, pending debug exceptions and an event, in combinations that the manual allows."""
    flags = values["GUEST_RFLAGS"]
    kind = draw(st.sampled_from(("plain", "sti", "mov ss", "hlt", "interrupt", "exception", "nmi", "int n")))
    stepping = bool(flags & 0x100)
    if kind == "sti":
        values["GUEST_RFLAGS"] |= 0x200
        values["GUEST_INTERRUPTIBILITY_INFO"] = 1
    elif kind == "mov ss":
        values["GUEST_INTERRUPTIBILITY_INFO"] = 2
    elif kind == "hlt" and not values["GUEST_SS_AR_BYTES"] & 0x60:
        values["GUEST_ACTIVITY_STATE"] = 1
    elif kind == "interrupt":
        values["GUEST_RFLAGS"] |= 0x200
        values["VM_ENTRY_INTR_INFO_FIELD"] = 1 << 31 | draw(st.integers(0, 255))
    elif kind == "exception":
        vector = draw(st.integers(0, 31))
        error = vector in (8, 10, 11, 12, 13, 14, 17) and bool(values["GUEST_CR0"] & 1)
        values["VM_ENTRY_INTR_INFO_FIELD"] = 1 << 31 | 3 << 8 | vector | (1 << 11 if error else 0)
        values["VM_ENTRY_EXCEPTION_ERROR_CODE"] = draw(st.integers(0, 0xFFFF if error else 0xFFFF_FFFF))
    elif kind == "nmi":
        values["VM_ENTRY_INTR_INFO_FIELD"] = 1 << 31 | 2 << 8 | 2
        values["GUEST_INTERRUPTIBILITY_INFO"] = draw(st.sampled_from((0, 8)))
    elif kind == "int n":
        values["VM_ENTRY_INTR_INFO_FIELD"] = 1 << 31 | draw(st.sampled_from((4, 5, 6))) << 8 | draw(st.integers(0, 255))
        values["VM_ENTRY_INSTRUCTION_LEN"] = draw(st.integers(0, 15))
    matters = kind in ("sti", "mov ss") or values.get("GUEST_ACTIVITY_STATE")
    if matters:
        values["GUEST_PENDING_DBG_EXCEPTIONS"] = 1 << 14 if stepping else 0
    else:
        values["GUEST_PENDING_DBG_EXCEPTIONS"] = draw(st.sampled_from((0, 1 << 14, 1 << 12 | 3, 0xF)))


