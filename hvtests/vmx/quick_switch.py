"""Machine code behind hvtests.vmx.quick: VM exits by CPUID and VMCALL, and VMRESUME."""

from __future__ import annotations

from typing import Final

from hvtests.machine import layout as L
from hvtests.machine import native as n
from hvtests.vmx import vmcs as v
from hvtests.vmx.quick_text import (
    HF_CS64,
    IA32E_MODE_GUEST,
    INFO_VALID_SHIFT,
    RFLAGS_RF,
    SEGMENT_WORDS,
    Box,
    Option,
    box,
    copy,
    env,
    env32,
    field,
    host,
    vmcs,
)


def _unless_plain(way_out: str, label: str) -> str:
    """Go to `way_out` if the VM exit of the running guest is not one for this code."""
    return f"""
    cmp   qword ptr {vmcs(v.QUICK)}, 0
    je    {way_out}
    cmp   qword ptr {box(n.BOX_REQUESTS)}, 0
    jne   {way_out}
    cmp   qword ptr {box(n.BOX_NO_FETCH)}, 0
    jne   {way_out}
    test  dword ptr {env32(L.I_HFLAGS2)}, {L.HF2_HIF | L.HF2_VINTR}
    jne   {way_out}
    test  dword ptr {env32(L.I_HFLAGS)}, {L.HF_INHIBIT_IRQ}
    jne   {way_out}
    mov   rcx, {env(L.q_base(L.TR))}
    cmp   rcx, {vmcs(L.q_base(L.TR))}
    jne   {way_out}
    test  dword ptr {env(L.Q_EFER)}, 1024
    jne   {label}
    test  dword ptr {env(L.Q_CR + 4)}, 32
    je    {label}
    bt    dword ptr {env(L.Q_CR)}, 31
    jb    {way_out}
{label}:
"""


# A function for Python: box, reason, instruction length, qualification; 1 if the VM exit has been made, else 0 and
# nothing has changed. It stands ENTRY_POINT bytes behind the hook.
ENTRY_POINT: Final = 16
CALL: Final = f"""
    jmp   hook
    .align {ENTRY_POINT}
    push  rbx
    push  rbp
    push  r12
    push  r13
    push  r14
    push  r15
    sub   rsp, 8
    mov   rbx, rdi
    mov   rbp, {box(n.BOX_ENV)}
    mov   r12, {box(Box.VMCS)}
    mov   r15d, esi
    mov   r13d, edx
    mov   r14, rcx
    {_unless_plain("refused", "plain_call")}
    jmp   exit
refused:
    xor   eax, eax
    jmp   done
hook:
"""

