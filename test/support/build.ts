import { execFileSync } from 'node:child_process';

/** Brings dist/ up to date before any test runs: machines start workers, and those load built files. */
export default function build(): void {
  execFileSync('npx', ['tsc', '-p', 'tsconfig.build.json'], { stdio: 'inherit' });
}
