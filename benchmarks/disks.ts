/**
 * What a request to a disk costs by what stands behind it: our own virtio-blk in TypeScript, qemu-storage-daemon over
 * vhost-user, an NVMe controller in a remote QEMU, and, in a machine of its own, QEMU's virtio-blk with an I/O thread. The guests run Debian's kernel and the
 * load of guest/disk-load.c on images of the same size in the page cache of the host, and take turns.
 *
 * Runs in the nested host where this machine's KVM cannot boot Linux. Figures are medians over rounds; the ratio is over
 * neighbouring rounds. Counts hold on any machine, times only beside each other.
 *
 *   npm run bench:disks [-- --json --rounds 5 --milliseconds 1000]
 */
import Table from 'cli-table3';
import { execa } from 'execa';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { NestedHost } from '../scripts/nested/host.js';
import { guestSetup } from '../src/cli/guest-setup.js';
import { findBusybox } from '../src/guest/busybox.js';
import { buildInitramfs } from '../src/guest/initramfs.js';
import { findKernel } from '../src/guest/kernel.js';
import { resolveModules } from '../src/guest/modules.js';
import { chooseAccelerator } from '../src/machine/accelerator.js';
import { median } from '../src/bench/statistics.js';
import { buildGuestProgram } from './native.js';

const BACKENDS = { typescript: 'TypeScript', daemon: 'storage daemon', nvme: 'remote NVMe', qemu: "QEMU's own" };
type Backend = keyof typeof BACKENDS;
/** Arguments of disk-load between the device and the duration. */
const LOADS = {
  'random read, 4 KiB, 1 in flight': 'read rand 4096 1',
  'random read, 4 KiB, 16 in flight': 'read rand 4096 16',
  'random write, 4 KiB, 16 in flight': 'write rand 4096 16',
  'sequential read, 128 KiB, 4 in flight': 'read seq 131072 4',
};

/** One round, as disks-vms.mjs reports it. Times are in ns. */
interface Round {
  backend: Backend;
  load: string;
  requests: number;
  ns: number;
  p50: number;
  p99: number;
  cpuNs: number;
  exits: number;
  userExits: number;
}

interface Report {
  load: string;
  backend: Backend;
  iops: number;
  mbPerSecond: number;
  p50Us: number;
  p99Us: number;
  hostCpuUs: number;
  /** A request. */
  exits: number;
  userExits: number;
  /** IOPS over those of QEMU's own. */
  ratio: number;
}

function reportOf(rounds: readonly Round[], load: string, text: string, backend: Backend): Report {
  const of = (backend: Backend) => rounds.filter((round) => round.load === text && round.backend === backend);
  const ours = of(backend);
  const theirs = of('qemu');
  const over = (value: (round: Round, index: number) => number) => median(ours.map(value));
  const iops = ({ requests, ns }: Round) => (requests * 1e9) / ns;
  const blockBytes = Number(text.split(' ')[2]);
  return {
    load,
    backend,
    iops: over(iops),
    mbPerSecond: (over(iops) * blockBytes) / 1e6,
    p50Us: over(({ p50 }) => p50 / 1000),
    p99Us: over(({ p99 }) => p99 / 1000),
    hostCpuUs: over(({ cpuNs, requests }) => cpuNs / requests / 1000),
    exits: over(({ exits, requests }) => exits / requests),
    userExits: over(({ userExits, requests }) => userExits / requests),
    ratio: over((round, index) => iops(round) / iops(theirs[index])),
  };
}

