import { createHash, randomBytes } from 'node:crypto';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import type { MachineStats } from '../../src/index.js';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import {
  bootGuests,
  linuxGuest,
  makeRoutable,
  sharedFolder,
  type GuestPlan,
  type GuestReport,
} from '../support/linux-guests.js';
import { nestedShell, runNested } from '../support/nested.js';

const nested = nestedShell(120_000);

const TRANSPORTS = ['pci', 'mmio'] as const;
const MIB = 2 ** 20;
const STREAM_MIB = 100;
/** What the disks are checked with: small, page-sized and not, and larger than a request. */
const FILE_BYTES = [1, 4096, 100_001, 12 * MIB + 17];
const HELLO = 'hello from the host';
const WRITTEN_MIB = 16;

/**
 * Reads what the host made, writes, reads that again past the page cache, and has the device tell of itself. It may be run
 * anew on the same disk: a guest that the nested host spoils is.
 */
const DISK_SCRIPT = `
cat /sys/block/vda/serial; echo
mount -t ext4 /dev/vda /mnt
(cd /mnt && sha256sum -c SUMS) || exit 1
dd if=/dev/urandom of=/mnt/written bs=1M count=${WRITTEN_MIB} 2>/dev/null
cp /mnt/file2 /mnt/gone; rm /mnt/gone; mkdir -p /mnt/many; for i in $(seq 50); do echo $i >/mnt/many/$i; done
sync; echo 3 >/proc/sys/vm/drop_caches
sha256sum /mnt/written
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
echo 'stream: begin'; sleep 2
dd if=/dev/vda of=/dev/null bs=1M count=${STREAM_MIB} 2>/dev/null || exit 2
echo 'stream: end'; sleep 2
echo "random: $(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | sha256sum | cut -c 1-64) $(cat /sys/class/misc/hw_random/rng_current)"
`;

const NET_SCRIPT = `
ip -4 -o address show dev eth0
wget -q -O - http://10.0.2.2:8000/
echo
echo 'download: begin'; sleep 2
echo "large: $(wget -q -O - http://10.0.2.2:8000/large | wc -c)"
echo 'download: end'; sleep 2
mkdir /www; echo "hello from the guest" >/www/index.html
httpd -h /www -p 80
echo 'server: up'
read line
`;

