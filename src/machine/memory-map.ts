import { MEMORY_LAYOUT } from './layout.js';
import type { MachineConfig } from './machine.js';

/** The regions that a machine's RAM is made of: one below the MMIO hole, the rest from its end. */
export function ramRegions(memoryBytes: number): { gpa: number; size: number }[] {
  const { gpa: holeGpa, sizeBytes: holeBytes } = MEMORY_LAYOUT.mmioHole;
  const low = Math.min(memoryBytes, holeGpa);
  const regions = [{ gpa: 0, size: low }];
  if (memoryBytes > low) regions.push({ gpa: holeGpa + holeBytes, size: memoryBytes - low });
  return regions;
}

/**
 * Whether a machine's RAM has to be a file: other processes map it, or what becomes of its pages is looked at. Otherwise
 * it is private memory, which comes in huge pages.
 */
export function needsSharedMemory({ drives, shares, devices, vhostUser, balloon, testdev }: MachineConfig): boolean {
  const served = [...drives, ...shares].some(({ backend }) => backend === 'vhost-user');
  return served || devices.length > 0 || vhostUser.length > 0 || balloon || testdev;
}
