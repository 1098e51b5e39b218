"""Segment descriptors judged by a CPU (LAR and LSL in Unicorn), gates, TSS and paging bits by the manual's layouts."""

from __future__ import annotations

import struct

import pytest
import unicorn
from hypothesis import example, given
from hypothesis import strategies as st
from unicorn import x86_const

from generator.arch import descriptors as d
from generator.arch import paging

_CODE = bytes.fromhex("0f02cb" "0f03d3")  # lar ecx, ebx; lsl edx, ebx
_GDT, _TEXT = 0x2000, 0x1000


def lar_lsl(descriptor: bytes) -> tuple[int, int]:
    """What a CPU reads from `descriptor`: access rights as LAR gives them, and the limit in bytes."""
    machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    machine.mem_map(0, 0x4000)
    machine.mem_write(_TEXT, _CODE)
    machine.mem_write(_GDT, bytes(8) + descriptor)
    machine.reg_write(x86_const.UC_X86_REG_GDTR, (0, _GDT, 15, 0))
    machine.reg_write(x86_const.UC_X86_REG_EBX, 8)
    machine.emu_start(_TEXT, _TEXT + len(_CODE), count=2)
    return machine.reg_read(x86_const.UC_X86_REG_ECX), machine.reg_read(x86_const.UC_X86_REG_EDX)


@pytest.mark.parametrize(("base", "limit", "ar", "value"), [
    # Flat segments as they are known from every GDT.
    (0, 0xFFFF_FFFF, d.AR_CODE32, 0x00CF_9B00_0000_FFFF), (0, 0xFFFF_FFFF, d.AR_DATA32, 0x00CF_9300_0000_FFFF),
    (0, 0xFFFF_FFFF, d.AR_CODE64, 0x00AF_9B00_0000_FFFF), (0, 0xFFFF, d.AR_CODE16, 0x0000_9B00_0000_FFFF),
    (0x1234_5678, 0x67, d.AR_TSS_AVAILABLE, 0x1200_8934_5678_0067)])
def test_known_descriptors(base: int, limit: int, ar: int, value: int) -> None:
    assert d.descriptor(base, limit, ar) == struct.pack("<Q", value)


@given(st.integers(0, 0xF_FFFF), st.booleans(), st.sampled_from([d.AR_CODE32, d.AR_DATA32, d.AR_CODE16, d.AR_DATA16]))
@example(0, True, d.AR_DATA32)
@example(0xF_FFFF, True, d.AR_CODE32)
def test_a_cpu_reads_the_same(field: int, pages: bool, kind: int) -> None:
    ar = (kind & ~d.AR_G) | (d.AR_G if pages else 0)
    limit = field * 4096 + 4095 if pages else field
    rights, seen = lar_lsl(d.descriptor(0x9876_5432, limit, ar))
    assert rights & 0x00F0_FF00 == ar << 8
    assert seen == limit


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xF_FFFF))
def test_unpack_is_the_inverse(base: int, limit: int) -> None:
    assert d.unpack(d.descriptor(base, limit, d.AR_DATA16)) == (base, limit, d.AR_DATA16)
    assert d.unpack(d.descriptor(base, limit << 12 | 0xFFF, d.AR_DATA32)) == (base, limit << 12 | 0xFFF, d.AR_DATA32)


@pytest.mark.parametrize(("base", "limit", "ar", "why"), [
    (1 << 32, 0, d.AR_DATA16, "base"), (0, 1 << 32, d.AR_DATA32, "limit"), (0, 0x10_0000, d.AR_DATA16, "needs G = 1"),
    (0, 0x1000, d.AR_DATA32, "not a multiple of 4 KiB"), (0, 0, d.AR_UNUSABLE, "no descriptor has"),
    (0, 0, d.AR_DATA16 | 0x100, "no descriptor has")])
