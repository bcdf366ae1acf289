/**
 * `vmexit bench devices/disk` where its figures mean most: on a machine whose KVM boots Linux, as it is; else in the nested
 * host, with the images on an ext4 of their own. The nested host's own files are in a tmpfs below an overlay, which can less than
 * the file systems that images are on.
 *
 *   npm run bench:disks [-- --quick]
 *
 * Writes report.json beside the table.
 */
import { execa } from 'execa';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NestedHost } from '../scripts/nested/host.js';
import { findBusybox } from '../src/guest/busybox.js';
import { findKernel } from '../src/guest/kernel.js';
import { resolveModules } from '../src/guest/modules.js';
import { chooseAccelerator } from '../src/machine/accelerator.js';

const COMMAND = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const TIMEOUT_MS = 1_800_000;
const benchmark = ['bench', 'devices/disk', ...process.argv.slice(2)];

if (chooseAccelerator('auto').accel === 'kvm') {
  await execa(process.execPath, [COMMAND, ...benchmark], { stdio: 'inherit' });
} else {
  const folder = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
  try {
    await writeFile('report.json', await measureInNestedHost(folder));
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** @param folder That both hosts see. @returns The report. */
async function measureInNestedHost(folder: string): Promise<string> {
  const [busyboxPath, kernel] = await Promise.all([findBusybox(), findKernel({ flavour: 'generic' })]);
  const modules = await resolveModules(kernel.modulesDir, ['loop', 'crc32c_generic', 'ext4']);
  for (const { name, bytes } of modules) await writeFile(join(folder, `${name}.ko`), bytes);
  const onProgress = (line: string) => process.stderr.write(`${line}\n`);
  await using host = await NestedHost.start({ onProgress });
  const script = `
    cd ${folder}
    for name in ${modules.map(({ name }) => name).join(' ')}; do ${busyboxPath} insmod $name.ko || exit; done
    truncate -s 500M ext4.img && mke2fs -q -F -t ext4 ext4.img && mkdir images && mount -o loop ext4.img images &&
    cd images && TMPDIR=$PWD "$@" >&2 && cat report.json`;
  const argv = ['sh', '-c', script, 'sh', process.execPath, COMMAND, ...benchmark];
  const onStderr = (chunk: Uint8Array) => void process.stderr.write(chunk);
  const { exitCode, stdout } = await host.run(argv, { timeoutMs: TIMEOUT_MS, onStderr });
  if (exitCode !== 0) throw new Error('the benchmark failed in the nested host');
  return stdout;
}
