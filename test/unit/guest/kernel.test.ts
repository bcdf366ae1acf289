import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { GuestArch } from '../../../src/guest/arch.js';
import { cacheDirectory, downloadPackage, ensureInstalled, findProgram } from '../../../src/guest/debian.js';
import { findKernel } from '../../../src/guest/kernel.js';

let directory: string;
const saved = { XDG_CACHE_HOME: process.env['XDG_CACHE_HOME'], PATH: process.env['PATH'] };
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vmexit-kernel-'));
  process.env['XDG_CACHE_HOME'] = directory;
});
afterEach(() => {
  for (const [name, value] of Object.entries(saved)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  rmSync(directory, { recursive: true });
});

function cache(packageName: string, release: string, { modules = true } = {}): void {
  const root = join(cacheDirectory(), 'debian', packageName);
  mkdirSync(join(root, 'boot'), { recursive: true });
  writeFileSync(join(root, 'boot', `vmlinuz-${release}`), '');
  if (modules) mkdirSync(join(root, 'lib/modules', release), { recursive: true });
}

describe('findKernel', () => {
  it('takes the newest cached kernel of the flavour that was asked for', async () => {
    cache('linux-image-6.1.0-9-cloud-amd64', '6.1.0-9-cloud-amd64');
    cache('linux-image-6.1.0-13-cloud-amd64', '6.1.0-13-cloud-amd64');
    cache('linux-image-6.12.48+deb13-amd64', '6.12.48+deb13-amd64');
    cache('linux-image-6.99.0-1-rt-amd64', '6.99.0-1-rt-amd64');
    expect((await findKernel({ fetch: false })).release).toBe('6.1.0-13-cloud-amd64');
    const generic = await findKernel({ flavour: 'generic', fetch: false });
    expect(generic.release).toBe('6.12.48+deb13-amd64');
    const root = join(directory, 'vmexit/debian/linux-image-6.12.48+deb13-amd64');
    expect(generic.vmlinuzPath).toBe(join(root, 'boot/vmlinuz-6.12.48+deb13-amd64'));
    expect(generic.modulesDir).toBe(join(root, 'lib/modules/6.12.48+deb13-amd64'));
  });

  it('takes the kernel of the architecture that was asked for', async () => {
    cache('linux-image-6.1.0-9-cloud-amd64', '6.1.0-9-cloud-amd64');
    cache('linux-image-6.1.0-9-cloud-arm64:arm64', '6.1.0-9-cloud-arm64');
    cache('linux-image-6.12.1-riscv64:riscv64', '6.12.1-riscv64');
    const release = async (arch: GuestArch) => (await findKernel({ arch, fetch: false })).release;
    expect(await release('x86_64')).toBe('6.1.0-9-cloud-amd64');
    expect(await release('aarch64')).toBe('6.1.0-9-cloud-arm64');
    expect(await release('riscv64')).toBe('6.12.1-riscv64');
  });

  it('says what to do where there is none for another architecture, and takes none of this host for it', async () => {
    await expect(findKernel({ arch: 'riscv64', fetch: false })).rejects.toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      message: expect.stringMatching(/riscv64.*release 13.*Name a kernel, and an initrd/) as string,
    });
  });
});

describe('downloadPackage', () => {
  it('takes a cached package without asking anybody', async () => {
    cache('linux-image-1', '1');
    process.env['PATH'] = '';
    expect(await downloadPackage('linux-image-1')).toBe(join(cacheDirectory(), 'debian/linux-image-1'));
  });

  it('says so where there is no apt-get', async () => {
    process.env['PATH'] = directory;
    await expect(downloadPackage('hello')).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
  });

  it.each(['--option', '../x', 'a b', ''])('refuses the name %j', async (name) => {
    await expect(downloadPackage(name)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('ensureInstalled', () => {
  it('gives the path of each program, by any of its names', async () => {
    const requirement = { programs: ['no-such-program', 'sh'], package: 'dash' };
    expect(await ensureInstalled([requirement])).toEqual([await findProgram('sh')]);
  });

  it('names the command where it cannot install', async () => {
    process.env['PATH'] = directory;
    const requirement = { programs: ['qemu-x'], package: 'qemu-package', code: 'QEMU_UNAVAILABLE' as const };
    await expect(ensureInstalled([requirement])).rejects.toMatchObject({
      code: 'QEMU_UNAVAILABLE',
      message: expect.stringContaining('apt-get install --no-install-recommends qemu-package') as string,
    });
  });

  it('does not take a directory or a plain file for a program', async () => {
    process.env['PATH'] = directory;
    mkdirSync(join(directory, 'tool'));
    writeFileSync(join(directory, 'text'), '');
    expect(await findProgram('tool')).toBeUndefined();
    expect(await findProgram('text')).toBeUndefined();
  });
});
