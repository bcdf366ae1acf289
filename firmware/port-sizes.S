# Real mode: reads port DX with 1, 2 and 4 bytes and writes each value back to it; then 0 to the debug-exit port.
.include "common.inc"
.code16
    inb %dx, %al
    outb %al, %dx
    inw %dx, %ax
    outw %ax, %dx
    inl %dx, %eax
    outl %eax, %dx
    finish