# r15d = reason, r13d = instruction length, r14 = qualification
EXIT: Final = f"""
guest:
    {_unless_plain("leave", "plain_guest")}
    cmp   r13d, {L.CODE_CPUID}
    jne   maybe_vmcall
    cmp   word ptr [r8], 41487
    jne   leave
    mov   r15d, 10
    mov   r13d, 2
    xor   r14d, r14d
    jmp   exit
maybe_vmcall:
    cmp   word ptr [r8], 271
    jne   leave
    cmp   byte ptr [r8 + 2], 193
    jne   leave
    mov   r15d, 18
    mov   r13d, 3
    xor   r14d, r14d
exit:
    mov   esi, {env32(L.I_CC_OP)}
    cmp   esi, {L.CC_OP_EFLAGS}
    je    have_flags
    mov   rdi, rbp
    call  qword ptr {box(n.BOX_CC_COMPUTE)}
    mov   eax, eax
    mov   {env(L.Q_CC_SRC)}, rax
have_flags:
    mov   rax, {env(L.Q_RFLAGS)}
    and   rax, {-1 & ~(L.SPLIT_FLAGS | RFLAGS_RF)}
    mov   rcx, {env(L.Q_CC_SRC)}
    and   ecx, {L.STATUS_FLAGS}
    or    rax, rcx
    or    rax, 2
    cmp   dword ptr {env32(L.I_DF)}, 0
    jge   forward
    or    rax, 1024
forward:
    mov   {vmcs(L.Q_RFLAGS)}, rax
    lea   rsi, [rbp + {L.SEGMENT_AT}]
    lea   rdi, [r12 + {L.SEGMENT_AT}]
    mov   ecx, {SEGMENT_WORDS}
    rep   movsq
    {copy({vmcs(word): env(word) for word in (L.Q_CR, L.Q_CR + 3, L.Q_CR + 4, L.Q_RIP, L.Q_RSP)})}
    {copy({field("GUEST_SYSENTER_ESP"): env(L.Q_SYSENTER_ESP),
           field("GUEST_SYSENTER_EIP"): env(L.Q_SYSENTER_EIP)})}
    mov   eax, {env32(L.I_SYSENTER_CS)}
    mov   {field("GUEST_SYSENTER_CS")}, rax
    mov   eax, {env32(L.I_HFLAGS)}
    mov   [r12 + {4 * L.I_HFLAGS}], eax
    mov   qword ptr {vmcs(v.RIGHTS_STALE)}, 1
    mov   r11, {vmcs(v.OPTIONS)}
    mov   r10, {env(L.Q_EFER)}
    test  r11d, {Option.SAVE_EFER}
    je    no_efer
    mov   {vmcs(L.Q_EFER)}, r10
no_efer:
    test  r11d, {Option.SAVE_PAT}
    je    no_pat
    {copy({field("GUEST_IA32_PAT"): env(L.Q_PAT)})}
no_pat:
    test  r11d, {Option.SAVE_DEBUG}
    je    no_debug
    {copy({field("GUEST_DR7"): env(L.Q_DR + 7), field("GUEST_IA32_DEBUGCTL"): box(n.BOX_DEBUGCTL)})}
no_debug:
    cmp   qword ptr {box(Box.STORE_LMA)}, 0
    je    no_lma
    mov   rax, {field("VM_ENTRY_CONTROLS")}
    and   rax, {-1 & ~IA32E_MODE_GUEST}
    shr   r10d, 1
    and   r10d, {IA32E_MODE_GUEST}
    or    rax, r10
    mov   {field("VM_ENTRY_CONTROLS")}, rax
no_lma:
    mov   eax, {env32(L.I_HFLAGS2)}
    mov   r9d, eax
    and   r9d, {L.HF2_NMI}
    and   eax, {L.HF2_NMI}
    shl   eax, 1
    mov   {field("GUEST_INTERRUPTIBILITY_INFO")}, rax
    xor   eax, eax
    mov   {field("GUEST_PENDING_DBG_EXCEPTIONS")}, rax
    mov   {field("GUEST_ACTIVITY_STATE")}, rax
    mov   {field("EXIT_QUALIFICATION")}, r14
    mov   {field("VM_EXIT_INTR_INFO")}, rax
    mov   {field("IDT_VECTORING_INFO_FIELD")}, rax
    mov   {field("VM_EXIT_REASON")}, r15
    mov   {field("VM_EXIT_INSTRUCTION_LEN")}, r13
    btr   qword ptr {field("VM_ENTRY_INTR_INFO_FIELD")}, {INFO_VALID_SHIFT}
    test  r11d, {Option.TIMER}
    je    no_timer
    mov   rax, {box(n.BOX_GUEST_DEADLINE)}
    sub   rax, {box(n.BOX_TICKS)}
    jae   time_left
    xor   eax, eax
time_left:
    test  r11d, {Option.SAVE_TIMER}
    je    timer_stopped
    mov   {field("VMX_PREEMPTION_TIMER_VALUE")}, rax
timer_stopped:
    mov   qword ptr {box(n.BOX_GUEST_DEADLINE)}, -1
    {copy({box(n.BOX_DEADLINE): box(n.BOX_ALARM)})}
no_timer:
    mov   rdi, {box(Box.LOG_CURSOR)}
    mov   rax, {vmcs(v.IDENTITY)}
    mov   [rdi], rax
    mov   [rdi + 8], r15
    xor   eax, eax
    mov   [rdi + 16], r14
    mov   rcx, {env(L.Q_RIP)}
    mov   [rdi + 24], rcx
    mov   [rdi + 32], r13
    mov   [rdi + 40], rax
    add   rdi, 48
    cmp   rdi, {box(Box.LOG_END)}
    jne   logged
    mov   rdi, {box(Box.LOG_START)}
logged:
    mov   {box(Box.LOG_CURSOR)}, rdi
    inc   qword ptr {box(Box.LOG_TOTAL)}
    mov   rsi, {vmcs(v.HOST_BLOCK)}
    lea   rdi, [rbp + {L.SEGMENT_AT}]
    mov   ecx, {SEGMENT_WORDS}
    rep   movsq
    movabs rcx, {v.CR0_KEPT}
    and   rcx, {env(L.Q_CR)}
    or    rcx, {host("CR0")}
    mov   {env(L.Q_CR)}, rcx
    {copy({env(L.Q_CR + 3): host("CR3"), env(L.Q_CR + 4): host("CR4"), env(L.Q_EFER): host("EFER"),
            env(L.Q_RIP): host("RIP"), env(L.Q_RSP): host("RSP"),
            env(L.Q_SYSENTER_ESP): host("SYSENTER_ESP"), env(L.Q_SYSENTER_EIP): host("SYSENTER_EIP")})}
    mov   eax, {host("SYSENTER_CS")}
    mov   {env32(L.I_SYSENTER_CS)}, eax
    mov   eax, {host("HFLAGS")}
    mov   {env32(L.I_HFLAGS)}, eax
    test  r11d, {Option.EXIT_PAT}
    je    pat_stays
    {copy({env(L.Q_PAT): host("PAT")})}
pat_stays:
    or    r9d, {L.HF2_GIF}
    mov   {env32(L.I_HFLAGS2)}, r9d
    xor   eax, eax
    mov   {env(L.Q_CC_SRC)}, rax
    mov   {box(n.BOX_DEBUGCTL)}, rax
    mov   {box(n.BOX_SIDE)}, rax
    mov   qword ptr {env(L.Q_RFLAGS)}, 2
    mov   dword ptr {env32(L.I_CC_OP)}, {L.CC_OP_EFLAGS}
    mov   dword ptr {env32(L.I_DF)}, 1
    mov   qword ptr {env(L.Q_DR + 7)}, 1024
    {copy({env(L.Q_INTERCEPT): box(Box.ROOT_INTERCEPT), env(L.Q_INTERCEPT_CR_DR): box(Box.ROOT_CR_DR)})}
flush:
    mov   rdi, {box(n.BOX_CPU)}
    call  qword ptr {box(n.BOX_TLB_FLUSH)}
    mov   eax, 1
    jmp   done
"""

