/**
 * Installs what the tests need and fetches the kernels that they boot. `npm test` does it by itself; alone, it runs beside
 * other work, since it mostly waits for the network.
 */
import { fileURLToPath } from 'node:url';
import { findBusybox } from '../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86, type Requirement } from '../src/guest/debian.js';
import { findKernel } from '../src/guest/kernel.js';
import { linkForNpx } from './npx.js';
import { say } from './vitest.js';

const REQUIREMENTS: readonly Requirement[] = [
  QEMU_X86,
  { programs: ['qemu-img'], package: 'qemu-utils' },
  { programs: ['cpio'], package: 'cpio' },
  { programs: ['iasl'], package: 'acpica-tools' },
  { programs: ['xz'], package: 'xz-utils' },
  { programs: ['passt'], package: 'passt' },
  { programs: ['ip', '/usr/sbin/ip', '/sbin/ip'], package: 'iproute2' },
  { programs: ['mke2fs', '/usr/sbin/mke2fs', '/sbin/mke2fs'], package: 'e2fsprogs' },
];

export async function prepareTests(): Promise<void> {
  const options = { onProgress: say };
  await ensureInstalled(REQUIREMENTS, options);
  await findBusybox({ ...options, fetch: true });
  await linkForNpx();
  for (const flavour of ['cloud', 'generic'] as const) await findKernel({ flavour, fetch: true, ...options });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await prepareTests();
