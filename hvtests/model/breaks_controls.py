"""One way to break each rule on control fields (SDM 3C 27.2.1)."""

from __future__ import annotations

from hvtests.model.breaking import Break, Change, broken, flip, off, on, put
from hvtests.model.valid_state import (
    APIC_ACCESS_PAGE,
    EPT_PML4,
    EPTP_LIST,
    IO_BITMAP_A,
    IO_BITMAP_B,
    MSR_BITMAP,
    PML_PAGE,
    VE_PAGE,
    VIRTUAL_APIC_PAGE,
    VMREAD_BITMAP,
    VMWRITE_BITMAP,
    Mode,
)

WIDE = 1 << 40  # the first address that 40 bits cannot hold
TPR = (on("USE_TPR_SHADOW"), put(VIRTUAL_APIC_PAGE_ADDR=VIRTUAL_APIC_PAGE))
NO_EPT = off("ENABLE_EPT", "UNRESTRICTED_GUEST")
POSTED = (*TPR, on("VIRTUAL_INTERRUPT_DELIVERY", "PROCESS_POSTED_INTERRUPTS", "ACKNOWLEDGE_INTERRUPT_ON_EXIT"),
          put(POSTED_INTR_NV=0xF2, POSTED_INTR_DESC_ADDR=0x30_C000))
SHADOWING = (on("VMCS_SHADOWING"), put(VMREAD_BITMAP=VMREAD_BITMAP, VMWRITE_BITMAP=VMWRITE_BITMAP))
SWITCHING = (on("ENABLE_VM_FUNCTIONS"), put(VM_FUNCTION_CONTROL=1, EPTP_LIST_ADDRESS=EPTP_LIST))
PT = on("PT_USES_GUEST_PHYSICAL", "LOAD_IA32_RTIT_CTL", "CLEAR_IA32_RTIT_CTL")
TERTIARY = on("ACTIVATE_TERTIARY_CONTROLS")
IPI = (TERTIARY, on("IPI_VIRTUALIZATION"), *TPR, put(PID_POINTER_TABLE=0x30_D000))


def event(vector: int, type_: int, *, error_code: int | None = None, length: int = 0, extra: int = 0) -> Change:
    """Inject an event: VM_ENTRY_INTR_INFO_FIELD and what goes with it."""
    info = 1 << 31 | type_ << 8 | vector | (0 if error_code is None else 1 << 11) | extra
    return put(VM_ENTRY_INTR_INFO_FIELD=info, VM_ENTRY_EXCEPTION_ERROR_CODE=error_code or 0,
               VM_ENTRY_INSTRUCTION_LEN=length)


