"""Interrupts and NMIs that reach the machine while a guest runs: they are the host's, and the guest goes on.

They are raised on the machine's lines at chosen moments of virtual time, which Bochs cannot do: the harness alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from generator.arch import exits
from generator.build import build, write
from hvtests.machine.stop import Limits, StopKind
from hvtests.runners.unicorn import result_of
from hvtests.vmx.model import VmxMachine

TOML = """
[image]
name = "interrupted"
[[vm]]
name = "worker"
memory = "2M"
[vm.guest]
template = "worker"
params = { rounds = 3, spin = 100_000 }
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interrupted")
    (directory / "image.toml").write_text(TOML)
    write(build(directory / "image.toml", ["multiboot"]), directory)
    return directory / "interrupted.elf"


def _machine_in_the_guest(image: Path) -> VmxMachine:
    machine = VmxMachine()
    machine.boot(image)
    for _ in range(10_000):
        assert machine.run(Limits(ticks=1000)).kind is StopKind.TIMEOUT
        if machine.vmx.guest is not None and len(machine.vmx.exits) >= 2:
            return machine
    raise AssertionError("the guest was not reached")


def _reasons(machine: VmxMachine) -> Counter[str]:
    return Counter(exits.name(record.reason) for record in machine.vmx.exits)


def test_an_external_interrupt_goes_to_the_host_and_the_guest_goes_on(image: Path) -> None:
    machine = _machine_in_the_guest(image)
    for vector in (0x27, 0x2F, 0xFF):          # spurious of both PICs, spurious of a local APIC
        machine.raise_interrupt(vector)
        machine.run(Limits(ticks=5_000))
    result = result_of(machine, machine.run(), 0)
    assert result.verdict.name == "FINISHED", result.text
    assert _reasons(machine)["EXTERNAL_INTERRUPT"] == 3
    assert "hvforge: vm worker: exits EXTERNAL_INTERRUPT 3" in result.lines
    assert result.lines.count("[worker] one more round") == 3


def test_an_nmi_goes_to_the_host_and_opens_the_door_for_the_next(image: Path) -> None:
    """An NMI exit blocks NMIs until the next IRET (SDM 3C 28.3.4): if the host did not execute one, the second NMI
    would wait for ever."""
    machine = _machine_in_the_guest(image)
    for _ in range(2):
        machine.raise_nmi()
        machine.run(Limits(ticks=5_000))
    result = result_of(machine, machine.run(), 0)
    assert result.verdict.name == "FINISHED", result.text
    assert _reasons(machine)["EXCEPTION_NMI"] == 2
    assert result.lines.count("[worker] one more round") == 3


def test_without_interrupts_there_is_no_such_exit(image: Path) -> None:
    machine = _machine_in_the_guest(image)
    result = result_of(machine, machine.run(), 0)
    assert result.verdict.name == "FINISHED"
    assert not {"EXTERNAL_INTERRUPT", "EXCEPTION_NMI"} & set(_reasons(machine))
