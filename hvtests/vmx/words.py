"""The value of a VMCS field in words: control names, access rights, control-register bits, events, addresses.

Only what a person needs to see why a check failed; the facts come from `generator.arch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from generator.arch import cr, events, msr_bits
from generator.arch import descriptors as d
from generator.arch.controls import WORDS
from generator.arch.vmcs import BY_NAME


def _flags(prefix: str) -> tuple[tuple[int, str], ...]:
    """(mask, name) of every single bit that `generator.arch.cr` names with a prefix."""
    found = [(value, name.removeprefix(prefix)) for name, value in vars(cr).items()
             if name.startswith(prefix) and isinstance(value, int) and value > 0 and not value & value - 1]
    return tuple(sorted(found))


_CR0, _CR4, _EFER, _RFLAGS = _flags("CR0_"), _flags("CR4_"), _flags("EFER_"), _flags("RFLAGS_")
_BLOCKING = ((1, "blocking by STI"), (2, "blocking by MOV SS"), (4, "blocking by SMI"), (8, "blocking by NMI"),
             (16, "enclave interruption"))
_PENDING = (*((1 << n, f"B{n}") for n in range(4)), (1 << 11, "BLD"), (1 << 12, "enabled breakpoint"), (1 << 14, "BS"),
            (1 << 16, "RTM"))
_MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}
_SYSTEM_TYPES = {
    d.TYPE_TSS16_AVAILABLE: "available 16-bit TSS", d.TYPE_LDT: "LDT", d.TYPE_TSS16_BUSY: "busy 16-bit TSS",
    d.TYPE_TSS_AVAILABLE: "available TSS", d.TYPE_TSS_BUSY: "busy TSS",
}


def bits(value: int, names: tuple[tuple[int, str], ...]) -> str:
    """Names of the bits that are 1, lowest first; a bit without a name is ``bit N``."""
    words, rest = [], value
    for mask, name in names:
        if value & mask:
            words.append((mask, name))
            rest &= ~mask
    words += [(1 << bit, f"bit {bit}") for bit in range(rest.bit_length()) if rest >> bit & 1]
    return ", ".join(name for _, name in sorted(words)) or "none"


def access_rights(value: int) -> str:
    """Access rights in VMX form: the type, S, DPL, the flags (SDM 3C table 25-2)."""
    if value & d.AR_UNUSABLE:
        return "unusable"
    kind = value & d.AR_TYPE_MASK
    if not value & d.AR_S:
        words = [f"system type {kind} ({_SYSTEM_TYPES.get(kind, 'not a segment')})"]
    elif kind & d.AR_CODE:
        words = [f"type {kind}: " + ("conforming " if kind & d.AR_CONFORMING else "") + "code"
                 + (", readable" if kind & d.AR_READABLE else "")]
    else:
        words = [f"type {kind}: " + ("expand-down " if kind & d.AR_EXPAND_DOWN else "")
                 + ("read/write" if kind & d.AR_WRITABLE else "read-only") + " data"]
    if value & d.AR_S:
        words.append("accessed" if kind & d.AR_ACCESSED else "not accessed")
    words.append(f"DPL {(value & d.AR_DPL_MASK) >> d.AR_DPL_SHIFT}")
    words.append("present" if value & d.AR_P else "not present")
    words += [name for mask, name in ((d.AR_L, "L"), (d.AR_DB, "D/B"), (d.AR_G, "G")) if value & mask]
    if value & d.AR_RESERVED:
        words.append(f"reserved bits {value & d.AR_RESERVED:#x}")
    return ", ".join(words)


def _pat(value: int) -> str:
    return " ".join(_MEMORY_TYPES.get(kind, f"({kind:#x})") for kind in value.to_bytes(8, "little"))


def _eptp(value: int) -> str:
    words = [_MEMORY_TYPES.get(value & 7, f"memory type {value & 7}"), f"{(value >> 3 & 7) + 1}-level"]
    words += [name for bit, name in ((6, "accessed and dirty flags"), (7, "supervisor shadow stacks"))
              if value >> bit & 1]
    return ", ".join([*words, f"table at {value & ~0xFFF:#x}"])


def _selector(value: int) -> str:
    return f"index {value >> 3}, {'LDT' if value & 4 else 'GDT'}, RPL {value & 3}"


def _activity(value: int) -> str:
    return {0: "active", 1: "HLT", 2: "shutdown", 3: "wait-for-SIPI"}.get(value, "no such state")


def _link(value: int) -> str:
    return "none" if value == (1 << 64) - 1 else ""


def _debugctl(value: int) -> str:
    return bits(value, tuple((1 << field.low, field.name) for field in msr_bits.BITS["IA32_DEBUGCTL"]))


def _controls(field: str) -> tuple[tuple[int, str], ...]:
    return tuple((bit.mask, bit.name) for word in WORDS if word.field == field for bit in word.bits)


_CONTROL_FIELDS = {word.field: _controls(word.field) for word in WORDS}
_SHOWN: Mapping[str, Callable[[int], str]] = {
    "GUEST_CR0": lambda v: bits(v, _CR0), "HOST_CR0": lambda v: bits(v, _CR0),
    "GUEST_CR4": lambda v: bits(v, _CR4), "HOST_CR4": lambda v: bits(v, _CR4),
    "GUEST_IA32_EFER": lambda v: bits(v, _EFER), "HOST_IA32_EFER": lambda v: bits(v, _EFER),
    "GUEST_RFLAGS": lambda v: bits(v & ~cr.RFLAGS_IOPL, _RFLAGS) + f", IOPL {v >> 12 & 3}",
    "GUEST_IA32_PAT": _pat, "HOST_IA32_PAT": _pat,
    "GUEST_IA32_DEBUGCTL": _debugctl,
    "GUEST_INTERRUPTIBILITY_INFO": lambda v: bits(v, _BLOCKING),
    "GUEST_PENDING_DBG_EXCEPTIONS": lambda v: bits(v, _PENDING),
    "GUEST_ACTIVITY_STATE": _activity,
    "VM_ENTRY_INTR_INFO_FIELD": events.describe,
    "VMCS_LINK_POINTER": _link,
    "EPT_POINTER": _eptp,
}


def field_in_words(name: str, value: int) -> str:
    """What a field's value means; "" where the number says it all."""
    if name in _CONTROL_FIELDS:
        # A default-1 control that nobody names is of no interest; one that is reserved will be told by the rule.
        named = sum(mask for mask, _ in _CONTROL_FIELDS[name])
        return bits(value & named, _CONTROL_FIELDS[name])
    if name.endswith("_AR_BYTES"):
        return access_rights(value)
    if name.endswith("_SELECTOR"):
        return _selector(value)
    shown = _SHOWN.get(name)
    return shown(value) if shown else ""


def field_line(name: str, value: int) -> str:
    """``GUEST_CS_AR_BYTES = 0xa09b (type 11: code, readable, accessed, DPL 0, present, L, G)``."""
    words = field_in_words(name, value)
    digits = BY_NAME[name].bits // 4 if name in BY_NAME else 1
    number = f"{value:#x}" if digits > 8 else f"{value:#0{digits + 2}x}"
    return f"{name} = {number}" + (f" ({words})" if words else "")
