import { readFileSync } from 'node:fs';
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
 * Whether a machine's RAM is a memfd: other processes map it, or what becomes of its pages is looked at, or this host
 * has no huge pages, which are what private memory is better for.
 */
export function hasSharedMemory(config: MachineConfig): boolean {
  return needsSharedMemory(config) || !hostHasHugePages();
}

function needsSharedMemory({ drives, shares, devices, vhostUser, balloon, testdev }: MachineConfig): boolean {
  const served = [...drives, ...shares].some(({ backend }) => backend === 'vhost-user');
  return served || devices.length > 0 || vhostUser.length > 0 || balloon || testdev;
}

/**
 * Without them private memory is worse than a memfd: a page that a guest reads before it writes it is mapped twice, first
 * to the host's page of zeroes.
 */
function hostHasHugePages(): boolean {
  try {
    return !readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8').includes('[never]');
  } catch {
    return false; // a kernel without them
  }
}
