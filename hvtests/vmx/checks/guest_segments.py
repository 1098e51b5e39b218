"""Checks on the guest's segment registers (SDM 3C 27.3.1.2); a failure is exit reason 33.

The guest's RFLAGS.VM decides between the rules of virtual-8086 mode and the others; "unrestricted guest" and CR0.PE
relax some. A register with bit 16 of its access rights 1 is unusable: most rules do not hold it to anything, save CS
and TR, which are always used.
"""

from __future__ import annotations

from generator.arch import cr
from generator.arch import descriptors as d
from hvtests.vmx.checks.fields import DATA_SEGMENTS, ENTRY, GUEST_SEGMENTS, PROC2
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import EntryState

SET = RuleSet(Stage.GUEST, "27.3.1.2")
rule, each = SET.rule, SET.each
FLAGS = "GUEST_RFLAGS"

TI = 1 << 2
RPL = 3
ACCESSED_CODE = frozenset((9, 11, 13, 15))
READ_WRITE_UP = 3        # accessed data, writable, expand-up
V8086_AR = 0xF3
TSS_16, TSS_32 = 3, 11   # busy; 11 is the 64-bit TSS in IA-32e mode
LDT_TYPE = 2


def _ar(s: EntryState, r: str) -> int:
    return s.read(f"GUEST_{r}_AR_BYTES")


def _dpl(ar: int) -> int:
    return ar >> d.AR_DPL_SHIFT & 3


def _protected(s: EntryState, r: str) -> bool:
    """The rules outside virtual-8086 mode apply: CS always, others if usable."""
    return not s.v8086 and (r == "CS" or s.usable(r))


def _granularity(ar: int, limit: int) -> bool:
    if ar & d.AR_G:
        return limit & 0xFFF == 0xFFF
    return not limit >> 20


# -- selectors -----------------------------------------------------------------------------------------------------

@rule("guest.tr.ti", "GUEST_TR_SELECTOR")
def tr_ti(s: EntryState) -> bool:
    """Bit 2 (TI) of GUEST_TR_SELECTOR must be 0."""
    return not s.read("GUEST_TR_SELECTOR") & TI


@rule("guest.ldtr.ti", "GUEST_LDTR_SELECTOR", "GUEST_LDTR_AR_BYTES")
def ldtr_ti(s: EntryState) -> bool:
    """If LDTR is usable, bit 2 (TI) of GUEST_LDTR_SELECTOR must be 0."""
    return not s.usable("LDTR") or not s.read("GUEST_LDTR_SELECTOR") & TI


@rule("guest.ss.rpl", *PROC2, FLAGS, "GUEST_SS_SELECTOR", "GUEST_CS_SELECTOR")
def ss_rpl(s: EntryState) -> bool:
    """Outside virtual-8086 mode and unless "unrestricted guest" is 1, the RPL of SS must equal the RPL of CS."""
    if s.v8086 or s.unrestricted:
        return True
    return s.read("GUEST_SS_SELECTOR") & RPL == s.read("GUEST_CS_SELECTOR") & RPL


# -- base addresses ------------------------------------------------------------------------------------------------

@each(GUEST_SEGMENTS, "guest.{r}.v8086_base", FLAGS, "GUEST_{r}_BASE", "GUEST_{r}_SELECTOR")
def v8086_base(s: EntryState, r: str) -> bool:
    """In virtual-8086 mode, GUEST_{r}_BASE must be the selector shifted left by 4."""
    return not s.v8086 or s.read(f"GUEST_{r}_BASE") == s.read(f"GUEST_{r}_SELECTOR") << 4


@each(("TR", "FS", "GS"), "guest.{r}.base_canonical", "GUEST_{r}_BASE")
def base_canonical(s: EntryState, r: str) -> bool:
    """GUEST_{r}_BASE must be a canonical address."""
    return s.cap.is_canonical(s.read(f"GUEST_{r}_BASE"))


@rule("guest.ldtr.base_canonical", "GUEST_LDTR_BASE", "GUEST_LDTR_AR_BYTES")
def ldtr_base(s: EntryState) -> bool:
    """If LDTR is usable, GUEST_LDTR_BASE must be a canonical address."""
    return not s.usable("LDTR") or s.cap.is_canonical(s.read("GUEST_LDTR_BASE"))


@rule("guest.cs.base_upper", "GUEST_CS_BASE")
def cs_base_upper(s: EntryState) -> bool:
    """Bits 63:32 of GUEST_CS_BASE must be 0."""
    return not s.read("GUEST_CS_BASE") >> 32


@each(("SS", "DS", "ES"), "guest.{r}.base_upper", "GUEST_{r}_BASE", "GUEST_{r}_AR_BYTES")
def base_upper(s: EntryState, r: str) -> bool:
    """If {r} is usable, bits 63:32 of GUEST_{r}_BASE must be 0."""
    return not s.usable(r) or not s.read(f"GUEST_{r}_BASE") >> 32


# -- limits and access rights in virtual-8086 mode -----------------------------------------------------------------

@each(GUEST_SEGMENTS, "guest.{r}.v8086_limit", FLAGS, "GUEST_{r}_LIMIT")
def v8086_limit(s: EntryState, r: str) -> bool:
    """In virtual-8086 mode, GUEST_{r}_LIMIT must be 0xffff."""
    return not s.v8086 or s.read(f"GUEST_{r}_LIMIT") == 0xFFFF


@each(GUEST_SEGMENTS, "guest.{r}.v8086_rights", FLAGS, "GUEST_{r}_AR_BYTES")
def v8086_rights(s: EntryState, r: str) -> bool:
    """In virtual-8086 mode, GUEST_{r}_AR_BYTES must be 0xf3 (present, DPL 3, accessed read/write data)."""
    return not s.v8086 or _ar(s, r) == V8086_AR


# -- type (bits 3:0) -----------------------------------------------------------------------------------------------

@rule("guest.cs.type", *PROC2, FLAGS, "GUEST_CS_AR_BYTES")
def cs_type(s: EntryState) -> bool:
    """The type of CS must be 9, 11, 13 or 15 (accessed code); 3 (accessed read/write data) also if "unrestricted
    guest" is 1."""
    if s.v8086:
        return True
    type_ = _ar(s, "CS") & d.AR_TYPE_MASK
    return type_ in ACCESSED_CODE or (type_ == READ_WRITE_UP and s.unrestricted)


@rule("guest.ss.type", FLAGS, "GUEST_SS_AR_BYTES")
def ss_type(s: EntryState) -> bool:
    """If SS is usable, its type must be 3 or 7 (accessed read/write data)."""
    return not _protected(s, "SS") or _ar(s, "SS") & d.AR_TYPE_MASK in (3, 7)


@each(DATA_SEGMENTS, "guest.{r}.type_accessed", FLAGS, "GUEST_{r}_AR_BYTES")
def type_accessed(s: EntryState, r: str) -> bool:
    """If {r} is usable, bit 0 of its type must be 1 (accessed)."""
    return not _protected(s, r) or bool(_ar(s, r) & d.AR_ACCESSED)


@each(DATA_SEGMENTS, "guest.{r}.type_readable", FLAGS, "GUEST_{r}_AR_BYTES")
def type_readable(s: EntryState, r: str) -> bool:
    """If {r} is usable and bit 3 of its type is 1 (code), bit 1 must be 1 (readable)."""
    if not _protected(s, r):
        return True
    ar = _ar(s, r)
    return not ar & d.AR_CODE or bool(ar & d.AR_READABLE)


# -- S (bit 4), DPL (bits 6:5) -------------------------------------------------------------------------------------

@each(GUEST_SEGMENTS, "guest.{r}.s", FLAGS, "GUEST_{r}_AR_BYTES")
def code_or_data(s: EntryState, r: str) -> bool:
    """S (bit 4) in GUEST_{r}_AR_BYTES must be 1 (code or data) where {r} is used."""
    return not _protected(s, r) or bool(_ar(s, r) & d.AR_S)


@rule("guest.cs.dpl_data", *PROC2, FLAGS, "GUEST_CS_AR_BYTES")
def cs_dpl_data(s: EntryState) -> bool:
    """If the type of CS is 3 (accessed read/write data), the DPL of CS must be 0."""
    ar = _ar(s, "CS")
    return s.v8086 or ar & d.AR_TYPE_MASK != READ_WRITE_UP or _dpl(ar) == 0


