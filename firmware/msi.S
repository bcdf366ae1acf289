# 64-bit mode: takes ECX interrupts of vector 0x50 through the local APIC, writing the count to port 0x80 at each; then 0 to the debug-exit port.
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
    movl $0x1ff, (%rdi)         # software enable, spurious vector 0xff
    xor %ebx, %ebx
    mov $1, %al                 # tells the host that the guest is ready
    outb %al, $0x81
    sti
1:  cmp %ecx, %ebx
    jae 2f
    hlt
    jmp 1b
2:  cli
    finish
handler:
    inc %ebx
    mov %bl, %al
    outb %al, $0x80
    mov $LAPIC_EOI, %edi
    movl $0, (%rdi)
    iretq
idtr:
    .word 256 * 16 - 1
    .quad idt
    .balign 16
idt:
    .rept 256
    .word 0, 0x08               # offset, the helper's 64-bit code segment
    .word 0x8e00, 0             # present interrupt gate
    .quad 0
    .endr
    .space 256
stack:
