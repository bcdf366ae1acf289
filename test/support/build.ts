import { spawnSync } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const SOURCES = ['src', 'tsconfig.json', 'tsconfig.build.json', 'scripts/bundle.ts', 'package.json'];
/** The last file that a build writes. */
const BUILT = 'dist/machine/kvm-worker.cjs';

/**
 * Brings dist/ up to date before tests that use it: machines start workers, and those load built files. Every project calls
 * it, and the first call builds. A type error is printed and does not keep the tests from running; `npm run check` is where
 * it fails.
 */
export default function build(): void {
  const builtMs = statSync(join(ROOT, BUILT), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (SOURCES.every((path) => newestMs(join(ROOT, path)) < builtMs)) return;
  spawnSync('npm', ['run', '--silent', 'prepare'], { stdio: 'inherit', cwd: ROOT });
}

/** When a file last changed, or the last one in a folder; a file that is gone changes its folder. */
function newestMs(path: string): number {
  const stats = statSync(path);
  if (!stats.isDirectory()) return stats.mtimeMs;
  return Math.max(stats.mtimeMs, ...readdirSync(path).map((name) => newestMs(join(path, name))));
}
