import { readdirSync, readFileSync } from 'node:fs';

/** The ids of all that a process started, directly or not. */
export function descendantsOf(pid: number): number[] {
  return entries(`/proc/${pid}/task`, readdirSync).flatMap((thread) => {
    const children = entries(`/proc/${pid}/task/${thread}/children`, (path) => readFileSync(path, 'utf8').split(' '));
    return children.flatMap((child) => [Number(child), ...descendantsOf(Number(child))]);
  });
}

/** The kernel's names of those that are there, sorted. */
export function namesOf(pids: readonly number[]): string[] {
  return pids.flatMap((pid) => entries(`/proc/${pid}/comm`, (path) => [readFileSync(path, 'utf8').trim()])).sort();
}

/** What is read there, without what is empty; nothing where the thread or process has ended meanwhile. */
function entries(path: string, read: (path: string) => string[]): string[] {
  try {
    return read(path).filter(Boolean);
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code!)) return [];
    throw error;
  }
}