@rule("guest.cs.dpl_nonconforming", FLAGS, "GUEST_CS_AR_BYTES", "GUEST_SS_AR_BYTES")
def cs_dpl_nonconforming(s: EntryState) -> bool:
    """If the type of CS is 9 or 11 (non-conforming code), the DPL of CS must equal the DPL of SS."""
    ar = _ar(s, "CS")
    return s.v8086 or ar & d.AR_TYPE_MASK not in (9, 11) or _dpl(ar) == _dpl(_ar(s, "SS"))


@rule("guest.cs.dpl_conforming", FLAGS, "GUEST_CS_AR_BYTES", "GUEST_SS_AR_BYTES")
def cs_dpl_conforming(s: EntryState) -> bool:
    """If the type of CS is 13 or 15 (conforming code), the DPL of CS must not be greater than the DPL of SS."""
    ar = _ar(s, "CS")
    return s.v8086 or ar & d.AR_TYPE_MASK not in (13, 15) or _dpl(ar) <= _dpl(_ar(s, "SS"))


@rule("guest.ss.dpl_rpl", *PROC2, FLAGS, "GUEST_SS_AR_BYTES", "GUEST_SS_SELECTOR")
def ss_dpl_rpl(s: EntryState) -> bool:
    """Unless "unrestricted guest" is 1, the DPL of SS must equal the RPL of its selector."""
    if s.v8086 or s.unrestricted:
        return True
    return _dpl(_ar(s, "SS")) == s.read("GUEST_SS_SELECTOR") & RPL


@rule("guest.ss.dpl_zero", FLAGS, "GUEST_CR0", "GUEST_CS_AR_BYTES", "GUEST_SS_AR_BYTES")
def ss_dpl_zero(s: EntryState) -> bool:
    """If the type of CS is 3 (accessed read/write data) or CR0.PE is 0 in the guest, the DPL of SS must be 0."""
    if s.v8086:
        return True
    if _ar(s, "CS") & d.AR_TYPE_MASK != READ_WRITE_UP and s.read("GUEST_CR0") & cr.CR0_PE:
        return True
    return _dpl(_ar(s, "SS")) == 0


@each(DATA_SEGMENTS, "guest.{r}.dpl_rpl", *PROC2, FLAGS, "GUEST_{r}_AR_BYTES", "GUEST_{r}_SELECTOR")
def data_dpl_rpl(s: EntryState, r: str) -> bool:
    """Unless "unrestricted guest" is 1, if {r} is usable and its type is 0 to 11, its DPL must not be less than the
    RPL of its selector."""
    if s.unrestricted or not _protected(s, r):
        return True
    ar = _ar(s, r)
    return ar & d.AR_TYPE_MASK > 11 or _dpl(ar) >= s.read(f"GUEST_{r}_SELECTOR") & RPL


# -- P (bit 7), reserved bits, D/B (bit 14), G (bit 15) ------------------------------------------------------------

@each(GUEST_SEGMENTS, "guest.{r}.p", FLAGS, "GUEST_{r}_AR_BYTES")
def present(s: EntryState, r: str) -> bool:
    """P (bit 7) in GUEST_{r}_AR_BYTES must be 1 where {r} is used."""
    return not _protected(s, r) or bool(_ar(s, r) & d.AR_P)


@each(GUEST_SEGMENTS, "guest.{r}.reserved", FLAGS, "GUEST_{r}_AR_BYTES")
def reserved(s: EntryState, r: str) -> bool:
    """Bits 31:17 and 11:8 of GUEST_{r}_AR_BYTES must be 0 where {r} is used."""
    return not _protected(s, r) or not _ar(s, r) & d.AR_RESERVED


@rule("guest.cs.db_with_l", ENTRY, FLAGS, "GUEST_CS_AR_BYTES")
def cs_db_with_l(s: EntryState) -> bool:
    """In IA-32e mode, D/B (bit 14) of CS must be 0 if L (bit 13) is 1."""
    return s.v8086 or not s.ia32e or _ar(s, "CS") & (d.AR_DB | d.AR_L) != d.AR_DB | d.AR_L


