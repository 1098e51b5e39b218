# Runs programs one after another, each from the same state, and prints what each left: image.py appends the programs.
# In:  64-bit mode at _start (0x10000), any page tables that map it, interrupts off.
# Out: for each program a line "@number" and the words of `REC` in hexadecimal, then "END".
# Symbols from the command line: GUEST = 1 under a hypervisor with the hypercalls of docs/hypercalls.md, 0 alone;
# COUNT of programs. A program ends with its first exception or interrupt, INT 80H behind it if there is none before.
    .intel_syntax noprefix
    .code64
    .set PML4, 0x100000
    .set PT, 0x103000                   # the first 2 MiB by 4 KiB pages
    .set IDT, 0x106000
    .set GDT, 0x108000
    .set TSS, 0x109000
    .set STK, 0x110000                  # of this code, and of all handlers by IST
    .set REC, 0x111000                  # what a program left: image.FIELDS
    .set OUT, 0x112000
    .set DATA, 0x120000                 # pages that programs use, see `special`
    .set DATA_ALIAS, 0x180000        # the same memory, always writable
    .set DATA_SIZE, 0xa000
    .globl _start
_start:
    cli
    mov rsp, STK
    # page tables
    mov edi, PML4
    xor eax, eax
    mov ecx, 0x8000/8
    rep stosq
    mov qword ptr [PML4], PML4+0x1000+7
    mov qword ptr [PML4+0x1000], PML4+0x2000+7
    mov qword ptr [PML4+0x2000], PT+7
    call build_pt
    # IDT
    xor ecx, ecx
1:  lea rax, [rip+stubs]
    mov edx, ecx
    shl edx, 4
    add rax, rdx
    mov edi, IDT
    add edi, edx
    mov [rdi], ax
    mov word ptr [rdi+2], 8
    mov word ptr [rdi+4], 0xee01
    shr rax, 16
    mov [rdi+6], ax
    mov qword ptr [rdi+8], 0
    inc ecx
    cmp ecx, 256
    jb 1b
    # 20H to 2FH: DPL 0
    mov ecx, 16
    mov edi, IDT+0x20*16
1:  mov byte ptr [rdi+5], 0x8e
    add edi, 16
    loop 1b
    mov byte ptr [IDT+0x30*16+5], 0x6e   # not present
    mov byte ptr [IDT+0x31*16+5], 0xe5   # bad type
    mov word ptr [IDT+0x32*16+2], 0x10   # data selector
    mov byte ptr [IDT+0x33*16+4], 0      # no IST
    mov byte ptr [IDT+0x34*16+5], 0xef   # trap gate
    mov byte ptr [IDT+0x34*16+4], 0
    mov edi, TSS
    xor eax, eax
    mov ecx, 0x1000/8
    rep stosq
    mov qword ptr [TSS+4], STK-0x100
    mov qword ptr [TSS+0x24], STK
    mov word ptr [TSS+102], 104
    mov dword ptr [TSS+104], 0xffffffff
    call build_gdt
    lgdt [rip+gdtr]
    lidt [rip+idtr]
    mov eax, PML4
    mov cr3, rax
    mov ax, 0x40
    ltr ax
    xor r15d, r15d
    mov [rip+index], r15
next_case:
    cli
  .if GUEST == 0
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
  .endif
    cld
    mov rax, 0x80050033
    mov cr0, rax
    mov rax, 0x6a0
    mov cr4, rax
    fninit
    mov dword ptr [REC+0x230], 0x1f80
    ldmxcsr [REC+0x230]
    mov r15, [rip+index]
    cmp r15, COUNT
    jae finished
    call build_pt
    call build_gdt
    lgdt [rip+gdtr]
    lidt [rip+idtr]
    mov rax, cr3
    mov cr3, rax
    mov ax, 0x10
    mov ss, ax
    mov eax, 0xffff0ff0
    mov dr6, rax
    mov eax, 0x400
    mov dr7, rax
    xor eax, eax
    mov cr2, rax
    lldt ax
    # the same data before each program
    mov edi, DATA_ALIAS
    mov ecx, DATA_SIZE/8
    mov rax, 0x123456789abcdef
