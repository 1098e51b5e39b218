"""Instructions whose access to memory fails, and what comes before it: the same in the harness and in Bochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvtests.guests.flat import EXIT, GDT, Guest, run, status, with_handler
from hvtests.runners.base import Runner
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.unicorn import UnicornRunner

Make = Callable[[], Runner]
both = pytest.mark.parametrize("runner", [
    pytest.param(UnicornRunner, id="harness"), pytest.param(BochsRunner, id="bochs", marks=pytest.mark.bochs)])

FRAME = """
handler:
    pop rdx
    mov rbx, [rsp + 16]
    and ebx, 0x8d5
    shl edx, 16
    or ebx, edx
"""


def faulting(instruction: str) -> Guest:
    """Exits with the flags in the page fault's frame | its error code << 16. Before it, CF, AF and PF are 1."""
    code = with_handler(14) + f"mov edi, 0x40000000\nmov eax, 0xffffffff\nadd eax, 11\n{instruction}\n" + FRAME
    return Guest(instruction.split()[0], code + EXIT + GDT)


@both
def test_flags_and_error_code_of_an_instruction_that_faults(runner: Make, tmp_path: Path) -> None:
    cases = {"setbe byte ptr [rdi]": 2, "seto byte ptr [rdi]": 2, "setp byte ptr [rdi]": 2, "setle byte ptr [rdi]": 2,
             "sete byte ptr [rdi]": 2, "rcl dword ptr [rdi], 1": 2, "rcr byte ptr [rdi], cl": 2, "adc [rdi], eax": 2,
             "inc dword ptr [rdi]": 2, "cmp [rdi], eax": 0, "not word ptr [rdi]": 2, "bts dword ptr [rdi], 3": 2}
    result = run([faulting(text) for text in cases], tmp_path, runner())
    for text, error_code in cases.items():
        assert status(result, text.split()[0]) == 0x15 | error_code << 16, text


@both
def test_outs_and_monitor_exit_before_their_operands_are_looked_at(runner: Make, tmp_path: Path) -> None:
    result = run([Guest("outs", "mov esi, 0x50000000\nmov edx, 0x80\noutsb"), Guest("monitor", "mov ecx, 1\nmonitor")],
                 tmp_path, runner())
    assert "hvforge: vm outs: exits IO_INSTRUCTION 1" in result.lines, result.text
    assert any(line.startswith("hvforge: vm monitor: exits ") and "MONITOR" in line for line in result.lines)
