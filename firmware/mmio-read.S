# Real mode: reads ES:0 with 1, 2 and 4 bytes and writes each value to port 0x80; then 0 to the debug-exit port.
.include "common.inc"
.code16
    xor %di, %di
    mov $0x80, %dx
    movb %es:(%di), %al
    outb %al, %dx
    movw %es:(%di), %ax
    outw %ax, %dx
    movl %es:(%di), %eax
    outl %eax, %dx
    finish
