"""The CPU engine: Unicorn 2.1.4 with its intercepts switched on, so that every event of a system reaches one handler.

This is the only place that reaches into Unicorn: hvtests.machine.layout holds the numbers, fabric_probe makes sure of
them, native has the machine code that runs inside. Unicorn's build keeps QEMU's SVM intercepts and nested paging; with
the fields below set, an intercepted instruction, an exception or a nested page fault ends the instruction before it has
done anything and calls the handler, which may change any state and return.
"""

from __future__ import annotations

import ctypes
import mmap
import warnings
from collections.abc import Callable
from typing import Any

from generator.errors import EngineError
from hvtests.machine import layout as L
from hvtests.machine import native
from hvtests.machine.fabric_probe import check_version, pointer, probe, try_events, unknown

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import unicorn as uc
    from unicorn import unicorn_const as uc_const
    from unicorn import x86_const
    from unicorn.unicorn_py3.unicorn import uclib

NEVER = (1 << 64) - 1
_REQUESTS = L.REQUEST_HARD | L.REQUEST_VIRQ | L.REQUEST_NMI
_SUFFIX = "_x86_64"
# What is always intercepted, in root and guest mode; the rest is the mode's choice.
ALWAYS = L.intercept_bits(
    L.CODE_INTERRUPT, L.CODE_NMI, L.CODE_INTERRUPT_WINDOW, L.CODE_RDTSC, L.CODE_RDPMC, L.CODE_CPUID, L.CODE_RSM,
    L.CODE_SOFTWARE_INTERRUPT, L.CODE_INVD, L.CODE_HLT, L.CODE_INVLPG, L.CODE_MSR, L.CODE_SHUTDOWN, L.CODE_ICEBP,
    L.CODE_WBINVD, L.CODE_MONITOR, L.CODE_MWAIT)


class Fabric:
    """One CPU with `ram` bytes of memory from physical address 0. Raises EngineError for an engine that is not known.

    `q`, `i`, `b` are views of the CPU's state (64-bit words, 32-bit words, bytes); `ram` and `scratch` of memory.
    `dispatch` has the handler of each event by code (layout.CODE_*), `other` is called with the code of the rest;
    whatever they raise leaves :meth:`run`.
    """

    def __init__(self, ram: int) -> None:
        check_version()
        self.dispatch: dict[int, Callable[[], None]] = {}
        self.other: Callable[[int], None] = _no_handler
        self.unmapped: Callable[[int, int], None] = _no_memory
        self._failure: BaseException | None = None
        self.running = False
        self._requests = 0
        self.side = 0                                        # 1 while a guest runs
        self.side_changed: Callable[[], None] = lambda: None    # called where native code has changed `side`
        self.code = 0      # of the event being handled
        self._uc = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64)
        self._uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_SKYLAKE_SERVER)
        self.engine: int = self._uc._uch.value
        self._maps: list[mmap.mmap] = []
        self.ram = self._map(0, ram)
        self.scratch = self._map(L.SCRATCH, L.SCRATCH_SIZE)
        self.scratch_q = self.scratch.cast("Q")
        self._lib = ctypes.PyDLL(uclib._name)   # holds the interpreter lock: callbacks are cheaper
        self._open_state()
        probe(self._uc, self.q, self.i)
        self._cpu_argument = ctypes.c_void_p(self.cpu)
        self._env_argument = ctypes.c_void_p(self.env)
        self._engine_argument = ctypes.c_void_p(self.engine)
        self._bind_functions()
        self._install_hooks()
        # An `until` address would corrupt CR2 and the error code each time the engine returns.
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits([])
        self._enable_intercepts()
        try_events(self)
        self._box[native.BOX_TICKS] = 0
        self.other = _no_handler

    # -- opening ---------------------------------------------------------------------------------------------------

    def _map(self, address: int, size: int) -> memoryview:
        memory = mmap.mmap(-1, size)
        self._maps.append(memory)
        where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._uc.mem_map_ptr(address, size, uc.UC_PROT_ALL, where)
        return memoryview(memory)

    def _open_state(self) -> None:
        self.cpu = pointer(self.engine + L.CPU_POINTER_AT, "the CPU")
        self.env = pointer(self.cpu + L.ENV_POINTER_AT, "the registers")
        if pointer(self.env + L.BACK_POINTER_AT, "the engine") != self.engine:
            raise unknown("the CPU's pointer back to the engine")
        raw = (ctypes.c_char * L.ENV_SIZE).from_address(self.env)
        self.b = memoryview(raw).cast("B")
        self.q = self.b[:L.ENV_SIZE & ~7].cast("Q")
        self.i = self.b[:L.ENV_SIZE & ~3].cast("I")
        self.cr_dr_masks = self.b[L.CR_READ_MASK_AT:L.CR_READ_MASK_AT + 8].cast("H")
        size = L.TLB_COUNT * L.TLB_DESCRIPTOR_SIZE
        self._tlb_address = pointer(self.cpu + L.TLB_END_POINTER_AT, "the TLBs") - size
        self._tlbs = memoryview((ctypes.c_char * size).from_address(self._tlb_address)).cast("B").cast("Q")
        self._request = ctypes.c_uint32.from_address(self.cpu + L.INTERRUPT_REQUEST_AT)
        self._next_flags = ctypes.c_uint32.from_address(self.cpu + L.CFLAGS_NEXT_TB_AT)

    def _function(self, name: str, result: object, *arguments: object) -> Callable[..., int]:
        function = getattr(self._lib, name + _SUFFIX, None)
        if function is None:
            raise unknown(f"function {name}{_SUFFIX}")
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]

    def _bind_functions(self) -> None:
        address = ctypes.c_void_p
        self._tlb_flush = self._function("tlb_flush", None, address)
        self._update_hflags = self._function("x86_update_hflags", None, address)
        self._cc_compute = self._function("cpu_cc_compute_all", ctypes.c_uint32, address, ctypes.c_int)
        self._invalidate = self._function("tb_invalidate_phys_range", None, address, ctypes.c_uint64, ctypes.c_uint64)
        self._set_cr0 = self._function("cpu_x86_update_cr0", None, address, ctypes.c_uint32)
        self._set_cr4 = self._function("cpu_x86_update_cr4", None, address, ctypes.c_uint32)
        self._emu_start = self._lib.uc_emu_start
        self._emu_start.argtypes = [address, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t]
        self._emu_start.restype = ctypes.c_int
        self._emu_stop = self._lib.uc_emu_stop
        self._emu_stop.argtypes = [address]

    def _install_hooks(self) -> None:
        self._thunks = native.Thunks()
        self.box_address = self._thunks.box_address
        self.box = self._box = box = memoryview(self._thunks.box).cast("B").cast("Q")
        box[native.BOX_CPU] = self.cpu
        box[native.BOX_LOOP_EXIT] = _address(self._function("cpu_loop_exit", None))
        box[native.BOX_ENV] = self.env
        box[native.BOX_TLB_FLUSH] = _address(self._tlb_flush)
        box[native.BOX_CC_COMPUTE] = _address(self._cc_compute)
        box[native.BOX_ALARM] = box[native.BOX_GUEST_DEADLINE] = NEVER
        box[native.BOX_LOOP_EXIT_RESTORE] = _address(self._function("cpu_loop_exit_restore", None))
        box[native.BOX_TLBS] = self._tlb_address
        box[native.BOX_PAGES] = len(self.ram) >> 12
        self._code_pages = (ctypes.c_char * (len(self.ram) // 0x8000 + 8))()
        box[native.BOX_CODE_PAGES] = ctypes.addressof(self._code_pages)
        box[native.BOX_DEADLINE] = NEVER
        self._io = box.cast("B").cast("I")
        fill = ctypes.c_uint64.from_address(pointer(self.cpu + L.CLASS_POINTER_AT, "the CPU's class") + L.TLB_FILL_AT)
        if fill.value != _address(self._function("x86_cpu_tlb_fill", None)):
            raise unknown("the CPU's TLB fill")
        box[native.BOX_TLB_FILL] = fill.value
        fill.value = self._thunks.addresses["tlb_fill"]
        interrupt = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
        invalid = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int,
                                   ctypes.c_int64, ctypes.c_void_p)
        self._callbacks = (interrupt(self._on_event), invalid(self._on_unmapped))
        python, unmapped = (_address(callback) for callback in self._callbacks)
        box[native.BOX_PYTHON] = box[native.BOX_EVENT] = python
        self._hook(uc_const.UC_HOOK_INTR, self._thunks.addresses["event"])
        # Over RAM this hook would keep all stores slow; there is nothing to hear of there.
        self._hook(uc_const.UC_HOOK_MEM_INVALID, unmapped, first=len(self.ram))
        self._hook(uc_const.UC_HOOK_BLOCK, self._thunks.addresses["block"])
        for name, instruction in (("in", x86_const.UC_X86_INS_IN), ("out", x86_const.UC_X86_INS_OUT),
                                  ("syscall", x86_const.UC_X86_INS_SYSCALL),
                                  ("sysenter", x86_const.UC_X86_INS_SYSENTER)):
            self._hook(uc_const.UC_HOOK_INSN, self._thunks.addresses[name], instruction)

    def _hook(self, kind: int, callback: int, *instruction: int, first: int | None = None) -> None:
        begin, end = (1, 0) if first is None else (first, NEVER)
        status = self._lib.uc_hook_add(
            ctypes.c_void_p(self.engine), ctypes.byref(ctypes.c_size_t()), ctypes.c_int(kind),
            ctypes.c_void_p(callback), ctypes.c_void_p(self._thunks.box_address), ctypes.c_uint64(begin),
            ctypes.c_uint64(end), *(ctypes.c_int(number) for number in instruction))
        if status:
            raise EngineError(f"unicorn refuses hook {kind:#x}: error {status}")

    def _enable_intercepts(self) -> None:
        q, i = self.q, self.i
        self.scratch[L.MSR_MAP_AT:L.MSR_MAP_AT + 0x3000] = b"\xff" * 0x3000
        self.scratch_q[0x48 // 8] = L.SCRATCH + L.MSR_MAP_AT
        q[L.Q_VMCB] = L.SCRATCH
        q[L.Q_NESTED_CR3] = L.SCRATCH + L.NESTED_ROOT_AT
        i[L.I_NESTED_MODE] = 7           # four levels, execute-disable
        i[L.I_INTERCEPT_EXCEPTIONS] = 0xFFFF_FFFF
        q[L.Q_INTERCEPT] = ALWAYS
        q[L.Q_INTERCEPT_CR_DR] = 0
        q[L.Q_FEATURES + L.FEATURE_XSAVE_COMPONENTS] = 0
        q[L.Q_FEATURES + L.FEATURE_1_ECX] |= L.FEATURE_MONITOR
        i[L.I_HFLAGS] = i[L.I_HFLAGS] | L.HF_GUEST | L.HF_SOFTMMU
        i[L.I_HFLAGS2] = L.HF2_GIF

    # -- running ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Make Python's view follow a change of side that native code made."""
        side = self._box[native.BOX_SIDE]
        if side != self.side:
            self.side = side
            self.side_changed()

    def run(self) -> None:
        """Run from the current RIP until :meth:`stop`. Raises what the handler raised, or EngineError."""
        self._failure = None
        q = self.q
        # The engine splits the flags when it starts; give it whole ones.
        q[L.Q_RFLAGS] = self.rflags
        self.running = True
        try:
            status = self._emu_start(self._engine_argument, q[L.Q_RIP], 0, 0, 0)
        finally:
            self.running = False
            self.settle()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if status:
            raise EngineError(f"unicorn stopped at RIP {q[L.Q_RIP]:#x} with error {status} ({uc.UcError(status)})")

    def stop(self) -> None:
        """Let :meth:`run` return after the handler has returned."""
        self._emu_stop(self._engine_argument)

    def _on_event(self, _engine: int, code: int, _box: int) -> None:
        self.code = code
        try:
            if self._box[native.BOX_SIDE] != self.side:
                self.settle()
            handler = self.dispatch.get(code)
            if handler is None:
                self.other(code)
            else:
                handler()
        except BaseException as failure:
            if self._failure is None:
                self._failure = failure
            self._emu_stop(self._engine_argument)

    def _on_unmapped(self, _engine: int, kind: int, address: int, _size: int, _value: int, _box: int) -> bool:
        try:
            self.unmapped(kind, address)
        except BaseException as failure:
            self._failure = failure
        self._emu_stop(self._engine_argument)
        return False

    # -- state that is more than a word ----------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        """RFLAGS, 64 bits."""
        self.whole_flags()
        q, i = self.q, self.i
        status = q[L.Q_CC_SRC] & L.STATUS_FLAGS
        return q[L.Q_RFLAGS] & ~L.SPLIT_FLAGS | status | (0x400 if i[L.I_DF] >> 31 else 0) | 2

    @rflags.setter
    def rflags(self, value: int) -> None:
        q, i = self.q, self.i
        q[L.Q_RFLAGS] = (value & ~L.SPLIT_FLAGS if self.running else value) | 2
        q[L.Q_CC_SRC] = value & L.STATUS_FLAGS
        i[L.I_CC_OP] = L.CC_OP_EFLAGS
        i[L.I_DF] = 0xFFFF_FFFF if value & 0x400 else 1

    def whole_flags(self) -> None:
        """Compute the status flags, which the engine keeps as an operation and its operands."""
        if self.i[L.I_CC_OP] != L.CC_OP_EFLAGS:
            self.set_status_flags(self._cc_compute(self._env_argument, self.i[L.I_CC_OP]))

    def set_status_flags(self, flags: int) -> None:
        """Replace CF, PF, AF, ZF, SF, OF while code runs."""
        self.q[L.Q_CC_SRC] = flags
        self.i[L.I_CC_OP] = L.CC_OP_EFLAGS

    def refresh(self) -> None:
        """After CR0, CR4, EFER, CS, SS or RFLAGS were written raw: bring the engine's derived flags in line."""
        hflags = self.i[L.I_HFLAGS] & ~L.HF_SMAP
        self.i[L.I_HFLAGS] = hflags | (L.HF_SMAP if self.q[L.Q_CR + 4] >> 21 & 1 else 0)
        self._update_hflags(self._env_argument)
        # It copies these too, and POPF and IRET would leave the copies behind.
        self.i[L.I_HFLAGS] &= ~L.HF_FROM_RFLAGS

    def set_cr0(self, value: int) -> None:
        """CR0 as MOV to CR0 does it: EFER.LMA follows."""
        self._set_cr0(self._env_argument, value)

    def set_cr4(self, value: int) -> None:
        """CR4 as MOV to CR4 does it; bits that the engine does not know are kept too."""
        self._set_cr4(self._env_argument, value & 0xFFFF_FFFF)
        self.q[L.Q_CR + 4] = value

    def flush(self) -> None:
        """Forget every translation of linear addresses."""
        self._tlb_flush(self._cpu_argument)

    def invalidate(self, start: int, end: int) -> None:
        """Forget code translated from RAM in `start` .. `end` - 1, which has been written from outside."""
        self._invalidate(self._engine_argument, start, end)

    def set_requests(self, bits: int) -> None:
        """Raise these interrupt lines (layout.REQUEST_*) and lower the others."""
        if bits != self._requests:
            self._requests = self._box[native.BOX_REQUESTS] = bits
            self._request.value = self._request.value & ~_REQUESTS | bits

    def restrict_pages(self, no_fetch: bytearray | None, fetch_only: bytearray | None) -> None:
        """Bit maps of pages of RAM, one bit each: pages that may not be fetched from, and pages that may only be
        fetched from. A forbidden access becomes CODE_RESTRICTED. None for both: no such pages."""
        self._restricted = no_fetch, fetch_only     # keeps the buffers alive
        for word, pages in ((native.BOX_NO_FETCH, no_fetch), (native.BOX_FETCH_ONLY, fetch_only)):
            self._box[word] = 0 if pages is None else ctypes.addressof(ctypes.c_char.from_buffer(pages))

    def single_instruction(self) -> None:
        """Let the next translated block be one instruction long."""
        self._next_flags.value = 1

    def code_physical(self, linear: int) -> int | None:
        """Physical address from which the engine fetches code at `linear` now, if it still knows; no walk is made."""
        q, i = self.q, self.i
        hflags = i[L.I_HFLAGS]
        strict = hflags & L.HF_SMAP and not q[L.Q_RFLAGS] & 1 << 18
        tlb = 2 if hflags & 3 == 3 else 0 if strict else 4
        entry = self._tlbs[tlb + 1] + (linear >> 12 << L.TLB_ENTRY_SHIFT & self._tlbs[tlb])
        found = int.from_bytes(ctypes.string_at(entry + L.TLB_ENTRY_CODE_AT, 16), "little")
        if found & (1 << 64) - 1 != linear & ~0xFFF:
            return None
        return found >> 64 & ~0xFFF | linear & 0xFFF

    @property
    def ticks(self) -> int:
        """Bytes of code executed so far, by whole blocks."""
        return self._box[native.BOX_TICKS]

    @property
    def alarm(self) -> int:
        """The first block that would start at this tick or later becomes CODE_DEADLINE instead."""
        return self._box[native.BOX_ALARM]

    @alarm.setter
    def alarm(self, ticks: int) -> None:
        box = self._box
        box[native.BOX_ALARM] = ticks
        box[native.BOX_DEADLINE] = min(ticks, box[native.BOX_GUEST_DEADLINE])

    @property
    def guest_deadline(self) -> int:
        """The same, for the VMX-preemption timer: set at each VM entry."""
        return self._box[native.BOX_GUEST_DEADLINE]

    @guest_deadline.setter
    def guest_deadline(self, ticks: int) -> None:
        box = self._box
        box[native.BOX_GUEST_DEADLINE] = ticks
        box[native.BOX_DEADLINE] = min(ticks, box[native.BOX_ALARM])

    @property
    def debugctl(self) -> int:
        """IA32_DEBUGCTL."""
        return self._box[native.BOX_DEBUGCTL]

    @debugctl.setter
    def debugctl(self, value: int) -> None:
        self._box[native.BOX_DEBUGCTL] = value

    def switch_side(self, side: int) -> None:
        """Note that a guest runs now (1), or none (0)."""
        self.side = self._box[native.BOX_SIDE] = side

    def extend(self, text: str) -> memoryview:
        """Let machine code see each event before Python: called with engine, code and box as Unicorn's hook of
        interrupts is, and to jump to BOX_PYTHON with what it leaves. The box' words, for both."""
        self._box[native.BOX_EVENT] = self._thunks.place(text)
        return self._box

    @property
    def fault_address(self) -> int:
        """Address of the last page fault (linear) or nested page fault (guest-physical)."""
        return self.scratch_q[L.FAULT_ADDRESS_AT // 8]

    @property
    def fault_linear(self) -> int:
        """Linear address of the last access that missed the TLB."""
        return self._box[native.BOX_LINEAR]

    @property
    def fault_access(self) -> int:
        """That access: 0 load, 1 store, 2 fetch."""
        return self._box[native.BOX_ACCESS] & 0xFF

    @property
    def io(self) -> tuple[int, int, int]:
        """Port, size in bytes and value (OUT only) of the last IN or OUT."""
        return self._io[2 * native.BOX_IO], self._io[2 * native.BOX_IO + 1], self._io[2 * native.BOX_IO_VALUE]


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _no_handler(code: int) -> None:
    raise EngineError(f"event {code:#x} with no machine around the engine")


def _no_memory(kind: int, address: int) -> None:
    raise EngineError(f"no memory at {address:#x} (access kind {kind})")
