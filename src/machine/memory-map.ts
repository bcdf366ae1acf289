import { MEMORY_LAYOUT } from './layout.js';

/** The regions that a machine's RAM is made of: one below the MMIO hole, the rest from its end. */
export function ramRegions(memoryBytes: number): { gpa: number; size: number }[] {
  const { gpa: holeGpa, sizeBytes: holeBytes } = MEMORY_LAYOUT.mmioHole;
  const low = Math.min(memoryBytes, holeGpa);
  const regions = [{ gpa: 0, size: low }];
  if (memoryBytes > low) regions.push({ gpa: holeGpa + holeBytes, size: memoryBytes - low });
  return regions;
}
