"""The sample of VM entries on which the rules and Bochs are compared: which VMCSs, which fields changed, how.

Three parts, all deterministic: the ways to break each rule; single bits and a few whole values of every field that
checks look at, in each mode; and several changes at once, drawn with a fixed seed from the other two parts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from generator.arch.controls import ENTRY, PROCBASED, PROCBASED2
from generator.arch.vmcs import BY_NAME
from hvtests.model.bochs_entry import LINKED, LINKED_SHADOW, PAE_TABLE, PAE_TABLE_BAD, VTPR_PAGE, Fields, Trial
from hvtests.model.breaks_controls import CONTROLS
from hvtests.model.breaks_guest import GUEST
from hvtests.model.breaks_guest_state import GUEST_STATE
from hvtests.model.breaks_host import HOST
from hvtests.model.valid_state import VMCS_POINTER, Mode, valid_state
from hvtests.vmx.capabilities import CpuModel

SEED = 20240229
RESTRICTED = "RESTRICTED_"
SEGMENTS = ("CS", "SS", "DS", "ES", "FS", "GS")

CONTROL_WORDS = ("PIN_BASED_VM_EXEC_CONTROL", "CPU_BASED_VM_EXEC_CONTROL", "SECONDARY_VM_EXEC_CONTROL",
                 "VM_EXIT_CONTROLS", "VM_ENTRY_CONTROLS")
HIGH = (12, 31, 32, 39, 40, 46, 47, 48, 51, 52, 62, 63)
ADDRESSES = ("IO_BITMAP_A", "IO_BITMAP_B", "MSR_BITMAP", "EPT_POINTER")
CANONICALS = ("GUEST_SYSENTER_ESP", "GUEST_SYSENTER_EIP", "GUEST_GDTR_BASE", "GUEST_IDTR_BASE", "GUEST_RIP",
              "HOST_IA32_SYSENTER_ESP", "HOST_IA32_SYSENTER_EIP", "HOST_FS_BASE", "HOST_GS_BASE", "HOST_TR_BASE",
              "HOST_GDTR_BASE", "HOST_IDTR_BASE")


def bases(cap: CpuModel) -> dict[str, Fields]:
    """The VMCSs that trials start from: each mode, and those that can do without unrestricted guest so too.

    Every exception exits and the preemption timer is 0, so that a guest that is entered comes back at once.
    """
    made: dict[str, Fields] = {}
    unrestricted = cap.has("UNRESTRICTED_GUEST")
    for mode in Mode:
        values = valid_state(mode, cap) | {"EXCEPTION_BITMAP": 0xFFFF_FFFF}
        if mode is Mode.PAE:
            values["GUEST_CR3"] = PAE_TABLE
        if mode is not Mode.REAL or unrestricted:
            made[mode.name] = values
        if mode is not Mode.REAL and unrestricted:
            restricted = values["SECONDARY_VM_EXEC_CONTROL"] & ~PROCBASED2.mask("UNRESTRICTED_GUEST")
            made[RESTRICTED + mode.name] = values | {"SECONDARY_VM_EXEC_CONTROL": restricted}
    return made


def _trial(base: str, **changes: int) -> Trial:
    return Trial(base, tuple(changes.items()))


def _waits(trial: Trial) -> bool:
    """The guest may come to wait for a SIPI, from which nothing in Bochs would bring it back."""
    changes = dict(trial.changes)
    return changes.get("GUEST_ACTIVITY_STATE") == 3 and not changes.get("VM_ENTRY_INTR_INFO_FIELD", 0) >> 31


class Sample:
    """The trials for one CPU."""

    def __init__(self, cap: CpuModel) -> None:
        self.cap = cap
        self.bases = bases(cap)

    def singles(self) -> list[Trial]:
        """Every trial but the combined ones, each once."""
        found = [*self.broken_rules(), *self.controls(), *self.registers(), *self.segments(), *self.states(),
                 *self.events()]
        return [trial for trial in dict.fromkeys(found) if trial.base in self.bases and not _waits(trial)]

    def combined(self, count: int) -> list[Trial]:
        """Two or three changes at once, each drawn from the single ones of the same base."""
        chosen = random.Random(SEED)
        by_base: dict[str, list[Trial]] = {}
        for trial in self.singles():
            by_base.setdefault(trial.base, []).append(trial)
        made = []
        for _ in range(count):
            base = chosen.choice(list(by_base))
            changes: dict[str, int] = {}
            for trial in chosen.sample(by_base[base], chosen.choice((2, 2, 3))):
                changes |= dict(trial.changes)
            made.append(Trial(base, tuple(changes.items())))
        return [trial for trial in made if not _waits(trial)]

    def _flips(self, base: str, field: str, *places: int) -> Iterator[Trial]:
        for bit in places or range(BY_NAME[field].bits):
            if base in self.bases:
                yield _trial(base, **{field: self.bases[base].get(field, 0) ^ 1 << bit})

    # -- each rule broken ----------------------------------------------------------------------------------------------

    def broken_rules(self) -> Iterator[Trial]:
        """The changes by which tests break single rules, whether or not they break them on this CPU."""
        for case in CONTROLS + HOST + GUEST + GUEST_STATE:
            if not case.memory and case.host_lma and case.mode.name in self.bases:
                base = self.bases[case.mode.name]
                values = {**case.values(self.cap), "EXCEPTION_BITMAP": 0xFFFF_FFFF}
                if case.mode is Mode.PAE:
                    values.setdefault("GUEST_CR3", PAE_TABLE)
                yield Trial(case.mode.name, tuple((name, value) for name, value in values.items()
                                                  if value != base.get(name, 0)))

    def controls(self) -> Iterator[Trial]:
        """Every bit of every control word, and what the controls make meaningful."""
        for base in ("LONG", "REAL", "RESTRICTED_PROTECTED"):
            for field in CONTROL_WORDS:
                yield from self._flips(base, field)
        for field in ADDRESSES:
            yield from self._flips("LONG", field)
        yield from (_trial("LONG", CR3_TARGET_COUNT=count) for count in (1, 4, 5, 256))
        yield from (_trial("LONG", VIRTUAL_PROCESSOR_ID=vpid) for vpid in (0, 2, 0xFFFF))
        shadow = self.bases["LONG"]["CPU_BASED_VM_EXEC_CONTROL"] | PROCBASED.mask("USE_TPR_SHADOW")
        for threshold in (0, 5, 6, 15, 16):  # VTPR is 5 there
            yield _trial("LONG", CPU_BASED_VM_EXEC_CONTROL=shadow, VIRTUAL_APIC_PAGE_ADDR=VTPR_PAGE,
                         TPR_THRESHOLD=threshold)
        for area in ("VM_EXIT_MSR_STORE", "VM_EXIT_MSR_LOAD", "VM_ENTRY_MSR_LOAD"):
            for address in (8, 1 << 40, (1 << 40) - 16, 1 << 63, (1 << 64) - 16):
                yield _trial("LONG", **{f"{area}_ADDR": address, f"{area}_COUNT": 2})

    def registers(self) -> Iterator[Trial]:
        """Bits of control registers, EFER, RFLAGS, debug registers, PAT, host selectors and bases."""
        for base in self.bases:
            for field in ("GUEST_CR0", "GUEST_CR4", "GUEST_RFLAGS"):
                yield from self._flips(base, field, *range(32), 32, 63)
            yield from self._flips(base, "GUEST_IA32_EFER", *range(16), 32, 63)
            yield from self._flips(base, "GUEST_RIP", 31, 32, 46, 47, 48, 63)
            yield from self._flips(base, "GUEST_CR3", *HIGH)
            yield from self._flips(base, "GUEST_DR7", *range(0, 64, 5))
        yield from self._flips("LONG", "GUEST_IA32_DEBUGCTL", *range(20), 63)
        for side in ("GUEST", "HOST"):
            for kind in range(9):
                yield _trial("LONG", **{f"{side}_IA32_PAT": 0x0007_0406_0007_0406 & ~(0xFF << 16) | kind << 16})
        cet = self.bases["LONG"]["VM_ENTRY_CONTROLS"] | ENTRY.mask("LOAD_CET_STATE")
        for bit in (0, 1, 2, 31, 32, 46, 47, 48, 63):
            yield _trial("LONG", VM_ENTRY_CONTROLS=cet, GUEST_SSP=1 << bit)
        yield from self._flips("LONG", "HOST_CR0", 5, 16, 18, 31, 0, 32, 63, 1, 4)
        yield from self._flips("LONG", "HOST_CR4", *range(32), 32, 63)
        yield from self._flips("LONG", "HOST_CR3", 40, 47, 51, 52, 63)
        yield from self._flips("LONG", "HOST_IA32_EFER", *range(16), 32, 63)
        yield from self._flips("LONG", "HOST_RIP", 47, 48, 63)
        for field in CANONICALS:
            yield from self._flips("LONG", field, 46, 47, 48, 63)
            yield _trial("LONG", **{field: 0xFFFF_8000_0000_0000}) if field != "GUEST_RIP" else _trial("LONG")
        for register in (*SEGMENTS, "TR"):
            yield from self._flips("LONG", f"HOST_{register}_SELECTOR", 0, 1, 2)
            yield _trial("LONG", **{f"HOST_{register}_SELECTOR": 0})

    def segments(self) -> Iterator[Trial]:
        """Types, DPL, S, P, reserved bits, limits, bases and selectors of each segment register."""
        for base in self.bases:
            for register in (*SEGMENTS, "TR", "LDTR"):
                rights = self.bases[base][f"GUEST_{register}_AR_BYTES"]
                field = f"GUEST_{register}_AR_BYTES"
                for kind in range(16):
                    yield _trial(base, **{field: rights & ~0x1_000F | kind | 0x80})
                yield from self._flips(base, field, *range(4, 18), 31)
                yield from self._flips(base, f"GUEST_{register}_SELECTOR", 0, 1, 2, 15)
                yield from self._flips(base, f"GUEST_{register}_BASE", 4, 31, 32, 47, 63)
                yield from self._flips(base, f"GUEST_{register}_LIMIT", 0, 11, 15, 16, 20, 31)
        for kind in (9, 13):
            for code in range(4):
                for stack in range(4):
                    for rpl in (0, 1, 3):
                        yield _trial("LONG", GUEST_CS_AR_BYTES=0xA090 | kind | code << 5,
                                     GUEST_SS_AR_BYTES=0xC093 | stack << 5, GUEST_CS_SELECTOR=0x08 | rpl)
        for register in ("GDTR", "IDTR"):
            yield from self._flips("LONG", f"GUEST_{register}_LIMIT", 0, 15, 16, 31)

    def states(self) -> Iterator[Trial]:
        """Activity, interruptibility, pending debug exceptions, link pointer, PDPTEs, and events to inject."""
        for base in filter(self.bases.__contains__, ("LONG", "PROTECTED", "REAL", "V8086")):
            for activity in (1, 2, 4, 5, 1 << 31):
                yield _trial(base, GUEST_ACTIVITY_STATE=activity)
            yield from self._flips(base, "GUEST_INTERRUPTIBILITY_INFO", *range(8), 31)
            for flags in (0x2, 0x202, 0x102, 0x302):
                flags |= self.bases[base]["GUEST_RFLAGS"]
                for blocking in range(4):
                    for pending in (0, 1 << 14, 1 << 12):
                        yield _trial(base, GUEST_RFLAGS=flags, GUEST_INTERRUPTIBILITY_INFO=blocking,
                                     GUEST_PENDING_DBG_EXCEPTIONS=pending)
        yield from self._flips("LONG", "GUEST_PENDING_DBG_EXCEPTIONS", *range(20), 63)
        yield from (_trial("LONG", VMCS_LINK_POINTER=pointer) for pointer in (
            0, 1, LINKED, LINKED | 0x800, LINKED_SHADOW, 1 << 40, VMCS_POINTER, (1 << 64) - 2))
        for other in ({"GUEST_ACTIVITY_STATE": 4}, {"GUEST_INTERRUPTIBILITY_INFO": 3}, {"GUEST_RFLAGS": 0},
                      {"GUEST_PENDING_DBG_EXCEPTIONS": 1 << 4}, {"GUEST_CR0": 0}, {"VIRTUAL_PROCESSOR_ID": 0}):
            yield _trial("LONG", VMCS_LINK_POINTER=1, **other)
        for field in ("GUEST_PDPTR0", "GUEST_PDPTR1", "GUEST_PDPTR2", "GUEST_PDPTR3"):
            for bit in range(64):
                yield _trial("PAE", **{field: 1 | 1 << bit})
            yield _trial("PAE", **{field: 0xFFFF_FFFF_FFFF_FFFE})
        base = "RESTRICTED_PAE" if "RESTRICTED_PAE" in self.bases else "PAE"
        without_ept = self.bases[base]["SECONDARY_VM_EXEC_CONTROL"] & ~PROCBASED2.mask("ENABLE_EPT")
        yield _trial(base, SECONDARY_VM_EXEC_CONTROL=without_ept)
        yield _trial(base, SECONDARY_VM_EXEC_CONTROL=without_ept, GUEST_CR3=PAE_TABLE_BAD)

    def events(self) -> Iterator[Trial]:
        """Every interruption type with vectors of each kind, with and without an error code, and what goes along."""
        for base in ("LONG", "REAL"):
            for kind in range(7):
                for vector in (0, 1, 2, 3, 6, 8, 13, 14, 17, 18, 21, 31, 32, 255):
                    for code in (0, 1 << 11):
                        info = 1 << 31 | code | kind << 8 | vector
                        yield _trial(base, VM_ENTRY_INTR_INFO_FIELD=info, VM_ENTRY_INSTRUCTION_LEN=1)
        yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0700)  # few of type 7: each ends a run of Bochs
        yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0702)
        yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0702, HOST_CR0=0)
        for bit in range(12, 31):
            yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0306 | 1 << bit)
        for bit in range(32):
            yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0B0D, VM_ENTRY_EXCEPTION_ERROR_CODE=1 << bit)
        for kind in (4, 5, 6):
            for length in (0, 1, 15, 16, 1 << 31):
                yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=0x8000_0003 | kind << 8, VM_ENTRY_INSTRUCTION_LEN=length)
        for info in (0x8000_0020, 0x8000_0202, 0x8000_0306, 0x8000_0301, 0x8000_0312, 0x8000_0403):
            for flags in (0x2, 0x202):
                for blocking in (0, 1, 2, 8):
                    for activity in (0, 1, 2, 3):
                        yield _trial("LONG", VM_ENTRY_INTR_INFO_FIELD=info, VM_ENTRY_INSTRUCTION_LEN=1,
                                     GUEST_RFLAGS=flags, GUEST_INTERRUPTIBILITY_INFO=blocking,
                                     GUEST_ACTIVITY_STATE=activity)
