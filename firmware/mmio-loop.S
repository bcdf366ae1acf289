# Real mode: writes ECX times the 32-bit count of what is left to ES:0; then 0 to the debug-exit port. Prints nothing.
.include "common.inc"
.code16
    xor %di, %di
1:  movl %ecx, %es:(%di)
    dec %ecx
    jnz 1b
    finish
