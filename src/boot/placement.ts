import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { lowRegion } from './e820.js';
import { alignDown, formatRange, type BootLayout, type GpaRange } from './layout.js';

/** Page size: initrds and modules are placed on such a boundary. */
const PAGE_BYTES = 4096;
/** Largest single copy into guest memory (`GuestMemory` bounds one access). */
const COPY_CHUNK_BYTES = 2 ** 28;

/** @throws VmmError code "OUT_OF_GUEST_MEMORY" when RAM below the MMIO hole ends before the kernel does. */
export function requireInLowMemory(memory: GuestMemory, layout: BootLayout, kernel: GpaRange): void {
  const end = Math.min(lowRegion(memory.regions, layout).sizeBytes, layout.mmioHole.gpa);
  if (kernel.gpa + kernel.sizeBytes > end) {
    throw new VmmError(
      'OUT_OF_GUEST_MEMORY',
      `the kernel needs ${formatRange(kernel)}, guest memory below the MMIO hole ends at 0x${end.toString(16)}: ` +
        `give the machine more than ${Math.ceil((kernel.gpa + kernel.sizeBytes) / 2 ** 20)} MiB`,
    );
  }
}

/** The command line with its NUL. @throws VmmError code "BAD_CMDLINE" */
export function encodeCmdline(cmdline: string, maxLength: number): Uint8Array {
  const bytes = new TextEncoder().encode(`${cmdline}\0`);
  if (bytes.indexOf(0) !== bytes.length - 1) {
    throw new VmmError('BAD_CMDLINE', 'the kernel command line contains a NUL; remove it');
  }
  if (bytes.length - 1 > maxLength) {
    throw new VmmError(
      'BAD_CMDLINE',
      `the kernel command line has ${bytes.length - 1} bytes, this kernel takes at most ${maxLength}; shorten it`,
    );
  }
  return bytes;
}

/** As high as the kernel allows, clear of where it unpacks itself. @throws VmmError code "BAD_INITRD" */
export function placeInitrd(
  memory: GuestMemory,
  layout: BootLayout,
  initrd: Uint8Array,
  kernel: GpaRange,
  addrMax: number,
): GpaRange {
  if (initrd.length === 0) throw new VmmError('BAD_INITRD', 'the initrd is empty; leave it out or give a cpio archive');
  const ceiling = Math.min(lowRegion(memory.regions, layout).sizeBytes, layout.mmioHole.gpa, addrMax + 1);
  const gpa = alignDown(ceiling - initrd.length, PAGE_BYTES);
  if (gpa < kernel.gpa + kernel.sizeBytes) {
    const room = Math.max(0, ceiling - (kernel.gpa + kernel.sizeBytes));
    throw new VmmError(
      'BAD_INITRD',
      `the initrd has ${initrd.length} bytes, between the kernel and 0x${ceiling.toString(16)} there are ${room}: ` +
        'give the machine more memory or use a smaller initrd',
    );
  }
  return { gpa, sizeBytes: initrd.length };
}

export function copyIn(memory: GuestMemory, gpa: number, bytes: Uint8Array): void {
  for (let offset = 0; offset < bytes.length; offset += COPY_CHUNK_BYTES) {
    memory.write(gpa + offset, bytes.subarray(offset, offset + COPY_CHUNK_BYTES));
  }
}
