import type { GuestMemory } from '../memory/guest-memory.js';

/** Selectors of {@link writeGdt}'s table: those that the Linux boot protocol fixes, and a task state segment. */
export const BOOT_SELECTORS = {
  code: 0x10, // __BOOT_CS
  data: 0x18, // __BOOT_DS
  tss: 0x20, // two slots: a 64-bit TSS descriptor has 16 bytes
} as const;

/** Bytes of the table: null, unused, code, data, TSS (two slots). */
export const GDT_BYTES = 6 * 8;

/** A segment register's hidden part, field by field as in `struct kvm_segment`. */
export interface SegmentState {
  selector: number;
  base: bigint;
  /** In bytes, the granularity bit applied. */
  limit: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
}

// Access byte and flags nibble as in Intel SDM vol. 3, 3.4.5; "accessed" is set because the CPU never loads these itself.
const CODE_EXECUTE_READ = 0x9b;
const DATA_READ_WRITE = 0x93;
const TSS_BUSY = 0x8b;
const FLAG_LONG = 0x2;
const FLAG_32_BIT = 0x4;
const FLAG_4K_UNITS = 0x8;
/** A TSS without an I/O permission bitmap; PVH asks for base 0 and this limit. */
const TSS_LIMIT = 0x67;

/** Writes a flat GDT for 64-bit or 32-bit entry: code, data and a busy TSS at {@link BOOT_SELECTORS}. */
export function writeGdt(memory: GuestMemory, gpa: number, mode: 'long' | 'protected'): void {
  const table = memory.dataView(gpa, GDT_BYTES);
  const codeFlags = FLAG_4K_UNITS | (mode === 'long' ? FLAG_LONG : FLAG_32_BIT);
  const entries = [
    0n,
    0n,
    descriptor(CODE_EXECUTE_READ, codeFlags, 0xfffff),
    descriptor(DATA_READ_WRITE, FLAG_4K_UNITS | FLAG_32_BIT, 0xfffff),
    descriptor(TSS_BUSY, 0, TSS_LIMIT),
    0n, // bits 63:32 of the 64-bit TSS's base
  ];
  entries.forEach((entry, index) => table.setBigUint64(index * 8, entry, true));
}

/** Decodes the descriptor that `selector` names, for KVM_SET_SREGS: guest memory stays the one description. */
export function readSegment(memory: GuestMemory, gdtGpa: number, selector: number): SegmentState {
  const view = memory.dataView(gdtGpa + (selector & ~7), 8);
  const low = view.getUint32(0, true);
  const high = view.getUint32(4, true);
  const g = (high >>> 23) & 1;
  const rawLimit = (low & 0xffff) | (high & 0xf0000);
  return {
    selector,
    base: BigInt(((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff000000)) >>> 0),
    limit: g ? ((rawLimit << 12) | 0xfff) >>> 0 : rawLimit,
    type: (high >>> 8) & 0xf,
    present: (high >>> 15) & 1,
    dpl: (high >>> 13) & 3,
    db: (high >>> 22) & 1,
    s: (high >>> 12) & 1,
    l: (high >>> 21) & 1,
    g,
    avl: (high >>> 20) & 1,
  };
}

/** A descriptor with base 0. */
function descriptor(access: number, flags: number, limit: number): bigint {
  return (
    BigInt(limit & 0xffff) | (BigInt(access) << 40n) | (BigInt((limit >>> 16) & 0xf) << 48n) | (BigInt(flags) << 52n)
  );
}
