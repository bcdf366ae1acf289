import { execa } from 'execa';
import { readFile } from 'node:fs/promises';
import { findProgram } from '../../src/guest/debian.js';
import type { InitramfsFile } from '../../src/guest/initramfs.js';

/** Programs of this machine, with the libraries that they are linked to, for an initramfs. */
export async function programFiles(...names: string[]): Promise<InitramfsFile[]> {
  const sources = new Map<string, string>();
  for (const name of names) {
    const program = await findProgram(name);
    if (program === undefined) throw new Error(`${name} is not installed`);
    sources.set(`/bin/${name}`, program);
    const { stdout } = await execa('ldd', [program]);
    for (const [, path] of stdout.matchAll(/(?:=> |^\s*)(\/\S+) \(0x/gm)) sources.set(path, path);
  }
  return Promise.all(
    [...sources].map(async ([path, source]) => ({ path, bytes: await readFile(source), mode: 0o755 })),
  );
}
