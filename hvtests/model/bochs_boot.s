# Boot sector of the entry-trial image: loads the payload to 0x10000 and enters it in 64-bit mode.
# In:  the BIOS jumps here at 0000:7C00 in real mode, DL = drive.
# Out: `STAGE2` in 64-bit mode, flat segments, CR3 = `PML4`, interrupts off.
# Symbols from the command line: STAGE2, PML4, CHUNKS (of 64 sectors each).

    .intel_syntax noprefix
    .code16
    .globl _start
_start:
    cli
    xor     ax, ax
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     sp, 0x7c00
    mov     cx, CHUNKS
load:
    push    cx
    mov     si, offset packet
    mov     ah, 0x42                    # extended read: LBA packet at DS:SI
    int     0x13
    jc      failed
    add     word ptr [packet_segment], 0x800    # 32 KiB on
    add     dword ptr [packet_lba], 64
    pop     cx
    loop    load

    in      al, 0x92                    # A20
    or      al, 2
    and     al, 0xfe
    out     0x92, al
    cli                                 # the BIOS may have set IF
    lgdt    [gdt_pointer]
    mov     eax, 0x20                   # CR4.PAE
    mov     cr4, eax
    mov     eax, PML4
    mov     cr3, eax
    mov     ecx, 0xc0000080
    rdmsr
    or      eax, 0x100                  # EFER.LME
    wrmsr
    mov     eax, 0x80000031             # CR0: PG, NE, ET, PE
    mov     cr0, eax
    .byte   0xea                        # far jump, 16-bit operand
    .word   long_mode, 0x08

failed:
    mov     al, 'L'
    out     0xe9, al
    hlt

    .code64
long_mode:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, STAGE2
    jmp     rax

    .balign 4
packet:
    .byte   16, 0
    .word   64                          # sectors
    .word   0                           # offset
packet_segment:
    .word   0x1000
packet_lba:
    .long   1, 0

    .balign 8
gdt:
    .quad   0
    .quad   0x00209b0000000000          # 0x08: 64-bit code
    .quad   0x00cf93000000ffff          # 0x10: data
    .quad   0x00008b0030000067          # 0x18: a busy TSS, never loaded from here
    .quad   0
gdt_pointer:
    .word   gdt_pointer - gdt - 1
    .long   gdt

    .org    510
    .word   0xaa55
