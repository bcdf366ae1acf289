import { execa } from 'execa';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Builds a program of benchmarks/guest by CMake, linked statically. @returns Its path. */
export async function buildGuestProgram(name: string): Promise<string> {
  const target = ['-T', `guest-${name}`];
  await execa('npx', ['cmake-js', '-i', '-O', 'build-cmake', ...target, 'build'], { cwd: ROOT, stdout: 'ignore' });
  return `${ROOT}build-cmake/guest/guest-${name}`;
}
