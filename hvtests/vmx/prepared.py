"""What a VM entry and exit need of a VMCS again and again, computed once and kept until a VMWRITE changes it."""

from __future__ import annotations

import ctypes

from generator.arch import vmcs as arch
from generator.arch.vmcs import FieldType
from hvtests.machine import layout as L
from hvtests.machine.cpu import AR_UNUSABLE, flags_from_access
from hvtests.machine.stop import unmodelled
from hvtests.vmx import bits as c
from hvtests.vmx.vmcs import Vmcs

CONTROL_FIELDS = frozenset(field.name for field in arch.FIELDS if field.type is FieldType.CONTROL) - {
    "VM_ENTRY_INTR_INFO_FIELD", "VM_ENTRY_EXCEPTION_ERROR_CODE", "VM_ENTRY_INSTRUCTION_LEN"}
HOST_FIELDS = frozenset(field.name for field in arch.FIELDS if field.type is FieldType.HOST) | {"VM_EXIT_CONTROLS"}
# Guest fields from which the engine's derived flags follow.
DERIVING_FIELDS = frozenset((
    "GUEST_CR0", "GUEST_CR4", "GUEST_IA32_EFER", "GUEST_RFLAGS", "VM_ENTRY_CONTROLS",
    *(f"GUEST_{name}_{part}" for name in ("CS", "SS", "DS", "ES") for part in ("BASE", "AR_BYTES"))))

CR4_PAE, CR4_PCIDE = 1 << 5, 1 << 17
EFER_LME_LMA = 1 << 8 | 1 << 10
DATA_ACCESS, CODE64_ACCESS, CODE32_ACCESS, TASK_ACCESS = 0xC093, 0xA09B, 0xC09B, 0x8B
TSC_FRACTION = 48       # bits of the TSC multiplier behind the point
TSC_ONE = 1 << TSC_FRACTION
SEGMENTS_AT, SEGMENTS_END = L.SEGMENT_AT, L.Q_CR * 8     # segments and descriptor tables, in the register block


class Controls:
    """The control words and what hangs on them. Raises StopRun (unmodelled) for a control that is not implemented."""

    __slots__ = (
        "bitmap_a", "bitmap_b", "cr0_mask", "cr0_shadow", "cr3_targets", "cr4_mask", "cr4_shadow", "entry",
        "eptp", "eptp_list", "exceptions", "exit", "functions", "msr_bitmap", "msr_lists", "page_fault_mask",
        "page_fault_match", "pin", "pml_address", "proc", "proc2", "tpr_threshold", "tsc_multiplier",
        "tsc_offset", "uses_ept", "vmread_bitmap", "vmwrite_bitmap", "vtpr_at")

    def __init__(self, vmcs: Vmcs) -> None:
        read = vmcs.read
        self.pin, self.proc = read("PIN_BASED_VM_EXEC_CONTROL"), read("CPU_BASED_VM_EXEC_CONTROL")
        self.proc2 = read("SECONDARY_VM_EXEC_CONTROL") if self.proc & c.ACTIVATE_SECONDARY_CONTROLS else 0
        self.exit, self.entry = read("VM_EXIT_CONTROLS"), read("VM_ENTRY_CONTROLS")
        for field, value in (("PIN_BASED_VM_EXEC_CONTROL", self.pin), ("CPU_BASED_VM_EXEC_CONTROL", self.proc),
                             ("SECONDARY_VM_EXEC_CONTROL", self.proc2), ("VM_EXIT_CONTROLS", self.exit),
                             ("VM_ENTRY_CONTROLS", self.entry)):
            if value & ~c.IMPLEMENTED[field]:
                raise unmodelled(f"{field}: bits {value & ~c.IMPLEMENTED[field]:#x} of {value:#x} are not modelled")
        self.uses_ept = bool(self.proc2 & c.ENABLE_EPT)
        self.eptp, self.pml_address = read("EPT_POINTER"), read("PML_ADDRESS")
        self.functions = read("VM_FUNCTION_CONTROL") if self.proc2 & c.ENABLE_VM_FUNCTIONS else 0
        self.eptp_list = read("EPTP_LIST_ADDRESS")
        self.exceptions = read("EXCEPTION_BITMAP")
        self.page_fault_mask = read("PAGE_FAULT_ERROR_CODE_MASK")
        self.page_fault_match = read("PAGE_FAULT_ERROR_CODE_MATCH")
        self.cr0_mask, self.cr0_shadow = read("CR0_GUEST_HOST_MASK"), read("CR0_READ_SHADOW")
        self.cr4_mask, self.cr4_shadow = read("CR4_GUEST_HOST_MASK"), read("CR4_READ_SHADOW")
        self.cr3_targets = {read(f"CR3_TARGET_VALUE{n}") for n in range(min(read("CR3_TARGET_COUNT"), 4))}
        self.bitmap_a, self.bitmap_b = read("IO_BITMAP_A"), read("IO_BITMAP_B")
        self.msr_bitmap = read("MSR_BITMAP")
        self.vmread_bitmap, self.vmwrite_bitmap = read("VMREAD_BITMAP"), read("VMWRITE_BITMAP")
        self.tpr_threshold, self.vtpr_at = read("TPR_THRESHOLD"), read("VIRTUAL_APIC_PAGE_ADDR") + 0x80
        self.tsc_offset = read("TSC_OFFSET") if self.proc & c.USE_TSC_OFFSETTING else 0
        self.tsc_multiplier = TSC_ONE
        if self.proc & c.USE_TSC_OFFSETTING and self.proc2 & c.USE_TSC_SCALING:
            self.tsc_multiplier = read("TSC_MULTIPLIER")
        self.msr_lists = bool(read("VM_EXIT_MSR_STORE_COUNT") or read("VM_EXIT_MSR_LOAD_COUNT")
                              or read("VM_ENTRY_MSR_LOAD_COUNT"))

    def tsc(self, now: int) -> int:
        """What a guest that reads the TSC gets (SDM 3C 26.3 [25.3], RDTSC): 64 bits."""
        return (now * self.tsc_multiplier >> TSC_FRACTION) + self.tsc_offset & (1 << 64) - 1


