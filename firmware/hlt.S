# Real mode: halts, with interrupts enabled if AL is not 0. When it is continued it halts again. Prints nothing.
.include "common.inc"
.code16
    test %al, %al
    jz 1f
    sti
1:  hlt
    jmp 1b
