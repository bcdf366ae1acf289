import { spawnSync } from 'node:child_process';

/**
 * Brings dist/ up to date before any test runs: machines start workers, and those load built files. A type error is
 * printed and does not keep the tests from running; `npm run check` is where it fails.
 */
export default function build(): void {
  spawnSync('npm', ['run', '--silent', 'prepare'], { stdio: 'inherit' });
}
