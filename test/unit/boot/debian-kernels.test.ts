import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DEFAULT_BOOT_LAYOUT } from '../../../src/boot/layout.js';
import { loadLinux } from '../../../src/boot/linux.js';
import { cacheDirectory } from '../../../src/guest/debian.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';

/** Debian kernels that were fetched before, in the cache. */
function cachedKernels(): string[] {
  const packages = join(cacheDirectory(), 'debian');
  if (!existsSync(packages)) return [];
  return readdirSync(packages)
    .map((name) => join(packages, name, 'boot'))
    .filter((boot) => existsSync(boot))
    .flatMap((boot) => readdirSync(boot).map((file) => join(boot, file)))
    .filter((path) => path.includes('/vmlinuz-') && path.endsWith('-amd64'));
}

const kernels = cachedKernels();
if (kernels.length === 0) {
  console.warn('SKIPPED: no Debian kernel in the cache; `vmexit run` fetches one, then these tests load it');
}

describe.skipIf(kernels.length === 0).each(kernels)('%s (skipped where no kernel is cached)', (path) => {
  const load = async (prefer: 'bzimage' | 'vmlinux') => {
    const memory = heapGuestMemory({ gpa: 0, sizeBytes: 128 * 2 ** 20 });
    const boot = { kernel: readFileSync(path), cmdline: 'console=ttyS0' };
    return { memory, loaded: await loadLinux(memory, DEFAULT_BOOT_LAYOUT, boot, { prefer }) };
  };

  it('loads as it is, its first instructions at the entry point', async () => {
    const { memory, loaded } = await load('bzimage');
    expect(loaded.kind).toBe('bzimage');
    const CLD_CLI = Uint8Array.of(0xfc, 0xfa); // how startup_64 begins
    expect(memory.read(Number(loaded.entry.rip), 2)).toEqual(CLD_CLI);
  });

  it('loads unpacked, its version banner in guest memory', async () => {
    const { memory, loaded } = await load('vmlinux');
    expect(loaded).toMatchObject({ kind: 'vmlinux' });
    const release = /vmlinuz-(.*)/.exec(path)![1];
    const image = Buffer.from(memory.read(loaded.kernel.gpa, loaded.kernel.sizeBytes));
    expect(image.includes(`Linux version ${release}`)).toBe(true);
  }, 300_000);
});