@each(GUEST_SEGMENTS, "guest.{r}.granularity", FLAGS, "GUEST_{r}_AR_BYTES", "GUEST_{r}_LIMIT")
def granularity(s: EntryState, r: str) -> bool:
    """G (bit 15) in GUEST_{r}_AR_BYTES must be 0 if a bit of the limit's bits 11:0 is 0, and 1 if a bit of its bits
    31:20 is 1, where {r} is used."""
    return not _protected(s, r) or _granularity(_ar(s, r), s.read(f"GUEST_{r}_LIMIT"))


# -- TR ------------------------------------------------------------------------------------------------------------

@rule("guest.tr.type", ENTRY, "GUEST_TR_AR_BYTES")
def tr_type(s: EntryState) -> bool:
    """The type of TR must be 11 (busy 32-bit or 64-bit TSS); 3 (busy 16-bit TSS) also outside IA-32e mode."""
    type_ = _ar(s, "TR") & d.AR_TYPE_MASK
    return type_ == TSS_32 or (type_ == TSS_16 and not s.ia32e)


@rule("guest.tr.s", "GUEST_TR_AR_BYTES")
def tr_s(s: EntryState) -> bool:
    """S (bit 4) of TR must be 0 (system segment)."""
    return not _ar(s, "TR") & d.AR_S


@rule("guest.tr.p", "GUEST_TR_AR_BYTES")
def tr_p(s: EntryState) -> bool:
    """P (bit 7) of TR must be 1."""
    return bool(_ar(s, "TR") & d.AR_P)


@rule("guest.tr.reserved", "GUEST_TR_AR_BYTES")
def tr_reserved(s: EntryState) -> bool:
    """Bits 31:17 and 11:8 of GUEST_TR_AR_BYTES must be 0."""
    return not _ar(s, "TR") & d.AR_RESERVED


@rule("guest.tr.granularity", "GUEST_TR_AR_BYTES", "GUEST_TR_LIMIT")
def tr_granularity(s: EntryState) -> bool:
    """G (bit 15) of TR must be 0 if a bit of the limit's bits 11:0 is 0, and 1 if a bit of its bits 31:20 is 1."""
    return _granularity(_ar(s, "TR"), s.read("GUEST_TR_LIMIT"))


@rule("guest.tr.unusable", "GUEST_TR_AR_BYTES")
def tr_unusable(s: EntryState) -> bool:
    """TR must be usable: bit 16 of GUEST_TR_AR_BYTES must be 0."""
    return s.usable("TR")


# -- LDTR ----------------------------------------------------------------------------------------------------------

@rule("guest.ldtr.type", "GUEST_LDTR_AR_BYTES")
def ldtr_type(s: EntryState) -> bool:
    """If LDTR is usable, its type must be 2 (LDT)."""
    return not s.usable("LDTR") or _ar(s, "LDTR") & d.AR_TYPE_MASK == LDT_TYPE


@rule("guest.ldtr.s", "GUEST_LDTR_AR_BYTES")
def ldtr_s(s: EntryState) -> bool:
    """If LDTR is usable, S (bit 4) must be 0 (system segment)."""
    return not s.usable("LDTR") or not _ar(s, "LDTR") & d.AR_S


@rule("guest.ldtr.p", "GUEST_LDTR_AR_BYTES")
def ldtr_p(s: EntryState) -> bool:
    """If LDTR is usable, P (bit 7) must be 1."""
    return not s.usable("LDTR") or bool(_ar(s, "LDTR") & d.AR_P)


@rule("guest.ldtr.reserved", "GUEST_LDTR_AR_BYTES")
def ldtr_reserved(s: EntryState) -> bool:
    """If LDTR is usable, bits 31:17 and 11:8 of GUEST_LDTR_AR_BYTES must be 0."""
    return not s.usable("LDTR") or not _ar(s, "LDTR") & d.AR_RESERVED


@rule("guest.ldtr.granularity", "GUEST_LDTR_AR_BYTES", "GUEST_LDTR_LIMIT")
def ldtr_granularity(s: EntryState) -> bool:
    """If LDTR is usable, G (bit 15) must be 0 if a bit of the limit's bits 11:0 is 0, and 1 if a bit of its bits
    31:20 is 1."""
    return not s.usable("LDTR") or _granularity(_ar(s, "LDTR"), s.read("GUEST_LDTR_LIMIT"))