1:  stosq
    rol rax, 5
    add rax, rcx
    loop 1b
    # r14 = the program's row: text, length, destination, RFLAGS, CS, SS, CR4, CR0, EFER, DS, 16 registers
    imul r14, r15, 26*8
    lea rax, [rip+cases]
    add r14, rax
    mov rsi, [r14]
    mov rcx, [r14+8]
    mov rdi, [r14+16]
    rep movsb
    mov ecx, 0xc0000080
    mov rax, [r14+64]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00280008
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [rip+sysc]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x4700
    xor edx, edx
    wrmsr
    mov ecx, 0x174
    mov eax, 8
    wrmsr
    mov ecx, 0x175
    mov eax, STK-0x200
    wrmsr
    mov ecx, 0x176
    lea rax, [rip+sysc]
    xor edx, edx
    wrmsr
    mov rax, [r14+56]
    mov cr0, rax
    mov rax, [r14+48]
    mov cr4, rax
    mov rax, [r14+72]
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    push [r14+40]
    push [r14+80+4*8]
    push [r14+24]
    push [r14+32]
    push [r14+16]
    mov rax,[r14+80]
    mov rcx,[r14+88]
    mov rdx,[r14+96]
    mov rbx,[r14+104]
    mov rbp,[r14+120]
    mov rsi,[r14+128]
    mov rdi,[r14+136]
    mov r8,[r14+144]
    mov r9,[r14+152]
    mov r10,[r14+160]
    mov r11,[r14+168]
    mov r12,[r14+176]
    mov r13,[r14+184]
    mov r15,[r14+200]
    mov r14,[r14+192]
    iretq

sysc:   # where SYSCALL and SYSENTER lead: told as vector 100H
    mov [REC+0x200], rsp
    mov rsp, STK
    push rax
    mov ax, ss
    movzx eax, ax
    xchg rax, [rsp]
    push [REC+0x200]
    pushfq
    push 8
    push 0x1234
    push 0
    push 0x100
    jmp common
gate_target:    # where the call gate leads: told as vector 101H
    mov [REC+0x200], rsp
    mov rsp, STK
    push rax
    mov ax, ss
    movzx eax, ax
    xchg rax, [rsp]
    push [REC+0x200]
    pushfq
    push 8
    push 0x4321
    push 0
    push 0x101
    jmp common

    .balign 16
stubs:
    .set v, 0
    .rept 256
    .balign 16
    .if (v==8)|(v==10)|(v==11)|(v==12)|(v==13)|(v==14)|(v==17)|(v==21)
    .else
    push 0
    .endif
    .byte 0x68
    .long v
    jmp common
    .set v, v+1
    .endr

common:
    # [vector][err][rip][cs][rflags][rsp][ss]
    cld
    mov [REC+8*16], rax
    mov rax, cr4
    mov [REC+0x210], rax
    mov rax, cr0
    mov [REC+0x218], rax
    mov rax, 0x80050033
    mov cr0, rax
    mov eax, 0x6a0
    mov cr4, rax
    mov rax, [REC+8*16]
    mov [REC], rax
    mov [REC+8], rcx
    mov [REC+16], rdx
    mov [REC+24], rbx
    mov rax, [rsp+40]
    mov [REC+32], rax
    mov [REC+40], rbp
    mov [REC+48], rsi
    mov [REC+56], rdi
    mov [REC+64], r8
    mov [REC+72], r9
    mov [REC+80], r10
    mov [REC+88], r11
    mov [REC+96], r12
    mov [REC+104], r13
    mov [REC+112], r14
    mov [REC+120], r15
    mov rax, [rsp]
    mov [REC+128], rax
    mov rax, [rsp+8]
    mov [REC+136], rax
    mov rax, [rsp+16]
    mov [REC+144], rax
    mov rax, [rsp+24]
    mov [REC+152], rax
    mov rax, [rsp+32]
    mov [REC+160], rax
    mov rax, [rsp+48]
    mov [REC+168], rax
    mov rax, cr2
    mov [REC+176], rax
    mov rax, dr6
    mov [REC+184], rax
    mov rax, [REC+0x210]
    mov [REC+192], rax
    mov rax, [REC+0x218]
    mov [REC+200], rax
    xor eax, eax
    mov ax, gs
    shl eax, 16
    mov ax, fs
    shl rax, 16
    mov ax, es
    shl rax, 16
    mov ax, ds
    mov [REC+208], rax
    # hashes: data, accessed and dirty bits, GDT
    mov esi, DATA_ALIAS
    mov ecx, DATA_SIZE/8
    xor ebx, ebx
1:  lodsq
    rol rbx, 7
    xor rbx, rax
    mov rdx, 0x9e3779b97f4a7c15
    imul rbx, rdx
    loop 1b
    mov [REC+216], rbx
    mov esi, PT+0x120*8
    mov ecx, 16
    xor ebx, ebx
1:  lodsq
    shr eax, 5
    and eax, 3
    shl rbx, 2
    or rbx, rax
    loop 1b
    mov [REC+224], rbx
    mov esi, GDT
    mov ecx, 32
    xor ebx, ebx
1:  lodsq
    rol rbx, 7
    xor rbx, rax
    loop 1b
    mov [REC+232], rbx
    # print
    mov edi, OUT
    mov al, '@'
    stosb
    mov rax, [rip+index]
    call hex
    mov r8d, REC
    mov r9d, 30
