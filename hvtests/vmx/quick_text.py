"""What the pieces of machine code behind hvtests.vmx.quick share: words of the box, options, operands as text.

The code is called as Unicorn's hook of interrupts is: engine, event code, box. In it rbx is the box, rbp the engine's
registers, r12 the current VMCS' buffer, r8 where the instruction's bytes are, r13 the event code, r14 the engine.
The label `leave` goes to Python with nothing changed, `done` back to the engine.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from hvtests.machine import layout as L
from hvtests.machine import native as n
from hvtests.vmx import vmcs as v

CPUID_ENTRIES: Final = 24
SEGMENT_WORDS: Final = (L.Q_CR * 8 - L.SEGMENT_AT) // 8


class Box(IntEnum):
    """Words of the box that this code and hvtests.vmx.quick share."""

    ENABLED = n.BOX_EXTENSION
    VMCS = n.BOX_EXTENSION + 1
    FIELDS = n.BOX_EXTENSION + 2
    CPUID_TABLE = n.BOX_EXTENSION + 3
    CPUID_COUNT = n.BOX_EXTENSION + 4
    ROOT_INTERCEPT = n.BOX_EXTENSION + 5
    ROOT_CR_DR = n.BOX_EXTENSION + 6
    LOG_CURSOR = n.BOX_EXTENSION + 7
    LOG_TOTAL = n.BOX_EXTENSION + 8
    LOG_START = n.BOX_EXTENSION + 9
    LOG_END = n.BOX_EXTENSION + 10
    STORE_LMA = n.BOX_EXTENSION + 11


class Option(IntFlag):
    """Controls that the code looks at, in the VMCS' word OPTIONS."""

    SAVE_EFER = 1
    SAVE_PAT = 2
    EXIT_PAT = 4
    ENTRY_PAT = 8
    SAVE_DEBUG = 16
    ENTRY_DEBUG = 32
    TIMER = 64
    SAVE_TIMER = 128


HOST_WORDS: Final = ("CR0", "CR3", "CR4", "EFER", "PAT", "RIP", "RSP", "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP",
                     "HFLAGS")
HF_CS64, RFLAGS_TF = 1 << 15, 1 << 8
IA32E_MODE_GUEST, INFO_VALID_SHIFT, RFLAGS_RF, RFLAGS_AC = 1 << 9, 31, 1 << 16, 1 << 18


def env(word: int) -> str:
    """A 64-bit word of the engine's registers."""
    return f"[rbp + {8 * word}]"


def env32(word: int) -> str:
    """A 32-bit word of the engine's registers."""
    return f"[rbp + {4 * word}]"


def box(word: int) -> str:
    """A word of the box."""
    return f"[rbx + {8 * word}]"


def vmcs(word: int) -> str:
    """A word of the current VMCS' buffer."""
    return f"[r12 + {8 * word}]"


def field(name: str) -> str:
    """A field of the current VMCS that is a word of its own."""
    return vmcs(v.WORD[name])


def host(name: str) -> str:
    """Relative to rsi, which stands behind the segments after they have been copied."""
    return f"[rsi + {8 * HOST_WORDS.index(name)}]"


def copy(pairs: dict[str, str]) -> str:
    """64-bit moves: target -> source."""
    return "\n".join(f"mov rax, {source}\nmov {target}, rax" for target, source in pairs.items())
