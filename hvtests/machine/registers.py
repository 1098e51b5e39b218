"""What writing a system register needs: the checks of MOV to CRn, XSETBV and WRMSR, and where the MSRs live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hvtests.machine import layout as L
from hvtests.machine.clock import Clock
from hvtests.machine.cpu import Cpu
from hvtests.machine.delivery import GP, Fault
from hvtests.machine.fabric import Fabric

Cpuid = tuple[int, int, int, int]

CR0_PE, CR0_NW, CR0_CD, CR0_PG, CR0_WP = 1, 1 << 29, 1 << 30, 1 << 31, 1 << 16
CR4_PAE, CR4_LA57, CR4_VMXE, CR4_PCIDE = 1 << 5, 1 << 12, 1 << 13, 1 << 17
EFER_LME, EFER_LMA = 1 << 8, 1 << 10


class CpuModel(Protocol):
    """What the machine asks of the modelled CPU; hvtests.vmx.capabilities has the one that is used."""

    @property
    def maxphyaddr(self) -> int: ...

    @property
    def cr0_reserved(self) -> int: ...

    @property
    def cr4_reserved(self) -> int: ...

    @property
    def xcr0_valid(self) -> int: ...

    def cpuid(self, leaf: int, subleaf: int, *, cr4: int = 0, long_mode: bool = True) -> Cpuid: ...

    def reset_msrs(self) -> dict[int, int]: ...

    def write_msr(self, address: int, current: int, value: int, *, paging: bool = False) -> int | None: ...


class MsrFile:
    """Every MSR of the CPU. Those that the engine itself uses live there, the rest in a dict.

    `read` gives None and `write` False for what is #GP(0).
    """

    def __init__(self, model: CpuModel, fabric: Fabric, cpu: Cpu, clock: Clock) -> None:
        self._model, self._cpu = model, cpu
        self._values = model.reset_msrs()
        q, i = fabric.q, fabric.i
        self._readers: dict[int, Callable[[], int]] = {0x10: clock.now, 0x174: lambda: i[L.I_SYSENTER_CS]}
        self._writers: dict[int, Callable[[int], None]] = {
            0x10: clock.set,
            0x174: lambda value: i.__setitem__(L.I_SYSENTER_CS, value & 0xFFFF_FFFF),
        }
        self._readers[0x1D9] = lambda: fabric.debugctl
        self._writers[0x1D9] = lambda value: setattr(fabric, "debugctl", value)
        for address, word in _IN_ENGINE.items():
            self._readers[address] = lambda word=word: q[word]  # type: ignore[misc]
            self._writers[address] = lambda value, word=word: q.__setitem__(word, value)  # type: ignore[misc]
        self._writers[0xC000_0080] = lambda value: setattr(cpu, "efer", value)
        for address in self._readers:
            if address in self._values and address != 0x10:
                self._writers[address](self._values[address])

    def read(self, address: int) -> int | None:
        """Value of MSR `address`, None if there is no such MSR."""
        if address not in self._values:
            return None
        reader = self._readers.get(address)
        return self._values[address] if reader is None else reader()

    def write(self, address: int, value: int) -> bool:
        """WRMSR; False where it is #GP(0)."""
        current = self.read(address)
        if current is None:
            return False
        new = self._model.write_msr(address, current, value, paging=bool(self._cpu.cr0 & CR0_PG))
        if new is None:
            return False
        self.store(address, new)
        return True

    def accepts(self, address: int, value: int) -> bool:
        """Whether WRMSR of `value` would be accepted now."""
        current = self.read(address)
        return current is not None and self._model.write_msr(
            address, current, value, paging=bool(self._cpu.cr0 & CR0_PG)) is not None

    def store(self, address: int, value: int) -> None:
        """Set an MSR that exists, without judging the value: loads at VM entry and VM exit."""
        writer = self._writers.get(address)
        if writer is None:
            self._values[address] = value
        else:
            writer(value)


_IN_ENGINE = {
    0x175: L.Q_SYSENTER_ESP, 0x176: L.Q_SYSENTER_EIP, 0x277: L.Q_PAT,
    0xC000_0080: L.Q_EFER, 0xC000_0081: L.Q_STAR, 0xC000_0082: L.Q_LSTAR, 0xC000_0083: L.Q_CSTAR,
    0xC000_0084: L.Q_FMASK, 0xC000_0100: L.q_base(L.FS), 0xC000_0101: L.q_base(L.GS),
    0xC000_0102: L.Q_KERNEL_GS_BASE, 0xC000_0103: L.Q_TSC_AUX,
}


def load_cr0(cpu: Cpu, model: CpuModel, value: int) -> None:
    """MOV to CR0 as far as the CPU itself checks it (SDM 2B "MOV - Control registers"). Raises Fault #GP(0)."""
    if value >> 32 or value & (CR0_PG | CR0_PE) == CR0_PG or value & (CR0_NW | CR0_CD) == CR0_NW:
        raise Fault(GP, 0)
    turned_on = value & ~cpu.cr0 & CR0_PG
    turned_off = ~value & cpu.cr0 & CR0_PG
    if turned_on and cpu.efer & EFER_LME and (not cpu.cr4 & CR4_PAE or cpu.segment(L.CS).access >> 13 & 1):
        raise Fault(GP, 0)
    if turned_off and (cpu.code_bits == 64 or cpu.cr4 & CR4_PCIDE):
        raise Fault(GP, 0)
    cpu.cr0 = value & ~model.cr0_reserved | 1 << 4


def load_cr3(cpu: Cpu, model: CpuModel, value: int) -> None:
    """MOV to CR3. Raises Fault #GP(0) for an address beyond the CPU's physical-address width."""
    if cpu.efer & EFER_LMA and value >> model.maxphyaddr:
        raise Fault(GP, 0)
    cpu.cr3 = value


def load_cr4(cpu: Cpu, model: CpuModel, value: int) -> None:
    """MOV to CR4. Raises Fault #GP(0)."""
    if value & model.cr4_reserved:
        raise Fault(GP, 0)
    if cpu.efer & EFER_LMA and (not value & CR4_PAE or (value ^ cpu.cr4) & CR4_LA57):
        raise Fault(GP, 0)
    cpu.cr4 = value


def load_xcr0(cpu: Cpu, model: CpuModel, register: int, value: int) -> None:
    """XSETBV (SDM 2C "XSETBV"). Raises Fault #GP(0)."""
    avx_without_sse = value & 4 and not value & 2
    if cpu.cpl or register or not value & 1 or value & ~model.xcr0_valid or avx_without_sse:
        raise Fault(GP, 0)
    cpu.xcr0 = value
