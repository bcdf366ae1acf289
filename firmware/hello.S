# Real mode: prints "Test OK\n" on COM1 and writes 0 to the debug-exit port.
.include "common.inc"
.code16
    mov $message, %si
    mov $SERIAL, %dx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  finish
message:
    .asciz "Test OK\n"
