"""hvforge's own interface as data: outcomes, ends of a VM, hypercalls, its CPUID leaf, the lines on COM1 and port 0xE9.

Everything that crosses the border between image, guest, harness and command line is defined here once.
The prose for users is in docs/hypercalls.md and docs/exit-codes.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Outcome(IntEnum):
    """How a whole run of the image ended: the byte the image writes to the debug-exit port (0xf4).

    QEMU's isa-debug-exit turns it into process status ``(outcome << 1) | 1``. The same byte stands in the last
    line on COM1 (``hvforge: end 0x10 FINISHED``), which is how it is known where no such port exists (Bochs).
    """

    FINISHED = 0x10      # every VM ended in the way its image.toml expects
    GUEST_FAILED = 0x11  # at least one VM ended otherwise; the others ran on
    REFUSED = 0x12       # the hypervisor refused to start: the machine lacks something; the reason is on COM1
    PANIC = 0x13         # the hypervisor itself failed (exception in root mode, VM instruction error)

    @property
    def qemu_status(self) -> int:
        """Exit status of QEMU with ``-device isa-debug-exit,iobase=0xf4,iosize=4``."""
        return (int(self) << 1) | 1


class VmEnd(IntEnum):
    """Why one VM stopped. ``expect`` in image.toml names one of these in lower case with hyphens."""

    RUNNING = 0              # not an end: the VM may be entered
    EXITED = 1               # hypercall EXIT with status 0
    FAILED = 2               # hypercall EXIT with another status
    HALTED = 3               # HLT: no device of the VM could wake it
    TRIPLE_FAULT = 4
    EPT_VIOLATION = 5        # touched guest-physical memory it does not have
    EPT_MISCONFIGURATION = 6
    WATCHDOG = 7             # ran for watchdog_ticks without a VM exit
    UNEXPECTED_EXIT = 8      # an exit reason that nothing handles
    ENTRY_FAILED = 9         # VM entry failed (reasons 33, 34, or VMfail)

    @property
    def spelling(self) -> str:
        """The name as image.toml and the console spell it."""
        return self.name.lower().replace("_", "-")


class Hypercall(IntEnum):
    """Function number in EAX at VMCALL (CPL 0). EAX returns a :class:`HypercallStatus`; see docs/hypercalls.md."""

    VERSION = 0  # -> EBX = ABI_VERSION
    PRINT = 1    # EBX = guest-physical address, ECX = length in bytes
    EXIT = 2     # EBX = status (0 = success); does not return
    VM_ID = 3    # -> EBX = index of this VM in image.toml, from 0


class HypercallStatus(IntEnum):
    """Result in EAX after VMCALL: 0, or a small negative number as 32-bit two's complement."""

    OK = 0
    NO_SUCH_CALL = 0xFFFF_FFFF    # -1
    BAD_ADDRESS = 0xFFFF_FFFE     # -2: not wholly inside the VM's memory
    TOO_LONG = 0xFFFF_FFFD        # -3: length above PRINT_LIMIT
    NOT_PRIVILEGED = 0xFFFF_FFFC  # -4: CPL is not 0


ABI_VERSION = 1
PRINT_LIMIT = 1024                    # bytes in one PRINT
LINE_LIMIT = 128                      # characters of a guest's line before it is broken
CPUID_LEAF_BASE = 0x4000_0000         # EAX = highest hypervisor leaf, EBX:ECX:EDX = CPUID_SIGNATURE
CPUID_LEAF_INTERFACE = 0x4000_0001    # EAX = ABI_VERSION, EBX = VM index
CPUID_SIGNATURE = b"hvforgehvfor"     # 12 bytes

PORT_COM1 = 0x3F8
PORT_DEBUGCON = 0xE9
PORT_DEBUG_EXIT = 0xF4                # isa-debug-exit; hvtests' machine has it too
PORT_BOCHS_SHUTDOWN = 0x8900          # the string "Shutdown", a byte at a time
PORT_ACPI_PM1A_QEMU = 0x604           # PM1a_CNT of QEMU's pc and q35
ACPI_S5 = 0x2000                      # SLP_EN with QEMU's SLP_TYP for S5
COM1_BAUD = 115200

CONSOLE_PREFIX = "hvforge: "          # every line of the hypervisor itself; a guest's line begins with "[name] "
END_LINE = CONSOLE_PREFIX + "end 0x{code:02x} {name}"
REFUSED_PREFIX = CONSOLE_PREFIX + "refused: "


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One line on port 0xE9 of an image built with ``trace = true``: a letter and lower-case hexadecimal fields."""

    letter: str
    fields: tuple[tuple[str, int], ...]  # (name, hexadecimal digits)


TRACE_LINES = (
    TraceLine("X", (("vm", 2), ("reason", 8), ("qualification", 16), ("rip", 16))),   # a VM exit
    TraceLine("J", (("vm", 2), ("interruption_info", 8), ("error_code", 8))),         # an event injected at VM entry
)
