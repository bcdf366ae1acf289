import { execa } from 'execa';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Builds a C program of benchmarks/baseline by CMake, with -O2. @returns Its path. */
export async function buildBaseline(name: string): Promise<string> {
  await build(`baseline-${name}`);
  return `${ROOT}build-cmake/baseline/baseline-${name}`;
}

/** Builds a program of benchmarks/guest, linked statically. @returns Its path. */
export async function buildGuestProgram(name: string): Promise<string> {
  await build(`guest-${name}`);
  return `${ROOT}build-cmake/guest/guest-${name}`;
}

/** Builds a library of benchmarks/preload. @returns Its path, for LD_PRELOAD. */
export async function buildPreload(name: string): Promise<string> {
  await build(`preload-${name}`);
  return `${ROOT}build-cmake/preload/preload-${name}.so`;
}

async function build(target: string): Promise<void> {
  await execa('npx', ['cmake-js', '-i', '-O', 'build-cmake', '-T', target, 'build'], { cwd: ROOT, stdout: 'ignore' });
}