EXECUTION: tuple[Break, ...] = (
    broken("ctl.pin.reserved",   flip(PIN_BASED_VM_EXEC_CONTROL=1 << 1)),
    broken("ctl.proc.reserved",  flip(CPU_BASED_VM_EXEC_CONTROL=1 << 1)),
    broken("ctl.proc2.reserved", flip(SECONDARY_VM_EXEC_CONTROL=1 << 29)),
    broken("ctl.proc3.reserved", TERTIARY, put(TERTIARY_VM_EXEC_CONTROL=1 << 40), cpu="everything"),
    broken("ctl.cr3_target_count", put(CR3_TARGET_COUNT=5)),
    broken("ctl.io_bitmap_a.align", put(IO_BITMAP_A=IO_BITMAP_A | 0x800)),
    broken("ctl.io_bitmap_a.width", put(IO_BITMAP_A=IO_BITMAP_A | WIDE)),
    broken("ctl.io_bitmap_b.align", put(IO_BITMAP_B=IO_BITMAP_B | 1)),
    broken("ctl.io_bitmap_b.width", put(IO_BITMAP_B=IO_BITMAP_B | 1 << 63)),
    broken("ctl.msr_bitmap.align",  put(MSR_BITMAP=MSR_BITMAP | 0x10)),
    broken("ctl.msr_bitmap.width",  put(MSR_BITMAP=MSR_BITMAP | WIDE)),
    broken("ctl.virtual_apic_page.align", *TPR, put(VIRTUAL_APIC_PAGE_ADDR=VIRTUAL_APIC_PAGE | 0x400)),
    broken("ctl.virtual_apic_page.width", *TPR, put(VIRTUAL_APIC_PAGE_ADDR=VIRTUAL_APIC_PAGE | WIDE)),
    broken("ctl.tpr_threshold.reserved",  *TPR, put(TPR_THRESHOLD=0x10)),
    broken("ctl.tpr_threshold.above_vtpr", *TPR, put(TPR_THRESHOLD=3), memory={VIRTUAL_APIC_PAGE + 0x80: 0x2F}),
    broken("ctl.virtual_nmis.needs_nmi_exiting", off("NMI_EXITING"), on("VIRTUAL_NMIS")),
    broken("ctl.nmi_window.needs_virtual_nmis",  on("NMI_WINDOW_EXITING")),
    broken("ctl.apic_access.align", on("VIRTUALIZE_APIC_ACCESSES"), put(APIC_ACCESS_ADDR=APIC_ACCESS_PAGE | 4)),
    broken("ctl.apic_access.width", on("VIRTUALIZE_APIC_ACCESSES"), put(APIC_ACCESS_ADDR=APIC_ACCESS_PAGE | WIDE)),
    broken("ctl.x2apic.needs_tpr_shadow", on("VIRTUALIZE_X2APIC_MODE")),
    broken("ctl.apic_registers.needs_tpr_shadow", on("APIC_REGISTER_VIRTUALIZATION")),
    broken("ctl.interrupt_delivery.needs_tpr_shadow", on("VIRTUAL_INTERRUPT_DELIVERY")),
    broken("ctl.x2apic.with_apic_accesses", *TPR, on("VIRTUALIZE_X2APIC_MODE", "VIRTUALIZE_APIC_ACCESSES"),
           put(APIC_ACCESS_ADDR=APIC_ACCESS_PAGE)),
    broken("ctl.interrupt_delivery.needs_interrupt_exiting", *TPR, on("VIRTUAL_INTERRUPT_DELIVERY"),
           off("EXTERNAL_INTERRUPT_EXITING")),
    broken("ctl.posted.needs_interrupt_delivery", *POSTED, off("VIRTUAL_INTERRUPT_DELIVERY"), cpu="everything"),
    broken("ctl.posted.needs_acknowledge", *POSTED, off("ACKNOWLEDGE_INTERRUPT_ON_EXIT"), cpu="everything"),
    broken("ctl.posted.vector", *POSTED, put(POSTED_INTR_NV=0x1F2), cpu="everything"),
    broken("ctl.posted.descriptor.align", *POSTED, put(POSTED_INTR_DESC_ADDR=0x30_C020), cpu="everything"),
    broken("ctl.posted.descriptor.width", *POSTED, put(POSTED_INTR_DESC_ADDR=WIDE), cpu="everything"),
    broken("ctl.vpid.zero", put(VIRTUAL_PROCESSOR_ID=0)),
    broken("ctl.eptp.memory_type", put(EPT_POINTER=EPT_PML4 | 3 << 3 | 4)),
    broken("ctl.eptp.walk_length", put(EPT_POINTER=EPT_PML4 | 4 << 3 | 6)),
    broken("ctl.eptp.accessed_dirty", flip(EPT_POINTER=1 << 6), without=("ACCESSED_DIRTY",)),
    broken("ctl.eptp.supervisor_shadow_stack", flip(EPT_POINTER=1 << 7)),
    broken("ctl.eptp.reserved", flip(EPT_POINTER=1 << 8)),
    broken("ctl.pml.needs_ept", on("ENABLE_PML"), NO_EPT),
    broken("ctl.pml.align", on("ENABLE_PML"), put(PML_ADDRESS=PML_PAGE | 2)),
    broken("ctl.pml.width", on("ENABLE_PML"), put(PML_ADDRESS=WIDE)),
    broken("ctl.unrestricted_guest.needs_ept", off("ENABLE_EPT")),
    broken("ctl.mode_based_execute.needs_ept", NO_EPT, on("MODE_BASED_EXECUTE_CONTROL"), cpu="everything"),
    broken("ctl.sub_page.needs_ept", NO_EPT, on("SUB_PAGE_WRITE_PERMISSIONS"), cpu="everything"),
    broken("ctl.sub_page.table.align", on("SUB_PAGE_WRITE_PERMISSIONS"), put(SPP_TABLE_POINTER=8), cpu="everything"),
    broken("ctl.sub_page.table.width", on("SUB_PAGE_WRITE_PERMISSIONS"), put(SPP_TABLE_POINTER=WIDE),
           cpu="everything"),
    broken("ctl.vm_functions.reserved", on("ENABLE_VM_FUNCTIONS"), put(VM_FUNCTION_CONTROL=2)),
    broken("ctl.eptp_switching.needs_ept", *SWITCHING, NO_EPT),
    broken("ctl.eptp_switching.list.align", *SWITCHING, put(EPTP_LIST_ADDRESS=EPTP_LIST | 8)),
    broken("ctl.eptp_switching.list.width", *SWITCHING, put(EPTP_LIST_ADDRESS=WIDE)),
    broken("ctl.vmread_bitmap.align",  *SHADOWING, put(VMREAD_BITMAP=VMREAD_BITMAP | 1)),
    broken("ctl.vmread_bitmap.width",  *SHADOWING, put(VMREAD_BITMAP=WIDE)),
    broken("ctl.vmwrite_bitmap.align", *SHADOWING, put(VMWRITE_BITMAP=VMWRITE_BITMAP | 0x800)),
    broken("ctl.vmwrite_bitmap.width", *SHADOWING, put(VMWRITE_BITMAP=WIDE)),
    broken("ctl.ve_information.align", on("EPT_VIOLATION_VE"), put(VE_INFORMATION_ADDRESS=VE_PAGE | 0x40)),
    broken("ctl.ve_information.width", on("EPT_VIOLATION_VE"), put(VE_INFORMATION_ADDRESS=WIDE)),
    broken("ctl.pt_guest_physical.needs_ept", PT, NO_EPT, cpu="everything"),
    broken("ctl.pt_guest_physical.needs_load", PT, off("LOAD_IA32_RTIT_CTL"), cpu="everything"),
    broken("ctl.pt_guest_physical.needs_clear", PT, off("CLEAR_IA32_RTIT_CTL"), cpu="everything"),
    broken("ctl.tsc_multiplier.zero", on("USE_TSC_SCALING")),
    broken("ctl.pasid_low.align",  on("PASID_TRANSLATION"), put(LOW_PASID_DIRECTORY_ADDRESS=8), cpu="everything"),
    broken("ctl.pasid_low.width",  on("PASID_TRANSLATION"), put(LOW_PASID_DIRECTORY_ADDRESS=WIDE), cpu="everything"),
    broken("ctl.pasid_high.align", on("PASID_TRANSLATION"), put(HIGH_PASID_DIRECTORY_ADDRESS=8), cpu="everything"),
    broken("ctl.pasid_high.width", on("PASID_TRANSLATION"), put(HIGH_PASID_DIRECTORY_ADDRESS=WIDE), cpu="everything"),
    broken("ctl.hlat.needs_ept", TERTIARY, on("ENABLE_HLAT"), NO_EPT, cpu="everything"),
    broken("ctl.hlat.pointer", TERTIARY, on("ENABLE_HLAT"), put(HLAT_POINTER=1 << 5), cpu="everything"),
    broken("ctl.paging_write.needs_ept", TERTIARY, on("EPT_PAGING_WRITE_CONTROL"), NO_EPT, cpu="everything"),
    broken("ctl.paging_verification.needs_ept", TERTIARY, on("GUEST_PAGING_VERIFICATION"), NO_EPT, cpu="everything"),
    broken("ctl.ipi.needs_tpr_shadow", *IPI, off("USE_TPR_SHADOW"), cpu="everything"),
    broken("ctl.ipi.table.align", *IPI, put(PID_POINTER_TABLE=0x30_D004), cpu="everything"),
    broken("ctl.ipi.table.width", *IPI, put(PID_POINTER_TABLE=WIDE), cpu="everything", also=("ctl.ipi.last_entry",)),
    broken("ctl.ipi.last_entry", *IPI, put(PID_POINTER_TABLE=WIDE - 8, LAST_PID_POINTER_INDEX=1), cpu="everything"),
)


