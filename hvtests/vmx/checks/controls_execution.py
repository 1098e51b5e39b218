"""Checks on the VM-execution control fields (SDM 3C 27.2.1.1); a failure is VMfailValid 7.

Addresses that a control makes meaningful are data (`ADDRESSES`): each row gives two rules, alignment and width.
"""

from __future__ import annotations

from collections.abc import Callable

from generator.arch import controls as words
from hvtests.vmx.checks import controlbits as c
from hvtests.vmx.checks.fields import ENTRY, EXIT, PIN, PROC, PROC2, PROC3
from hvtests.vmx.checks.registry import RuleSet, Stage
from hvtests.vmx.checks.state import EntryState

SET = RuleSet(Stage.CONTROLS, "27.2.1.1")
rule = SET.rule


def addresses(id_: str, field: str, alignment: int, reads: tuple[str, ...],
              needed: Callable[[EntryState], bool], when: str, rules: RuleSet = SET) -> None:
    """Two rules for a physical address in `field` that counts while `needed`: aligned, and not too wide."""
    def aligned(s: EntryState) -> bool:
        return not needed(s) or not s.read(field) & (alignment - 1)

    def narrow(s: EntryState) -> bool:
        return not needed(s) or not s.read(field) & s.cap.structure_reserved

    low = alignment.bit_length() - 2
    aligned.__doc__ = f"If {when}, bits {low}:0 of {field} must be 0."
    narrow.__doc__ = f"If {when}, {field} must not set a bit beyond the processor's physical-address width."
    rules.rule(f"{id_}.align", *reads, field)(aligned)
    rules.rule(f"{id_}.width", *reads, field)(narrow)


# -- the words themselves ------------------------------------------------------------------------------------------

@rule("ctl.pin.reserved", PIN)
def pin_reserved(s: EntryState) -> bool:
    """Pin-based controls must be 1 where IA32_VMX_(TRUE_)PINBASED_CTLS demands it, and 0 where it does not allow 1."""
    return s.cap.controls_valid(words.PINBASED, s.pin)


@rule("ctl.proc.reserved", PROC)
def proc_reserved(s: EntryState) -> bool:
    """Primary processor-based controls must be 1 where IA32_VMX_(TRUE_)PROCBASED_CTLS demands it, and 0 where it
    does not allow 1."""
    return s.cap.controls_valid(words.PROCBASED, s.proc)


@rule("ctl.proc2.reserved", *PROC2)
def proc2_reserved(s: EntryState) -> bool:
    """If "activate secondary controls" is 1, secondary controls must be 0 where IA32_VMX_PROCBASED_CTLS2 does not
    allow 1."""
    return s.cap.controls_valid(words.PROCBASED2, s.proc2)


@rule("ctl.proc3.reserved", *PROC3)
def proc3_reserved(s: EntryState) -> bool:
    """If "activate tertiary controls" is 1, tertiary controls must be 0 where IA32_VMX_PROCBASED_CTLS3 does not
    allow 1."""
    return s.cap.controls_valid(words.PROCBASED3, s.proc3)


@rule("ctl.cr3_target_count", "CR3_TARGET_COUNT")
def cr3_target_count(s: EntryState) -> bool:
    """CR3_TARGET_COUNT must not be greater than the number of CR3-target values (IA32_VMX_MISC bits 24:16)."""
    return s.read("CR3_TARGET_COUNT") <= s.cap.misc >> 16 & 0x1FF


# -- bitmaps -------------------------------------------------------------------------------------------------------

for _letter in "AB":
    addresses(f"ctl.io_bitmap_{_letter.lower()}", f"IO_BITMAP_{_letter}", 4096, (PROC,),
              lambda s: bool(s.proc & c.USE_IO_BITMAPS), '"use I/O bitmaps" is 1')

addresses("ctl.msr_bitmap", "MSR_BITMAP", 4096, (PROC,),
          lambda s: bool(s.proc & c.USE_MSR_BITMAPS), '"use MSR bitmaps" is 1')


# -- APIC virtualization -------------------------------------------------------------------------------------------

addresses("ctl.virtual_apic_page", "VIRTUAL_APIC_PAGE_ADDR", 4096, (PROC,),
          lambda s: bool(s.proc & c.USE_TPR_SHADOW), '"use TPR shadow" is 1')


