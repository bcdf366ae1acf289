# Multiboot kernel: prints its command line, its module and the memory map on COM1, then writes 42 to the debug-exit port.
# With FLAT the header says what goes where (flag 16); with LONG it goes on in 64-bit mode and says so. The memory map is
# a line an entry: base, length and type in hexadecimal, the high half of each number left out.
.include "common.inc"
.set MAGIC, 0x1badb002
.ifdef FLAT
.set FLAGS, 0x10003
.else
.set FLAGS, 3
.endif
.text
.code32
.globl _start
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
.ifdef FLAT
    .long header, header, 0, bss_end, _start
.endif
_start:
    cmp $0x2badb002, %eax
    jne fail
    cmpl $0, in_bss             # the loader clears what the file does not hold
    jne fail
    mov $stack, %esp
    mov %ebx, %ebp
    mov 16(%ebp), %esi
    call puts
    testb $8, (%ebp)            # modules
    jz 1f
    mov 24(%ebp), %edi
    mov (%edi), %esi
    mov 4(%edi), %edi
2:  call putc
    cmp %edi, %esi
    jb 2b
    call newline
1:  mov 48(%ebp), %esi          # memory map
    mov 44(%ebp), %edi
    add %esi, %edi
3:  mov 4(%esi), %eax
    call hex
    mov 12(%esi), %eax
    call hex
    mov 20(%esi), %eax
    call hex
    call newline
    add (%esi), %esi
    add $4, %esi
    cmp %edi, %esi
    jb 3b
.ifdef LONG
    lgdt gdtr
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax              # CR4.PAE
    mov %eax, %cr4
    mov $0xc0000080, %ecx       # EFER.LME
    xor %edx, %edx
    mov $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax        # CR0.PG
    mov %eax, %cr0
    ljmp $0x08, $start64
.code64
start64:
    mov $SERIAL, %dx
    mov $'6', %al
    outb %al, %dx
    mov $'4', %al
    outb %al, %dx
    finish 42
.code32
.endif
    finish 42
fail:
    finish 1

puts:                           # the string at ESI
    cmpb $0, (%esi)
    je newline
    call putc
    jmp puts
newline:
    mov $10, %al
    mov $SERIAL, %dx
    outb %al, %dx
    ret
putc:                           # the character at ESI, which moves on
    lodsb
    mov $SERIAL, %dx
    outb %al, %dx
    ret
hex:                            # EAX and a space
    mov %eax, %ebx
    mov $8, %ecx
    mov $SERIAL, %dx
4:  rol $4, %ebx
    mov %bl, %al
    and $15, %al
    cmp $10, %al
    jb 5f
    add $39, %al
5:  add $48, %al
    outb %al, %dx
    loop 4b
    mov $32, %al
    outb %al, %dx
    ret

.ifdef LONG
.data
    .balign 8
gdt:
    .quad 0
    .quad 0x00209b0000000000    # 64-bit code
gdtr:
    .word . - gdt - 1
    .long gdt
    .balign 4096
pml4:
    .long pdpt + 3, 0
    .balign 4096
pdpt:
    .long pd + 3, 0
    .balign 4096
pd: .long 0x83, 0               # 2 MiB at 0, present, writable, large
    .balign 4096
.endif
.bss
in_bss:
    .skip 4096
stack:
bss_end:
