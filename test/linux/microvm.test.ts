import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import type { BlkCounters, MachineStats, NetCounters } from '../../src/index.js';
import {
  bootGuests,
  linuxGuest,
  makeRoutable,
  ownLoopback,
  sharedFolder,
  type GuestPlan,
  type GuestReport,
} from '../support/linux-guests.js';
import { runNested } from '../support/nested.js';

const MIB = 2 ** 20;
const DISK_MIB = 4;
const MEMORY_MIB = 320;
const PORT = 'org.example.agent';
const HELLO = 'hello from the host';
const WIRE_BYTES_PER_SECOND = 256 * 1024;
const WIRE_MTU = 9000;
const LARGEST_FRAME_BYTES = WIRE_MTU + 14;

const GO = { act: 'type', text: '\n' } as const;

/** Sends back what comes by the named port of the console. */
const PORT_ECHO = `
until port=$(grep -lx ${PORT} /sys/class/virtio-ports/*/name 2>/dev/null); do sleep 0.1; done
exec 3<>/dev/$(echo $port | cut -d / -f 5)
head -c ${MIB} <&3 >/tmp/port & echo 'port: open'; wait $!
cat /tmp/port >&3
`;

/** Looks at each device, and has it carry something there and back. */
const DEVICES = `
sum() { sha256sum | cut -c 1-64; }
echo "cpus: $(nproc), console: $(tty)"
echo "vda: $(sum </dev/vda), serial $(cat /sys/block/vda/serial), read-only $(cat /sys/block/vda/ro)"
dd if=/dev/urandom of=/dev/vdb bs=1M count=${DISK_MIB} conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "vdb: $(sum </dev/vdb)"
echo "hwrng: $(cat /sys/class/misc/hw_random/rng_current), $(head -c 4096 /dev/hwrng | wc -c) bytes"

echo "mac: $(cat /sys/class/net/eth0/address)"
gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')
echo "fetched: $(wget -q -O - http://$gateway:$HTTP_PORT/)"
mkdir /www; echo 'hello from the guest' >/www/index.html; httpd -h /www -p 80
echo 'httpd: up'; read line

${PORT_ECHO}
read line

vsock-peer echo 1000 1 & vsock-peer echo 1001 1 & echo 'vsock: up'; wait
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
vsock-peer connect 2 2000 </tmp/data | cmp - /tmp/data && echo 'vsock: the same'
vsock-peer connect 2 2001 </dev/null 2>/dev/null || echo 'vsock: nobody there'

for tag in nine fs; do
  echo "$tag: $(sum </mnt/$tag/in)"
  dd if=/dev/urandom of=/mnt/$tag/out-$tag bs=100001 count=7 2>/dev/null; sync
  echo "$tag: $(sum </mnt/$tag/out-$tag)"
done
touch /mnt/still/x 2>/dev/null || [ -e /mnt/nine/x ] || echo "still: $(cat /mnt/still/in | sum)"

echo 'balloon: ready'; read line

(while :; do echo tick; sleep 0.05; done) & read line; kill $!
exit 42
`;

/** Of {@link MORE}, without the one that tells boots apart. */
const MORE_DISKS = ['vda', 'vdb', 'vdd', 'nvme'];

/**
 * Devices with limits, of the program, of its backends, and of QEMU. Two cards are one wire, and far is its other end. In
 * its second boot it waits for the power button.
 */
