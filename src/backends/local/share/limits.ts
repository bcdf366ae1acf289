import { readFileSync } from 'node:fs';

const MOST = 65_536;

/** Half of the descriptors that this process may have: what one guest holds must leave the rest of it some. */
export function openFilesLimit(): number {
  const [, soft] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1')) ?? [];
  return Math.min(MOST, Math.floor(Number(soft ?? 1024) / 2));
}