ENTRY: Final = f"""
vmresume:
    cmp   qword ptr {vmcs(v.QUICK)}, 0
    je    leave
    cmp   qword ptr {vmcs(v.CHECK)}, 0
    jne   leave
    cmp   qword ptr {box(n.BOX_REQUESTS)}, 0
    jne   leave
    mov   r9, {field("GUEST_INTERRUPTIBILITY_INFO")}
    test  r9d, {0x7FFFFFFF}
    jne   leave
    mov   rax, {field("GUEST_ACTIVITY_STATE")}
    or    rax, {field("GUEST_PENDING_DBG_EXCEPTIONS")}
    jne   leave
    mov   r11, {vmcs(v.OPTIONS)}
    mov   rax, {vmcs(L.Q_RIP)}
    test  dword ptr [r12 + {4 * L.I_HFLAGS}], {HF_CS64}
    jne   wide_rip
    shr   rax, 32
    jne   leave
    jmp   rip_is_good
wide_rip:
    mov   rcx, rax
    shl   rcx, 16
    sar   rcx, 16
    cmp   rcx, rax
    jne   leave
rip_is_good:
    test  r11d, {Option.TIMER}
    je    untimed
    mov   rax, {field("VMX_PREEMPTION_TIMER_VALUE")}
    test  rax, rax
    je    leave
    add   rax, {box(n.BOX_TICKS)}
    mov   {box(n.BOX_GUEST_DEADLINE)}, rax
    cmp   rax, {box(n.BOX_ALARM)}
    jb    sooner
    mov   rax, {box(n.BOX_ALARM)}
sooner:
    mov   {box(n.BOX_DEADLINE)}, rax
untimed:
    mov   byte ptr [r12 + {v.DIRTY_AT + v.FIELD_NUMBER["GUEST_RIP"]}], 0
    mov   byte ptr [r12 + {v.DIRTY_AT + v.FIELD_NUMBER["GUEST_RSP"]}], 0
    lea   rsi, [r12 + {L.SEGMENT_AT}]
    lea   rdi, [rbp + {L.SEGMENT_AT}]
    mov   ecx, {SEGMENT_WORDS}
    rep   movsq
    movabs rcx, {v.CR0_KEPT}
    mov   rax, rcx
    and   rcx, {env(L.Q_CR)}
    not   rax
    and   rax, {vmcs(L.Q_CR)}
    or    rax, rcx
    mov   {env(L.Q_CR)}, rax
    {copy({env(word): vmcs(word) for word in (L.Q_CR + 3, L.Q_CR + 4, L.Q_EFER, L.Q_RIP, L.Q_RSP)})}
    {copy({env(L.Q_SYSENTER_ESP): field("GUEST_SYSENTER_ESP"),
           env(L.Q_SYSENTER_EIP): field("GUEST_SYSENTER_EIP")})}
    mov   eax, {field("GUEST_SYSENTER_CS")}
    mov   {env32(L.I_SYSENTER_CS)}, eax
    mov   rax, {vmcs(L.Q_RFLAGS)}
    mov   ecx, eax
    and   ecx, {L.STATUS_FLAGS}
    mov   {env(L.Q_CC_SRC)}, rcx
    mov   dword ptr {env32(L.I_CC_OP)}, {L.CC_OP_EFLAGS}
    mov   ecx, 1
    test  eax, 1024
    je    upwards
    mov   ecx, -1
upwards:
    mov   {env32(L.I_DF)}, ecx
    and   rax, {-1 & ~L.SPLIT_FLAGS}
    or    rax, 2
    mov   {env(L.Q_RFLAGS)}, rax
    test  r11d, {Option.ENTRY_PAT}
    je    same_pat
    {copy({env(L.Q_PAT): field("GUEST_IA32_PAT")})}
same_pat:
    test  r11d, {Option.ENTRY_DEBUG}
    je    same_debug
    {copy({env(L.Q_DR + 7): field("GUEST_DR7"), box(n.BOX_DEBUGCTL): field("GUEST_IA32_DEBUGCTL")})}
same_debug:
    mov   eax, [r12 + {4 * L.I_HFLAGS}]
    and   eax, {-1 & ~L.HF_INHIBIT_IRQ}
    mov   {env32(L.I_HFLAGS)}, eax
    shr   r9d, 1
    and   r9d, {L.HF2_NMI}
    mov   eax, {vmcs(v.HFLAGS2)}
    or    eax, r9d
    mov   {env32(L.I_HFLAGS2)}, eax
    {copy({env(L.Q_INTERCEPT): vmcs(v.INTERCEPT), env(L.Q_INTERCEPT_CR_DR): vmcs(v.INTERCEPT_CR_DR),
            env(L.Q_NESTED_CR3): vmcs(v.NESTED_ROOT)})}
    mov   qword ptr {box(n.BOX_SIDE)}, 1
    jmp   flush
"""