const MORE = `
boot=$(($(head -c 1 /dev/vdc | tr -d '\\0') + 1))
echo $boot | dd of=/dev/vdc conv=notrunc,fsync 2>/dev/null
echo "boot $boot: $(ls /tmp | wc -l) files"
touch /tmp/file
if [ $boot = 2 ]; then
  for event in /dev/input/event*; do exec 5<$event; (head -c 24 <&5 >/dev/null; echo pressed; poweroff -f) & done
  echo 'boot 2: listens'; wait
fi

sum() { sha256sum | cut -c 1-64; }
disk() {
  dd if=/dev/urandom of=/dev/$1 bs=1M count=${DISK_MIB} conv=fsync 2>/dev/null
  echo 3 >/proc/sys/vm/drop_caches
  echo "$2: $(sum </dev/$1)"
}
echo "serials: $(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)"
for name in vda vdb vdd; do disk $name $name; done
disk "$(grep -l '^NVME ' /sys/block/nvme*/device/serial | cut -d / -f 4)" nvme
echo "hwrng: $(head -c 4096 /dev/hwrng | wc -c) bytes"

mkdir /www; dd if=/dev/urandom of=/www/data bs=1k count=512 2>/dev/null
mkfifo /tmp/go
unshare -n sh -c '
  read line; ip address add 10.9.0.2/24 dev eth1; ip link set eth1 up; httpd -h /www; echo up
  read line; wget -q -O - http://10.9.0.1/data | cmp - /www/data && echo "far: the same"
' </tmp/go >/tmp/far & far=$!
exec 4>/tmp/go
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set eth1 netns $far; echo >&4
ip address add 10.9.0.1/24 dev eth0; ip link set eth0 up; httpd -h /www
echo "eth0: $(cat /sys/class/net/eth0/address), mtu $(cat /sys/class/net/eth0/mtu)"
until grep -q up /tmp/far; do sleep 0.1; done
echo 'near: begin'; read line
wget -q -O - http://10.9.0.2/data | cmp - /www/data && echo 'near: the same'
echo 'near: end'; read line
echo >&4; wait $far; cat /tmp/far

ip link set eth2 up; echo "carrier: $(cat /sys/class/net/eth2/carrier)"
echo 'passt: kill'; read line
until [ "$(cat /sys/class/net/eth2/carrier)" = 0 ]; do sleep 0.1; done
echo 'carrier: 0'

vsock-peer echo 1000 1 & echo 'vsock: up'; wait $!
${PORT_ECHO}
echo 'boot 1: over'; read line
`;

