"""The CPU's registers, its mode, and memory as its software sees it."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import overload

from hvtests.machine import layout as L
from hvtests.machine.decode import Instruction, MemoryOperand, decode
from hvtests.machine.fabric import Fabric
from hvtests.machine.memory import PhysicalMemory
from hvtests.machine.paging import AccessFault, Regime, walk

MASK64 = (1 << 64) - 1
AR_UNUSABLE = 1 << 16
AR_DPL = 3 << 5
_PRESENT_FLAG = 1 << 15
LONGEST_INSTRUCTION = 15
RFLAGS_RF = 1 << 16
_CS_BASE = L.q_base(L.CS)


class Mode(IntEnum):
    """Operating modes of SDM 3A 2.2."""

    REAL = 0
    VIRTUAL_8086 = 1
    PROTECTED = 2
    COMPATIBILITY = 3
    LONG = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register: `access` in the form of the VMCS (SDM 3C 25.4.1), bit 16 set where it is unusable."""

    selector: int
    base: int
    limit: int
    access: int


class Registers(MutableSequence[int]):
    """The sixteen general registers by hardware number (RAX RCX RDX RBX RSP RBP RSI RDI R8..R15); values wrap."""

    def __init__(self, words: memoryview) -> None:
        self._words = words[:16]

    def __len__(self) -> int:
        return 16

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._words[index] if isinstance(index, int) else list(self._words[index])

    def __setitem__(self, index: int | slice, value: object) -> None:
        if not isinstance(index, int) or not isinstance(value, int):
            raise TypeError("general registers are set one at a time, to an int")
        self._words[index] = value & MASK64

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._words))

    def __delitem__(self, index: int | slice) -> None:
        raise TypeError("a register cannot be removed")

    def insert(self, index: int, value: int) -> None:  # noqa: ARG002
        raise TypeError("a register cannot be added")


def access_from_flags(flags: int) -> int:
    """Access rights as the VMCS has them, from the engine's segment flags."""
    return flags >> 8 & 0xF0FF if flags & _PRESENT_FLAG else AR_UNUSABLE | flags >> 8 & AR_DPL


def flags_from_access(access: int) -> int:
    """The engine's segment flags, from access rights as the VMCS has them."""
    return (access & (AR_DPL if access & AR_UNUSABLE else 0xF0FF)) << 8


