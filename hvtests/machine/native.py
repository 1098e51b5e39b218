"""The machine code that runs inside the engine: hooks too frequent, or in places too delicate, for Python.

Each hook ends the current instruction before it has done anything and lets the event reach the handler as a code of
:mod:`hvtests.machine.layout`, or counts and returns. They share one block of 64-bit words, the box.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache

from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from hvtests.machine import layout as L

# Words of the box.
(BOX_CPU, BOX_LOOP_EXIT, BOX_TLB_FILL, BOX_TICKS, BOX_DEADLINE, BOX_LINEAR, BOX_ACCESS, BOX_IO, BOX_IO_VALUE,
 BOX_NO_FETCH, BOX_FETCH_ONLY, BOX_PAGES, BOX_TLBS, BOX_LOOP_EXIT_RESTORE, BOX_ENV, BOX_EVENT, BOX_PYTHON,
 BOX_TLB_FLUSH, BOX_CC_COMPUTE, BOX_ALARM, BOX_GUEST_DEADLINE, BOX_REQUESTS, BOX_DEBUGCTL, BOX_SIDE,
 BOX_CODE_PAGES, BOX_STEP, BOX_BLOCK) = range(27)
BOX_EXTENSION = 27      # from here on for whoever replaces BOX_EVENT
BOX_WORDS = 64

_LEAVE = f"mov dword ptr [rdi + {L.EXCEPTION_INDEX_AT}]"

SIZE = 4 * mmap.PAGESIZE

# Name -> text. Arguments are those of Unicorn's callbacks in the System V calling convention; `{box}` its address.
_THUNKS = {
    # uc, code, box: to Python, or to an extension that tries first. A retry that BOX_STEP accompanies is of a block of
    # one instruction, as Fabric.single_instruction asked for.
    "event": f"""
        cmp   esi, {L.CODE_RETRY}
        je    again
        jmp   qword ptr [rdx + {8 * BOX_EVENT}]
        again:
        cmp   qword ptr [rdx + {8 * BOX_STEP}], 0
        je    whole_block
        mov   rdx, [rdx + {8 * BOX_CPU}]
        mov   dword ptr [rdx + {L.CFLAGS_NEXT_TB_AT}], 1
        whole_block:
        ret""",
    # uc, port, size, box
    "in": f"""
        mov   [rcx + {8 * BOX_IO}], esi
        mov   [rcx + {8 * BOX_IO + 4}], edx
        mov   rdi, [rcx + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_IN}
        jmp   qword ptr [rcx + {8 * BOX_LOOP_EXIT}]""",
    # uc, port, size, value, box
    "out": f"""
        mov   [r8 + {8 * BOX_IO}], esi
        mov   [r8 + {8 * BOX_IO + 4}], edx
        mov   [r8 + {8 * BOX_IO_VALUE}], rcx
        mov   rdi, [r8 + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_OUT}
        jmp   qword ptr [r8 + {8 * BOX_LOOP_EXIT}]""",
    # uc, box
    "syscall": f"""
        mov   rdi, [rsi + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_SYSCALL}
        jmp   qword ptr [rsi + {8 * BOX_LOOP_EXIT}]""",
    "sysenter": f"""
        mov   rdi, [rsi + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_SYSENTER}
        jmp   qword ptr [rsi + {8 * BOX_LOOP_EXIT}]""",
    # uc, address, size, box: time is one tick per byte of code; at the deadline the block does not start
    "block": f"""
        mov   rax, [rcx + {8 * BOX_TICKS}]
        cmp   rax, [rcx + {8 * BOX_DEADLINE}]
        jae   late
        mov   edx, edx
        add   rax, rdx
        mov   [rcx + {8 * BOX_TICKS}], rax
        mov   [rcx + {8 * BOX_BLOCK}], rsi
        ret
        late:
        mov   rdi, [rcx + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_DEADLINE}
        jmp   qword ptr [rcx + {8 * BOX_LOOP_EXIT}]""",
    # cpu, linear address, size, access, TLB number, probe; on the stack where to resume. Remembers the linear address,
    # which a nested fault does not report, and then looks at what the engine has put into the TLB:
    # - A page of RAM from which no code was ever fetched loses the right to be fetched from: only then does the engine
    #   store to it at full speed. The first fetch comes here again.
    # - A page that has had code in it never gets to full speed, however it is mapped: stores must find that code.
    # - While there are bit maps of host pages that may not be fetched from, or only be fetched from, they rule.
    "tlb_fill": f"""
        push  rbx
        push  r12
        push  r13
        mov   rbx, rsi
        mov   r12d, ecx
        mov   r13d, r8d
        movabs rax, {{box}}
        mov   [rax + {8 * BOX_LINEAR}], rsi
        mov   [rax + {8 * BOX_ACCESS}], rcx
        sub   rsp, 8
        push  qword ptr [rsp + 40]
        call  qword ptr [rax + {8 * BOX_TLB_FILL}]
        add   rsp, 16
        test  al, al
        je    done
        movabs rdx, {{box}}
        shl   r13, 4
        add   r13, [rdx + {8 * BOX_TLBS}]
        shr   rbx, 12
        shl   rbx, {L.TLB_ENTRY_SHIFT}
        and   rbx, [r13]
        add   rbx, [r13 + 8]
        mov   rcx, [rbx + {L.TLB_ENTRY_CODE_AT + 8}]
        shr   rcx, 12
        cmp   rcx, [rdx + {8 * BOX_PAGES}]
        jae   done
        mov   rsi, [rdx + {8 * BOX_CODE_PAGES}]
        cmp   r12d, 2
        jne   data
        bts   [rsi], rcx
        jae   first_fetch
        jmp   known
        data:
        bt    [rsi], rcx
        jb    has_code
        mov   qword ptr [rbx + {L.TLB_ENTRY_CODE_AT}], -1
        jmp   known
        has_code:
        cmp   qword ptr [rbx + {L.TLB_ENTRY_CODE_AT}], -1
        jne   known
        mov   qword ptr [rbx + {L.TLB_ENTRY_CODE_AT}], {L.TLB_INVALID}
        known:
        mov   rsi, [rdx + {8 * BOX_NO_FETCH}]
        test  rsi, rsi
        je    done
        bt    [rsi], rcx
        jae   fetchable
        mov   qword ptr [rbx + {L.TLB_ENTRY_CODE_AT}], {L.TLB_INVALID}
        cmp   r12d, 2
        je    refuse
        fetchable:
        mov   rsi, [rdx + {8 * BOX_FETCH_ONLY}]
        bt    [rsi], rcx
        jae   done
        mov   qword ptr [rbx], -1
        mov   qword ptr [rbx + 8], -1
        cmp   r12d, 2
        jne   refuse
        done:
        pop   r13
        pop   r12
        pop   rbx
        ret
        first_fetch:
        mov   rdi, [rdx + {8 * BOX_CPU}]
        {_LEAVE}, {L.CODE_RETRY}
        call  qword ptr [rdx + {8 * BOX_TLB_FLUSH}]
        movabs rdx, {{box}}
        mov   rdi, [rdx + {8 * BOX_CPU}]
        mov   rsi, [rsp + 32]
        call  qword ptr [rdx + {8 * BOX_LOOP_EXIT_RESTORE}]
        refuse:
        mov   rdi, [rdx + {8 * BOX_CPU}]
        mov   rsi, [rsp + 32]
        {_LEAVE}, {L.CODE_RESTRICTED}
        call  qword ptr [rdx + {8 * BOX_LOOP_EXIT_RESTORE}]""",
}


@lru_cache(maxsize=256)
def _assemble(text: str) -> bytes:
    code, _ = Ks(KS_ARCH_X86, KS_MODE_64).asm(text, 0, as_bytes=True)
    assert code is not None, text
    return bytes(code)


class Thunks:
    """The hooks, placed in executable memory of their own, and their box."""

    def __init__(self) -> None:
        self.box = (ctypes.c_uint64 * BOX_WORDS)()
        self.box_address = ctypes.addressof(self.box)
        self._memory = mmap.mmap(-1, SIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._used = 0
        self.addresses = {name: self.place(text.format(box=self.box_address)) for name, text in _THUNKS.items()}

    def place(self, text: str) -> int:
        """Assemble position-independent 64-bit code and put it where it can run; its address."""
        code = _assemble(text)
        at = self._used
        self._used += (len(code) + 15) & ~15
        assert self._used <= SIZE, "no room for native code"
        self._memory[at:at + len(code)] = code
        return self._base + at
