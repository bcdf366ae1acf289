/**
 * npm test: installs what the tests need, runs them, and closes with `N passed, N failed, N skipped`. The project
 * `linux-long`, half an hour more, runs by `npm run test:long` only.
 *
 * Arguments go to vitest: `npm test -- --project unit`. Skipped tests are listed with their reasons.
 */
import { findBusybox } from '../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86, type Requirement } from '../src/guest/debian.js';
import { findKernel } from '../src/guest/kernel.js';
import { linkForNpx } from './npx.js';
import { runVitest, say } from './vitest.js';

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

if (process.argv.length === 2) {
  const options = { onProgress: say };
  await ensureInstalled(REQUIREMENTS, options);
  await findBusybox({ ...options, fetch: true });
  await linkForNpx();
  for (const flavour of ['cloud', 'generic'] as const) await findKernel({ flavour, fetch: true, ...options });
}

const args = process.argv.slice(2);
process.exitCode = await runVitest(args.length > 0 ? args : ['--project', '!linux-long']);
