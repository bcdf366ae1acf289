# Real mode: takes CX interrupts on IRQ 4, writing the running count to port 0x80 at each; then 0 to the debug-exit port.
.include "common.inc"
.code16
    xor %bx, %bx
    set_vector 0x24, handler
    mov %cx, %si
    init_pic 0x10
    mov $1, %al                 # tells the host that the guest is ready
    outb %al, $0x81
    sti
1:  cmp %si, %bx
    jae 2f
    hlt
    jmp 1b
2:  cli
    finish
handler:
    inc %bx
    mov %bl, %al
    outb %al, $0x80
    mov $PIC_EOI, %al
    outb %al, $PIC1
    iret