/** The nested host's own files are in a tmpfs below an overlay, which can less than the file systems that images are on. */
async function makeExt4(host: NestedHost, busyboxPath: string, folder: string): Promise<void> {
  const kernel = await findKernel({ flavour: 'generic' });
  const modules = await resolveModules(kernel.modulesDir, ['loop', 'crc32c_generic', 'ext4']);
  for (const { name, bytes } of modules) await writeFile(join(folder, `${name}.ko`), bytes);
  const script = `
    cd ${folder}
    for name in ${modules.map(({ name }) => name).join(' ')}; do ${busyboxPath} insmod $name.ko; done
    truncate -s 400M ext4.img && mke2fs -q -F -t ext4 ext4.img && mkdir images && mount -o loop ext4.img images`;
  const { exitCode, stderr } = await host.run(['sh', '-c', script], { timeoutMs: 120_000 });
  if (exitCode !== 0) throw new Error(`the nested host gets no ext4: ${stderr}`);
}

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '5' },
    milliseconds: { type: 'string', default: '1000' },
  },
});
const onProgress = (line: string) => process.stderr.write(`${line}\n`);
const folder = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
try {
  const setup = guestSetup({ console: 'serial', drives: 2, nets: 0, rng: false, transport: 'pci' });
  const [kernel, busyboxPath, program] = await Promise.all([
    findKernel(),
    findBusybox(),
    buildGuestProgram('disk-load'),
  ]);
  const initrd = join(folder, 'initramfs');
  const files = [{ path: '/bin/disk-load', bytes: await readFile(program), mode: 0o755 }];
  const script = 'echo {}; while read line && [ "$line" != end ]; do disk-load $line; done';
  const command = ['sh', '-c', script];
  await writeFile(
    initrd,
    await buildInitramfs({
      busyboxPath,
      modulesDir: kernel.modulesDir,
      modules: [...setup.modules, 'nvme'],
      files,
      command,
    }),
  );
  const images = join(folder, 'images');
  const plan = {
    ...{ kernel: kernel.vmlinuzPath, initrd, cmdline: 'quiet', folder: images },
    backends: Object.keys(BACKENDS),
    loads: Object.values(LOADS),
    ...{ rounds: Number(values.rounds), milliseconds: Number(values.milliseconds) },
  };
  const argv = ['node', fileURLToPath(new URL('disks-vms.mjs', import.meta.url))];
  const stdin = JSON.stringify(plan);
  let stdout: string;
  if (chooseAccelerator('auto').accel === 'kvm') {
    await mkdir(images);
    ({ stdout } = await execa(argv[0], argv.slice(1), { input: stdin, stderr: 'inherit' }));
  } else {
    await using host = await NestedHost.start({ onProgress });
    await makeExt4(host, busyboxPath, folder);
    const result = await host.run(argv, {
      stdin,
      timeoutMs: 1_200_000,
      onStderr: (chunk) => void process.stderr.write(chunk),
    });
    if (result.exitCode !== 0) throw new Error(`the machines failed:\n${result.stderr}`);
    stdout = result.stdout;
  }
  const rounds = JSON.parse(stdout) as Round[];
  const reports = Object.entries(LOADS).flatMap(([load, text]) =>
    (Object.keys(BACKENDS) as Backend[]).map((backend) => reportOf(rounds, load, text, backend)),
  );
  if (values.json) {
    console.log(JSON.stringify(reports, null, 2));
  } else {
    const table = new Table({
      head: ['load', 'backend', 'IOPS', 'MB/s', 'p50 µs', 'p99 µs', 'host CPU µs', 'exits', 'to user space', 'ratio'],
      style: { head: [], border: [] },
      colAligns: ['left', 'left', ...Array<'right'>(8).fill('right')],
    });
    for (const [index, report] of reports.entries()) {
      const { load, backend, iops, mbPerSecond, p50Us, p99Us, hostCpuUs, exits, userExits, ratio } = report;
      table.push([
        index % Object.keys(BACKENDS).length === 0 ? load : '',
        BACKENDS[backend],
        iops.toFixed(0),
        mbPerSecond.toFixed(1),
        ...[p50Us, p99Us, hostCpuUs].map((us) => us.toFixed(0)),
        ...[exits, userExits, ratio].map((count) => count.toFixed(2)),
      ]);
    }
    console.log(table.toString());
    console.log(
      "Host CPU and exits are a request's, guest time left out; the ratio is that of IOPS to QEMU's own disk.",
    );
  }
} finally {
  await rm(folder, { recursive: true });
}
