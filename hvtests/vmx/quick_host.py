"""Machine code behind hvtests.vmx.quick: finding the instruction; VMREAD, VMWRITE and CPUID of the host."""

from __future__ import annotations

from typing import Final

from hvtests.machine import layout as L
from hvtests.machine import native as n
from hvtests.vmx import vmcs as v
from hvtests.vmx.quick_text import HF_CS64, RFLAGS_AC, RFLAGS_TF, Box, box, env, env32, vmcs

_PROLOGUE = f"""
    cmp   qword ptr [rdx + {8 * Box.ENABLED}], 0
    je    python
    cmp   esi, {L.CODE_EXCEPTION + 6}
    je    start
    cmp   esi, {L.CODE_CPUID}
    je    start
python:
    jmp   qword ptr [rdx + {8 * n.BOX_PYTHON}]
start:
    push  rbx
    push  rbp
    push  r12
    push  r13
    push  r14
    push  r15
    sub   rsp, 8
    mov   rbx, rdx
    mov   r13d, esi
    mov   r14, rdi
    mov   rbp, {box(n.BOX_ENV)}
    mov   r12, {box(Box.VMCS)}
"""

# r8 = address of the instruction's bytes in this process, from the TLB that served their fetch
_FIND_CODE = f"""
    mov   eax, {env32(L.I_HFLAGS)}
    test  eax, {L.HF_INHIBIT_IRQ}
    jne   leave
    test  dword ptr {env(L.Q_RFLAGS)}, {RFLAGS_TF}
    jne   leave
    mov   r8, {env(L.Q_RIP)}
    test  eax, {HF_CS64}
    jne   linear
    add   r8, {env(L.q_base(L.CS))}
    mov   r8d, r8d
linear:
    mov   ecx, 32
    mov   edx, eax
    and   edx, 3
    cmp   edx, 3
    jne   supervisor
    mov   ecx, 16
    jmp   tlb
supervisor:
    test  eax, {L.HF_SMAP}
    je    tlb
    test  dword ptr {env(L.Q_RFLAGS)}, {RFLAGS_AC}
    jne   tlb
    xor   ecx, ecx
tlb:
    add   rcx, {box(n.BOX_TLBS)}
    mov   r9, r8
    shr   r9, 12
    shl   r9, {L.TLB_ENTRY_SHIFT}
    and   r9, [rcx]
    add   r9, [rcx + 8]
    mov   r10, r8
    and   r10, -4096
    cmp   [r9 + {L.TLB_ENTRY_CODE_AT}], r10
    jne   leave
    mov   edx, r8d
    and   edx, 4095
    cmp   edx, 4080
    ja    leave
    add   r8, [r9 + {L.TLB_ENTRY_ADDEND_AT}]
    cmp   qword ptr {box(n.BOX_SIDE)}, 0
    jne   guest
"""

_ROOT = f"""
    test  eax, {HF_CS64}
    je    leave
    test  eax, 3
    jne   leave
    cmp   r13d, {L.CODE_CPUID}
    je    root_cpuid
    test  r12, r12
    je    leave
    xor   r9d, r9d
    mov   r10d, 3
    movzx ecx, byte ptr [r8]
    mov   edx, ecx
    and   edx, 240
    cmp   edx, 64
    jne   opcode
    mov   r9d, ecx
    inc   r8
    inc   r10d
opcode:
    cmp   byte ptr [r8], 15
    jne   leave
    movzx ecx, byte ptr [r8 + 1]
    movzx edx, byte ptr [r8 + 2]
    cmp   ecx, 120
    je    vmread
    cmp   ecx, 121
    je    vmwrite
    cmp   ecx, 1
    jne   leave
    cmp   edx, 195
    jne   leave
    test  r9d, r9d
    jne   leave
    jmp   vmresume
"""

# edx = ModRM, r9d = REX: eax = entry of the field table, edx = number of the r/m register
_FIELD = f"""
    cmp   edx, 192
    jb    leave
    mov   ecx, edx
    shr   ecx, 3
    and   ecx, 7
    mov   eax, r9d
    and   eax, 4
    shl   eax, 1
    or    ecx, eax
    and   edx, 7
    and   r9d, 1
    shl   r9d, 3
    or    edx, r9d
    mov   rax, [rbp + rcx*8]
    cmp   rax, 32767
    ja    leave
    test  al, 1
    jne   leave
    shl   eax, 2
    add   rax, {box(Box.FIELDS)}
    movzx ecx, word ptr [rax]
"""

_FIELDS = f"""
vmread:
    {_FIELD}
    movzx esi, byte ptr [rax + 2]
    cmp   esi, 8
    jne   narrow_read
    mov   rax, [r12 + rcx]
    jmp   have_value
narrow_read:
    cmp   esi, 4
    jne   leave
    mov   eax, [r12 + rcx]
have_value:
    mov   [rbp + rdx*8], rax
succeed:
    mov   qword ptr {env(L.Q_CC_SRC)}, 0
    mov   dword ptr {env32(L.I_CC_OP)}, {L.CC_OP_EFLAGS}
    add   {env(L.Q_RIP)}, r10
    jmp   done
vmwrite:
    {_FIELD}
    mov   rdi, [rbp + rdx*8]
    movzx esi, byte ptr [rax + 3]
    cmp   esi, 1
    je    masked
    cmp   esi, 2
    jne   word_field
    mov   edi, edi
    jmp   masked
word_field:
    cmp   esi, 3
    jne   leave
    movzx edi, di
masked:
    movzx esi, word ptr [rax + 4]
    mov   r9, {env(L.Q_RIP)}
    mov   [r12 + rsi*8 + {v.WRITTEN_AT}], r9
    cmp   byte ptr [rax + 2], 8
    jne   narrow_write
    cmp   [r12 + rcx], rdi
    je    succeed
    mov   [r12 + rcx], rdi
    jmp   written
narrow_write:
    cmp   [r12 + rcx], edi
    je    succeed
    mov   [r12 + rcx], edi
written:
    movzx ecx, word ptr [rax + 4]
    mov   byte ptr [r12 + rcx + {v.DIRTY_AT}], 1
    movzx ecx, byte ptr [rax + 6]
    or    {vmcs(v.CHECK)}, rcx
    jmp   succeed
root_cpuid:
    cmp   word ptr [r8], 41487
    jne   leave
    mov   rsi, {box(Box.CPUID_TABLE)}
    mov   rcx, {box(Box.CPUID_COUNT)}
    mov   eax, {env(L.Q_RAX)}
    mov   edx, {env(L.Q_RCX)}
    mov   rdi, {env(L.Q_CR + 4)}
next_leaf:
    sub   rcx, 1
    jb    leave
    cmp   [rsi], eax
    jne   other_leaf
    cmp   [rsi + 4], edx
    jne   other_leaf
    cmp   [rsi + 8], rdi
    je    found_leaf
other_leaf:
    add   rsi, 32
    jmp   next_leaf
found_leaf:
    mov   eax, [rsi + 16]
    mov   {env(L.Q_RAX)}, rax
    mov   eax, [rsi + 20]
    mov   {env(L.Q_RBX)}, rax
    mov   eax, [rsi + 24]
    mov   {env(L.Q_RCX)}, rax
    mov   eax, [rsi + 28]
    mov   {env(L.Q_RDX)}, rax
    add   qword ptr {env(L.Q_RIP)}, 2
    jmp   done
"""

_EPILOGUE = f"""
leave:
    mov   rdi, r14
    mov   esi, r13d
    mov   rdx, rbx
    add   rsp, 8
    pop   r15
    pop   r14
    pop   r13
    pop   r12
    pop   rbp
    pop   rbx
    jmp   qword ptr [rdx + {8 * n.BOX_PYTHON}]
done:
    add   rsp, 8
    pop   r15
    pop   r14
    pop   r13
    pop   r12
    pop   rbp
    pop   rbx
    ret
"""

BEGIN: Final = _PROLOGUE + _FIND_CODE + _ROOT + _FIELDS
END: Final = _EPILOGUE
