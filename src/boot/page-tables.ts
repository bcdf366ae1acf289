import type { GuestMemory } from '../memory/guest-memory.js';

const PAGE_BYTES = 4096;
const ENTRIES = 512;
const LARGE_PAGE_BYTES = 2 ** 21;
/** How much is mapped: everything a 32-bit address reaches, where kernel, boot_params, command line and initrd are. */
const MAPPED_GIB = 4;

const PRESENT = 1n << 0n;
const WRITABLE = 1n << 1n;
const LARGE = 1n << 7n; // PS, in a page directory entry: 2 MiB

/** Size of what {@link writeIdentityPageTables} writes: PML4, PDPT and one page directory per GiB. */
export const PAGE_TABLES_BYTES = (2 + MAPPED_GIB) * PAGE_BYTES;

/** Maps the first 4 GiB onto themselves in 2 MiB pages (Intel SDM vol. 3, 4.5). Returns the value for CR3. */
export function writeIdentityPageTables(memory: GuestMemory, gpa: number): bigint {
  const tables = memory.dataView(gpa, PAGE_TABLES_BYTES);
  memory.view(gpa, PAGE_TABLES_BYTES).fill(0);
  const pdptOffset = PAGE_BYTES;
  tables.setBigUint64(0, BigInt(gpa + pdptOffset) | PRESENT | WRITABLE, true);
  for (let gib = 0; gib < MAPPED_GIB; gib++) {
    const directoryOffset = (2 + gib) * PAGE_BYTES;
    tables.setBigUint64(pdptOffset + gib * 8, BigInt(gpa + directoryOffset) | PRESENT | WRITABLE, true);
    for (let entry = 0; entry < ENTRIES; entry++) {
      const page = BigInt((gib * ENTRIES + entry) * LARGE_PAGE_BYTES);
      tables.setBigUint64(directoryOffset + entry * 8, page | PRESENT | WRITABLE | LARGE, true);
    }
  }
  return BigInt(gpa);
}
