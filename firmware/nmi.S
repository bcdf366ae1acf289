# Real mode: waits for an NMI, then writes 0x4e to port 0x80 and 0 to the debug-exit port.
.include "common.inc"
.code16
    set_vector 2, handler
    mov $1, %al                 # tells the host that the guest is ready
    outb %al, $0x81
1:  hlt
    jmp 1b
handler:
    mov $0x4e, %al
    outb %al, $0x80
    finish
