"""What a check on VM entry can see: the VMCS by field name, the CPU, memory, and a few facts of the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from generator.arch import cr
from generator.arch import descriptors as d
from generator.arch.events import INFO_VALID
from hvtests.vmx.capabilities import CpuModel
from hvtests.vmx.checks import controlbits as c

# Pseudo-field for `reads` and `dirty`: IA32_EFER.LMA of the processor that executes VMLAUNCH or VMRESUME. Whoever
# switches the host between IA-32e and other modes between two entries adds it to the dirty fields.
HOST_LMA = "IA32_EFER.LMA"


class PhysicalMemory(Protocol):
    """What checks need of memory."""

    def u32(self, address: int, /) -> int:
        """The 32-bit word at a physical address."""

    def u64(self, address: int, /) -> int:
        """The 64-bit word at a physical address."""


class NoMemory:
    """Memory in which every byte is 0xff, as an unclaimed physical address reads."""

    def u32(self, _address: int) -> int:
        """All ones."""
        return 0xFFFF_FFFF

    def u64(self, _address: int) -> int:
        """All ones."""
        return 0xFFFF_FFFF_FFFF_FFFF


class EntryState:
    """One VM entry to be judged.

    `read(name)` gives a VMCS field's value by name (64 bits at most, unsigned). `vmcs_pointer` is the current VMCS'
    physical address, `host_lma` the processor's IA32_EFER.LMA at the entry. The harness has no SMM: the processor is
    always outside it. One object may serve any number of entries; set the two attributes before each.
    """

    __slots__ = ("cap", "host_lma", "memory", "read", "vmcs_pointer")

    def __init__(self, read: Callable[[str], int], cap: CpuModel, memory: PhysicalMemory | None = None, *,
                 vmcs_pointer: int = 0, host_lma: bool = True) -> None:
        self.read = read
        self.cap = cap
        self.memory = memory if memory is not None else NoMemory()
        self.vmcs_pointer = vmcs_pointer
        self.host_lma = host_lma

    @classmethod
    def of(cls, values: Mapping[str, int], cap: CpuModel, memory: PhysicalMemory | None = None, *,
           vmcs_pointer: int = 0, host_lma: bool = True) -> EntryState:
        """A state over a mapping from field name to value; fields it leaves out read 0."""
        return cls(lambda name: values.get(name, 0), cap, memory, vmcs_pointer=vmcs_pointer, host_lma=host_lma)

    # -- controls; a word that is not activated counts as 0 (SDM 3C 25.6.2, 25.7.1) ------------------------------

    @property
    def pin(self) -> int:
        """Pin-based controls."""
        return self.read("PIN_BASED_VM_EXEC_CONTROL")

    @property
    def proc(self) -> int:
        """Primary processor-based controls."""
        return self.read("CPU_BASED_VM_EXEC_CONTROL")

    @property
    def proc2(self) -> int:
        """Secondary processor-based controls, 0 unless activated."""
        if self.read("CPU_BASED_VM_EXEC_CONTROL") & c.ACTIVATE_SECONDARY_CONTROLS:
            return self.read("SECONDARY_VM_EXEC_CONTROL")
        return 0

    @property
    def proc3(self) -> int:
        """Tertiary processor-based controls, 0 unless activated."""
        if self.read("CPU_BASED_VM_EXEC_CONTROL") & c.ACTIVATE_TERTIARY_CONTROLS:
            return self.read("TERTIARY_VM_EXEC_CONTROL")
        return 0

    @property
    def exit(self) -> int:
        """Primary VM-exit controls."""
        return self.read("VM_EXIT_CONTROLS")

    @property
    def entry(self) -> int:
        """VM-entry controls."""
        return self.read("VM_ENTRY_CONTROLS")

    # -- what the guest will be ----------------------------------------------------------------------------------

    @property
    def ia32e(self) -> bool:
        """The "IA-32e mode guest" control is 1."""
        return bool(self.read("VM_ENTRY_CONTROLS") & c.IA32E_MODE_GUEST)

    @property
    def unrestricted(self) -> bool:
        """The "unrestricted guest" control is 1."""
        return bool(self.proc2 & c.UNRESTRICTED_GUEST)

    @property
    def v8086(self) -> bool:
        """The guest will be in virtual-8086 mode."""
        return bool(self.read("GUEST_RFLAGS") & cr.RFLAGS_VM)

    @property
    def pae_paging(self) -> bool:
        """The guest will use PAE paging: CR0.PG = 1, CR4.PAE = 1, not in IA-32e mode."""
        return bool(self.read("GUEST_CR0") & cr.CR0_PG and self.read("GUEST_CR4") & cr.CR4_PAE and not self.ia32e)

    def usable(self, register: str) -> bool:
        """A guest segment register's access rights have bit 16 (unusable) 0."""
        return not self.read(f"GUEST_{register}_AR_BYTES") & d.AR_UNUSABLE

    # -- the event to inject -------------------------------------------------------------------------------------

    @property
    def injects(self) -> bool:
        """The valid bit of the VM-entry interruption information is 1."""
        return bool(self.read("VM_ENTRY_INTR_INFO_FIELD") & INFO_VALID)

    @property
    def event_type(self) -> int:
        """Bits 10:8 of the VM-entry interruption information."""
        return self.read("VM_ENTRY_INTR_INFO_FIELD") >> 8 & 7

    @property
    def event_vector(self) -> int:
        """Bits 7:0 of the VM-entry interruption information."""
        return self.read("VM_ENTRY_INTR_INFO_FIELD") & 0xFF

    # -- addresses -----------------------------------------------------------------------------------------------

    def physical(self, address: int, alignment: int) -> bool:
        """Whether an address is a multiple of `alignment` bytes and within the processor's physical-address width."""
        return not address & (alignment - 1 | self.cap.physical_reserved)
