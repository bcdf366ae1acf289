# 64-bit mode: a page fault without an interrupt table, which shuts the processor down. Prints nothing.
.include "common.inc"
.code64
    lidt idtr(%rip)
    mov $0x80000000, %eax       # the third GiB is not mapped
    mov (%rax), %eax
1:  jmp 1b
idtr:
    .word 0
    .quad 0