2:  mov al, ' '
    stosb
    mov rax, [r8]
    call hex
    add r8, 8
    dec r9d
    jnz 2b
    mov al, 10
    stosb
    mov rsp, STK
    mov ecx, edi
    sub ecx, OUT
    call emit
    inc qword ptr [rip+index]
    jmp next_case

emit:  # OUT, ecx bytes
  .if GUEST
    mov eax, 1
    mov ebx, OUT
    vmcall
  .else
    mov esi, OUT
    mov edx, 0xe9
    rep outsb
  .endif
    ret

hex:   # rax to [rdi], no leading zeros
    push rcx
    push rdx
    mov rdx, rax
    mov ecx, 64
1:  sub ecx, 4
    jz 2f
    mov rax, rdx
    shr rax, cl
    jz 1b
2:  mov rax, rdx
    shr rax, cl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 3f
    add al, 39
3:  stosb
    sub ecx, 4
    jns 2b
    pop rdx
    pop rcx
    ret

finished:
    mov dword ptr [OUT], 0x0a444e45
    mov ecx, 4
    call emit
  .if GUEST
    mov eax, 2
    xor ebx, ebx
    vmcall
  .else
    mov edx, 0x8900
    lea rsi, [rip+shut]
    mov ecx, 8
    rep outsb
    mov al, 0
    out 0xf4, al
  .endif
    hlt
shut: .ascii "Shutdown"

build_pt:
    mov edi, PT
    mov eax, 3
    mov ecx, 512
1:  stosq
    add eax, 0x1000
    loop 1b
    lea rsi, [rip+special]
2:  mov ecx, [rsi]
    jecxz 3f
    mov rax, [rsi+8]
    mov [PT+rcx*8], rax
    add rsi, 16
    jmp 2b
3:  ret
    .balign 8
special:        # page number, entry
    .quad 0x122, 0x122002
    .quad 0x123, 0x123001
    .quad 0x124, 0x124007
    .quad 0x125, 0x125003+(1<<63)
    .quad 0x126, 0x126005
    .quad 0x127, 0x127007+(1<<51)
    .quad 0x128, 0x120003
    .quad 0x12a, 0x124007+(1<<63)
    .quad 0x12b, 0x120007
    .quad 0x12c, 0x121007
    .quad 0x12d, 0x122006
    .set v, 0
    .rept DATA_SIZE/0x1000
    .quad 0x180+v, DATA+0x1000*v+3
    .set v, v+1
    .endr
    .quad 0x140, 0x140007
    .quad 0x141, 0x141007
    .quad 0x142, 0x142006
    .quad 0
build_gdt:
    lea rsi, [rip+gdt]
    mov edi, GDT
    mov ecx, 32
    rep movsq
    lea rax, [rip+gate_target]
    mov [GDT+0x68], ax
    mov [GDT+0xb0], ax
    ret
    .balign 8
gdt:
    .quad 0
    .quad 0x00209b0000000000  # 08 code64 dpl0
    .quad 0x00cf93000000ffff  # 10 data
    .quad 0x00cf9b000000ffff  # 18 code32
    .quad 0x00009b000000ffff  # 20 code16
    .quad 0x00cffb000000ffff  # 28 code32 dpl3
    .quad 0x00cff3000000ffff  # 30 data dpl3
    .quad 0x0020fb0000000000  # 38 code64 dpl3
    .quad 0x0000891090000fff,0 # 40 TSS
    .quad 0x0040f31200000fff  # 50 data 32, base DATA, limit fff, dpl3
    .quad 0x00cf9f000000ffff  # 58 conforming code32
    .quad 0x00cf73000000ffff  # 60 not present dpl3
    .quad 0x0001ec0000080000,0 # 68 call gate 64 dpl3 to 08
    .quad 0x00008210a0000fff,0
    .quad 0x0040f71200000fff  # 88 expand-down
    .quad 0x00cff1000000ffff  # 90 read-only dpl3
    .quad 0x00cff9000000ffff  # 98 exec-only dpl3
    .quad 0x008ffb000000ffff  # a0 code16 dpl3
    .quad 0x0000f3120000ffff  # a8 data16 base DATA
    .quad 0x00018c0000080000,0 # b0 call gate 64 dpl0
    .quad 0x00cff2000000ffff  # c0 data dpl3 not accessed
    .quad 0x00cf92000000ffff  # c8 data dpl0 not accessed
    .quad 0x00cffa000000ffff  # d0 code32 dpl3 not accessed
    .quad 0x0020fe0000000000  # d8 code64 conforming dpl3
    .quad 0x0060fb0000000000  # e0 L and D
    .quad 0
    .quad 0,0
    .balign 8
gdtr: .word 255
    .quad GDT
idtr: .word 0xfff
    .quad IDT
index: .quad 0
