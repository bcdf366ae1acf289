# Real mode: four instructions of one byte each, then HLT: something to single-step and to set breakpoints on. Prints nothing.
.include "common.inc"
.code16
    nop
    inc %ax
    inc %ax
    nop
1:  hlt
    jmp 1b