/** The first program of a system whose root is the disk. */
const ROOT_INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
grep ' / ' /proc/mounts | tail -n 1
cd / && sha256sum -c SUMS
echo 'written by the guest' >/written
mount -o remount,ro /
echo over
poweroff -f
`;

describe.each(TRANSPORTS)('virtio over %s', (transport) => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;
  let image: string;
  let rootImage: string;

  beforeAll(async () => {
    await ensureInstalled([
      { programs: ['passt'], package: 'passt', code: 'IMAGE_NOT_FOUND' },
      { programs: ['mke2fs'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' },
    ]);
    scratch = await sharedFolder();
    const { path } = scratch;
    await fillFolder(join(path, 'data'));
    await fillFolder(join(path, 'root'));
    for (const name of ['bin', 'proc', 'sbin', 'dev']) await mkdir(join(path, 'root', name));
    await copyFile(await findBusybox(), join(path, 'root/bin/busybox'));
    await writeFile(join(path, 'root/sbin/init'), ROOT_INIT, { mode: 0o755 });
    image = join(path, 'data.img');
    rootImage = join(path, 'root.img');
    await nested(`mke2fs -q -t ext4 -d ${path}/data ${image} 128M`);
    await nested(`mke2fs -q -t ext4 -d ${path}/root ${rootImage} 64M`);
    await makeRoutable();

    const devices = { console: 'virtio', drives: 1, nets: 1, rng: true, transport } as const;
    const setup = guestSetup(devices);
    const all = await linuxGuest(join(path, 'all.cpio'), {
      ...setup,
      command: ['sh', '-c', DISK_SCRIPT + NET_SCRIPT],
    });
    const onDisk = await linuxGuest(join(path, 'root.cpio'), {
      modules: guestSetup({ ...devices, nets: 0 }).modules,
      setup: [
        'mount -t ext4 /dev/vda /mnt',
        'umount /dev/pts /dev/shm',
        'mount --move /dev /mnt/dev',
        'exec switch_root /mnt /sbin/init',
      ],
    });
    const common = { virtioTransport: transport, console: 'virtio', rng: true } as const;
    const plans: GuestPlan[] = [
      {
        name: 'all devices',
        options: {
          ...all,
          ...common,
          cpus: 2,
          drives: [{ path: image, serial: 'DISK-0042' }],
          net: [{ type: 'user', forwards: ['8080:80'] }],
        },
        serve: { port: 8000, body: HELLO, largeBytes: STREAM_MIB * MIB },
        steps: [
          { when: 'stream: begin', act: 'stats', as: 'before' },
          { when: 'stream: end', act: 'stats', as: 'after' },
          { when: 'download: begin', act: 'stats', as: 'before download' },
          { when: 'download: end', act: 'stats', as: 'after download' },
          { when: 'server: up', act: 'fetch', url: 'http://127.0.0.1:8080/', as: 'guest' },
          { when: 'server: up', act: 'type', text: 'enough\n' },
        ],
      },
      { name: 'root on disk', options: { ...onDisk, ...common, drives: [{ path: rootImage }] } },
    ];
    guests = await bootGuests(plans);
  });

  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  it('ends in order', () => {
    const { exit, error, output } = guests['all devices'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
  });

  it('reads from a disk what the host wrote', () => {
    const { output } = guests['all devices'];
    expect(output).toContain('DISK-0042\n');
    for (const index of FILE_BYTES.keys()) expect(output).toContain(`file${index}: OK\n`);
  });

  it('writes to a disk what the host then reads, and leaves its file system whole', async () => {
    const sum = /^([0-9a-f]{64}) {2}\/mnt\/written$/m.exec(guests['all devices'].output)?.[1];
    expect(sum).toBeDefined();
    expect(await nested(`e2fsck -fn ${image} 2>&1`)).toMatch(/data\.img: \d+\/\d+ files/);
    expect(await nested(`debugfs -R 'cat written' ${image} 2>/dev/null | sha256sum`)).toBe(`${sum}  -\n`);
    expect(await nested(`debugfs -R 'cat many/50' ${image} 2>/dev/null`)).toBe('50\n');
  });

  it(`streams ${STREAM_MIB} MB from a disk with fewer than 5 exits to JavaScript per MB`, () => {
    const { before, after } = guests['all devices'].stats;
    const { exits, kicks, interrupts } = costPerMib(`virtio-blk over ${transport}`, before, after);
    expect(kicks).toBeGreaterThan(0);
    expect(interrupts).toBeGreaterThan(0);
    expect(exits).toBeLessThan(5);
  });

  it(`receives ${STREAM_MIB} MB from the network with fewer than 5 exits to JavaScript per MB`, () => {
    const { output, stats } = guests['all devices'];
    expect(output).toContain(`large: ${STREAM_MIB * MIB}\n`);
    const { exits } = costPerMib(`virtio-net over ${transport}`, stats['before download'], stats['after download']);
    expect(exits).toBeLessThan(5);
  });

  it('gets an address by DHCP, and reaches an HTTP server of the host', () => {
    const { output } = guests['all devices'];
    expect(output).toMatch(/eth0 +inet 10\.0\.2\.15\/24/);
    expect(output).toContain(`${HELLO}\n`);
  });

  it('answers on a forwarded port', () => {
    expect(guests['all devices'].fetched['guest']).toBe('hello from the guest\n');
  });

  it('draws entropy from the host', () => {
    const [, sum, source] = /^random: (\S+) (\S+)$/m.exec(guests['all devices'].output) ?? [];
    expect(source).toMatch(/^virtio_rng/);
    expect(sum).toMatch(/^[0-9a-f]{64}$/);
    expect(sum).not.toBe(createHash('sha256').digest('hex'));
  });

  it('has its root on a disk', async () => {
    const { exit, error, ...report } = guests['root on disk'];
    const output = report.output.replaceAll('\r\n', '\n');
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown' }, error: undefined });
    expect(output).toContain('/dev/vda / ext4 rw');
    for (const index of FILE_BYTES.keys()) expect(output).toContain(`file${index}: OK\n`);
    expect(await nested(`e2fsck -fn ${rootImage} 2>&1`)).toMatch(/root\.img: \d+\/\d+ files/);
    expect(await nested(`debugfs -R 'cat written' ${rootImage} 2>/dev/null`)).toBe('written by the guest\n');
  });
});

describe('vmexit run', () => {
  it('gives a guest its devices by options', async () => {
    await using scratch = await sharedFolder();
    const image = join(scratch.path, 'disk.img');
    await mkdir(join(scratch.path, 'data'));
    await writeFile(join(scratch.path, 'data/greeting'), HELLO);
    await nested(`mke2fs -q -t ext4 -d ${scratch.path}/data ${image} 8M`);
    await makeRoutable();
    const script = [
      'cat /sys/block/vda/serial /sys/block/vda/ro',
      'mount -o ro /dev/vda /mnt && cat /mnt/greeting; echo',
      'ip -4 -o address show dev eth0 | cut -d " " -f 7',
      'cat /sys/class/misc/hw_random/rng_current',
      'tty',
    ].join('; ');
    const devices = ['--drive', `${image},ro,serial=S-7`, '-p', '8081:80', '--rng', '--console', 'virtio'];
    const { stdout, stderr, exitCode } = await runNested(
      ['node', 'dist/cli/main.js', 'run', '--accel', 'kvm', ...devices, '--', 'sh', '-c', script],
      { timeoutMs: 180_000 },
    );
    await nested(`rm -rf ${scratch.path}`);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toBe(`S-71\n${HELLO}\n10.0.2.15/24\nvirtio_rng.0\n/dev/hvc0\n`);
  });
});

/** What a stream of {@link STREAM_MIB} cost between two looks, per MiB; also printed. */
function costPerMib(what: string, before: MachineStats, after: MachineStats) {
  const exits = (stats: MachineStats) => Object.values(stats.exits).reduce((sum, n) => sum + n, 0);
  const cost = {
    exits: (exits(after) - exits(before)) / STREAM_MIB,
    kicks: (after.kicks - before.kicks) / STREAM_MIB,
    interrupts: (after.interrupts - before.interrupts) / STREAM_MIB,
  };
  const numbers = Object.entries(cost).map(([name, n]) => `${n.toFixed(2)} ${name}`);
  console.log(`${what}, per MB: ${numbers.join(', ')} (kicks by ioeventfd, interrupts by irqfd)`);
  return cost;
}

/** Random files, and their checksums as sha256sum(1) checks them. */
async function fillFolder(path: string): Promise<void> {
  await mkdir(path);
  const sums: string[] = [];
  for (const [index, length] of FILE_BYTES.entries()) {
    const bytes = randomBytes(length);
    await writeFile(join(path, `file${index}`), bytes);
    sums.push(`${createHash('sha256').update(bytes).digest('hex')}  file${index}\n`);
  }
  await writeFile(join(path, 'SUMS'), sums.join(''));
}