def test_descriptor_refuses(base: int, limit: int, ar: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        d.descriptor(base, limit, ar)


def test_descriptor64() -> None:
    data = d.descriptor64(0xFFFF_8000_1234_5678, 0x67, d.AR_TSS_AVAILABLE)
    assert data == struct.pack("<QQ", 0x1200_8934_5678_0067, 0xFFFF_8000)
    with pytest.raises(ValueError, match="64 bits"):
        d.descriptor64(1 << 64, 0x67, d.AR_TSS_AVAILABLE)


def test_gate() -> None:
    """SDM 3A figure 6-2: offset 15:0, selector, 0, rights, offset 31:16."""
    assert d.gate(0x08, 0xAABB_CCDD) == struct.pack("<HHBBH", 0xCCDD, 0x08, 0, 0x8E, 0xAABB)
    assert d.gate(0x08, 0, type_=d.TYPE_TRAP_GATE, dpl=3)[5] == 0xEF
    with pytest.raises(ValueError, match="gate64"):
        d.gate(8, 1 << 32)


def test_gate64() -> None:
    """SDM 3A figure 6-8: as above, with IST in bits 34:32, then offset 63:32 and a reserved word."""
    data = d.gate64(0x08, 0xFFFF_8000_AABB_CCDD, ist=3)
    assert data == struct.pack("<HHBBHII", 0xCCDD, 0x08, 3, 0x8E, 0xAABB, 0xFFFF_8000, 0)
    with pytest.raises(ValueError, match="IST 8"):
        d.gate64(8, 0, ist=8)


def test_tss64() -> None:
    """SDM 3A figure 8-11: RSP0 at 4, IST1 at 36, I/O map base at 102, 104 bytes."""
    data = d.tss64(rsp0=0x1111, ist=(0x2222, 0x3333))
    assert len(data) == 104
    assert struct.unpack_from("<Q", data, 4) == (0x1111,)
    assert struct.unpack_from("<QQ", data, 36) == (0x2222, 0x3333)
    assert struct.unpack_from("<H", data, 102) == (104,)
    with pytest.raises(ValueError, match="8 IST"):
        d.tss64(ist=(0,) * 8)


@pytest.mark.parametrize(("address", "level", "number"), [
    (0, 4, 0), (0xFFFF_8000_0000_0000, 4, 256), (0xFFFF_FFFF_FFFF_F000, 4, 511), (0x40_0000, 2, 2),
    (0x4000_0000, 3, 1), (0x1000, 1, 1), (0x1F_F000, 1, 511), (0x20_0000, 1, 0)])
def test_index(address: int, level: int, number: int) -> None:
    assert paging.index(address, level) == number


def test_eptp() -> None:
    """SDM 3C table 25-9: WB = 6, page-walk length less 1 in 5:3, bit 6 for accessed and dirty flags."""
    assert paging.eptp(0x5000, accessed_dirty=True) == 0x505E
    assert paging.eptp(0x5000, accessed_dirty=False) == 0x501E
    for bad in (0x5001, 0x5800, 1 << 52):
        with pytest.raises(ValueError, match="page boundary"):
            paging.eptp(bad, accessed_dirty=True)


@pytest.mark.parametrize(("name", "value"), [
    ("PTE_P", 1), ("PTE_RW", 2), ("PTE_US", 4), ("PTE_A", 0x20), ("PTE_D", 0x40), ("PTE_PS", 0x80), ("PTE_G", 0x100),
    ("PTE_XD", 0x8000_0000_0000_0000), ("PF_FETCH", 0x10), ("EPT_RWX", 7), ("EPT_IGNORE_PAT", 0x40), ("EPT_PS", 0x80),
    ("EPT_A", 0x100), ("EPT_D", 0x200), ("EPT_XU", 0x400), ("EPT_SUPPRESS_VE", 0x8000_0000_0000_0000),
    ("MEMTYPE_WB", 6), ("PAT_RESET", 0x0007_0406_0007_0406), ("PTE_ADDRESS", 0x000F_FFFF_FFFF_F000)])
def test_paging_constants(name: str, value: int) -> None:
    assert getattr(paging, name) == value
