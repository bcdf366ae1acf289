/** The I/O port that ends the guest: the byte written there is the exit status. QEMU's isa-debug-exit has it too. */
export const DEBUG_EXIT_PORT = 0xf4;

/** Where the byte is written first: QEMU passes on seven bits of what is written to its port, and takes all from here. */
export const DEBUG_EXIT_BYTE_PORT = 0xf8;

// A guest's init has two ways to an I/O port. /dev/port always works, but Debian's cloud kernel is built without it.
// ioperm(2) needs a program of our own, this one: it writes its argument, a decimal number, to the port. It has one gap:
// under KVM on an emulated (TCG) SVM, the port is refused once the VMM has set the special registers of a running guest,
// because the emulator takes a TSS that is marked busy, as it then is, for none.
const CODE = [
  [0x48, 0x8b, 0x74, 0x24, 0x10], //        mov   rsi, [rsp+16]     argv[1]
  [0x31, 0xdb], //                          xor   ebx, ebx          the number so far
  [0x0f, 0xb6, 0x06], //             next:  movzx eax, byte [rsi]
  [0x2c, 0x30], //                          sub   al, '0'
  [0x72, 0x0a], //                          jb    done              the NUL at the end
  [0x6b, 0xdb, 0x0a], //                    imul  ebx, ebx, 10
  [0x01, 0xc3], //                          add   ebx, eax
  [0x48, 0xff, 0xc6], //                    inc   rsi
  [0xeb, 0xef], //                          jmp   next
  [0xb8, 0xad, 0x00, 0x00, 0x00], // done:  mov   eax, 173          ioperm(port, 5, 1)
  [0xbf, DEBUG_EXIT_PORT, 0x00, 0x00, 0x00], // mov edi, port
  [0xbe, 0x05, 0x00, 0x00, 0x00], //        mov   esi, 5
  [0xba, 0x01, 0x00, 0x00, 0x00], //        mov   edx, 1
  [0x0f, 0x05], //                          syscall
  [0x85, 0xc0], //                          test  eax, eax
  [0x75, 0x06], //                          jnz   fail
  [0x88, 0xd8], //                          mov   al, bl
  [0xe6, DEBUG_EXIT_BYTE_PORT], //          out   port + 4, al
  [0xe6, DEBUG_EXIT_PORT], //               out   port, al
  [0xb8, 0x3c, 0x00, 0x00, 0x00], // fail:  mov   eax, 60           exit(1): there is no such port
  [0xbf, 0x01, 0x00, 0x00, 0x00], //        mov   edi, 1
  [0x0f, 0x05], //                          syscall
].flat();

const LOAD_ADDRESS = 0x40_0000n;
const EHDR_BYTES = 64;
const PHDR_BYTES = 56;

export const debugExitProgram = (): Uint8Array => staticExecutable(CODE);

/** A program as a static x86-64 executable: an ELF header, one loadable segment, the code, which is entered at its start. */
export function staticExecutable(code: readonly number[]): Uint8Array {
  const sizeBytes = EHDR_BYTES + PHDR_BYTES + code.length;
  const elf = Buffer.alloc(sizeBytes);
  elf.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // magic; 64 bits, little endian, version 1
  elf.writeUInt16LE(2, 0x10); // e_type: ET_EXEC
  elf.writeUInt16LE(62, 0x12); // e_machine: EM_X86_64
  elf.writeUInt32LE(1, 0x14); // e_version
  elf.writeBigUInt64LE(LOAD_ADDRESS + BigInt(EHDR_BYTES + PHDR_BYTES), 0x18); // e_entry
  elf.writeBigUInt64LE(BigInt(EHDR_BYTES), 0x20); // e_phoff
  elf.writeUInt16LE(EHDR_BYTES, 0x34); // e_ehsize
  elf.writeUInt16LE(PHDR_BYTES, 0x36); // e_phentsize
  elf.writeUInt16LE(1, 0x38); // e_phnum

  elf.writeUInt32LE(1, EHDR_BYTES); // p_type: PT_LOAD
  elf.writeUInt32LE(5, EHDR_BYTES + 4); // p_flags: read, execute
  elf.writeBigUInt64LE(LOAD_ADDRESS, EHDR_BYTES + 0x10); // p_vaddr
  elf.writeBigUInt64LE(LOAD_ADDRESS, EHDR_BYTES + 0x18); // p_paddr
  elf.writeBigUInt64LE(BigInt(sizeBytes), EHDR_BYTES + 0x20); // p_filesz
  elf.writeBigUInt64LE(BigInt(sizeBytes), EHDR_BYTES + 0x28); // p_memsz
  elf.writeBigUInt64LE(0x1000n, EHDR_BYTES + 0x30); // p_align

  elf.set(code, EHDR_BYTES + PHDR_BYTES);
  return elf;
}
