# 64-bit mode: takes ECX ticks of the local APIC's periodic timer on vector 0x50, then writes the count to port 0x80 and 0 to the debug-exit port.
.include "common.inc"
.code64
    mov $stack, %rsp
    lea handler(%rip), %rax
    lea idt + 0x50 * 16(%rip), %rdi
    mov %ax, (%rdi)
    shr $16, %rax
    mov %ax, 6(%rdi)
    lidt idtr(%rip)
    mov $LAPIC_SVR, %edi
    movl $0x1ff, (%rdi)
    mov $(LAPIC + 0x3e0), %edi
    movl $0x0b, (%rdi)          # divide by 1
    mov $(LAPIC + 0x320), %edi
    movl $0x20050, (%rdi)       # periodic, vector 0x50
    mov $(LAPIC + 0x380), %edi
    movl $1000000, (%rdi)       # KVM's bus clock ticks in ns
    xor %ebx, %ebx
    sti
1:  cmp %ecx, %ebx
    jae 2f
    hlt
    jmp 1b
2:  cli
    mov %bl, %al
    outb %al, $0x80
    finish
handler:
    inc %ebx
    mov $LAPIC_EOI, %edi
    movl $0, (%rdi)
    iretq
idtr:
    .word 256 * 16 - 1
    .quad idt
    .balign 16
idt:
    .rept 256
    .word 0, 0x08
    .word 0x8e00, 0
    .quad 0
    .endr
    .space 256
stack:
