"""The common path in machine code: VMREAD, VMWRITE and CPUID of the host, CPUID and VMCALL of a guest, VMRESUME.

It does what instructions.py, entry.py and exit.py do, for the cases that need no judgement, and hands everything else
to them untouched: nothing is changed before it is sure. A VMCS takes part once a VM entry in Python has passed its
checks and `prepare` has found nothing unusual in its controls. A test runs the same guests with and without.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from generator.arch import vmcs as arch
from generator.arch.vmcs import FieldType, FieldWidth
from hvtests.machine import layout as L
from hvtests.machine import native as n
from hvtests.machine.fabric import ALWAYS
from hvtests.machine.root import ROOT_CR_DR
from hvtests.vmx import bits as c
from hvtests.vmx import vmcs as v
from hvtests.vmx.checks import RULES, EntryState
from hvtests.vmx.prepared import Controls, HostState
from hvtests.vmx.quick_host import BEGIN, END
from hvtests.vmx.quick_switch import CALL, ENTRY, ENTRY_POINT, EXIT
from hvtests.vmx.quick_text import CPUID_ENTRIES, HOST_WORDS, Box, Option
from hvtests.vmx.vmcs import Vmcs

if TYPE_CHECKING:
    from hvtests.vmx.model import Vmx

_CPUID_ENTRY: Final = struct.Struct("<IIQIIII")
_OPTIONS: Final = (
    (Option.SAVE_EFER, "exit", c.SAVE_IA32_EFER), (Option.SAVE_PAT, "exit", c.SAVE_IA32_PAT),
    (Option.EXIT_PAT, "exit", c.EXIT_LOAD_IA32_PAT), (Option.ENTRY_PAT, "entry", c.ENTRY_LOAD_IA32_PAT),
    (Option.SAVE_DEBUG, "exit", c.SAVE_DEBUG_CONTROLS), (Option.ENTRY_DEBUG, "entry", c.LOAD_DEBUG_CONTROLS),
    (Option.TIMER, "pin", c.ACTIVATE_PREEMPTION_TIMER), (Option.SAVE_TIMER, "exit", c.SAVE_PREEMPTION_TIMER),
)


@lru_cache(maxsize=16)
def _field_table(supported: frozenset[str]) -> bytes:
    """For these fields, by encoding / 2, 8 bytes each: offset in the VMCS' buffer (u16), size to read (0: not here),
    kind of write (0: not here, 1: 64 bits, 2: 32, 3: 16), number of the field (u16), whether a change is checked, 0."""
    table = bytearray(8 << 14)
    for field in arch.FIELDS:
        if field.name in v.ACCESS_RIGHTS or field.name not in supported:
            continue    # kept in two forms; VMfail
        index, narrow = v.PLACES[field.name]
        size = 4 if narrow else 8
        kind = {FieldWidth.W16: 3, FieldWidth.W32: 2}.get(field.width, 1)
        if field.type is FieldType.READ_ONLY:
            kind = 0
        struct.pack_into("<HBBHBB", table, field.encoding * 4, index * size, size, kind, v.FIELD_NUMBER[field.name],
                         field.name not in v.UNCHECKED, 0)
    return bytes(table)


class Quick:
    """The native path of one machine; `enabled` may be turned off to have everything done in Python."""

    def __init__(self, vmx: Vmx) -> None:
        self._vmx, self._machine = vmx, vmx.machine
        fabric = self._fabric = vmx.machine.fabric
        self._fields = ctypes.create_string_buffer(_field_table(vmx.fields))
        self._cpuid = (ctypes.c_char * (_CPUID_ENTRY.size * CPUID_ENTRIES))()
        self._known: set[tuple[int, int, int]] = set()
        box = self._box = fabric.extend(CALL + BEGIN + EXIT + ENTRY + END)
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)
        self._exit = prototype(box[n.BOX_EVENT] + ENTRY_POINT)
        box[Box.FIELDS] = ctypes.addressof(self._fields)
        box[Box.CPUID_TABLE] = ctypes.addressof(self._cpuid)
        box[Box.ROOT_INTERCEPT], box[Box.ROOT_CR_DR] = ALWAYS, ROOT_CR_DR
        vmx.exits.use_state(box[Box.LOG_CURSOR:Box.LOG_CURSOR + 2])
        box[Box.LOG_START], box[Box.LOG_END] = vmx.exits.start, vmx.exits.end
        box[Box.STORE_LMA] = vmx.model.misc >> 5 & 1
        self.enabled = True

    @property
    def enabled(self) -> bool:
        """Whether native code takes part."""
        return bool(self._box[Box.ENABLED])

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._box[Box.ENABLED] = value

    def set_current(self, vmcs: Vmcs | None) -> None:
        """The current VMCS has changed."""
        self._box[Box.VMCS] = 0 if vmcs is None else vmcs.pointer

    def remember_cpuid(self, leaf: int, subleaf: int, cr4: int, values: tuple[int, int, int, int]) -> None:
        """Let native code answer this CPUID, of 64-bit code, next time."""
        key = leaf, subleaf, cr4
        if key in self._known or len(self._known) == CPUID_ENTRIES:
            return
        _CPUID_ENTRY.pack_into(self._cpuid, _CPUID_ENTRY.size * len(self._known), *key, *values)
        self._known.add(key)
        self._box[Box.CPUID_COUNT] = len(self._known)

    def prepare(self, vmcs: Vmcs, controls: Controls, host: HostState) -> None:
        """A VM entry has passed: let native code run this VMCS from now on, if nothing about it is unusual."""
        q, fabric = vmcs.q, self._fabric
        q[v.QUICK] = 0
        if host.hflags is None:
            return      # the first VM exit will tell them
        vmcs.judged = True
        if not self._plain(vmcs, controls, host):
            return
        q[v.INTERCEPT], q[v.INTERCEPT_CR_DR] = fabric.q[L.Q_INTERCEPT], fabric.q[L.Q_INTERCEPT_CR_DR]
        q[v.NESTED_ROOT] = fabric.q[L.Q_NESTED_CR3]
        q[v.HFLAGS2] = L.HF2_GIF | (L.HF2_NPT if controls.uses_ept else 0)
        q[v.OPTIONS] = sum(option for option, word, mask in _OPTIONS if getattr(controls, word) & mask)
        if host.block is None:
            host.block = _host_block(host)
        q[v.HOST_BLOCK] = ctypes.addressof(host.block)
        q[v.QUICK] = 1

    def _plain(self, vmcs: Vmcs, controls: Controls, host: HostState) -> bool:
        unusual = c.INTERRUPT_WINDOW_EXITING | c.NMI_WINDOW_EXITING | c.MONITOR_TRAP_FLAG
        if controls.proc & unusual or controls.pin & c.VIRTUAL_NMIS or controls.msr_lists or not controls.uses_ept:
            return False
        if controls.proc2 & (c.ENABLE_PML | c.ENABLE_VM_FUNCTIONS):
            return False
        if not controls.entry & c.ENTRY_LOAD_IA32_EFER or host.efer is None:
            return False
        shadow = self._vmx.shadow
        if self._vmx.timer.shift or shadow is None or shadow.no_fetch is not None:
            return False
        state = EntryState(vmcs.read, self._vmx.model, self._machine.memory, vmcs_pointer=vmcs.address)
        return not any(rule.guard is not None and rule.guard(state) for rule in RULES)

    def exit(self, reason: int, length: int, qualification: int) -> bool:
        """Make a VM exit by an instruction. False where it is not plain: nothing has changed then."""
        if not self._box[Box.ENABLED] or not self._exit(self._fabric.box_address, reason, length, qualification):
            return False
        self._fabric.settle()
        return True

    def withdraw(self) -> None:
        """What the EPT's shadow is has changed: VM entries are Python's until it has looked again."""
        for vmcs in self._vmx.active.values():
            vmcs.q[v.QUICK] = 0
            vmcs.judged = False


def _host_block(host: HostState) -> ctypes.Array[ctypes.c_char]:
    """The host state in the order in which native code loads it."""
    assert host.efer is not None and host.hflags is not None
    words = {"CR0": host.cr0 & ~v.CR0_KEPT, "CR3": host.cr3, "CR4": host.cr4, "EFER": host.efer, "PAT": host.pat or 0,
             "RIP": host.rip, "RSP": host.rsp, "SYSENTER_CS": host.sysenter_cs, "SYSENTER_ESP": host.sysenter_esp,
             "SYSENTER_EIP": host.sysenter_eip, "HFLAGS": host.hflags}
    data = host.segments + struct.pack(f"<{len(HOST_WORDS)}Q", *(words[name] for name in HOST_WORDS))
    return ctypes.create_string_buffer(data, len(data))

