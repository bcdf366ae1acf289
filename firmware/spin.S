# Real mode: tells the host by port 0x81 that it runs, then spins for ever. Prints nothing.
.include "common.inc"
.code16
    mov $1, %al
    outb %al, $0x81
    jmp .
