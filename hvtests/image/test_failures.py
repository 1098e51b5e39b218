"""What the hypervisor does when things go wrong in itself, in Bochs and in the harness alike: it says so, and it ends.

Each test damages a built image (its code, a table, a VMCS row), as no image.toml could, and boots it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from generator import resources
from generator.arch import vmcs
from generator.build import build, medium
from generator.core import Core
from generator.records import VMCS_ROW
from hvtests.runners.base import Runner, RunResult, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

RUNNERS = [pytest.param(UnicornRunner, id="harness"), pytest.param(BochsRunner, id="bochs", marks=pytest.mark.bochs)]
TOML = resources.images() / "minimal.toml"


def _run(core: Core, runner: Runner, directory: Path) -> RunResult:
    path = directory / "damaged.img"
    path.write_bytes(medium(core, "disk"))
    return runner.run(path)


def _patch(core: Core, address: int, data: bytes) -> None:
    for number, (start, content) in enumerate(core.segments):
        if start <= address < start + len(content):
            at = address - start
            core.segments[number] = start, content[:at] + data + content[at + len(data):]
            return
    raise AssertionError(f"{address:#x} is in no segment")


def _set_row(core: Core, table: str, name: str, value: int) -> None:
    """Change the row of a field in a table of VMCS rows to a plain value."""
    start, end = core.symbols[table], core.symbols[f"{table}_end"]
    base, content = core.segments[0]
    for at in range(start, end, VMCS_ROW.size):
        view = VMCS_ROW.view(content, at - base)
        if view.field == vmcs.BY_NAME[name].encoding:
            _patch(core, at, VMCS_ROW.pack(field=view.field, operation=0, value=value))
            return
    raise AssertionError(f"{table} has no row for {name}")


EXCEPTIONS = {
    "#UD": ("ud2", {}),
    "#DE": ("xor ecx, ecx; div ecx", {"rcx": 0}),
    "#BP": ("int3", {}),
    "#GP": ("mov rax, 0x8000000000000000; mov rax, qword ptr [rax]", {"rax": 1 << 63, "error_code": 0}),
    "#PF": ("xor eax, eax; mov rbx, 0x1234; mov dword ptr [rax + 8], 1", {"rbx": 0x1234, "error_code": 2, "cr2": 8}),
    "#PF in read-only code": ("mov eax, 0x100000; mov dword ptr [rax], 1", {"error_code": 3, "cr2": 0x100000}),
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("what", EXCEPTIONS)
def test_an_exception_in_root_mode_prints_every_register_and_ends(
    runner: Callable[[], Runner], what: str, tmp_path: Path
) -> None:
    code, expected = EXCEPTIONS[what]
    core = build(TOML, formats=()).core
    at = core.symbols["vms_prepare"]
    _patch(core, at, bytes(Ks(KS_ARCH_X86, KS_MODE_64).asm(code, at)[0]))
    result = _run(core, runner(), tmp_path)
    assert result.verdict is Verdict.PANIC
    assert any(line.startswith("hvforge: panic: exception ") and line.endswith(f" {what[:3]} in the hypervisor")
               for line in result.lines), result.text
    dump = dict(line.split()[1:3] for line in result.lines if line.startswith("hvforge:   "))
    assert len(dump) == 15 + 7 + 4
    for register, value in expected.items():
        assert int(dump[register], 16) == value, register
    assert at <= int(dump["rip"], 16) < at + 32
    assert int(dump["cs"], 16) == 8


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stack_overflow_hits_the_guard_page_and_is_still_reported(
    runner: Callable[[], Runner], tmp_path: Path
) -> None:
    """The push onto the guard page faults, so does the delivery of that fault: #DF, on a stack of its own (IST)."""
    core = build(TOML, formats=()).core
    at = core.symbols["vms_prepare"]
    _patch(core, at, bytes(Ks(KS_ARCH_X86, KS_MODE_64).asm("again: push rax; jmp again", at)[0]))
    result = _run(core, runner(), tmp_path)
    assert result.verdict is Verdict.PANIC
    assert "hvforge: panic: exception 0x08 #DF in the hypervisor" in result.lines
    rsp = next(line for line in result.lines if line.startswith("hvforge:   rsp "))
    assert int(rsp.split()[-1], 16) == core.symbols["cpu0_stack"]


# What is broken in the VMCS of the first VM, and what the hypervisor says of it: controls are VM-instruction error 7,
# guest state is exit reason 33 (SDM 3C 27.2, 27.3, 27.8).
ENTRIES = {
    "a control that must be 1": ("CPU_BASED_VM_EXEC_CONTROL", 0, "VM entry failed, VM-instruction error 7: "),
    "an EPT pointer of another walk length": ("EPT_POINTER", 6, "VM entry failed, VM-instruction error 7: "),
    "CS with L and D/B": ("GUEST_CS_AR_BYTES", 0xE09B,
                          "VM entry failed, exit reason 33 INVALID_GUEST_STATE, qualification 0x00"),
    "long mode without EFER.LMA": ("GUEST_IA32_EFER", 0,
                                   "VM entry failed, exit reason 33 INVALID_GUEST_STATE, qualification 0x00"),
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("what", ENTRIES)
def test_a_vm_that_cannot_be_entered_is_named_and_the_others_run(
    runner: Callable[[], Runner], what: str, tmp_path: Path
) -> None:
    name, value, line = ENTRIES[what]
    core = build(TOML, formats=()).core
    _set_row(core, "vmcs_rows_0", name, value)
    result = _run(core, runner(), tmp_path)
    assert result.verdict is Verdict.GUEST_FAILED, result.text
    assert any(text.startswith(f"hvforge: vm long: {line}") for text in result.lines), result.text
    assert "hvforge: vm long: ended: entry-failed, expected exited" in result.lines
    assert "[paged] hello from 32-bit mode with paging" in result.lines
    assert "hvforge: vm real: ended: halted" in result.lines


@pytest.mark.parametrize("runner", RUNNERS)
def test_host_state_that_no_exit_could_load_fails_every_entry(runner: Callable[[], Runner], tmp_path: Path) -> None:
    """HOST_CS_SELECTOR must not be 0: VM-instruction error 8 (SDM 3C 27.2.3)."""
    core = build(TOML, formats=()).core
    _set_row(core, "vmcs_rows_shared", "HOST_CS_SELECTOR", 0)
    result = _run(core, runner(), tmp_path)
    assert result.verdict is Verdict.GUEST_FAILED
    for name in ("long", "paged", "real"):
        assert any(line.startswith(f"hvforge: vm {name}: VM entry failed, VM-instruction error 8: ")
                   for line in result.lines)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_misconfigured_ept_stops_that_vm_only(runner: Callable[[], Runner], tmp_path: Path) -> None:
    """Write without read is a misconfiguration (SDM 3C 29.3.3.1)."""
    core = build(TOML, formats=()).core
    directory = core.symbols["ept_0"] + 2 * 4096
    entry = struct.unpack_from("<Q", core.segments[0][1], directory - core.segments[0][0])[0]
    _patch(core, directory, struct.pack("<Q", entry & ~7 | 2))
    result = _run(core, runner(), tmp_path)
    assert result.verdict is Verdict.GUEST_FAILED
    assert "hvforge: vm long: ended: ept-misconfiguration, expected exited" in result.lines
    assert any("has a misconfigured EPT entry" in line for line in result.lines)
    assert "hvforge: vm real: ended: halted" in result.lines
