# Real mode: takes CX ticks of the PIT (about 1 ms each) on IRQ 0, then writes the count of them to port 0x80 and 0 to the debug-exit port.
.include "common.inc"
.code16
    xor %bx, %bx
    mov %cx, %si
    set_vector 0x20, handler
    init_pic 0x01
    mov $0x34, %al              # channel 0, low then high byte, rate generator
    outb %al, $PIT_MODE
    mov $(1193 & 0xff), %al
    outb %al, $PIT0
    mov $(1193 >> 8), %al
    outb %al, $PIT0
    sti
1:  cmp %si, %bx
    jae 2f
    hlt
    jmp 1b
2:  cli
    mov %bl, %al
    outb %al, $0x80
    finish
handler:
    inc %bx
    mov $PIC_EOI, %al
    outb %al, $PIC1
    iret
