# 64-bit mode: writes a byte to RCX pages, RDX bytes apart, from RDI on; then 0 to the debug-exit port.
.include "common.inc"
.code64
1:  movb $0x55, (%rdi)
    add %rdx, %rdi
    dec %rcx
    jnz 1b
    finish
