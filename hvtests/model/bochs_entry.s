# Tries VM entries: for each case a fresh VMCS, a base, a few fields changed, VMLAUNCH; prints the outcome on port 0xE9.
# In:  64-bit mode, identity-mapped memory, interrupts off.
# Out: one line a case (see `report`), then `@E`; ends by Bochs' shutdown port.
# Symbols from the command line: STACK, COPIES, ENCODINGS, FIELDS, BASES, CASES, COUNT, VMXON, VMCS, REVISION.
# Tables (made by bochs_entry.py): COPIES = {u64 destination, u64 length, bytes}* 0 0; ENCODINGS = u64[FIELDS];
# BASES = u64[][FIELDS]; CASES = {u32 base, u32 changes, {u64 encoding, u64 value}[changes]}[COUNT].

    .intel_syntax noprefix
    .code64
    .globl _start
_start:
    mov     esp, STACK
    mov     esi, COPIES
copy:
    lodsq
    mov     rdi, rax
    lodsq
    mov     rcx, rax
    test    rdi, rdi
    jz      copied
    rep     movsb
    jmp     copy
copied:
    mov     eax, 0x2020                 # CR4: VMXE, PAE
    mov     cr4, rax
    mov     eax, VMXON
    mov     dword ptr [rax], REVISION
    push    rax
    vmxon   [rsp]
    mov     qword ptr [next_case], CASES
    mov     qword ptr [cases_left], COUNT

try_case:
    cmp     qword ptr [cases_left], 0
    je      done
    dec     qword ptr [cases_left]
    mov     eax, VMCS
    mov     dword ptr [rax], REVISION
    push    rax
    vmclear [rsp]
    vmptrld [rsp]
    pop     rax

    mov     rsi, [next_case]            # the base: every field
    mov     eax, [rsi]
    imul    eax, eax, FIELDS * 8
    add     eax, BASES
    mov     rdi, rax
    mov     ebx, ENCODINGS
    mov     ecx, FIELDS
write_base:
    mov     rax, [rbx]
    vmwrite rax, [rdi]                  # a field that this CPU lacks fails here, and is 0 in every base
    add     rbx, 8
    add     rdi, 8
    dec     ecx
    jnz     write_base

    mov     ecx, [rsi + 4]              # the changes
    add     rsi, 8
write_changes:
    test    ecx, ecx
    jz      written
    mov     rax, [rsi]
    vmwrite rax, [rsi + 8]
    jbe     not_written
    add     rsi, 16
    dec     ecx
    jmp     write_changes
written:
    mov     [next_case], rsi
    vmlaunch
    jc      fail_invalid
    mov     eax, 0x4400                 # VM_INSTRUCTION_ERROR
    vmread  rbx, rax
    mov     al, 'V'
    mov     ecx, 8
    jmp     report
fail_invalid:
    mov     al, 'I'
    xor     ebx, ebx
    mov     ecx, 8
    jmp     report

not_written:                            # the rest of the changes is skipped
    mov     rbx, [rsi]
    shl     rcx, 4
    add     rsi, rcx
    mov     [next_case], rsi
    mov     al, 'W'
    mov     ecx, 8
    jmp     report

    .globl  vm_exit
vm_exit:                                # HOST_RIP: also where an entry that fails with reason 33 or 34 comes out
    mov     eax, 0x80000031
    mov     cr0, rax
    mov     eax, 0x2020
    mov     cr4, rax
    mov     esp, STACK
    mov     ecx, 0xc0000080
    mov     eax, 0x500
    xor     edx, edx
    wrmsr
    mov     eax, 0x4402                 # VM_EXIT_REASON
    vmread  rbx, rax
    mov     al, 'X'
    mov     ecx, 8
    call    put_record
    mov     eax, 0x6400                 # EXIT_QUALIFICATION
    vmread  rbx, rax
    mov     al, ' '
    mov     ecx, 16
    call    put_digits
    jmp     end_line

# AL = letter, RBX = number, ECX = hexadecimal digits: prints `@` letter digits, ends the line, tries the next case.
report:
    call    put_record
end_line:
    mov     al, 10
    out     0xe9, al
    jmp     try_case

done:
    mov     al, 'E'
    xor     ebx, ebx
    mov     ecx, 1
    call    put_record
    mov     al, 10
    out     0xe9, al
    mov     esi, offset shutdown
    mov     edx, 0x8900
    mov     ecx, 8
    rep     outsb
    hlt

# AL, RBX, ECX as above. Changes RAX, RCX, RDX, RBX.
put_record:
    push    rax
    mov     al, '@'
    out     0xe9, al
    pop     rax
put_digits:
    out     0xe9, al
    mov     edx, ecx
    shl     edx, 2                      # bits wanted, brought to the top
    push    rcx
    mov     ecx, 64
    sub     ecx, edx
    shl     rbx, cl
    pop     rcx
digit:
    rol     rbx, 4
    mov     eax, ebx
    and     eax, 15
    mov     al, [digits + rax]
    out     0xe9, al
    dec     ecx
    jnz     digit
    ret

digits:
    .ascii  "0123456789abcdef"
shutdown:
    .ascii  "Shutdown"
    .balign 8
next_case:
    .quad   0
cases_left:
    .quad   0
