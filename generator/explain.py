"""`hvforge explain TOPIC WHAT`: one fact of the architecture, its bits, and where the manual says it.

Nothing is printed here: an Explanation is data that the command line lays out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

from generator.arch import controls, cpuid, events, exits, instruction_errors, msrs, vmcs
from generator.arch.bits import BitField
from generator.arch.qualification_bits import QUALIFICATIONS, VMCS_LAYOUTS
from generator.errors import UsageError
from generator.suggest import close_matches


class Check(Protocol):
    """What is told of a check of VM entry; the rules of hvtests.vmx.checks have this shape."""

    @property
    def id(self) -> str: ...
    @property
    def section(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """`rows` are (label, text); `section` is the manual's, or "" where rows have their own."""

    title: str
    section: str
    rows: tuple[tuple[str, str], ...]


Fact = TypeVar("Fact")
Checks = Mapping[str, Check]
_Explainer = Callable[[str, Checks], Explanation]


def explain(topic: str, what: str, checks: Checks = MappingProxyType({})) -> Explanation:
    """What `what` is: an encoding, number, address or name of the kind that `topic` says (see TOPICS).

    `checks` maps the IDs of checks to what is known of them. UsageError names the nearest things there are.
    """
    explainer = TOPICS.get(topic)
    if explainer is None:
        raise UsageError(f'cannot explain "{topic}"; write one of: {", ".join(TOPICS)}')
    return explainer(what.strip(), checks)


def number(text: str) -> int | None:
    """The number that `text` writes: decimal, 0x…, or …h as manuals write hexadecimal; None if it is none."""
    if text.lower().endswith("h") and not text.lower().startswith("0x"):
        text = "0x" + text[:-1]
    try:
        return int(text, 0)
    except ValueError:
        return int(text) if text.isascii() and text.isdigit() else None


def _hex_slip(text: str, table: Mapping[int, object]) -> str:
    """``did you mean 0x48b?`` where `text` is a key of `table` in hexadecimal that lacks its 0x, or else ""."""
    try:
        return f"did you mean 0x{text}?" if int(text, 16) in table else ""
    except ValueError:
        return ""


def _by_name(table: Mapping[str, Fact], name: str) -> Fact | None:
    folded = name.upper().replace("-", "_").replace(" ", "_")
    return table.get(name) or table.get(folded)


def _unknown(kind: str, what: str, names: Iterable[str], hint: str) -> UsageError:
    matches = close_matches(what.replace("-", "_").replace(" ", "_"), names)
    known = "did you mean " + " or ".join(matches) + "?" if matches else hint
    return UsageError(f'there is no {kind} "{what}"; {known}')


def _bit_rows(bits: Iterable[BitField]) -> list[tuple[str, str]]:
    return [(f"bit {field.place}" if field.low == field.high else f"bits {field.place}", f"{field.name}: {field.title}")
            for field in bits]


def _control_rows(word: controls.ControlWord) -> list[tuple[str, str]]:
    return [(f"bit {control.bit}", f"{control.name}: {control.title}") for control in word.bits]


_TYPE_WORDS = MappingProxyType({
    vmcs.FieldType.CONTROL: "control",
    vmcs.FieldType.READ_ONLY: "VM-exit information: VMWRITE works only where IA32_VMX_MISC[29] is 1",
    vmcs.FieldType.GUEST: "guest state",
    vmcs.FieldType.HOST: "host state",
})


def _vmcs(what: str, _: Checks) -> Explanation:
    encoding = number(what)
    if encoding is None:
        field, high = _by_name(vmcs.BY_NAME, what), False
        if field is None:
            hint = _hex_slip(what, vmcs.BY_ENCODING) or "write a name like GUEST_RIP or an encoding like 0x681e"
            raise _unknown("VMCS field", what, vmcs.BY_NAME, hint)
    else:
        decoded = vmcs.decode(encoding)
        if decoded is None:
            hint = _hex_slip(what, vmcs.BY_ENCODING) or _encoding_words(encoding)
            raise UsageError(f'there is no VMCS field "{what}"; {hint}')
        field, high = decoded
    high_half = f", high half {field.high_encoding:#06x}" if field.high_encoding else ""
    rows = [
        ("encoding", f"{field.encoding:#06x}{high_half}"),
        ("width", "natural" if field.width is vmcs.FieldWidth.NATURAL else f"{field.bits} bits"),
        ("type", _TYPE_WORDS[field.type]),
        ("index", f"{field.index} (SDM 3D {field.appendix})"),
    ]
    for word in controls.WORDS:
        if word.field == field.name:
            rows += [("controls", word.name), ("capability MSR", word.true_msr or word.msr), *_control_rows(word)]
    rows += _bit_rows(VMCS_LAYOUTS.get(field.name, ()))
    return Explanation(f"{field.name}{' (high half)' if high else ''}: {field.title}", field.section, tuple(rows))


def _encoding_words(encoding: int) -> str:
    if encoding & ~0x6FFF:
        return "an encoding has bits 14:13, 11:10, 9:1 and 0 alone"
    width, type_ = vmcs.FieldWidth(encoding >> 13), vmcs.FieldType(encoding >> 10 & 3)
    index = encoding >> 1 & 0x1FF
    if encoding & 1 and width is not vmcs.FieldWidth.W64:
        return "only 64-bit fields have a high half"
    return f"{width.name}, {type_.name}, index {index}: the manual gives that no field"


def _exit(what: str, _: Checks) -> Explanation:
    value = number(what)
    reason = _by_name(exits.BY_NAME, what) if value is None else exits.BY_NUMBER.get(value & exits.BASIC_REASON)
    if reason is None:
        if value is not None:
            raise UsageError(f"there is no basic exit reason {value & exits.BASIC_REASON}; they go from 0 to "
                             f"{exits.EXIT_REASONS[-1].number}")
        raise _unknown("exit reason", what, exits.BY_NAME, "write a name such as EPT_VIOLATION or a number such as 48")
    rows = [("number", f"{reason.number} ({reason.number:#x})")]
    if value is not None:
        rows += [(f"bit {bit.low} is 1", bit.title) for bit in VMCS_LAYOUTS["VM_EXIT_REASON"]
                 if bit.low >= 16 and value & bit.mask]
    for control in controls.BITS:
        if control.name == f"{reason.name}_EXITING":
            rows.append(("control", f"{control.word}[{control.bit}] {control.name}: {control.title}"))
    layout = QUALIFICATIONS.get(reason.number, ())
    rows += [(f"qualification {label}", text) for label, text in _bit_rows(layout)]
    if not layout:
        rows.append(("qualification", "0"))
    return Explanation(f"exit {reason.number} {reason.name}: {reason.title}", reason.section, tuple(rows))


def _error(what: str, _: Checks) -> Explanation:
    value = number(what)
    table = instruction_errors
    error = _by_name(table.BY_NAME, what) if value is None else table.BY_NUMBER.get(value)
    if error is None:
        if value in table.UNASSIGNED:
            raise UsageError(f"VM-instruction error {value} has no meaning in the manual")
        raise _unknown("VM-instruction error", what, table.BY_NAME, "they are numbers from 1 to 28")
    return Explanation(f"VM-instruction error {error.number} {error.name}", error.section, (
        ("means", error.title),
        ("where", "VM_INSTRUCTION_ERROR (0x4400), after an instruction that left RFLAGS.ZF = 1"),
    ))


def _msr(what: str, _: Checks) -> Explanation:
    place = _MSR_PLACE.fullmatch(what)
    what = place["name"] if place else what
    address = number(what)
    if address is None:
        msr = _by_name(msrs.BY_NAME, what) or _by_name(msrs.BY_NAME, f"IA32_{what}")
    else:
        msr = msrs.BY_ADDRESS.get(address)
    if msr is None:
        names = [*msrs.BY_NAME, *(name.removeprefix("IA32_") for name in msrs.BY_NAME)]
        slip = _hex_slip(what, msrs.BY_ADDRESS)
        raise _unknown("MSR", what, names, slip or "write a name such as IA32_EFER or an address such as 0x48b")
    covered = msr.address in msrs.BITMAP_LOW or msr.address in msrs.BITMAP_HIGH
    rows = [("address", f"{msr.address:#x}"),
            ("MSR bitmaps", "cover it" if covered else "do not cover it: each access by a guest causes a VM exit")]
    rows += _bit_rows(msr.bits)
    for word in controls.WORDS:
        if msr.name in (word.msr, word.true_msr):
            rows += [("tells of", f"{word.name}, VMCS field {word.field}"), *_control_rows(word)]
    return Explanation(f"{msr.name}: {msr.title}", msr.section, tuple(rows))


def _control(what: str, _: Checks) -> Explanation:
    place = _CONTROL_PLACE.fullmatch(what.upper())
    if place and place["word"] in controls.BY_NAME:
        for control in controls.BY_NAME[place["word"]].bits:
            if control.name == place["name"] or (place["bit"] and control.bit == int(place["bit"])):
                return Explanation(f"{control.name}: {control.title}", control.section, tuple(_one_control(control)))
    words = what.upper().replace("-", " ").replace("_", " ").split()
    exact = controls.find("_".join(words))
    found = exact or _matching(words, whole=True) or _matching(words, whole=False)
    if not found and "_".join(words) in controls.BY_NAME:
        found = controls.BY_NAME["_".join(words)].bits
    if not found:
        names = {control.name for control in controls.BITS}
        raise _unknown("control", what, names, "write a part of its name, such as ept")
    if len(found) == 1 or exact:
        rows: list[tuple[str, str]] = []
        for control in found:
            rows += _one_control(control)
        return Explanation(f"{found[0].name}: {found[0].title}", found[0].section, tuple(rows))
    return Explanation(f'{len(found)} controls match "{what}"', "", tuple(
        (f"{control.word}[{control.bit}] {control.name}", f"{control.title} ({control.section})") for control in found))


def _matching(words: list[str], *, whole: bool) -> tuple[controls.ControlBit, ...]:
    """Controls that have all `words` in their name or title: as whole words, or as parts of words."""
    found = []
    for control in controls.BITS:
        text = f"{control.name} {control.title}".upper().replace("_", " ").replace("-", " ").replace("/", " ")
        if words and all(word in (text.replace(",", " ").split() if whole else text) for word in words):
            found.append(control)
    return tuple(found)


def _one_control(control: controls.ControlBit) -> list[tuple[str, str]]:
    word = controls.BY_NAME[control.word]
    rows = [("word", f"{word.name}, VMCS field {word.field} ({vmcs.BY_NAME[word.field].encoding:#06x})"),
            ("bit", f"{control.bit} (mask {control.mask:#x})")]
    for name, condition in ((word.true_msr, "where IA32_VMX_BASIC[55] is 1"), (word.msr, "")):
        if name is None:
            continue
        text = f"{name} ({msrs.BY_NAME[name].address:#x}): "
        if word.width == 64:
            text += f"it may be 1 if bit {control.bit} is 1"
        else:
            text += f"it must be 1 if bit {control.bit} is 1, may be 1 if bit {control.bit + 32} is 1"
        rows.append(("capability MSR", f"{text} {condition}".rstrip()))
    if control.mask & word.default1:
        rows.append(("default", f"1: {word.msr} says that it must be 1, only the TRUE MSR can say otherwise"))
    if word.activated_by:
        rows.append(("counts only with", f"{word.activated_by[0]} {word.activated_by[1]}"))
    return rows


# CPUID.1:ECX[5], CPUID.7,0:EBX[0], and the manual's own CPUID.01H:ECX.VMX[bit 5] and CPUID.(EAX=07H,ECX=0):EBX[bit 0].
_CPUID_PLACE = re.compile(
    r"(?:CPUID[.:])?\(?(?:EAX=)?(?P<leaf>[0-9A-F]+H?|0X[0-9A-F]+)(?:[,:] ?(?:ECX=)?(?P<subleaf>[0-9A-F]+H?))?\)?"
    r"[:.](?P<register>E[ABCD]X)(?:\.\w+)?\[(?:BIT )?(?P<bit>\d+)\](?: \(.*\))?")
_MSR_PLACE = re.compile(r"(?P<name>\w+) ?(?:\((?P<address>0x[0-9a-f]+)\)|\[\d+\])(?: .*)?", re.IGNORECASE)
_CONTROL_PLACE = re.compile(r"(?P<word>\w+)(?:\[(?P<bit>\d+)\](?: .*)?|\.(?P<name>\w+))")


def _cpuid_at(what: str) -> cpuid.CpuidBit | None:
    place = _CPUID_PLACE.fullmatch(what.upper())
    if place is None:
        return None
    leaf, subleaf = (int(text.removesuffix("H"), 16) for text in (place["leaf"], place["subleaf"] or "0"))
    return next((bit for bit in cpuid.CPUID_BITS if (bit.leaf, bit.subleaf, bit.register, bit.bit) == (
        leaf, subleaf, place["register"].lower(), int(place["bit"]))), None)


def _cpuid(what: str, _: Checks) -> Explanation:
    bit = _by_name(cpuid.BY_NAME, what) or _cpuid_at(what)
    if bit is None:
        raise _unknown("CPUID bit", what, cpuid.BY_NAME, "write a name such as VMX or a place such as CPUID.1:ECX[5]")
    rows = (("where", bit.where), ("mask", f"{bit.mask:#x}"))
    return Explanation(f"{bit.name}: {bit.title}", "SDM 2A 3.3, CPUID", rows)


def _exception(what: str, _: Checks) -> Explanation:
    value = number(what)
    if value is None:
        vector = events.BY_MNEMONIC.get(what.upper()) or events.BY_MNEMONIC.get("#" + what.upper())
    else:
        vector = events.BY_NUMBER.get(value)
    if vector is None:
        raise _unknown("exception", what, events.BY_MNEMONIC, "write a mnemonic such as #GP or a vector such as 13")
    return Explanation(f"{vector.mnemonic}: {vector.title}", vector.section, (
        ("vector", f"{vector.number} (EXCEPTION_BITMAP mask {1 << vector.number:#x})"),
        ("error code", "yes" if vector.has_error_code else "no"),
        ("class", f"{vector.fault_class.value} (SDM 3A table 6-4)"),
    ))


def _check(what: str, checks: Checks) -> Explanation:
    check = checks.get(what) or checks.get(what.lower()) or checks.get(what.upper())
    if check is None:
        raise _unknown("check", what, checks, f"there are {len(checks)}, such as {next(iter(checks), 'none')}")
    rows = [("rule", check.sentence)]
    for name in check.reads:
        field = vmcs.BY_NAME.get(name)
        rows.append(("reads", f"{name} ({field.encoding:#06x}): {field.title}" if field else name))
    return Explanation(f"check {check.id}", check.section, tuple(rows))


TOPICS: Mapping[str, _Explainer] = MappingProxyType({
    "vmcs": _vmcs, "exit": _exit, "error": _error, "msr": _msr, "control": _control, "cpuid": _cpuid,
    "exception": _exception, "check": _check,
})
