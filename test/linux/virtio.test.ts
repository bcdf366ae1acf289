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
  type GuestStep,
} from '../support/linux-guests.js';
import { nestedShell, runNested } from '../support/nested.js';

const nested = nestedShell(120_000);
const example = (name: string) => new URL(`../../examples/devices/${name}.js`, import.meta.url).href;

const TRANSPORTS = ['pci', 'mmio'] as const;
const MIB = 2 ** 20;
const STREAM_MIB = 16;
/** What the disks are checked with: small, page-sized and not, and larger than a request. */
const FILE_BYTES = [1, 4096, 100_001, 12 * MIB + 17];
const HELLO = 'hello from the host';
const WRITTEN_MIB = 16;
const PORTS = ['org.example.agent', 'org.example.log'];
const SIZES = [
  { columns: 100, rows: 30 },
  { columns: 132, rows: 43 },
];
const size = ({ columns, rows }: (typeof SIZES)[0]) => `${rows} ${columns}`;

/** Waits for each size of the terminal; sends back what comes by the named ports, by all of them at once. */
const CONSOLE_SCRIPT = `
for size in ${SIZES.map((of) => `'${size(of)}'`).join(' ')}; do
  until [ "$(stty size)" = "$size" ]; do sleep 0.1; done
  echo "size: $size"
done
for name in ${PORTS.join(' ')}; do
  until port=$(grep -lx $name /sys/class/virtio-ports/*/name 2>/dev/null); do sleep 0.1; done
  (exec 3<>/dev/$(echo $port | cut -d / -f 5); head -c ${MIB} <&3 >/tmp/$name; cat /tmp/$name >&3) &
done
echo 'ports: open'; wait
`;

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
echo 'stream: begin'; read line
dd if=/dev/vda of=/dev/null bs=1M count=${STREAM_MIB} 2>/dev/null || exit 2
echo 'stream: end'; read line
`;

/** The user's own devices, one at an address and one beside the machine's own source of entropy. */
const OWN_SCRIPT = `
echo "celsius: $(devmem 0xd8000000 8)"
cd /sys/class/misc/hw_random
for rng in $(cat rng_available); do
  echo $rng >rng_current
  # What the kernel has read ahead comes first, and may be the last one's.
  echo "$(cat rng_current):$(head -c 256 /dev/hwrng | tail -c 128 | od -An -v -tu1 | tr -s '\\n ' ' ')"
done
`;

const NET_SCRIPT = `
ip -4 -o address show dev eth0
wget -q -O - http://10.0.2.2:$HTTP_PORT/
echo
echo 'download: begin'; read line
echo "large: $(wget -q -O - http://10.0.2.2:$HTTP_PORT/large | wc -c)"
echo 'download: end'; read line
mkdir /www; echo "hello from the guest" >/www/index.html
httpd -h /www -p 80
echo 'server: up'; read line
`;

/** The first program of a system whose root is the disk. */
const ROOT_INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
grep ' / ' /proc/mounts | tail -n 1
cd / && sha256sum -c SUMS | sed 's/^/root: /'
echo 'written by the guest' >/written
mount -o remount,ro /
poweroff -f
`;

const GO = { act: 'type', text: '\n' } as const;
const STEPS: readonly GuestStep[] = [
  { when: `size: ${size(SIZES[0])}`, act: 'resizeConsole', ...SIZES[1] },
  ...PORTS.map((port) => ({ when: 'ports: open', act: 'echo', port, bytes: MIB }) as const),
  ...['stream: begin', 'stream: end', 'download: begin', 'download: end'].flatMap((when): GuestStep[] => [
    { when, act: 'stats', as: when },
    { when, ...GO },
  ]),
  { when: 'server: up', act: 'fetch', url: 'http://127.0.0.1:8082/', as: 'guest' },
  { when: 'server: up', ...GO },
];

let scratch: Awaited<ReturnType<typeof sharedFolder>>;
let guests: Record<string, GuestReport>;
const path = (name: string) => join(scratch.path, name);

