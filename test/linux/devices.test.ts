import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import type { BlkCounters, NetCounters } from '../../src/index.js';
import { bootGuests, linuxGuest, makeRoutable, sharedFolder, type GuestReport } from '../support/linux-guests.js';

const MIB = 2 ** 20;
const example = (name: string) => new URL(`../../examples/devices/${name}.js`, import.meta.url).href;

/** Loses its passt; pings itself through the program, from one network namespace to another; reads a disk with a limit. */
const SCRIPT = `
ip link set eth0 up
echo "carrier: $(cat /sys/class/net/eth0/carrier)"
echo 'passt: kill'; read line
echo "carrier: $(cat /sys/class/net/eth0/carrier)"

mkfifo /tmp/moved
unshare -n sh -c 'read line </tmp/moved; ip address add 10.9.0.2/24 dev eth2; ip link set eth2 up; echo up; sleep 600' >/tmp/up &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set eth2 netns $!
echo moved >/tmp/moved
ip address add 10.9.0.1/24 dev eth1; ip link set eth1 up
until grep -q up /tmp/up; do sleep 0.1; done
echo "mtu: $(cat /sys/class/net/eth1/mtu)"
ping -c 3 -W 30 -s 8000 10.9.0.2 | grep 'packets received'
kill $!

echo "celsius: $(devmem 0xd8000000 8)"
echo "dice: $(head -c 32 /dev/hwrng | od -An -v -tu1 | tr -s '\\n ' ' ')"

time -p dd if=/dev/vda of=/dev/null bs=64k count=64 2>&1 | grep real
`;

describe('devices of a guest', () => {
  let guest: GuestReport;

  beforeAll(async () => {
    await ensureInstalled([{ programs: ['passt'], package: 'passt', code: 'IMAGE_NOT_FOUND' }]);
    await makeRoutable();
    await using scratch = await sharedFolder();
    const path = join(scratch.path, 'disk.img');
    await writeFile(path, Buffer.alloc(4 * MIB));
    const devices = { console: 'serial', drives: 1, nets: 1, rng: true, transport: 'pci' } as const;
    const { modules } = guestSetup(devices);
    const reports = await bootGuests([
      {
        name: 'guest',
        options: {
          ...(await linuxGuest(join(scratch.path, 'guest.cpio'), { modules, command: ['sh', '-c', SCRIPT] })),
          net: [{ type: 'user' }, { type: 'port', mtu: 9000 }, { type: 'port', mtu: 9000 }],
          devices: [
            { module: example('thermometer'), config: { celsius: [-7] }, mmio: { base: 0xd8000000, sizeBytes: 2 } },
            { module: example('dice'), id: 'dice', config: { sides: 6 }, virtio: true },
          ],
          drives: [{ path, rateLimit: { bytesPerSecond: MIB, burstBytes: MIB } }],
        },
        join: [1, 2],
        steps: [
          { when: 'passt: kill', act: 'killPasst' },
          { when: 'passt: kill', act: 'type', text: 'done\n' },
        ],
      },
    ]);
    guest = reports['guest'];
  });

  it('do not hold it up when one of them fails, which is reported', () => {
    const { exit, error, output, deviceErrors, stats } = guest;
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    expect(output).toMatch(/^carrier: 1\n[^]*^carrier: 0\n/m);
    expect(deviceErrors).toEqual([
      { device: 'net0', code: 'NETWORK_FAILED', message: stats['end'].devices['net0'].error },
    ]);
  });

  it('are a network whose frames pass through the program', () => {
    const { output, stats } = guest;
    expect(output).toContain('mtu: 9000\n');
    // On a busy host the last answer may be late for ping.
    expect(output).toMatch(/3 packets transmitted, [23] packets received/);
    const [left, right] = ['net1', 'net2'].map((id) => stats['end'].devices[id].counters as unknown as NetCounters);
    expect(left.transmitted.frames).toBe(right.received.frames);
    expect(left.transmitted.bytes).toBeGreaterThan(3 * 8000);
  });

  it("may be of the user's own: one at an address, and one on virtio", () => {
    const { output, stats } = guest;
    expect(output).toMatch(/^celsius: 0xF9\n/m);
    expect(output).toMatch(/^dice:( +[1-6]){32} *\n/m);
    expect(stats['end'].devices['dice'].name).toBe('dice');
    expect(stats['end'].accesses['thermometer']).toBe(1);
  });

  it('keep to their rate limits, and count what they did', () => {
    const { name, counters } = guest.stats['end'].devices['drive0'];
    const { bytesRead, throttled } = counters as unknown as BlkCounters;
    expect(name).toBe('virtio-blk');
    expect(bytesRead).toBeGreaterThanOrEqual(4 * MIB);
    expect(throttled).toBeGreaterThan(0);
    const seconds = Number(/^real +([\d.]+)/m.exec(guest.output)?.[1]);
    // The burst is free, and the last request may put the bucket in debt.
    expect(seconds).toBeGreaterThan(2);
  });
});
