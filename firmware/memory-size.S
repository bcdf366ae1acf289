# 64-bit mode: looks at the last byte of each MiB until one does not keep what was written; writes how many did, in 32 bits, to port 0x80.
.include "common.inc"
.code64
    mov $0x100000, %edi
1:  movb $0x5a, -1(%rdi)
    cmpb $0x5a, -1(%rdi)
    jne 2f
    add $0x100000, %rdi
    cmp $0x40000000, %rdi       # the mapped GiB ends
    jbe 1b
2:  mov %rdi, %rax
    shr $20, %rax
    dec %eax
    outl %eax, $0x80
    finish
