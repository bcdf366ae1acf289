import { fstatSync } from 'node:fs';
import { GuestRam, PAGE_SIZE } from '../kvm/ram.js';
import type { GuestMemory } from '../memory/guest-memory.js';

/** Of st_blocks: stat(2). */
const STAT_BLOCK_BYTES = 512;

/** What a device may ask of the host's side of guest memory. */
export interface MemoryControl {
  /** Gives the memory behind whole pages back to the host. @returns Whether they are pages of RAM. */
  discard(gpa: number, length: number): boolean;
  /** Has the page that starts at `gpa`, if it is one of shared RAM, mapped anew at its next access. */
  dropPage(gpa: number): void;
  /** Host memory behind guest memory that is shared, now. */
  residentBytes(): number;
}

export function memoryControl(memory: GuestMemory): MemoryControl {
  const find = (gpa: number, length: number) =>
    memory.regions.find(
      (region): region is GuestRam =>
        region instanceof GuestRam && gpa >= region.gpa && gpa + length <= region.gpa + region.sizeBytes,
    );
  return {
    discard: (gpa, length) => {
      if (gpa % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0) return false;
      const ram = find(gpa, length);
      ram?.discard(gpa - ram.gpa, length);
      return ram !== undefined;
    },
    dropPage: (gpa) => {
      const ram = find(gpa, PAGE_SIZE);
      ram?.unmap(gpa - ram.gpa, PAGE_SIZE);
    },
    residentBytes: () => {
      const blocks = memory.regions.map(({ fd }) => (fd === undefined ? 0 : fstatSync(fd).blocks));
      return blocks.reduce((sum, count) => sum + count, 0) * STAT_BLOCK_BYTES;
    },
  };
}
