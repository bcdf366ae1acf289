# Real mode, then by its own page tables and GDT 64-bit mode: prints "Test OK\n" on COM1 and writes 0 to the debug-exit port.
.include "common.inc"
.code16
    lgdtl gdtr
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax              # CR4.PAE
    mov %eax, %cr4
    mov $0xc0000080, %ecx       # EFER.LME
    xor %edx, %edx
    mov $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax        # CR0.PG, CR0.PE
    mov %eax, %cr0
    ljmpl $0x08, $start64
.code64
start64:
    lea message(%rip), %rsi
    mov $SERIAL, %dx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  finish
message:
    .asciz "Test OK\n"
    .balign 8
gdt:
    .quad 0
    .quad 0x00209b0000000000    # 64-bit code
    .quad 0x00cf93000000ffff    # data
gdtr:
    .word . - gdt - 1
    .long gdt
    .balign 4096
pml4:
    .quad pdpt + 3
    .balign 4096
pdpt:
    .quad pd + 3
    .balign 4096
pd: .quad 0x83                  # 2 MiB at 0, present, writable, large
    .balign 4096
