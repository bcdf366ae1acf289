# Real mode: writes ECX bytes to port DX, AL = low byte of what is left; then 0 to the debug-exit port. Prints nothing.
.include "common.inc"
.code16
1:  mov %cl, %al
    outb %al, %dx
    dec %ecx
    jnz 1b
    finish
