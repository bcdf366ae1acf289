import { VmmError } from '../errors.js';
import type { MemoryRegion } from '../memory/guest-memory.js';
import type { BootLayout, GpaRange } from './layout.js';

/** Address range types (ACPI 6.5, table 15.3); PVH's memory map uses the same values. */
export const E820_RAM = 1;
export const E820_RESERVED = 2;

export interface E820Entry extends GpaRange {
  readonly type: number;
}

/**
 * The guest's memory map: usable RAM below the EBDA and from 1 MiB on, the EBDA and BIOS area reserved.
 *
 * @param reserved Further ranges no kernel may use or hand to devices, such as the PCI ECAM window. Outside RAM.
 * @throws VmmError code "OUT_OF_GUEST_MEMORY" when there is no RAM from address 0 to beyond 1 MiB.
 */
export function buildE820(
  regions: readonly MemoryRegion[],
  layout: BootLayout,
  reserved: readonly GpaRange[] = [],
): E820Entry[] {
  const low = lowRegion(regions, layout);
  const entries: E820Entry[] = [
    { gpa: 0, sizeBytes: layout.ebdaGpa, type: E820_RAM },
    { gpa: layout.ebdaGpa, sizeBytes: layout.highMemoryGpa - layout.ebdaGpa, type: E820_RESERVED },
    { gpa: layout.highMemoryGpa, sizeBytes: low.sizeBytes - layout.highMemoryGpa, type: E820_RAM },
  ];
  for (const region of regions) {
    if (region !== low) entries.push({ gpa: region.gpa, sizeBytes: region.sizeBytes, type: E820_RAM });
  }
  for (const range of reserved) entries.push({ ...range, type: E820_RESERVED });
  return entries.sort((a, b) => a.gpa - b.gpa);
}

/** The region kernels are loaded into. @throws VmmError code "OUT_OF_GUEST_MEMORY" when it does not reach 1 MiB. */
export function lowRegion(regions: readonly MemoryRegion[], layout: BootLayout): MemoryRegion {
  const low = regions.find((region) => region.gpa === 0);
  if (!low || low.sizeBytes <= layout.highMemoryGpa) {
    throw new VmmError(
      'OUT_OF_GUEST_MEMORY',
      'a kernel needs more than 1 MiB of guest memory in one region that starts at address 0; give the machine more',
    );
  }
  return low;
}
