"""Names of VMCS fields that many rules read, grouped as the predicates of `EntryState` read them."""

from __future__ import annotations

from typing import Final

PIN: Final = "PIN_BASED_VM_EXEC_CONTROL"
PROC: Final = "CPU_BASED_VM_EXEC_CONTROL"
EXIT: Final = "VM_EXIT_CONTROLS"
ENTRY: Final = "VM_ENTRY_CONTROLS"
INFO: Final = "VM_ENTRY_INTR_INFO_FIELD"

PROC2: Final = (PROC, "SECONDARY_VM_EXEC_CONTROL")
PROC3: Final = (PROC, "TERTIARY_VM_EXEC_CONTROL")
EXIT2: Final = (EXIT, "SECONDARY_VM_EXIT_CONTROLS")

GUEST_SEGMENTS: Final = ("CS", "SS", "DS", "ES", "FS", "GS")
DATA_SEGMENTS: Final = ("DS", "ES", "FS", "GS")
HOST_SEGMENTS: Final = ("CS", "SS", "DS", "ES", "FS", "GS", "TR")
PDPTES: Final = ("GUEST_PDPTR0", "GUEST_PDPTR1", "GUEST_PDPTR2", "GUEST_PDPTR3")
