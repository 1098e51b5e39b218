"""The decoder of system instructions against Capstone, and the engine's probe against engines that it must refuse."""

from __future__ import annotations

import capstone
import pytest
import unicorn
from capstone import x86 as cs
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.errors import EngineError
from hvtests.machine import layout as L
from hvtests.machine.decode import decode
from hvtests.machine.fabric import Fabric

_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
REGISTERS = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}" for n in range(8, 16))]


def number(name: str) -> int:
    """Hardware number of a general register by any of its names."""
    name = name.lower()
    if name[0] == "r" and name[1].isdigit():
        return int(name[1:].rstrip("dwb"))
    return REGISTERS.index(name[-2:])


def disassembler(bits: int) -> capstone.Cs:
    found = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
    found.detail = True
    return found


PREFIXES = st.lists(st.sampled_from([0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x64, 0x65, 0x36]), max_size=3)
OPCODES = st.sampled_from([b"\x0f\x01", b"\x0f\x78", b"\x0f\x79", b"\x0f\xc7", b"\x0f\x00", b"\x0f\x20", b"\x0f\x22",
                           b"\x0f\x21", b"\x0f\x23", b"\x0f\xa2", b"\x0f\x30", b"\x0f\x32", b"\xcd", b"\xcc", b"\xe4",
                           b"\xe7", b"\xec", b"\xef", b"\x6c", b"\x6f", b"\xf4", b"\x0f\x31", b"\x0f\x06", b"\x0f\x08"])


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(bits=st.sampled_from([16, 32, 64]), prefixes=PREFIXES, rex=st.integers(0x3F, 0x4F), opcode=OPCODES,
       tail=st.binary(min_size=8, max_size=8))
def test_length_and_operands_as_capstone_sees_them(bits: int, prefixes: list[int], rex: int, opcode: bytes,
                                                   tail: bytes) -> None:
    code = bytes(prefixes) + (bytes([rex]) if bits == 64 and rex > 0x3F else b"") + opcode + tail
    theirs = next(disassembler(bits).disasm(code, 0, 1), None)
    ours = decode(code[:15], bits)
    if theirs is None or theirs.size > 15:
        return
    if opcode in (b"\x0f\x78", b"\x0f\x79") and {0x66, 0xF2, 0xF3} & {*prefixes}:
        assert ours is None     # AMD's EXTRQ and INSERTQ, where Capstone still sees VMREAD and VMWRITE
        return
    assert ours is not None, theirs
    assert ours.length == theirs.size, theirs
    memory = next((operand.mem for operand in theirs.operands if operand.type == cs.X86_OP_MEM), None)
    if ours.memory is None or memory is None or opcode in (b"\x6c", b"\x6f"):
        return
    mask = (1 << ours.memory.size) - 1
    assert ours.memory.displacement & mask == memory.disp & mask, theirs
    base = theirs.reg_name(memory.base) if memory.base else None
    index = theirs.reg_name(memory.index) if memory.index else None
    if base in ("rip", "eip"):
        assert ours.memory.rip_relative
        base = None
    if index in ("riz", "eiz"):
        index = None
    assert ours.memory.base == (None if base is None else number(base)), theirs
    assert ours.memory.index == (None if index is None else number(index)), theirs
    assert 1 << ours.memory.scale == memory.scale or ours.memory.index is None, theirs


@pytest.mark.parametrize("code", [b"", b"\x0f", b"\x0f\x01", b"\x0f\x78\x84", b"\x0f\x0b", b"\xc3", b"\x66" * 15])
def test_short_and_unknown_code(code: bytes) -> None:
    assert decode(code, 64) is None
    assert decode(b"\x90\x90", 64) is not None   # so that None is no answer to everything


# -- the engine ----------------------------------------------------------------------------------------------------

def test_an_engine_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unicorn, "__version__", "2.1.3")
    with pytest.raises(EngineError) as caught:
        Fabric(1 << 20)
    assert "2.1.3" in str(caught.value) and "2.1.4" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("CPU_POINTER_AT", 448), ("ENV_POINTER_AT", 288), ("BACK_POINTER_AT", 6992), ("Q_RIP", L.Q_RIP + 1),
    ("Q_STAR", L.Q_STAR + 1), ("Q_DR", L.Q_DR - 1), ("TLB_END_POINTER_AT", 312), ("CLASS_POINTER_AT", 33192),
])
def test_an_engine_with_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """The table is made wrong instead of the engine: the probe cannot tell the difference."""
    monkeypatch.setattr(L, name, value)
    with pytest.raises(EngineError) as caught:
        Fabric(1 << 20)
    assert "2.1.4" in str(caught.value) and "\n" not in str(caught.value)


def test_another_host_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvtests.machine.fabric_probe.platform.machine", lambda: "aarch64")
    with pytest.raises(EngineError, match="x86-64 hosts only"):
        Fabric(1 << 20)