@rule("ctl.tpr_threshold.reserved", *PROC2, "TPR_THRESHOLD")
def tpr_threshold_reserved(s: EntryState) -> bool:
    """If "use TPR shadow" is 1 and "virtual-interrupt delivery" is 0, bits 31:4 of TPR_THRESHOLD must be 0."""
    if not s.proc & c.USE_TPR_SHADOW or s.proc2 & c.VIRTUAL_INTERRUPT_DELIVERY:
        return True
    return not s.read("TPR_THRESHOLD") >> 4


def _tpr_shadow(s: EntryState) -> bool:
    return bool(s.proc & c.USE_TPR_SHADOW)


@rule("ctl.tpr_threshold.above_vtpr", *PROC2, "TPR_THRESHOLD", "VIRTUAL_APIC_PAGE_ADDR",
      guard=_tpr_shadow, guard_reads=(PROC,))
def tpr_threshold_above_vtpr(s: EntryState) -> bool:
    """If "use TPR shadow" is 1 and "virtualize APIC accesses" and "virtual-interrupt delivery" are 0, bits 3:0 of
    TPR_THRESHOLD must not be greater than bits 7:4 of VTPR (byte 80H of the virtual-APIC page)."""
    if not s.proc & c.USE_TPR_SHADOW or s.proc2 & (c.VIRTUALIZE_APIC_ACCESSES | c.VIRTUAL_INTERRUPT_DELIVERY):
        return True
    vtpr = s.memory.u32(s.read("VIRTUAL_APIC_PAGE_ADDR") + 0x80) & 0xFF
    return s.read("TPR_THRESHOLD") & 0xF <= vtpr >> 4


@rule("ctl.virtual_nmis.needs_nmi_exiting", PIN)
def virtual_nmis(s: EntryState) -> bool:
    """If "NMI exiting" is 0, "virtual NMIs" must be 0."""
    return bool(s.pin & c.NMI_EXITING) or not s.pin & c.VIRTUAL_NMIS


@rule("ctl.nmi_window.needs_virtual_nmis", PIN, PROC)
def nmi_window(s: EntryState) -> bool:
    """If "virtual NMIs" is 0, "NMI-window exiting" must be 0."""
    return bool(s.pin & c.VIRTUAL_NMIS) or not s.proc & c.NMI_WINDOW_EXITING


addresses("ctl.apic_access", "APIC_ACCESS_ADDR", 4096, PROC2,
          lambda s: bool(s.proc2 & c.VIRTUALIZE_APIC_ACCESSES), '"virtualize APIC accesses" is 1')


@rule("ctl.x2apic.needs_tpr_shadow", *PROC2)
def x2apic_needs_tpr_shadow(s: EntryState) -> bool:
    """If "use TPR shadow" is 0, "virtualize x2APIC mode" must be 0."""
    return bool(s.proc & c.USE_TPR_SHADOW) or not s.proc2 & c.VIRTUALIZE_X2APIC_MODE


@rule("ctl.apic_registers.needs_tpr_shadow", *PROC2)
def apic_registers_need_tpr_shadow(s: EntryState) -> bool:
    """If "use TPR shadow" is 0, "APIC-register virtualization" must be 0."""
    return bool(s.proc & c.USE_TPR_SHADOW) or not s.proc2 & c.APIC_REGISTER_VIRTUALIZATION


@rule("ctl.interrupt_delivery.needs_tpr_shadow", *PROC2)
def interrupt_delivery_needs_tpr_shadow(s: EntryState) -> bool:
    """If "use TPR shadow" is 0, "virtual-interrupt delivery" must be 0."""
    return bool(s.proc & c.USE_TPR_SHADOW) or not s.proc2 & c.VIRTUAL_INTERRUPT_DELIVERY


@rule("ctl.x2apic.with_apic_accesses", *PROC2)
def x2apic_with_apic_accesses(s: EntryState) -> bool:
    """If "virtualize x2APIC mode" is 1, "virtualize APIC accesses" must be 0."""
    return not s.proc2 & c.VIRTUALIZE_X2APIC_MODE or not s.proc2 & c.VIRTUALIZE_APIC_ACCESSES


@rule("ctl.interrupt_delivery.needs_interrupt_exiting", PIN, *PROC2)
def interrupt_delivery_needs_interrupt_exiting(s: EntryState) -> bool:
    """If "virtual-interrupt delivery" is 1, "external-interrupt exiting" must be 1."""
    return not s.proc2 & c.VIRTUAL_INTERRUPT_DELIVERY or bool(s.pin & c.EXTERNAL_INTERRUPT_EXITING)


@rule("ctl.posted.needs_interrupt_delivery", PIN, *PROC2)
def posted_needs_interrupt_delivery(s: EntryState) -> bool:
    """If "process posted interrupts" is 1, "virtual-interrupt delivery" must be 1."""
    return not s.pin & c.PROCESS_POSTED_INTERRUPTS or bool(s.proc2 & c.VIRTUAL_INTERRUPT_DELIVERY)


@rule("ctl.posted.needs_acknowledge", PIN, EXIT)
def posted_needs_acknowledge(s: EntryState) -> bool:
    """If "process posted interrupts" is 1, "acknowledge interrupt on exit" must be 1."""
    return not s.pin & c.PROCESS_POSTED_INTERRUPTS or bool(s.exit & c.ACKNOWLEDGE_INTERRUPT_ON_EXIT)


@rule("ctl.posted.vector", PIN, "POSTED_INTR_NV")
def posted_vector(s: EntryState) -> bool:
    """If "process posted interrupts" is 1, bits 15:8 of POSTED_INTR_NV must be 0."""
    return not s.pin & c.PROCESS_POSTED_INTERRUPTS or not s.read("POSTED_INTR_NV") >> 8


addresses("ctl.posted.descriptor", "POSTED_INTR_DESC_ADDR", 64, (PIN,),
          lambda s: bool(s.pin & c.PROCESS_POSTED_INTERRUPTS), '"process posted interrupts" is 1')


# -- translation ---------------------------------------------------------------------------------------------------

@rule("ctl.vpid.zero", *PROC2, "VIRTUAL_PROCESSOR_ID")
def vpid_zero(s: EntryState) -> bool:
    """If "enable VPID" is 1, VIRTUAL_PROCESSOR_ID must not be 0."""
    return not s.proc2 & c.ENABLE_VPID or s.read("VIRTUAL_PROCESSOR_ID") != 0


@rule("ctl.eptp.memory_type", *PROC2, "EPT_POINTER")
def eptp_memory_type(s: EntryState) -> bool:
    """If "enable EPT" is 1, bits 2:0 of EPT_POINTER must be a memory type that IA32_VMX_EPT_VPID_CAP offers: 0 (UC)
    by its bit 8, 6 (WB) by its bit 14."""
    if not s.proc2 & c.ENABLE_EPT:
        return True
    bit = {0: 8, 6: 14}.get(s.read("EPT_POINTER") & 7)
    return bit is not None and bool(s.cap.ept_vpid >> bit & 1)


@rule("ctl.eptp.walk_length", *PROC2, "EPT_POINTER")
def eptp_walk_length(s: EntryState) -> bool:
    """If "enable EPT" is 1, bits 5:3 of EPT_POINTER must be 1 less than a page-walk length that
    IA32_VMX_EPT_VPID_CAP offers: 3 by its bit 6, 4 by its bit 7."""
    if not s.proc2 & c.ENABLE_EPT:
        return True
    bit = {3: 6, 4: 7}.get(s.read("EPT_POINTER") >> 3 & 7)
    return bit is not None and bool(s.cap.ept_vpid >> bit & 1)


@rule("ctl.eptp.accessed_dirty", *PROC2, "EPT_POINTER")
def eptp_accessed_dirty(s: EntryState) -> bool:
    """If "enable EPT" is 1, bit 6 of EPT_POINTER (accessed and dirty flags) must be 0 unless bit 21 of
    IA32_VMX_EPT_VPID_CAP is 1."""
    return not s.proc2 & c.ENABLE_EPT or not s.read("EPT_POINTER") & 1 << 6 or bool(s.cap.ept_vpid >> 21 & 1)


@rule("ctl.eptp.supervisor_shadow_stack", *PROC2, "EPT_POINTER")
def eptp_supervisor_shadow_stack(s: EntryState) -> bool:
    """If "enable EPT" is 1, bit 7 of EPT_POINTER (supervisor shadow-stack control) must be 0 unless bit 23 of
    IA32_VMX_EPT_VPID_CAP is 1."""
    return not s.proc2 & c.ENABLE_EPT or not s.read("EPT_POINTER") & 1 << 7 or bool(s.cap.ept_vpid >> 23 & 1)