class HostState:
    """The host-state area as a VM exit loads it: SDM 3C 28.5 [27.5]."""

    __slots__ = ("block", "cr0", "cr3", "cr4", "efer", "hflags", "pat", "rip", "rsp", "segments", "sysenter_cs",
                 "sysenter_eip", "sysenter_esp")

    def __init__(self, vmcs: Vmcs) -> None:
        read, exit_ = vmcs.read, vmcs.read("VM_EXIT_CONTROLS")
        wide = bool(exit_ & c.HOST_ADDRESS_SPACE_SIZE)
        block = memoryview(bytearray(SEGMENTS_END))
        words, halves = block.cast("Q"), block.cast("I")
        for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
            selector = read(f"HOST_{name}_SELECTOR")
            access = (CODE64_ACCESS if wide else CODE32_ACCESS) if name == "CS" else DATA_ACCESS
            if name != "CS" and selector == 0:
                access = AR_UNUSABLE
            halves[L.i_selector(number)] = selector
            halves[L.i_limit(number)] = 0xFFFF_FFFF
            halves[L.i_flags(number)] = flags_from_access(access)
            if name in ("FS", "GS"):
                words[L.q_base(number)] = read(f"HOST_{name}_BASE")
        halves[L.i_selector(L.TR)] = read("HOST_TR_SELECTOR")
        words[L.q_base(L.TR)] = read("HOST_TR_BASE")
        halves[L.i_limit(L.TR)], halves[L.i_flags(L.TR)] = 0x67, flags_from_access(TASK_ACCESS)
        for number, name in ((L.GDTR, "GDTR"), (L.IDTR, "IDTR")):
            words[L.q_base(number)] = read(f"HOST_{name}_BASE")
            halves[L.i_limit(number)] = 0xFFFF
        self.segments = bytes(block[SEGMENTS_AT:])
        self.cr0, self.cr3 = read("HOST_CR0"), read("HOST_CR3")
        self.cr4 = read("HOST_CR4") | CR4_PAE if wide else read("HOST_CR4") & ~CR4_PCIDE
        self.efer = read("HOST_IA32_EFER") if exit_ & c.EXIT_LOAD_IA32_EFER else None
        self.pat = read("HOST_IA32_PAT") if exit_ & c.EXIT_LOAD_IA32_PAT else None
        self.rip, self.rsp = read("HOST_RIP"), read("HOST_RSP")
        self.sysenter_cs = read("HOST_IA32_SYSENTER_CS")
        self.sysenter_esp, self.sysenter_eip = read("HOST_IA32_SYSENTER_ESP"), read("HOST_IA32_SYSENTER_EIP")
        self.hflags: int | None = None    # the engine's derived flags, once it has computed them
        self.block: ctypes.Array[ctypes.c_char] | None = None    # all of it, for native code
