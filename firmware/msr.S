# Real mode: RDMSR of register ECX, writes EAX to port 0x80, adds 1, WRMSR; then 0 to the debug-exit port.
.include "common.inc"
.code16
    rdmsr
    outl %eax, $0x80
    inc %eax
    wrmsr
    finish