@rule("ctl.eptp.reserved", *PROC2, "EPT_POINTER")
def eptp_reserved(s: EntryState) -> bool:
    """If "enable EPT" is 1, bits 11:8 of EPT_POINTER and those beyond the physical-address width must be 0."""
    return not s.proc2 & c.ENABLE_EPT or not s.read("EPT_POINTER") & (0xF00 | s.cap.physical_reserved)


@rule("ctl.pml.needs_ept", *PROC2)
def pml_needs_ept(s: EntryState) -> bool:
    """If "enable PML" is 1, "enable EPT" must be 1."""
    return not s.proc2 & c.ENABLE_PML or bool(s.proc2 & c.ENABLE_EPT)


addresses("ctl.pml", "PML_ADDRESS", 4096, PROC2, lambda s: bool(s.proc2 & c.ENABLE_PML), '"enable PML" is 1')


@rule("ctl.unrestricted_guest.needs_ept", *PROC2)
def unrestricted_guest_needs_ept(s: EntryState) -> bool:
    """If "unrestricted guest" is 1, "enable EPT" must be 1."""
    return not s.proc2 & c.UNRESTRICTED_GUEST or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.mode_based_execute.needs_ept", *PROC2)
def mode_based_execute_needs_ept(s: EntryState) -> bool:
    """If "mode-based execute control for EPT" is 1, "enable EPT" must be 1."""
    return not s.proc2 & c.MODE_BASED_EXECUTE_CONTROL or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.sub_page.needs_ept", *PROC2)
def sub_page_needs_ept(s: EntryState) -> bool:
    """If "sub-page write permissions for EPT" is 1, "enable EPT" must be 1."""
    return not s.proc2 & c.SUB_PAGE_WRITE_PERMISSIONS or bool(s.proc2 & c.ENABLE_EPT)


addresses("ctl.sub_page.table", "SPP_TABLE_POINTER", 4096, PROC2,
          lambda s: bool(s.proc2 & c.SUB_PAGE_WRITE_PERMISSIONS), '"sub-page write permissions for EPT" is 1')


# -- VM functions, shadowing, #VE, tracing, scaling ----------------------------------------------------------------

@rule("ctl.vm_functions.reserved", *PROC2, "VM_FUNCTION_CONTROL")
def vm_functions_reserved(s: EntryState) -> bool:
    """If "enable VM functions" is 1, VM_FUNCTION_CONTROL must be 0 where IA32_VMX_VMFUNC does not allow 1."""
    if not s.proc2 & c.ENABLE_VM_FUNCTIONS:
        return True
    return s.cap.controls_valid(words.VMFUNC, s.read("VM_FUNCTION_CONTROL"))


def _eptp_switching(s: EntryState) -> bool:
    return bool(s.proc2 & c.ENABLE_VM_FUNCTIONS and s.read("VM_FUNCTION_CONTROL") & c.EPTP_SWITCHING)


@rule("ctl.eptp_switching.needs_ept", *PROC2, "VM_FUNCTION_CONTROL")
def eptp_switching_needs_ept(s: EntryState) -> bool:
    """If the VM function "EPTP switching" is enabled, "enable EPT" must be 1."""
    return not _eptp_switching(s) or bool(s.proc2 & c.ENABLE_EPT)


addresses("ctl.eptp_switching.list", "EPTP_LIST_ADDRESS", 4096, (*PROC2, "VM_FUNCTION_CONTROL"),
          _eptp_switching, 'the VM function "EPTP switching" is enabled')

for _field in ("VMREAD_BITMAP", "VMWRITE_BITMAP"):
    addresses(f"ctl.{_field.lower()}", _field, 4096, PROC2,
              lambda s: bool(s.proc2 & c.VMCS_SHADOWING), '"VMCS shadowing" is 1')

addresses("ctl.ve_information", "VE_INFORMATION_ADDRESS", 4096, PROC2,
          lambda s: bool(s.proc2 & c.EPT_VIOLATION_VE), '"EPT-violation #VE" is 1')


@rule("ctl.pt_guest_physical.needs_ept", *PROC2)
def pt_guest_physical_needs_ept(s: EntryState) -> bool:
    """If "Intel PT uses guest physical addresses" is 1, "enable EPT" must be 1."""
    return not s.proc2 & c.PT_USES_GUEST_PHYSICAL or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.pt_guest_physical.needs_load", *PROC2, ENTRY)
