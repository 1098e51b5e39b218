"""Whether the engine is the one that hvtests.machine.layout describes. Part of the fabric."""

from __future__ import annotations

import ctypes
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

from generator.errors import EngineError
from hvtests.machine import layout as L

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import unicorn as uc
    from unicorn import x86_const


def unknown(what: str) -> EngineError:
    return EngineError(f"this build of unicorn lays out its CPU otherwise than the 2.1.4 wheel for x86-64 Linux "
                       f"(looked for {what}): install unicorn==2.1.4 from PyPI")


def check_version() -> None:
    found = tuple(int(part) for part in uc.__version__.split(".")[:3])
    if found != L.ENGINE_VERSION:
        raise EngineError(f"unicorn {uc.__version__} is installed; the harness needs exactly 2.1.4 "
                          "(pip install unicorn==2.1.4)")
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 1 << 32:
        raise EngineError(f"the harness runs on x86-64 hosts only, this one is {platform.machine()}")


def _readable(address: int) -> bool:
    """Whether 8 bytes at `address` can be read; where the system does not tell, whether it looks like a pointer."""
    if address % 8 or not 0x1000 <= address < 1 << 47:
        return False
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return True
    for line in maps.read_text().splitlines():
        first, _, rest = line.partition("-")
        last, mode = rest.split()[:2]
        if int(first, 16) <= address < int(last, 16):
            return mode.startswith("r")
    return False


def pointer(address: int, what: str) -> int:
    if not _readable(address):
        raise unknown(what)
    value = ctypes.c_uint64.from_address(address).value
    if not _readable(value):
        raise unknown(what)
    return value


def probe(engine: Any, q: memoryview, i: memoryview) -> None:
    """Write through the public API what can be written there, and find it in the struct."""
    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
    words: list[tuple[str, int]] = [(name, number) for number, name in enumerate(names)]
    words += [("RIP", L.Q_RIP), ("CR2", L.Q_CR + 2), ("DR0", L.Q_DR), ("DR3", L.Q_DR + 3),
              ("FS_BASE", L.q_base(L.FS)), ("GS_BASE", L.q_base(L.GS))]
    for number, (name, word) in enumerate(words):
        register = getattr(x86_const, f"UC_X86_REG_{name}")
        before, value = engine.reg_read(register), 0x1234_5678_9ABC + number * 0x1_0001
        engine.reg_write(register, value)
        if q[word] != value:
            raise unknown(name)
        engine.reg_write(register, before)
    for number, (name, segment) in enumerate((("GDTR", L.GDTR), ("IDTR", L.IDTR), ("LDTR", L.LDTR), ("TR", L.TR))):
        register = getattr(x86_const, f"UC_X86_REG_{name}")
        before, base, limit = engine.reg_read(register), 0xABCD_0000 + number, 0x7654 + number
        engine.reg_write(register, (number, base, limit, 0))
        if q[L.q_base(segment)] != base or i[L.i_limit(segment)] != limit:
            raise unknown(name)
        engine.reg_write(register, before)
    for name, address, word in (("STAR", 0xC000_0081, L.Q_STAR), ("LSTAR", 0xC000_0082, L.Q_LSTAR),
                                ("KERNEL_GS_BASE", 0xC000_0102, L.Q_KERNEL_GS_BASE), ("PAT", 0x277, L.Q_PAT),
                                ("SYSENTER_EIP", 0x176, L.Q_SYSENTER_EIP), ("TSC_AUX", 0xC000_0103, L.Q_TSC_AUX)):
        before = engine.msr_read(address)
        engine.msr_write(address, 0x0007_0406_0006_0105)
        if q[word] != 0x0007_0406_0006_0105:
            raise unknown(name)
        engine.msr_write(address, before)


def try_events(fabric: Any) -> None:
    """Run a few instructions in a Fabric's scratch memory and see that each stops where and how it should."""
    start, q, seen = L.SCRATCH + 0x1000, fabric.q, []
    fabric.scratch[0x1000:0x1005] = b"\x0f\xa2\xe4\x80\xf4"       # CPUID; IN AL, 80H; HLT

    def other(code: int) -> None:
        at = q[L.Q_RIP]
        seen.append((code, at - start, fabric.code_physical(at)))
        q[L.Q_RIP] = at + 2
        if code == L.CODE_HLT:
            fabric.stop()

    fabric.other, q[L.Q_RIP] = other, start
    fabric.run()
    codes = ((L.CODE_CPUID, 0), (L.CODE_IN, 2), (L.CODE_HLT, 4))
    if seen != [(code, offset, start + offset) for code, offset in codes] or fabric.io[:2] != (0x80, 1):
        raise unknown(f"its events: {seen}")


# FPU, MSR, PAE, SSE, LM, NX, SYSCALL: the engine itself leans on them.
_ALWAYS_OFFERED = {(1, 3): 0x0700_0061, (0x8000_0001, 3): 0x2010_0800}


def limit_features(q: memoryview, words: dict[tuple[int, int], int]) -> None:
    """Take from the engine the instructions that no CPUID word `(leaf, register) -> bits` offers."""
    for index, key in L.FEATURE_WORDS.items():
        if key in words:
            q[L.Q_FEATURES + index] &= words[key] | _ALWAYS_OFFERED.get(key, 0)
