"""A machine that lacks one thing the image needs is refused by that thing's name, before anything of VMX is touched.

The machines are variants of the harness' CPU, each without one feature; Bochs' real models are in hvtests/boot.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from generator import resources
from generator.arch import controls, msrs
from generator.build import build, write
from hvtests import CpuModel
from hvtests.machine.stop import Limits
from hvtests.runners.base import RunResult, Verdict
from hvtests.runners.unicorn import UnicornRunner, result_of
from hvtests.vmx.model import VmxMachine

FEATURE_CONTROL = msrs.BY_NAME["IA32_FEATURE_CONTROL"].address
REQUIRED = {word: sorted(names) for word, names in {
    "PINBASED": {"EXTERNAL_INTERRUPT_EXITING", "NMI_EXITING", "ACTIVATE_PREEMPTION_TIMER"},
    "PROCBASED": {"HLT_EXITING", "MWAIT_EXITING", "RDPMC_EXITING", "MONITOR_EXITING", "CR8_LOAD_EXITING",
                  "CR8_STORE_EXITING", "USE_TSC_OFFSETTING", "USE_IO_BITMAPS", "USE_MSR_BITMAPS"},
    "PROCBASED2": {"ENABLE_EPT", "ENABLE_RDTSCP", "ENABLE_VPID", "WBINVD_EXITING", "UNRESTRICTED_GUEST"},
    "EXIT": {"SAVE_DEBUG_CONTROLS", "HOST_ADDRESS_SPACE_SIZE", "SAVE_IA32_PAT", "LOAD_IA32_PAT", "SAVE_IA32_EFER",
             "LOAD_IA32_EFER"},
    "ENTRY": {"LOAD_DEBUG_CONTROLS", "LOAD_IA32_PAT", "LOAD_IA32_EFER", "IA32E_MODE_GUEST"},
}.items()}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("refused")
    write(build(resources.images() / "minimal.toml", ["multiboot"]), directory)
    return directory / "minimal.elf"


def _refusals(result: RunResult) -> list[str]:
    assert result.verdict is Verdict.REFUSED, result.text
    assert result.lines[-1] == "hvforge: end 0x12 REFUSED"
    assert result.exits is not None and len(result.exits) == 0
    return [line.removeprefix("hvforge: refused: ") for line in result.lines if "refused: " in line]


@pytest.mark.parametrize(("word", "name"), [(word, name) for word, names in REQUIRED.items() for name in names])
def test_each_control_it_needs_is_missed_by_name(image: Path, word: str, name: str) -> None:
    control, cpu = controls.BY_NAME[word], CpuModel.default().without(f"{word}.{name}")
    assert not cpu.allowed1(control) & control.mask(name)
    said = _refusals(UnicornRunner(cpu=cpu).run(image))
    msr = msrs.BY_NAME[control.true_msr or control.msr]
    expected = f"{msr.name} ({msr.address:#x}) does not offer bit {control.bit(name).bit}, {name}"
    # What depends on the control goes with it and is named too (unrestricted guests need EPT).
    assert expected in said
    assert len(said) == len(set(said))


@pytest.mark.parametrize(("feature", "expected"), [
    ("VMX", ["CPUID.1:ECX[5] (VMX) is not offered by this CPU"]),
    ("TRUE_CTLS", ["IA32_VMX_BASIC (0x480) bit 55 (the TRUE capability MSRs) is not offered by this CPU"]),
    ("PAGE_2M", ["IA32_VMX_EPT_VPID_CAP (0x48c) bit 16 (2 MiB EPT pages) is not offered by this CPU"]),
    ("INVVPID_SINGLE", [
        "IA32_VMX_EPT_VPID_CAP (0x48c) bit 41 (INVVPID for a single context) is not offered by this CPU"]),
])
def test_each_capability_it_needs_is_missed_by_name(image: Path, feature: str, expected: list[str]) -> None:
    assert _refusals(UnicornRunner(cpu=CpuModel.default().without(feature)).run(image)) == expected


def test_vmx_that_the_firmware_locked_away_is_named(image: Path) -> None:
    """Locked (bit 0) without VMX outside SMX (bit 2): SDM 3C 24.7."""
    result = UnicornRunner(cpu=CpuModel.default().with_msr("IA32_FEATURE_CONTROL", 1)).run(image)
    assert _refusals(result) == ["IA32_FEATURE_CONTROL (0x3a) bit 2 (VMX outside SMX) is 0 and locked by the firmware"]


def test_vmx_that_the_firmware_left_open_is_enabled_and_locked(image: Path) -> None:
    machine = VmxMachine(cpu=CpuModel.default().with_msr("IA32_FEATURE_CONTROL", 0))
    machine.boot(image)
    result = result_of(machine, machine.run(Limits(seconds=30)), 0)
    assert result.verdict is Verdict.FINISHED, result.text
    assert machine.msrs.read(FEATURE_CONTROL) == 5


def test_without_accessed_and_dirty_flags_for_ept_it_runs(image: Path) -> None:
    """A/D flags are used where offered, and not asked for elsewhere."""
    assert UnicornRunner(cpu=CpuModel.default().without("ACCESSED_DIRTY")).run(image).verdict is Verdict.FINISHED