def pt_guest_physical_needs_load(s: EntryState) -> bool:
    """If "Intel PT uses guest physical addresses" is 1, the VM-entry control "load IA32_RTIT_CTL" must be 1."""
    return not s.proc2 & c.PT_USES_GUEST_PHYSICAL or bool(s.entry & c.LOAD_IA32_RTIT_CTL)


@rule("ctl.pt_guest_physical.needs_clear", *PROC2, EXIT)
def pt_guest_physical_needs_clear(s: EntryState) -> bool:
    """If "Intel PT uses guest physical addresses" is 1, the VM-exit control "clear IA32_RTIT_CTL" must be 1."""
    return not s.proc2 & c.PT_USES_GUEST_PHYSICAL or bool(s.exit & c.CLEAR_IA32_RTIT_CTL)


@rule("ctl.tsc_multiplier.zero", *PROC2, "TSC_MULTIPLIER")
def tsc_multiplier_zero(s: EntryState) -> bool:
    """If "use TSC scaling" is 1, TSC_MULTIPLIER must not be 0."""
    return not s.proc2 & c.USE_TSC_SCALING or s.read("TSC_MULTIPLIER") != 0


for _which in ("LOW", "HIGH"):
    addresses(f"ctl.pasid_{_which.lower()}", f"{_which}_PASID_DIRECTORY_ADDRESS", 4096, PROC2,
              lambda s: bool(s.proc2 & c.PASID_TRANSLATION), '"PASID translation" is 1')


# -- tertiary controls ---------------------------------------------------------------------------------------------

@rule("ctl.hlat.needs_ept", *PROC2, "TERTIARY_VM_EXEC_CONTROL")
def hlat_needs_ept(s: EntryState) -> bool:
    """If "enable HLAT" is 1, "enable EPT" must be 1."""
    return not s.proc3 & c.ENABLE_HLAT or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.hlat.pointer", *PROC3, "HLAT_POINTER")
def hlat_pointer(s: EntryState) -> bool:
    """If "enable HLAT" is 1, bits 2:0 and 11:5 of HLAT_POINTER and those beyond the physical-address width must
    be 0."""
    return not s.proc3 & c.ENABLE_HLAT or not s.read("HLAT_POINTER") & (0xFE7 | s.cap.physical_reserved)


@rule("ctl.paging_write.needs_ept", *PROC2, "TERTIARY_VM_EXEC_CONTROL")
def paging_write_needs_ept(s: EntryState) -> bool:
    """If "EPT paging-write control" is 1, "enable EPT" must be 1."""
    return not s.proc3 & c.EPT_PAGING_WRITE_CONTROL or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.paging_verification.needs_ept", *PROC2, "TERTIARY_VM_EXEC_CONTROL")
def paging_verification_needs_ept(s: EntryState) -> bool:
    """If "guest-paging verification" is 1, "enable EPT" must be 1."""
    return not s.proc3 & c.GUEST_PAGING_VERIFICATION or bool(s.proc2 & c.ENABLE_EPT)


@rule("ctl.ipi.needs_tpr_shadow", *PROC3)
def ipi_needs_tpr_shadow(s: EntryState) -> bool:
    """If "IPI virtualization" is 1, "use TPR shadow" must be 1."""
    return not s.proc3 & c.IPI_VIRTUALIZATION or bool(s.proc & c.USE_TPR_SHADOW)


addresses("ctl.ipi.table", "PID_POINTER_TABLE", 8, PROC3,
          lambda s: bool(s.proc3 & c.IPI_VIRTUALIZATION), '"IPI virtualization" is 1')


@rule("ctl.ipi.last_entry", *PROC3, "PID_POINTER_TABLE", "LAST_PID_POINTER_INDEX")
def ipi_last_entry(s: EntryState) -> bool:
    """If "IPI virtualization" is 1, the last entry of the PID-pointer table (PID_POINTER_TABLE + 8 x
    LAST_PID_POINTER_INDEX) must not lie beyond the physical-address width."""
    if not s.proc3 & c.IPI_VIRTUALIZATION:
        return True
    return not s.read("PID_POINTER_TABLE") + 8 * s.read("LAST_PID_POINTER_INDEX") & s.cap.physical_reserved
