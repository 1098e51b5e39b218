"""Which VMCS fields a CPU has: most exist on every one, the rest only with the control that uses them.

SDM 3D Appendix B, the notes under its tables; a field whose index is above IA32_VMX_VMCS_ENUM's does not exist either.
"""

from __future__ import annotations

from generator.arch import vmcs as arch
from generator.arch.controls import BY_NAME as WORDS
from hvtests.vmx.capabilities import CpuModel

# Field (a name, or the beginning of names) -> controls of which one must be offered, as "WORD.CONTROL".
_NEEDS: dict[str, tuple[str, ...]] = {
    "VIRTUAL_PROCESSOR_ID":         ("PROCBASED2.ENABLE_VPID",),
    "POSTED_INTR_":                 ("PINBASED.PROCESS_POSTED_INTERRUPTS",),
    "EPTP_INDEX":                   ("PROCBASED2.EPT_VIOLATION_VE",),
    "HLAT_":                        ("PROCBASED3.ENABLE_HLAT",),
    "LAST_PID_POINTER_INDEX":       ("PROCBASED3.IPI_VIRTUALIZATION",),
    "PID_POINTER_TABLE":            ("PROCBASED3.IPI_VIRTUALIZATION",),
    "VIRTUAL_TIMER_VECTOR":         ("PROCBASED3.APIC_TIMER_VIRTUALIZATION",),
    "GUEST_DEADLINE":               ("PROCBASED3.APIC_TIMER_VIRTUALIZATION",),
    "GUEST_INTR_STATUS":            ("PROCBASED2.VIRTUAL_INTERRUPT_DELIVERY",),
    "EOI_EXIT_BITMAP":              ("PROCBASED2.VIRTUAL_INTERRUPT_DELIVERY",),
    "GUEST_PML_INDEX":              ("PROCBASED2.ENABLE_PML",),
    "PML_ADDRESS":                  ("PROCBASED2.ENABLE_PML",),
    "GUEST_UINV":                   ("ENTRY.LOAD_UINV",),
    "MSR_BITMAP":                   ("PROCBASED.USE_MSR_BITMAPS",),
    "VIRTUAL_APIC_PAGE_ADDR":       ("PROCBASED.USE_TPR_SHADOW",),
    "TPR_THRESHOLD":                ("PROCBASED.USE_TPR_SHADOW",),
    "APIC_ACCESS_ADDR":             ("PROCBASED2.VIRTUALIZE_APIC_ACCESSES",),
    "VM_FUNCTION_CONTROL":          ("PROCBASED2.ENABLE_VM_FUNCTIONS",),
    "EPTP_LIST_ADDRESS":            ("VMFUNC.EPTP_SWITCHING",),
    "EPT_POINTER":                  ("PROCBASED2.ENABLE_EPT",),
    "GUEST_PHYSICAL_ADDRESS":       ("PROCBASED2.ENABLE_EPT",),
    "GUEST_PDPTR":                  ("PROCBASED2.ENABLE_EPT",),
    "VMREAD_BITMAP":                ("PROCBASED2.VMCS_SHADOWING",),
    "VMWRITE_BITMAP":               ("PROCBASED2.VMCS_SHADOWING",),
    "VE_INFORMATION_ADDRESS":       ("PROCBASED2.EPT_VIOLATION_VE",),
    "XSS_EXIT_BITMAP":              ("PROCBASED2.ENABLE_XSAVES",),
    "ENCLS_EXITING_BITMAP":         ("PROCBASED2.ENABLE_ENCLS_EXITING",),
    "ENCLV_EXITING_BITMAP":         ("PROCBASED2.ENABLE_ENCLV_EXITING",),
    "SPP_TABLE_POINTER":            ("PROCBASED2.SUB_PAGE_WRITE_PERMISSIONS",),
    "TSC_MULTIPLIER":               ("PROCBASED2.USE_TSC_SCALING",),
    "TSC_OFFSET":                   ("PROCBASED.USE_TSC_OFFSETTING",),
    "TERTIARY_VM_EXEC_CONTROL":     ("PROCBASED.ACTIVATE_TERTIARY_CONTROLS",),
    "SECONDARY_VM_EXEC_CONTROL":    ("PROCBASED.ACTIVATE_SECONDARY_CONTROLS",),
    "SECONDARY_VM_EXIT_CONTROLS":   ("EXIT.ACTIVATE_SECONDARY_CONTROLS",),
    "LOW_PASID_DIRECTORY_ADDRESS":  ("PROCBASED2.PASID_TRANSLATION",),
    "HIGH_PASID_DIRECTORY_ADDRESS": ("PROCBASED2.PASID_TRANSLATION",),
    "PCONFIG_EXITING_BITMAP":       ("PROCBASED2.ENABLE_PCONFIG",),
    "IA32_SPEC_CTRL_":              ("PROCBASED3.VIRTUALIZE_IA32_SPEC_CTRL",),
    "GUEST_IA32_SPEC_CTRL":         ("ENTRY.LOAD_IA32_SPEC_CTRL",),
    "HOST_IA32_SPEC_CTRL":          ("EXIT2.LOAD_IA32_SPEC_CTRL",),
    "PLE_":                         ("PROCBASED2.PAUSE_LOOP_EXITING",),
    "NOTIFY_WINDOW":                ("PROCBASED2.INSTRUCTION_TIMEOUT",),
    "VMX_PREEMPTION_TIMER_VALUE":   ("PINBASED.ACTIVATE_PREEMPTION_TIMER",),
    "GUEST_IA32_PAT":               ("ENTRY.LOAD_IA32_PAT", "EXIT.SAVE_IA32_PAT"),
    "GUEST_IA32_EFER":              ("ENTRY.LOAD_IA32_EFER", "EXIT.SAVE_IA32_EFER"),
    "GUEST_IA32_PERF_GLOBAL_CTRL":  ("ENTRY.LOAD_IA32_PERF_GLOBAL_CTRL",),
    "GUEST_BNDCFGS":                ("ENTRY.LOAD_IA32_BNDCFGS", "EXIT.CLEAR_IA32_BNDCFGS"),
    "GUEST_IA32_RTIT_CTL":          ("ENTRY.LOAD_IA32_RTIT_CTL", "EXIT.CLEAR_IA32_RTIT_CTL"),
    "GUEST_IA32_LBR_CTL":           ("ENTRY.LOAD_IA32_LBR_CTL", "EXIT.CLEAR_IA32_LBR_CTL"),
    "GUEST_IA32_PKRS":              ("ENTRY.LOAD_PKRS",),
    "GUEST_IA32_FRED_":             ("ENTRY.LOAD_IA32_FRED",),
    "INJECTED_EVENT_DATA":          ("ENTRY.LOAD_IA32_FRED",),
    "ORIGINAL_EVENT_DATA":          ("ENTRY.LOAD_IA32_FRED",),
    "MSR_DATA":                     ("PROCBASED3.ENABLE_MSRLIST_INSTRUCTIONS",),
    "HOST_IA32_PAT":                ("EXIT.LOAD_IA32_PAT",),
    "HOST_IA32_EFER":               ("EXIT.LOAD_IA32_EFER",),
    "HOST_IA32_PERF_GLOBAL_CTRL":   ("EXIT.LOAD_IA32_PERF_GLOBAL_CTRL",),
    "HOST_IA32_PKRS":               ("EXIT.LOAD_PKRS",),
    "HOST_IA32_FRED_":              ("EXIT2.LOAD_IA32_FRED",),
    "GUEST_S_CET":                  ("ENTRY.LOAD_CET_STATE",),
    "GUEST_SSP":                    ("ENTRY.LOAD_CET_STATE",),
    "GUEST_INTR_SSP_TABLE":         ("ENTRY.LOAD_CET_STATE",),
    "HOST_S_CET":                   ("EXIT.LOAD_CET_STATE",),
    "HOST_SSP":                     ("EXIT.LOAD_CET_STATE",),
    "HOST_INTR_SSP_TABLE":          ("EXIT.LOAD_CET_STATE",),
}
_NEVER = frozenset(("SHARED_EPT_POINTER",))    # SEAM


def _needs(name: str) -> tuple[str, ...]:
    exact = _NEEDS.get(name)
    if exact is not None:
        return exact
    return next((needs for start, needs in _NEEDS.items() if start.endswith("_") and name.startswith(start)), ())


def _numbered(name: str) -> str:
    return name.rstrip("0123456789") if name.startswith(("EOI_EXIT_BITMAP", "GUEST_PDPTR")) else name


def _offered(model: CpuModel, control: str) -> bool:
    word, _, name = control.partition(".")
    found = WORDS[word]
    return bool(model.allowed1(found) & found.mask(name))


def supported_fields(model: CpuModel) -> frozenset[str]:
    """Names of the fields that VMREAD and VMWRITE know on this CPU."""
    highest = model.capability("IA32_VMX_VMCS_ENUM") >> 1 & 0x1FF

    def has(field: arch.Field) -> bool:
        needs = _needs(_numbered(field.name))
        return (field.index <= highest and field.name not in _NEVER
                and (not needs or any(_offered(model, control) for control in needs)))

    return frozenset(field.name for field in arch.FIELDS if has(field))