describe.each(['kvm', 'tcg'] as const)('a MicroVM under %s', (accel) => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;
  const content = randomBytes(DISK_MIB * MIB);
  const path = (name: string) => join(scratch.path, name);

  beforeAll(async () => {
    await ensureInstalled([{ programs: ['passt'], package: 'passt', code: 'IMAGE_NOT_FOUND' }]);
    scratch = await sharedFolder();
    await writeFile(path('ro.img'), content);
    await mkdir(path('share'));
    await writeFile(path('share/in'), content);
    if (accel === 'kvm') {
      await makeRoutable();
      // The nested host has this folder read-only below one of its own: now it has its own.
      await runNested(['touch', path('share/ready')]);
    }
    const source = new URL('programs/vsock-peer.c', import.meta.url).pathname;
    execFileSync('gcc', ['-static', '-O2', '-Wall', '-Werror', '-o', path('vsock-peer'), source]);
    guests = await bootGuests([await devicesPlan(), await morePlan()], accel);
  });

  afterAll(() => scratch[Symbol.asyncDispose]());

  async function devicesPlan(): Promise<GuestPlan> {
    const setup = guestSetup({
      console: 'virtio',
      drives: 2,
      nets: 1,
      rng: true,
      vsock: true,
      balloon: true,
      shares: ['nine', 'still'],
      virtiofs: ['fs'],
      transport: 'pci',
    });
    const guest = await linuxGuest(path('devices.cpio'), {
      flavour: 'generic', // has 9p
      ...setup,
      files: [...setup.files, { path: '/bin/vsock-peer', bytes: await readFile(path('vsock-peer')), mode: 0o755 }],
      command: ['sh', '-c', DEVICES],
    });
    const forwarded = `${ownLoopback()}:8080`;
    return {
      name: 'devices',
      options: {
        ...guest,
        cpus: 2,
        memory: `${MEMORY_MIB}M`,
        console: 'virtio',
        consolePorts: ['org.example.unused', PORT],
        drives: [{ path: path('ro.img'), readOnly: true, serial: 'SERIAL-7' }, { path: path('rw.img') }],
        net: [{ type: 'user', mac: '52:54:00:12:34:56', forwards: [`${forwarded}:80`] }],
        rng: true,
        vsock: { cid: 3, udsPath: path('vsock') },
        shares: [
          { dir: path('share'), tag: 'nine' },
          { dir: path('share'), tag: 'still', readOnly: true },
          { dir: path('share'), tag: 'fs', backend: 'virtiofsd' },
        ],
        balloon: true,
      },
      vsockEcho: 2000,
      serve: { body: HELLO },
      blank: { [path('rw.img')]: DISK_MIB * MIB },
      hash: ['ro.img', 'rw.img', 'share/out-nine', 'share/out-fs'].map(path),
      steps: [
        { when: 'httpd: up', act: 'fetch', url: `http://${forwarded}/`, as: 'guest' },
        { when: 'httpd: up', ...GO },
        { when: 'port: open', act: 'echo', port: PORT, bytes: MIB },
        { when: 'port: open', ...GO },
        { when: 'vsock: up', act: 'vsock', port: 1000, bytes: 4 * MIB },
        { when: 'vsock: up', act: 'vsockUnix', path: path('vsock'), port: 1001, bytes: MIB },
        { when: 'balloon: ready', act: 'balloonStats', as: 'before' },
        { when: 'balloon: ready', act: 'balloon', target: '64M' },
        { when: 'balloon: ready', act: 'balloonStats', as: 'inflated', actual: 64 * MIB },
        { when: 'balloon: ready', act: 'balloon', target: '0' },
        { when: 'balloon: ready', act: 'balloonStats', as: 'deflated', actual: 0 },
        { when: 'balloon: ready', act: 'stats', as: 'running' },
        { when: 'balloon: ready', ...GO },
        { when: 'tick', act: 'pause' },
        { when: 'tick', ...GO },
      ],
    };
  }

  async function morePlan(): Promise<GuestPlan> {
    const devices = { console: 'serial', drives: 4, nets: 0, rng: true, vsock: true, transport: 'pci' } as const;
    const { modules, files } = guestSetup(devices);
    const guest = await linuxGuest(path('more.cpio'), {
      modules: [...modules, 'virtio_net', 'af_packet', 'virtio_console', 'button', 'evdev'],
      files: [...files, { path: '/bin/vsock-peer', bytes: await readFile(path('vsock-peer')), mode: 0o755 }],
      command: ['sh', '-c', MORE],
    });
    const image = (name: string) => path(`${name}.img`);
    const socket = (name: string) => path(`${name}.socket`);
    // Less than a request: the second of any two that come at once has to wait.
    const limit = { bytesPerSecond: 4 * MIB, burstBytes: 4096 };
    return {
      name: 'more',
      options: {
        ...guest,
        drives: [
          { path: image('vda'), serial: 'LIMITED', rateLimit: limit },
          { path: image('vdb'), serial: 'PLAIN' },
          { path: image('boots') },
        ],
        consolePorts: ['org.example.unused', PORT],
        net: [
          { type: 'port', mac: '52:54:00:65:43:21', mtu: WIRE_MTU },
          { type: 'port', mtu: WIRE_MTU, rateLimit: { bytesPerSecond: WIRE_BYTES_PER_SECOND } },
          { type: 'user', rateLimit: { opsPerSecond: 1000 } },
        ],
        vhostUser: [
          { socket: socket('blk'), type: 'blk', queues: 1 },
          { socket: socket('rng'), type: 'rng' },
          { socket: socket('vsock'), type: 19, queues: 3, config: 8 },
        ],
        devices: ['nvme', 'empty'].map((name) => ({
          type: 'qemu-pci',
          device: 'nvme',
          props: { serial: name.toUpperCase(), drive: 'disk' },
          blockdevs: [
            name === 'empty'
              ? { driver: 'null-co', 'node-name': 'disk', size: MIB }
              : { driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: image(name) } },
          ],
        })),
      },
      backends: [
        { type: 'blk', socket: socket('blk'), path: image('vdd') },
        { type: 'rng', socket: socket('rng') },
        { type: 'vsock', socket: socket('vsock'), cid: 9, udsPath: socket('uds') },
      ],
      join: [0, 1],
      blank: {
        ...Object.fromEntries(MORE_DISKS.map((name) => [image(name), DISK_MIB * MIB])),
        [image('boots')]: 512,
      },
      hash: MORE_DISKS.map(image),
      steps: [
        { when: 'near: begin', act: 'stats', as: 'near: begin' },
        { when: 'near: begin', ...GO },
        { when: 'near: end', act: 'stats', as: 'near: end' },
        { when: 'near: end', ...GO },
        { when: 'passt: kill', act: 'killPasst' },
        { when: 'passt: kill', ...GO },
        { when: 'vsock: up', act: 'vsockUnix', path: socket('uds'), port: 1000, bytes: MIB },
        { when: 'port: open', act: 'echo', port: PORT, bytes: MIB },
        { when: 'boot 1: over', act: 'stats', as: 'boot 1' },
        { when: 'boot 1: over', act: 'reset' },
        { when: 'boot 2: listens', act: 'powerButton' },
      ],
    };
  }

  it('ends with the status of its command', () => {
    const { exit, error, output } = guests['devices'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 42 }, error: undefined });
    expect(output).toContain('cpus: 2, console: /dev/hvc0\n');
  });

  it('reads one disk and writes another, to the last byte', () => {
    const { output, hashes } = guests['devices'];
    const sum = createHash('sha256').update(content).digest('hex');
    expect(output).toContain(`vda: ${sum}, serial SERIAL-7, read-only 1\n`);
    expect(hashes[path('ro.img')]).toBe(sum);
    expect(output).toContain(`vdb: ${hashes[path('rw.img')]}\n`);
  });

  it('writes and reads disks with a limit, without, of a backend of the user and of QEMU, in their order', () => {
    const { output, hashes } = guests['more'];
    expect(output).toMatch(/^serials: LIMITED PLAIN\r?$/m);
    for (const name of MORE_DISKS) expect(output).toContain(`${name}: ${hashes[path(`${name}.img`)]}`);
  });

  it('keeps a disk and a network card to their limits', () => {
    const { stats, takenMs } = guests['more'];
    const { name, counters } = stats['boot 1'].devices['drive0'];
    expect(name).toBe('virtio-blk');
    expect((counters as unknown as BlkCounters).throttled).toBeGreaterThan(0);
    // A limit holds whatever the machine's speed, by the clock that it is kept by. A tenth of a second's is free.
    const [begin, end] = ['near: begin', 'near: end'];
    const sent = (when: string) => netCounters(stats[when], 'net1').transmitted.bytes;
    const seconds = (takenMs[end].beforeMs - takenMs[begin].afterMs) / 1000;
    expect(sent(end) - sent(begin)).toBeGreaterThan(MIB / 2);
    expect(sent(end) - sent(begin)).toBeLessThan((seconds + 0.1) * WIRE_BYTES_PER_SECOND + LARGEST_FRAME_BYTES);
  });

  it('has network cards whose frames pass through the program, both ways, large ones too', () => {
    const { output, stats } = guests['more'];
    expect(output).toMatch(/^eth0: 52:54:00:65:43:21, mtu 9000\r?$/m);
    expect(output).toMatch(/^near: the same\r?$/m);
    expect(output).toMatch(/^far: the same\r?$/m);
    const [left, right] = ['net0', 'net1'].map((id) => netCounters(stats['boot 1'], id));
    for (const { bytes, frames } of [left.transmitted, right.transmitted]) {
      expect(bytes).toBeGreaterThan(MIB / 2);
      // More than 1,514 bytes on average, with an acknowledgement for every frame from the other side.
      expect(bytes / frames).toBeGreaterThan(1514);
    }
    // None is dropped; the last ones may be on their way when the counters are read.
    expect(left.received.dropped).toEqual({});
    expect(left.received.bytes).toBeGreaterThan(MIB / 2);
    expect(left.received.frames).toBeLessThanOrEqual(right.transmitted.frames);
  });

  it('loses the link of a network that broke down, which is reported', () => {
    const { output, deviceErrors, stats } = guests['more'];
    expect(output).toMatch(/^carrier: 1\r?\n[^]*^carrier: 0\r?$/m);
    expect(deviceErrors).toEqual([
      { device: 'net2', code: 'NETWORK_FAILED', message: stats['boot 1'].devices['net2'].error },
    ]);
  });

  it('has what backends of the user are', () => {
    const { output, echoed, stats } = guests['more'];
    expect(output).toMatch(/^hwrng: 4096 bytes\r?$/m);
    expect(echoed['unix 1000']).toBe(MIB);
    const names = Object.entries(stats['boot 1'].devices).map(([id, { name, failures }]) => [id, name, failures]);
    expect(names).toEqual(
      expect.arrayContaining([
        ['vhostUser0', 'vhost-user-blk', 0],
        ['vhostUser1', 'vhost-user-rng', 0],
        ['vhostUser2', 'vhost-user-19', 0],
        ['device0', 'nvme', 0],
        ['device1', 'nvme', 0],
      ]),
    );
  });

  it('draws entropy from the host', () => {
    expect(guests['devices'].output).toMatch(/^hwrng: virtio_rng\S*, 4096 bytes$/m);
  });

  it('reaches the host by its network, and is reached', () => {
    const { output, fetched } = guests['devices'];
    expect(output).toContain('mac: 52:54:00:12:34:56\n');
    expect(output).toContain(`fetched: ${HELLO}\n`);
    expect(fetched['guest']).toBe('hello from the guest\n');
  });

  it.each([
    ['devices', 'virtio'],
    ['more', 'serial'],
  ])('talks by a named port: %s, beside a %s console', (name) => {
    expect(guests[name].echoed[PORT]).toBe(MIB);
  });

  it('talks by sockets to the program and to its tools, both ways', () => {
    const { echoed, output } = guests['devices'];
    expect(echoed).toMatchObject({ 'vsock 1000': 4 * MIB, 'unix 1001': MIB });
    expect(output).toContain('vsock: the same\n');
    expect(output).toContain('vsock: nobody there\n');
  });

  it('stands still while it is paused', () => {
    expect(guests['devices'].saidInPause).toBe('');
  });

  it('starts over with new memory when it is reset, and is shut down in order by its power button', () => {
    const { exit, error, output } = guests['more'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown' }, error: undefined });
    expect(output).toMatch(/boot 1: 0 files\r?\n/);
    expect(output).toMatch(/boot 2: 0 files\r?\n/);
    expect(output).toMatch(/boot 2: listens\r?\n[^]*pressed/);
    expect(output).not.toContain('boot 3');
  });

  it.each(['nine', 'fs'])('reads and writes a directory of the host: %s', (tag) => {
    const { output, hashes } = guests['devices'];
    const sum = createHash('sha256').update(content).digest('hex');
    expect(output).toContain(`${tag}: ${sum}\n${tag}: ${hashes[path(`share/out-${tag}`)]}\n`);
  });

  it('does not write to a directory that it may only read', () => {
    const sum = createHash('sha256').update(content).digest('hex');
    expect(guests['devices'].output).toContain(`still: ${sum}\n`);
  });

  it('gives memory up to its balloon, and takes it back', () => {
    const { before, inflated, deflated } = guests['devices'].balloon;
    expect(before).toMatchObject({ targetBytes: 0, actualBytes: 0 });
    expect(inflated).toMatchObject({ targetBytes: 64 * MIB, actualBytes: 64 * MIB });
    expect(deflated).toMatchObject({ targetBytes: 0, actualBytes: 0 });
    expect(before.guest!.freeBytes! - inflated.guest!.freeBytes!).toBeGreaterThan(50 * MIB);
    expect(deflated.guest!.freeBytes! - inflated.guest!.freeBytes!).toBeGreaterThan(50 * MIB);
    expect(before.residentBytes).toBeGreaterThan(32 * MIB);
    expect(before.residentBytes).toBeLessThanOrEqual(MEMORY_MIB * MIB);
  });

  it('counts what its devices do', () => {
    const { devices, memoryBytes } = guests['devices'].stats['running'];
    expect(memoryBytes).toBe(MEMORY_MIB * MIB);
    const names = Object.entries(devices).map(([id, { name, failures }]) => [id, name, failures]);
    expect(Object.fromEntries(names.map(([id, name]) => [id, name]))).toEqual({
      console: 'virtio-console',
      drive0: 'virtio-blk',
      drive1: 'virtio-blk',
      net0: 'virtio-net',
      share0: 'virtio-9p',
      share1: 'virtio-9p',
      share2: 'vhost-user-fs',
      rng: 'virtio-rng',
      balloon: 'virtio-balloon',
      vsock: 'virtio-vsock',
    });
    expect(names.filter(([, , failures]) => failures !== 0)).toEqual([]);
    const [read, written] = ['drive0', 'drive1'].map((id) => devices[id].counters as unknown as BlkCounters);
    expect(read).toMatchObject({ writes: 0, bytesWritten: 0, errors: { backend: 0, outOfRange: 0 } });
    expect(read.bytesRead).toBeGreaterThanOrEqual(DISK_MIB * MIB);
    expect(written.bytesWritten).toBeGreaterThanOrEqual(DISK_MIB * MIB);
    expect(written.flushes).toBeGreaterThan(0);
    expect(devices['vsock'].counters).toMatchObject({ connections: 0 });
  });
});

function netCounters(stats: MachineStats, id: string): NetCounters {
  return stats.devices[id].counters as unknown as NetCounters;
}
