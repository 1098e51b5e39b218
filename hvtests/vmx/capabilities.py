"""The modelled CPU as a value: what it offers of VMX, its CPUID leaves, its MSRs, which bits are reserved.

``CpuModel.default()`` is the CPU that ``hvtests`` implements; ``CpuModel.skylake_x()`` is Bochs' corei7_skylake_x with
everything that one promises, used to compare checks with Bochs. Variants come from ``without(name, ...)``, ``with_msr``
and ``with_cpuid``; a model is never changed in place.

Sources: SDM 3D Appendix A (capability MSRs), SDM 3C 24.8 [23.8] (CR0 and CR4 in VMX operation), SDM 3A 2.5 (CR4),
SDM 2A "CPUID", SDM 4 chapter 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from generator.arch import cr, msrs
from generator.arch.controls import ControlWord
from hvtests.vmx import cpu_models, features
from hvtests.vmx.cpu_models import Cpuid
from hvtests.vmx.msr_rules import (
    ALL_ONES,
    MSR_RULES,
    MTRR_TYPES,
    MsrRule,
    Write,
    canonical,
    pat_valid,
)

CR0_DEFINED = (cr.CR0_PE | cr.CR0_MP | cr.CR0_EM | cr.CR0_TS | cr.CR0_ET | cr.CR0_NE | cr.CR0_WP | cr.CR0_AM
               | cr.CR0_NW | cr.CR0_CD | cr.CR0_PG)


@dataclass(frozen=True)
class CpuModel:
    """One CPU. Immutable; compare by value.

    `capabilities`: capability MSR name -> value (a missing name: the MSR does not exist).
    `leaves`: (leaf, subleaf) -> (EAX, EBX, ECX, EDX), each 32 bits, without the bits that follow CR4, XCR0 or the mode.
    `msr_rules`: address -> rule, for every other MSR.
    """

    name: str
    capabilities: Mapping[str, int]
    leaves: Mapping[tuple[int, int], Cpuid]
    msr_rules: Mapping[int, MsrRule]

    @classmethod
    def skylake_x(cls) -> CpuModel:
        """Bochs' corei7_skylake_x, all of it: more than hvtests' machine can run, but its checks can be judged."""
        return cls("skylake-x", MappingProxyType(dict(cpu_models.SKYLAKE_X_CAPABILITIES)),
                   MappingProxyType(dict(cpu_models.SKYLAKE_X_CPUID)),
                   MappingProxyType({rule.address: rule for rule in MSR_RULES}))

    @classmethod
    def default(cls) -> CpuModel:
        """The CPU that hvtests implements: Skylake-X, less what Unicorn's CPU lacks, less `cpu_models.UNMODELLED`
        and with `cpu_models.BEYOND_BOCHS`."""
        full = cls.skylake_x()
        leaves = {key: value for key, value in full.leaves.items() if key[0] not in (*cpu_models.EMPTY_LEAVES, 0xD)}
        leaves.update(cpu_models.MODELLED_XSAVE_LEAVES)
        for key, offered in cpu_models.UNICORN_CPUID.items():
            leaves[key] = _feature_words(key, full.leaves[key], offered)
        for leaf, register, bit, _ in cpu_models.UNMODELLED_CPUID:
            leaves[leaf, 0] = _with_bit(leaves[leaf, 0], register, bit, False)
        leaves[1, 0] = _with_bit(leaves[1, 0], 2, 5, True)  # VMX: what this model is for
        leaves[1, 0] = _with_bit(leaves[1, 0], 2, 3, True)  # MONITOR: the engine knows it, though its CPU does not tell
        model = replace(full, name="hvforge", leaves=MappingProxyType(leaves))
        for word, name in cpu_models.BEYOND_BOCHS:
            for place in features.resolve(f"{word}.{name}"):
                model = model.with_msr(place.msr, model.capability(place.msr) | 1 << place.bit)
        return model.without(*(f"{word}.{name}" for word, name in cpu_models.UNMODELLED))._named("hvforge")

    def _named(self, name: str) -> CpuModel:
        return replace(self, name=name)

    # -- variants ------------------------------------------------------------------------------------------------

    def without(self, *names: str) -> CpuModel:
        """A CPU that lacks the named features, and whatever depends on them.

        A name is that of a control bit (``"UNRESTRICTED_GUEST"``, or ``"EXIT.LOAD_IA32_PAT"`` for one control word
        only), of a CPUID bit (``"VMX"``, ``"SMEP"``), or of a capability bit (``"PAGE_2M"``, ``"TRUE_CTLS"``: see
        `features.CAPABILITY_BITS`). Error: UsageError for an unknown name, with the nearest ones.
        """
        capabilities, leaves = dict(self.capabilities), dict(self.leaves)
        for feature in features.closure(names):
            if feature.kind == "cpuid":
                key = (feature.leaf, feature.subleaf)
                if key in leaves:
                    leaves[key] = _with_bit(leaves[key], feature.register, feature.bit, False)
            elif feature.msr in capabilities:
                capabilities[feature.msr] &= ~(1 << feature.bit)
        model = replace(self, name=f"{self.name} without {', '.join(names)}", leaves=MappingProxyType(leaves))
        return replace(model, capabilities=MappingProxyType(_consistent(capabilities, model)))

    def with_msr(self, name: str, value: int) -> CpuModel:
        """A CPU whose MSR `name` (capability or other) has `value` after reset. Error: KeyError if it has none."""
        if name in self.capabilities:
            return replace(self, capabilities=MappingProxyType({**self.capabilities, name: value}))
        address = next(rule.address for rule in self.msr_rules.values() if rule.name == name)
        changed = replace(self.msr_rules[address], reset=value)
        return replace(self, msr_rules=MappingProxyType({**self.msr_rules, address: changed}))

    def with_cpuid(self, leaf: int, subleaf: int, value: Cpuid) -> CpuModel:
        """A CPU whose CPUID leaf is `value`; control bits and CR4_FIXED1 are left alone."""
        return replace(self, leaves=MappingProxyType({**self.leaves, (leaf, subleaf): value}))

    # -- CPUID ---------------------------------------------------------------------------------------------------

    def cpuid(self, leaf: int, subleaf: int, *, cr4: int = 0, long_mode: bool = True) -> Cpuid:
        """What CPUID returns; OSXSAVE follows `cr4`, SYSCALL `long_mode` (CS.L = 1). Leaves out of range return the
        highest basic leaf's data (SDM 2A "CPUID")."""
        highest = self.leaves[0x8000_0000 if leaf & 0x8000_0000 else 0, 0][0]
        if leaf > highest or 0x4000_0000 <= leaf < 0x8000_0000:
            leaf = self.leaves[0, 0][0]
        words = self.leaves.get((leaf, subleaf))
        if words is None:
            words = self.leaves.get((leaf, 0)) if leaf not in (0x4, 0x7, 0xB, 0xD) else None
        if words is None:
            return (0, 0, subleaf & 0xFF if leaf == 0xB else 0, 0)
        if leaf == 1 and cr4 & cr.CR4_OSXSAVE:
            words = _with_bit(words, 2, 27, True)
        if leaf == 0x8000_0001 and not long_mode:
            words = _with_bit(words, 3, 11, False)
        return words

    def has(self, feature: str) -> bool:
        """Whether a feature, named as for `without`, is offered."""
        for bit in features.resolve(feature):
            if bit.kind == "cpuid":
                if not self.leaves.get((bit.leaf, bit.subleaf), (0, 0, 0, 0))[bit.register] >> bit.bit & 1:
                    return False
            elif not self.capabilities.get(bit.msr, 0) >> bit.bit & 1:
                return False
        return True

    @cached_property
    def maxphyaddr(self) -> int:
        """Width of physical addresses in bits (CPUID 8000_0008H EAX[7:0])."""
        return self.leaves[0x8000_0008, 0][0] & 0xFF

    @cached_property
    def linear_bits(self) -> int:
        """Width of linear addresses in bits (CPUID 8000_0008H EAX[15:8])."""
        return self.leaves[0x8000_0008, 0][0] >> 8 & 0xFF

    @cached_property
    def physical_reserved(self) -> int:
        """Mask of the bits that a 64-bit physical address must have 0."""
        return ALL_ONES & ~((1 << self.maxphyaddr) - 1)

    @cached_property
    def structure_reserved(self) -> int:
        """Mask of the bits that addresses of VMX structures must have 0: 32 bits wide if IA32_VMX_BASIC bit 48 is 1."""
        return ALL_ONES & ~0xFFFF_FFFF if self.capability("IA32_VMX_BASIC") >> 48 & 1 else self.physical_reserved

    def is_canonical(self, address: int) -> bool:
        """Whether a 64-bit linear address is canonical on this CPU."""
        return canonical(address, self.linear_bits)

    # -- control registers and EFER ------------------------------------------------------------------------------

    @cached_property
    def cr0_reserved(self) -> int:
        """Bits of CR0 that are not defined: MOV to CR0 with one of bits 63:32 is #GP(0); bits 31:0 are ignored."""
        return ALL_ONES & ~CR0_DEFINED

    @cached_property
    def cr4_valid(self) -> int:
        """Bits of CR4 that this CPU's CPUID leaves allow to be 1."""
        valid = cr.CR4_PCE
        for bit, leaf, subleaf, register, position in features.CR4_ENUMERATION:
            if self.leaves.get((leaf, subleaf), (0, 0, 0, 0))[register] >> position & 1:
                valid |= bit
        return valid

    @cached_property
    def cr4_reserved(self) -> int:
        """Bits of CR4 that must be 0: MOV to CR4 with one of them is #GP(0)."""
        return ALL_ONES & ~self.cr4_valid

    @cached_property
    def efer_valid(self) -> int:
        """Bits of IA32_EFER that this CPU has (SCE, LME, LMA, NXE by CPUID 8000_0001H EDX)."""
        edx = self.leaves[0x8000_0001, 0][3]
        valid = cr.EFER_SCE if edx >> 11 & 1 else 0
        valid |= cr.EFER_NXE if edx >> 20 & 1 else 0
        return valid | (cr.EFER_LME | cr.EFER_LMA if edx >> 29 & 1 else 0)

    @cached_property
    def efer_reserved(self) -> int:
        """Bits of IA32_EFER that must be 0."""
        return ALL_ONES & ~self.efer_valid

    @cached_property
    def xcr0_valid(self) -> int:
        """Bits that XSETBV may set in XCR0 (CPUID 0DH, subleaf 0, EDX:EAX)."""
        words = self.leaves.get((0xD, 0), (1, 0, 0, 0))
        return words[3] << 32 | words[0]

    # -- VMX capabilities ----------------------------------------------------------------------------------------

    def capability(self, name: str) -> int:
        """A capability MSR by name; 0 where the CPU does not have it."""
        return self.capabilities.get(name, 0)

    @cached_property
    def has_true_controls(self) -> bool:
        """IA32_VMX_BASIC bit 55: the TRUE capability MSRs exist and some default-1 controls may be 0."""
        return bool(self.capability("IA32_VMX_BASIC") >> 55 & 1)

    def _control_msr(self, word: ControlWord) -> int:
        if self.has_true_controls and word.true_msr is not None:
            return self.capability(word.true_msr)
        return self.capability(word.msr)

    def allowed0(self, word: ControlWord) -> int:
        """Bits of a control word that must be 1 (SDM 3D A.3 to A.5)."""
        return 0 if word.width == 64 else self._control_msr(word) & 0xFFFF_FFFF

    def allowed1(self, word: ControlWord) -> int:
        """Bits of a control word that may be 1; 64 bits for tertiary controls and secondary exit controls."""
        value = self._control_msr(word)
        return value if word.width == 64 else value >> 32

    def controls_valid(self, word: ControlWord, value: int) -> bool:
        """Whether `value` has every bit of a control word that must be 1, and none that must be 0."""
        must, may = self._allowed(word)
        return not (must & ~value or value & ~may)

    def _allowed(self, word: ControlWord) -> tuple[int, int]:
        cached = self._allowed_cache.get(word.name)
        if cached is None:
            cached = self._allowed_cache[word.name] = (self.allowed0(word), self.allowed1(word))
        return cached

    @cached_property
    def _allowed_cache(self) -> dict[str, tuple[int, int]]:
        return {}

    @cached_property
    def vmcs_revision(self) -> int:
        """Revision identifier that VMXON region and VMCS must begin with (IA32_VMX_BASIC bits 30:0)."""
        return self.capability("IA32_VMX_BASIC") & 0x7FFF_FFFF

    @cached_property
    def misc(self) -> int:
        """IA32_VMX_MISC (SDM 3D A.6)."""
        return self.capability("IA32_VMX_MISC")

    @cached_property
    def ept_vpid(self) -> int:
        """IA32_VMX_EPT_VPID_CAP (SDM 3D A.10)."""
        return self.capability("IA32_VMX_EPT_VPID_CAP")

    @cached_property
    def cr0_fixed0(self) -> int:
        """Bits of CR0 that must be 1 in VMX operation (IA32_VMX_CR0_FIXED0)."""
        return self.capability("IA32_VMX_CR0_FIXED0")

    @cached_property
    def cr0_fixed1(self) -> int:
        """Bits of CR0 that may be 1 in VMX operation (IA32_VMX_CR0_FIXED1)."""
        return self.capability("IA32_VMX_CR0_FIXED1")

    @cached_property
    def cr4_fixed0(self) -> int:
        """Bits of CR4 that must be 1 in VMX operation (IA32_VMX_CR4_FIXED0)."""
        return self.capability("IA32_VMX_CR4_FIXED0")

    @cached_property
    def cr4_fixed1(self) -> int:
        """Bits of CR4 that may be 1 in VMX operation (IA32_VMX_CR4_FIXED1)."""
        return self.capability("IA32_VMX_CR4_FIXED1")

    @cached_property
    def any_error_code(self) -> bool:
        """IA32_VMX_BASIC bit 56: any hardware exception may be injected with or without an error code."""
        return bool(self.capability("IA32_VMX_BASIC") >> 56 & 1)

    @cached_property
    def preemption_timer_shift(self) -> int:
        """The VMX-preemption timer counts down each time this bit of the TSC changes (IA32_VMX_MISC bits 4:0)."""
        return self.misc & 0x1F

    # -- MSRs ----------------------------------------------------------------------------------------------------

    def reset_msrs(self) -> dict[int, int]:
        """Every MSR that exists, capability MSRs included, with its value after reset; a new dict each time."""
        values = {address: rule.reset for address, rule in self.msr_rules.items()}
        values.update({msrs.BY_NAME[name].address: value for name, value in self.capabilities.items()})
        return values

    def write_msr(self, address: int, current: int, value: int, *, paging: bool = False) -> int | None:
        """The value that an MSR holds after WRMSR of `value` over `current`; None means #GP(0).

        `paging` is CR0.PG: EFER.LME cannot change while it is 1. FS_BASE, GS_BASE, TSC and x2APIC registers have
        their state elsewhere; this only judges the value.
        """
        rule = self.msr_rules.get(address)
        if rule is None:
            return None
        return _WRITERS[rule.write](self, rule, current, value, paging)