class Cpu:
    """Registers and modes of the one CPU. `gprs` is indexed by hardware number; the rest are attributes.

    Writing CR0, CR4, EFER, RFLAGS or a segment keeps the engine's derived state in line; nothing is checked, and no
    event is raised. `physical` is memory as the running software addresses it: RAM in root mode, the memory behind
    its EPT in a guest.
    """

    def __init__(self, fabric: Fabric, physical: PhysicalMemory) -> None:
        self._fabric = fabric
        self._q, self._i = fabric.q, fabric.i
        self.gprs = Registers(fabric.q)
        self.physical = physical
        self.physical_bits = 40
        self.linear = 0      # address of the last access that the model made or tried

    # -- plain registers -------------------------------------------------------------------------------------------

    @property
    def rip(self) -> int:
        return self._q[L.Q_RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self._q[L.Q_RIP] = value & MASK64

    @property
    def rflags(self) -> int:
        return self._fabric.rflags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self._fabric.rflags = value
        self._fabric.refresh()

    @property
    def cr0(self) -> int:
        return self._q[L.Q_CR]

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._fabric.set_cr0(value)
        self._fabric.refresh()

    @property
    def cr2(self) -> int:
        return self._q[L.Q_CR + 2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._q[L.Q_CR + 2] = value & MASK64

    @property
    def cr3(self) -> int:
        return self._q[L.Q_CR + 3]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._q[L.Q_CR + 3] = value & MASK64
        self._fabric.flush()

    @property
    def cr4(self) -> int:
        return self._q[L.Q_CR + 4]

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._fabric.set_cr4(value)

    @property
    def cr8(self) -> int:
        return self._q[L.Q_CR + 8]

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._q[L.Q_CR + 8] = value

    @property
    def efer(self) -> int:
        return self._q[L.Q_EFER]

    @efer.setter
    def efer(self, value: int) -> None:
        self._q[L.Q_EFER] = value
        self._fabric.refresh()
        self._fabric.flush()

    @property
    def dr(self) -> memoryview:
        """DR0..DR7 as a view of eight 64-bit words."""
        return self._q[L.Q_DR:L.Q_DR + 8]

    @property
    def words(self) -> memoryview:
        """The engine's state in 64-bit words, for registers that only system instructions read (layout.Q_*)."""
        return self._q

    @property
    def sysenter_cs(self) -> int:
        """IA32_SYSENTER_CS."""
        return self._i[L.I_SYSENTER_CS]

    @property
    def xcr0(self) -> int:
        return self._q[L.Q_XCR0]

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self._q[L.Q_XCR0] = value

    # -- segments and tables ---------------------------------------------------------------------------------------

    def segment(self, number: int) -> Segment:
        """Segment register `number`: layout.ES, CS, SS, DS, FS, GS, LDTR, TR."""
        i = self._i
        return Segment(i[L.i_selector(number)] & 0xFFFF, self._q[L.q_base(number)], i[L.i_limit(number)],
                       access_from_flags(i[L.i_flags(number)]))

    def set_segment(self, number: int, segment: Segment) -> None:
        """Load segment register `number`, hidden part and all."""
        i = self._i
        i[L.i_selector(number)] = segment.selector
        self._q[L.q_base(number)] = segment.base & MASK64
        i[L.i_limit(number)] = segment.limit
        i[L.i_flags(number)] = flags_from_access(segment.access)
        self._fabric.refresh()

    def table(self, number: int) -> tuple[int, int]:
        """Base and limit of layout.GDTR or IDTR."""
        return self._q[L.q_base(number)], self._i[L.i_limit(number)]

    def set_table(self, number: int, base: int, limit: int) -> None:
        """Load layout.GDTR or IDTR."""
        self._q[L.q_base(number)] = base & MASK64
        self._i[L.i_limit(number)] = limit

    # -- modes -----------------------------------------------------------------------------------------------------

    @property
    def cpl(self) -> int:
        return self._i[L.I_HFLAGS] & L.HF_CPL

    def mode(self) -> Mode:
        """The operating mode now."""
        hflags = self._i[L.I_HFLAGS]
        if hflags & L.HF_CS64:
            return Mode.LONG
        if not hflags & L.HF_PE:
            return Mode.REAL
        if self._q[L.Q_RFLAGS] >> 17 & 1:
            return Mode.VIRTUAL_8086
        return Mode.COMPATIBILITY if hflags & L.HF_LMA else Mode.PROTECTED

    @property
    def code_bits(self) -> int:
        """16, 32 or 64: the default size of code at CS:RIP."""
        hflags = self._i[L.I_HFLAGS]
        return 64 if hflags & L.HF_CS64 else 32 if hflags & L.HF_CS32 else 16

    @property
    def code_linear(self) -> int:
        """Linear address of the instruction at CS:RIP."""
        q = self._q
        if self._i[L.I_HFLAGS] & L.HF_CS64:
            return q[L.Q_RIP]
        return q[_CS_BASE] + q[L.Q_RIP] & 0xFFFF_FFFF

    def advance(self, length: int) -> None:
        """Move RIP past an instruction of `length` bytes; RFLAGS.RF and blocking by STI or MOV SS end with it."""
        q, i = self._q, self._i
        hflags = i[L.I_HFLAGS]
        q[L.Q_RFLAGS] &= ~RFLAGS_RF
        q[L.Q_RIP] = q[L.Q_RIP] + length & (MASK64 if hflags & L.HF_CS64 else 0xFFFF_FFFF)
        if hflags & L.HF_INHIBIT_IRQ:
            i[L.I_HFLAGS] = hflags & ~L.HF_INHIBIT_IRQ

    @property
    def interrupts_inhibited(self) -> bool:
        """Whether the instruction at RIP follows STI or MOV SS."""
        return bool(self._i[L.I_HFLAGS] & L.HF_INHIBIT_IRQ)

    @interrupts_inhibited.setter
    def interrupts_inhibited(self, value: bool) -> None:
        self._i[L.I_HFLAGS] = self._i[L.I_HFLAGS] & ~L.HF_INHIBIT_IRQ | (L.HF_INHIBIT_IRQ if value else 0)

    @property
    def nmi_blocked(self) -> bool:
        """Whether an NMI is being handled: until the next IRET."""
        return bool(self._i[L.I_HFLAGS2] & L.HF2_NMI)

    @nmi_blocked.setter
    def nmi_blocked(self, value: bool) -> None:
        self._i[L.I_HFLAGS2] = self._i[L.I_HFLAGS2] & ~L.HF2_NMI | (L.HF2_NMI if value else 0)

    # -- memory ----------------------------------------------------------------------------------------------------

    def regime(self) -> Regime:
        """How linear addresses are translated now."""
        q = self._q
        return Regime(q[L.Q_CR], q[L.Q_CR + 3], q[L.Q_CR + 4], q[L.Q_EFER], self.physical_bits,
                      bool(q[L.Q_RFLAGS] >> 18 & 1))

    def translate(self, linear: int, write: bool = False, fetch: bool = False, user: bool | None = None) -> int:
        """Physical address of `linear` for an access at the current privilege (or `user` given). Raises PageFault."""
        self.linear = linear & MASK64
        return walk(self.regime(), self.physical, self.linear, write=write, fetch=fetch,
                    user=self.cpl == 3 if user is None else user)

    def read_linear(self, linear: int, size: int, *, fetch: bool = False, user: bool | None = None) -> bytes:
        """`size` bytes from a linear address; may cross pages. Raises PageFault."""
        first = min(size, 0x1000 - (linear & 0xFFF))
        at = self.translate(linear, fetch=fetch, user=user)
        data = self.physical.fetch(at, first) if fetch else self.physical.read(at, first)
        if first < size:
            data += self.read_linear(linear + first, size - first, fetch=fetch, user=user)
        return data

    def write_linear(self, linear: int, data: bytes, *, user: bool | None = None) -> None:
        """Store bytes at a linear address, all or none of them, also across two pages. Raises PageFault."""
        first = min(len(data), 0x1000 - (linear & 0xFFF))
        start = self.translate(linear, True, user=user)
        if first < len(data):
            rest = self.translate(linear + first, True, user=user)
            self.physical.write(rest, data[first:])
            self.linear = linear & MASK64
        self.physical.write(start, data[:first])

    def code(self) -> bytes:
        """Up to 15 bytes at CS:RIP, as many as can be fetched.

        They come from where the engine fetched them, if it still knows: page tables may have changed since.
        """
        linear = self.code_linear
        at = self._fabric.code_physical(linear)
        if at is not None and linear & 0xFFF <= 0x1000 - LONGEST_INSTRUCTION:
            return bytes(self._fabric.ram[at:at + LONGEST_INSTRUCTION])
        first = min(LONGEST_INSTRUCTION, 0x1000 - (linear & 0xFFF))
        data = b""
        with suppress(AccessFault):
            data = self.read_linear(linear, first, fetch=True)
            if first < LONGEST_INSTRUCTION:
                data += self.read_linear(linear + first, LONGEST_INSTRUCTION - first, fetch=True)
        return data

    def instruction(self) -> Instruction | None:
        """The instruction at CS:RIP, if it is one that :mod:`hvtests.machine.decode` knows."""
        return decode(self.code(), self.code_bits)

    def effective_offset(self, operand: MemoryOperand, length: int) -> int:
        """Offset in its segment that a memory operand of an instruction of `length` bytes names."""
        offset = operand.displacement
        if operand.base is not None:
            offset += self._q[operand.base]
        if operand.index is not None:
            offset += self._q[operand.index] << operand.scale
        if operand.rip_relative:
            offset += self.rip + length
        return offset & (1 << operand.size) - 1

    def linear_address(self, segment: int, offset: int) -> int:
        """Linear address of an offset in a segment; in 64-bit mode only FS and GS have a base."""
        if self.code_bits == 64:
            return offset + (self._q[L.q_base(segment)] if segment in (L.FS, L.GS) else 0) & MASK64
        return self._q[L.q_base(segment)] + offset & 0xFFFF_FFFF
