"""SYSCALL and SYSENTER, which the engine leaves to its host. SDM 2B "SYSCALL", "SYSENTER"."""

from __future__ import annotations

from hvtests.machine import layout as L
from hvtests.machine.cpu import MASK64, Cpu, Segment
from hvtests.machine.delivery import GP, Fault

UD = 6
_CODE64, _CODE32, _DATA = 0xA09B, 0xC09B, 0xC093
_CLEARED_BY_SYSENTER = 1 << 17 | 1 << 9    # VM and IF


def syscall(cpu: Cpu) -> None:
    """Enter the kernel at IA32_LSTAR. Raises Fault #UD outside 64-bit mode or with EFER.SCE = 0."""
    q = cpu.gprs
    if cpu.code_bits != 64 or not cpu.efer & 1:
        raise Fault(UD)
    flags = cpu.rflags
    q[L.Q_RCX] = cpu.rip + 2 & MASK64
    q[11] = flags & ~(1 << 16)
    words = cpu.words
    cpu.rip = words[L.Q_LSTAR]
    selector = words[L.Q_STAR] >> 32 & 0xFFFC
    cpu.set_segment(L.CS, Segment(selector, 0, 0xFFFF_FFFF, _CODE64))
    cpu.set_segment(L.SS, Segment(selector + 8, 0, 0xFFFF_FFFF, _DATA))
    cpu.rflags = flags & ~(words[L.Q_FMASK] | 1 << 16) | 2
    cpu.interrupts_inhibited = False


def sysenter(cpu: Cpu) -> None:
    """Enter the kernel at IA32_SYSENTER_EIP. Raises Fault #GP(0) in real mode or with a null IA32_SYSENTER_CS."""
    selector = cpu.sysenter_cs & 0xFFFC
    if not cpu.cr0 & 1 or selector == 0:
        raise Fault(GP, 0)
    long = cpu.efer >> 10 & 1
    mask = MASK64 if long else 0xFFFF_FFFF
    words = cpu.words
    flags = cpu.rflags
    cpu.set_segment(L.CS, Segment(selector, 0, 0xFFFF_FFFF, _CODE64 if long else _CODE32))
    cpu.set_segment(L.SS, Segment(selector + 8, 0, 0xFFFF_FFFF, _DATA))
    cpu.rflags = flags & ~_CLEARED_BY_SYSENTER
    cpu.gprs[L.Q_RSP] = words[L.Q_SYSENTER_ESP] & mask
    cpu.rip = words[L.Q_SYSENTER_EIP] & mask
    cpu.interrupts_inhibited = False