def _area(id_: str, name: str) -> tuple[Break, ...]:
    address, count = f"{name}_ADDR", f"{name}_COUNT"
    return (
        broken(f"{id_}.align", put(**{count: 1, address: 0x30_E008})),
        broken(f"{id_}.width", put(**{count: 1, address: WIDE}), also=(f"{id_}.last_byte",)),
        broken(f"{id_}.last_byte", put(**{count: 2, address: WIDE - 16})),
    )


EXIT_AND_ENTRY: tuple[Break, ...] = (
    broken("ctl.exit.reserved", flip(VM_EXIT_CONTROLS=1)),
    broken("ctl.exit2.reserved", on("EXIT.ACTIVATE_SECONDARY_CONTROLS"), put(SECONDARY_VM_EXIT_CONTROLS=1 << 50),
           cpu="everything"),
    broken("ctl.exit.save_preemption_timer", off("ACTIVATE_PREEMPTION_TIMER"), on("SAVE_PREEMPTION_TIMER")),
    *_area("ctl.exit_msr_store", "VM_EXIT_MSR_STORE"),
    *_area("ctl.exit_msr_load", "VM_EXIT_MSR_LOAD"),
    broken("ctl.entry.reserved", flip(VM_ENTRY_CONTROLS=1)),
    broken("ctl.event.type", event(0, 1)),
    broken("ctl.event.type", event(0, 7)),  # this CPU has no monitor trap flag
    broken("ctl.event.vector_nmi", event(3, 2)),
    broken("ctl.event.vector_exception", event(32, 3)),
    broken("ctl.event.vector_other", event(1, 7), cpu="everything"),
    broken("ctl.event.error_code_missing", event(13, 3)),
    broken("ctl.event.error_code_type", event(13, 6, error_code=0, length=1)),
    broken("ctl.event.error_code_real_mode", event(13, 3, error_code=0), mode=Mode.REAL),
    broken("ctl.event.error_code_vector", event(6, 3, error_code=0)),
    broken("ctl.event.reserved", event(6, 3, extra=1 << 12)),
    broken("ctl.event.error_code_reserved", event(13, 3, error_code=0x1_0000)),
    broken("ctl.event.length", event(0x80, 4, length=16)),
    broken("ctl.event.length_zero", event(3, 6), without=("ZERO_LENGTH",)),
    *_area("ctl.entry_msr_load", "VM_ENTRY_MSR_LOAD"),
    broken("ctl.entry.smm", on("ENTRY_TO_SMM")),
    broken("ctl.entry.smm", on("DEACTIVATE_DUAL_MONITOR_TREATMENT")),
)

CONTROLS = EXECUTION + EXIT_AND_ENTRY
