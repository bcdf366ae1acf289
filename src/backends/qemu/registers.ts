/** What QEMU's monitor prints about a virtual CPU, as data. */

/** Registers by lower-case name, from the text of `info registers` or of a log of CPU resets. */
export function parseRegisters(text: string): Record<string, bigint> {
  const registers: Record<string, bigint> = {};
  // "RAX=00000001748bf2ca", "R8 =0000…", "RFL=00000087", "CR0=80050033"; from a CPU in real mode "EAX=…", "EFL=…"
  for (const [, name, value] of text.matchAll(/\b([ER][A-Z]{2}|R\d{1,2}|CR\d|EFER) ?=([0-9a-f]{8,16})\b/g)) {
    registers[LONG_NAMES[name] ?? name.toLowerCase()] ??= BigInt(`0x${value}`);
  }
  // "CS =0010 0000000000000000 ffffffff 00af9b00": selector, base, limit, flags
  for (const [, name, selector, base] of text.matchAll(/^([CDEFGS]S) =([0-9a-f]{4}) ([0-9a-f]{8,16})/gm)) {
    registers[name.toLowerCase()] ??= BigInt(`0x${selector}`);
    registers[`${name.toLowerCase()}_base`] ??= BigInt(`0x${base}`);
  }
  return registers;
}

/** Whether the CPU runs 64-bit, 32-bit or 16-bit code: the CS64, CS32 or CS16 that `info registers` prints. */
export function parseCodeBits(text: string): 16 | 32 | 64 {
  const bits = /^CS =.*\bCS(16|32|64)\b/m.exec(text)?.[1];
  return bits === '16' ? 16 : bits === '32' ? 32 : 64;
}

/** Whether `info registers -a` shows every CPU in HLT with interrupts off: only a reset could wake them. */
export function allHalted(text: string): boolean {
  const flags = [...text.matchAll(/\b[ER]FL=([0-9a-f]{8}) .*?\bHLT=([01])/g)];
  return flags.length > 0 && flags.every(([, rflags, hlt]) => hlt === '1' && (parseInt(rflags, 16) & (1 << 9)) === 0);
}

/** Bytes from the text of `x /16xb`: "ffffffffa9bc3643: 0x65 0xff …". Empty when the address is not mapped. */
export function parseBytes(text: string): Uint8Array {
  return Uint8Array.from([...text.matchAll(/\b0x([0-9a-f]{2})\b/g)].map(([, byte]) => parseInt(byte, 16)));
}

const LONG_NAMES: Readonly<Record<string, string>> = {
  RFL: 'rflags',
  EFL: 'rflags',
  EIP: 'rip',
  EAX: 'rax',
  EBX: 'rbx',
  ECX: 'rcx',
  EDX: 'rdx',
  ESI: 'rsi',
  EDI: 'rdi',
  EBP: 'rbp',
  ESP: 'rsp',
};