def _feature_words(key: tuple[int, int], ours: Cpuid, offered: Cpuid) -> Cpuid:
    """The features of both CPUs. Leaf 1 EAX and EBX are the signature and topology, not features: ours."""
    both = tuple(a & b for a, b in zip(ours, offered, strict=True))
    return (ours[0], ours[1], both[2], both[3]) if key == (1, 0) else (both[0], both[1], both[2], both[3])


def _with_bit(words: Cpuid, register: int, bit: int, value: bool) -> Cpuid:
    changed = list(words)
    changed[register] = changed[register] & ~(1 << bit) | int(value) << bit
    return (changed[0], changed[1], changed[2], changed[3])


def _consistent(capabilities: dict[str, int], model: CpuModel) -> dict[str, int]:
    """Capability MSRs made to agree with CPUID and with one another (which MSRs exist: SDM 3D A.2 to A.11)."""
    vmx = bool(model.leaves[1, 0][2] >> 5 & 1)
    if not vmx:
        return {}
    capabilities["IA32_VMX_CR4_FIXED1"] = model.cr4_valid
    if not capabilities["IA32_VMX_BASIC"] >> 55 & 1:
        drop: Iterable[str] = [name for name in capabilities if "_TRUE_" in name]
    else:
        drop = ()
    kept = {name: value for name, value in capabilities.items() if name not in drop}
    for name, offered in features.existence(kept).items():
        if not offered:
            kept.pop(name, None)
    return kept


def _read_only(_m: CpuModel, _r: MsrRule, _current: int, _value: int, _paging: bool) -> int | None:
    return None


def _ignored(_m: CpuModel, _r: MsrRule, current: int, _value: int, _paging: bool) -> int | None:
    return current


def _masked(_m: CpuModel, rule: MsrRule, _current: int, value: int, _paging: bool) -> int | None:
    return None if value & ~rule.mask else value


def _canonical(model: CpuModel, _r: MsrRule, _current: int, value: int, _paging: bool) -> int | None:
    return value if model.is_canonical(value) else None


def _pat(_m: CpuModel, _r: MsrRule, _current: int, value: int, _paging: bool) -> int | None:
    return value if pat_valid(value) else None


def _mtrr_fixed(_m: CpuModel, _r: MsrRule, _current: int, value: int, _paging: bool) -> int | None:
    return value if all((value >> shift) & 0xFF in MTRR_TYPES for shift in range(0, 64, 8)) else None


def _mtrr_variable(model: CpuModel, rule: MsrRule, _current: int, value: int, _paging: bool) -> int | None:
    low = value & 0xFFF
    if value & model.physical_reserved or low & ~rule.mask:
        return None
    return value if rule.mask != 0xFF or low in MTRR_TYPES else None


def _efer(model: CpuModel, _r: MsrRule, current: int, value: int, paging: bool) -> int | None:
    if value & model.efer_reserved or (paging and (value ^ current) & cr.EFER_LME):
        return None
    return value & ~cr.EFER_LMA | current & cr.EFER_LMA


def _locked(_m: CpuModel, rule: MsrRule, current: int, value: int, _paging: bool) -> int | None:
    return None if current & 1 or value & ~rule.mask else value


_WRITERS = {
    Write.READ_ONLY: _read_only, Write.IGNORED: _ignored, Write.MASKED: _masked, Write.CANONICAL: _canonical,
    Write.PAT: _pat, Write.MTRR_FIXED: _mtrr_fixed, Write.MTRR_VARIABLE: _mtrr_variable, Write.EFER: _efer,
    Write.LOCKED: _locked,
}
