# Multiboot kernel, 32-bit: uses the test device. Prints on its output port "ports", "page", "memory", "irq", "cpus N", a
# line each, as far as they work; then writes 0 to the debug-exit port.
.include "common.inc"
.set MAGIC, 0x1badb002
.set OUTPUT, 0xf1
.set PAGE, 0x300000
.set IOMEM, 0xff000000
.text
.code32
.globl _start
    .long MAGIC, 0, -MAGIC
.macro say text
    mov $\text, %esi
    call puts
.endm
_start:
    mov $stack, %esp
    # Data ports: what was written in one width is read in another.
    mov $0x44332211, %eax
    outl %eax, $0xe0
    mov $0x5566, %ax
    outw %ax, $0xe2
    inl $0xe0, %eax
    cmp $0x55662211, %eax
    jne 1f
    inb $0xe1, %al
    cmp $0x22, %al
    jne 1f
    say ports
    # A dropped page keeps what was in it.
1:  movl $0x12345678, PAGE + 8
    mov $PAGE, %eax
    outl %eax, $0xe4
    cmpl $0x12345678, PAGE + 8
    jne 1f
    say page
    # Memory behind exits, in bytes and words.
1:  mov $IOMEM + 0xfff8, %edi
    movl $0xa1b2c3d4, (%edi)
    movb $0x99, 2(%edi)
    cmpl $0xa199c3d4, (%edi)
    jne 1f
    say memory
    # Interrupt line 4 up: the PIC has a request for it.
1:  init_pic 0x10
    mov $0x2004, %dx
    mov $1, %al
    outb %al, %dx
    mov $0x0a, %al              # OCW3: the next read is of the request register
    outb %al, $PIC1
    inb $PIC1, %al
    test $0x10, %al
    jz 1f
    say irq
    # How many CPUs there are, by fw_cfg.
1:  mov $0x510, %dx
    mov $5, %ax
    outw %ax, %dx
    inc %dx
    inb %dx, %al
    add $'0', %al
    mov %al, count
    say cpus
    finish 0

puts:
    lodsb
    test %al, %al
    jz 4f
    outb %al, $OUTPUT
    jmp puts
4:  mov $10, %al
    outb %al, $OUTPUT
    ret

.data
ports: .asciz "ports"
page: .asciz "page"
memory: .asciz "memory"
irq: .asciz "irq"
cpus: .ascii "cpus "
count: .asciz "?"
.bss
    .balign 16
    .skip 4096
stack:
