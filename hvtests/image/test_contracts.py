"""Every routine changes what it declares and nothing else: the `proc` declarations are held to the code."""

from __future__ import annotations

import pytest

from generator import resources
from generator.build import build
from generator.core import Core
from generator.render import Proc
from hvtests.image.contracts import call, full

SEEDS = range(8)
CORES = {name: build(resources.images() / f"{name}.toml", formats=()).core for name in ("minimal", "tour")}
PROCS = {proc.name: (core, proc) for core in CORES.values() for proc in core.procs if proc.alone}


def _inputs(core: Core, proc: Proc) -> dict[str, int]:
    """Registers that must hold something sensible: addresses of the image's own structs, and small counts."""
    symbols = core.symbols
    known = {"rbp": symbols["vcpus"], "rsi": symbols["memory_needs"], "rdi": symbols["vms"], "rcx": 7}
    special = {
        "console_say": {"rsi": next(v for k, v in symbols.items() if k.startswith("str_end"))},
        "console_print": {"rsi": next(v for k, v in symbols.items() if k.startswith("str_end"))},
        "vm_dump_item": {"rsi": next(v for k, v in symbols.items() if k.startswith("str_end")), "r8": 3},
        "control_value": {"rdi": symbols["control_checks"]},
        "control_report": {"rdi": symbols["control_checks"], "r8": 1 << 6, "r11": 0},
        "console_digits": {"rcx": 5},
        "trace_field": {"rcx": 16},
    }
    chosen = {name: known[name] for name in (full(item) for item in proc.inputs) if name in known}
    return {**chosen, **special.get(proc.name, {})}


@pytest.mark.parametrize("name", sorted(PROCS))
def test_routine_changes_only_what_it_declares(name: str) -> None:
    core, proc = PROCS[name]
    allowed = {full(item) for item in (*proc.outputs, *proc.clobbers)}
    for seed in SEEDS:
        change = call(core, proc, _inputs(core, proc), seed)
        assert change.returned, f"{name} did not return to its caller: {change.detail}"
        also = change.registers - allowed
        assert not also, f"{name} ({proc.file}:{proc.line}) also changes {also}"
        assert "flags" in allowed or not change.flags, f"{name} changes the flags"
        assert "memory" in allowed or not change.memory, f"{name} writes to memory at {change.memory[0]:#x}"


def test_most_routines_run_alone() -> None:
    """What cannot run alone does not return, or needs the machine at its start; that is a short list."""
    excused = {
        "refuse", "refuse_print", "end_run", "inject_ud", "inject_gp", "vm_end", "features_check", "memory_check",
        "vmx_on", "vms_prepare", "vmcs_fill", "fpu_init", "vcpu_load",
    }
    declared = {proc.name for core in CORES.values() for proc in core.procs}
    assert declared - set(PROCS) == excused


def test_a_lie_is_caught() -> None:
    """The check can fail: a routine that says it leaves rbx alone, and does not."""
    core = CORES["minimal"]
    honest = PROCS["console_decimal"][1]
    liar = Proc(honest.name, "", ("rax",), (), ("rcx",), True, honest.file, honest.line)
    change = call(core, liar, {}, 1)
    assert not change.registers <= {"rcx"}