beforeAll(async () => {
  await ensureInstalled([
    { programs: ['passt'], package: 'passt', code: 'IMAGE_NOT_FOUND' },
    { programs: ['mke2fs'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' },
  ]);
  scratch = await sharedFolder();
  await fillFolder(path('data'));
  await fillFolder(path('root'));
  for (const name of ['bin', 'proc', 'sbin', 'dev']) await mkdir(path(`root/${name}`));
  await copyFile(await findBusybox(), path('root/bin/busybox'));
  await writeFile(path('root/sbin/init'), ROOT_INIT, { mode: 0o755 });
  for (const transport of TRANSPORTS) {
    for (const name of ['data', 'root']) {
      await nested(`mke2fs -q -t ext4 -d ${path(name)} ${path(`${name}-${transport}.img`)} 64M`);
    }
  }
  await makeRoutable();
  guests = await bootGuests(await Promise.all(TRANSPORTS.map(plan)));
});

afterAll(async () => {
  await nested(`rm -rf ${scratch.path}`);
  await scratch[Symbol.asyncDispose]();
});

/** All devices; at the end the system on the second disk takes over. */
async function plan(transport: (typeof TRANSPORTS)[number]): Promise<GuestPlan> {
  const { modules, files, setup } = guestSetup({ console: 'virtio', drives: 2, nets: 1, rng: true, transport });
  const script = [CONSOLE_SCRIPT, DISK_SCRIPT, OWN_SCRIPT, NET_SCRIPT].join('');
  const guest = await linuxGuest(path(`${transport}.cpio`), {
    modules,
    interactive: false,
    files: [...files, { path: '/bin/devices', bytes: `#!/bin/sh\n${script}`, mode: 0o755 }],
    setup: [
      ...setup,
      'devices; echo "devices: status $?"',
      'mount -t ext4 /dev/vdb /mnt',
      'umount /dev/pts /dev/shm',
      'mount --move /dev /mnt/dev',
      'exec switch_root /mnt /sbin/init',
    ],
  });
  return {
    name: transport,
    options: {
      ...guest,
      virtioTransport: transport,
      console: 'virtio',
      consolePorts: PORTS,
      rng: true,
      cpus: 2,
      drives: [{ path: path(`data-${transport}.img`), serial: 'DISK-0042' }, { path: path(`root-${transport}.img`) }],
      net: [{ type: 'user', forwards: ['8082:80'] }],
      devices: [
        { module: example('thermometer'), config: { celsius: [-7] }, mmio: { base: 0xd8000000, sizeBytes: 2 } },
        { module: example('dice'), id: 'dice', config: { sides: 6 }, virtio: true },
      ],
    },
    consoleSize: SIZES[0],
    serve: { body: HELLO, largeBytes: STREAM_MIB * MIB },
    steps: [...STEPS],
  };
}

describe.each(TRANSPORTS)('virtio over %s', (transport) => {
  it('ends in order', () => {
    const { exit, error, output } = guests[transport];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown' }, error: undefined });
    expect(output).toContain('devices: status 0\n');
  });

  it('carries a megabyte to the guest and back by each of two ports beside the console', () => {
    expect(guests[transport].echoed).toEqual(Object.fromEntries(PORTS.map((name) => [name, MIB])));
  });

  it("has a console that follows the terminal's size", () => {
    for (const of of SIZES) expect(guests[transport].output).toContain(`size: ${size(of)}\n`);
  });

  it('reads from a disk what the host wrote', () => {
    const { output } = guests[transport];
    expect(output).toContain('DISK-0042\n');
    for (const index of FILE_BYTES.keys()) expect(output).toMatch(new RegExp(`^file${index}: OK$`, 'm'));
  });

  it('writes to a disk what the host then reads, and leaves its file system whole', async () => {
    const image = path(`data-${transport}.img`);
    const sum = /^([0-9a-f]{64}) {2}\/mnt\/written$/m.exec(guests[transport].output)?.[1];
    expect(sum).toBeDefined();
    expect(await nested(`e2fsck -fn ${image} 2>&1`)).toMatch(/img: \d+\/\d+ files/);
    expect(await nested(`debugfs -R 'cat written' ${image} 2>/dev/null | sha256sum`)).toBe(`${sum}  -\n`);
    expect(await nested(`debugfs -R 'cat many/50' ${image} 2>/dev/null`)).toBe('50\n');
  });

  it(`streams ${STREAM_MIB} MB from a disk with fewer than 5 exits to JavaScript per MB`, () => {
    const { exits, kicks, interrupts } = costPerMib(transport, 'virtio-blk', 'stream');
    expect(kicks).toBeGreaterThan(0);
    expect(interrupts).toBeGreaterThan(0);
    expect(exits).toBeLessThan(5);
  });

  it(`receives ${STREAM_MIB} MB from the network with fewer than 5 exits to JavaScript per MB`, () => {
    expect(guests[transport].output).toContain(`large: ${STREAM_MIB * MIB}\n`);
    expect(costPerMib(transport, 'virtio-net', 'download').exits).toBeLessThan(5);
  });

  it('gets an address by DHCP, and reaches an HTTP server of the host', () => {
    const { output } = guests[transport];
    expect(output).toMatch(/eth0 +inet 10\.0\.2\.15\/24/);
    expect(output).toContain(`${HELLO}\n`);
  });

  it('answers on a forwarded port', () => {
    expect(guests[transport].fetched['guest']).toBe('hello from the guest\n');
  });

  it("draws entropy from the host, and from a device of the user's own", () => {
    const { output, stats } = guests[transport];
    const sources = [...output.matchAll(/^virtio_rng\.\d:((?: \d+){128}) *$/gm)].map(([, bytes]) => bytes);
    expect(sources.map((bytes) => /^( [1-6])*$/.test(bytes)).sort(), output).toEqual([false, true]);
    expect(stats['end'].devices['dice'].name).toBe('dice');
  });

  it("reads a device of the user's own at an address", () => {
    const { output, stats } = guests[transport];
    expect(output).toMatch(/^celsius: 0xF9$/m);
    expect(stats['end'].accesses['thermometer']).toBe(1);
  });

  it('has its root on a disk', async () => {
    const image = path(`root-${transport}.img`);
    const { output } = guests[transport];
    expect(output).toContain('/dev/vdb / ext4 rw');
    for (const index of FILE_BYTES.keys()) expect(output).toMatch(new RegExp(`^root: file${index}: OK$`, 'm'));
    expect(await nested(`e2fsck -fn ${image} 2>&1`)).toMatch(/img: \d+\/\d+ files/);
    expect(await nested(`debugfs -R 'cat written' ${image} 2>/dev/null`)).toBe('written by the guest\n');
  });
});

describe('vmexit run', () => {
  it('gives a guest its devices by options', async () => {
    await using scratch = await sharedFolder();
    const image = join(scratch.path, 'disk.img');
    await mkdir(join(scratch.path, 'data'));
    await writeFile(join(scratch.path, 'data/greeting'), HELLO);
    await nested(`mke2fs -q -t ext4 -d ${scratch.path}/data ${image} 8M`);
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
      { timeoutMs: 300_000 },
    );
    await nested(`rm -rf ${scratch.path}`);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toBe(`S-71\n${HELLO}\n10.0.2.15/24\nvirtio_rng.0\n/dev/hvc0\n`);
  });
});

/** What a stream of {@link STREAM_MIB} cost from its begin to its end, per MiB; also printed. */
function costPerMib(transport: string, device: string, stream: string) {
  const [before, after] = ['begin', 'end'].map((when) => guests[transport].stats[`${stream}: ${when}`]);
  const exits = (stats: MachineStats) => Object.values(stats.exits).reduce((sum, n) => sum + n, 0);
  const cost = {
    exits: (exits(after) - exits(before)) / STREAM_MIB,
    kicks: (after.kicks - before.kicks) / STREAM_MIB,
    interrupts: (after.interrupts - before.interrupts) / STREAM_MIB,
  };
  const numbers = Object.entries(cost).map(([name, n]) => `${n.toFixed(2)} ${name}`);
  console.log(`${device} over ${transport}, per MB: ${numbers.join(', ')} (kicks by ioeventfd, interrupts by irqfd)`);
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
