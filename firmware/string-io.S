# Real mode: REP INSB of CX bytes from port DX to 0x4000, then REP OUTSB of them to DX; 0 to the debug-exit port.
.include "common.inc"
.code16
    cld
    mov %cx, %bx
    mov $0x4000, %di
    rep insb
    mov %bx, %cx
    mov $0x4000, %si
    rep outsb
    finish
