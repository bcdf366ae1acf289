import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** Tests kill processes, and those take a moment to go. */
const PATIENCE_MS = 5_000;

/**
 * Processes that somebody's descendants left running, whoever their parent is by now: they have inherited the mark.
 *
 * @param mark `NAME=VALUE` of an environment variable that nobody else has.
 * @returns Their ids and command lines, of those that are still there after some seconds.
 */
export async function leftovers(mark: string): Promise<string[]> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const found = readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((pid) => readProc(pid, 'environ').includes(mark))
      .map((pid) => `${pid} ${readProc(pid, 'cmdline').join(' ')}`);
    if (found.length === 0 || performance.now() > deadline) return found;
    await sleep(100);
  }
}

/** Strings that each end with NUL; none of a process that is gone, a zombie, or another user's. */
function readProc(pid: string, file: 'environ' | 'cmdline'): string[] {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8').split('\0');
  } catch {
    return [];
  }
}
