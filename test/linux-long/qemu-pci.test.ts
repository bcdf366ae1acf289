import { randomBytes } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import type { QemuPciOptions } from '../../src/index.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';
import { nestedShell } from '../support/nested.js';

const nested = nestedShell(120_000);

const MIB = 2 ** 20;
const FILE_BYTES = 3 * MIB + 17;
const SCSI_BYTES = 2 * MIB;
const WEB_PORT = 8123;

/** Debian's own drivers, and what is done with the devices. */
const DISK_MODULES = ['nvme', 'sym53c8xx', 'sd_mod', 'crc32c_generic', 'ext4'];
const DISKS = `
disk() { for d in /sys/block/nvme*; do grep -q "^$1 *$" $d/device/serial && echo \${d##*/}; done; }
for i in $(seq 300); do [ -n "$(disk kept)" ] && [ -n "$(disk doomed)" ] && [ -b /dev/sda ] && break; sleep 0.1; done

mount -t ext4 /dev/$(disk kept) /mnt
(cd /mnt && sha256sum file | cmp - SUM && echo 'nvme: read') || exit 1
dd if=/dev/urandom of=/mnt/written bs=1M count=8 2>/dev/null
sha256sum /mnt/written >/mnt/LIST
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /mnt/LIST && echo 'nvme: written, and read'
umount /mnt

echo "scsi: $(cat /sys/block/sda/device/vendor /sys/block/sda/device/model | tr -s ' \\n' ' ')"
sha256sum </dev/sda | sed 's/ .*//; s/^/scsi: sum /'
dd if=/dev/zero of=/dev/sda bs=64k count=4 conv=fsync 2>/dev/null && echo 'scsi: written'
grep -E 'nvme|sym' /proc/interrupts

doomed=$(disk doomed)
echo 3000 >/sys/block/$doomed/queue/io_timeout
(while dd if=/dev/zero of=/dev/$doomed bs=64k count=32 conv=fsync 2>/dev/null; do :; done; echo 'doomed: failed' >/tmp/failed) &
sleep 1
echo 'now: kill'
read line
for i in $(seq 120); do [ -e /tmp/failed ] && break; sleep 0.5; done
cat /tmp/failed
mount -t ext4 /dev/$(disk kept) /mnt && sha256sum -c /mnt/LIST && echo 'nvme: still there'
umount /mnt
`;

const CARD_MODULES = ['e1000', 'af_packet', 'snd_intel8x0'];
const CARDS = `
echo "sound: $(grep -o 'Intel 82801AA-ICH' /proc/asound/cards | head -n 1)"
ip link set eth0 up
udhcpc -s /etc/udhcpc/default.script -q -n -t 10 -T 3 -i eth0 </dev/null >/dev/null 2>&1
echo "address: $(ip -4 address show dev eth0 | grep -o 'inet [0-9.]*')"
echo "web: $(wget -q -O - http://10.0.2.2:${WEB_PORT}/)"
grep -E 'eth|intel8x0' /proc/interrupts
`;

describe('PCI devices of QEMU under a guest', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;
  let sum: string;
  const image = (name: string) => join(scratch.path, name);

  beforeAll(async () => {
    await ensureInstalled([
      { programs: ['qemu-system-x86_64'], package: 'qemu-system-x86', code: 'QEMU_UNAVAILABLE' },
      { programs: ['mke2fs', 'e2fsck'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' },
    ]);
    scratch = await sharedFolder();
    await mkdir(image('data'));
    await writeFile(image('data/file'), randomBytes(FILE_BYTES));
    await writeFile(image('scsi.raw'), randomBytes(SCSI_BYTES));
    await nested(`cd ${scratch.path}/data && sha256sum file >SUM`);
    await nested(
      `mke2fs -q -t ext4 -d ${image('data')} ${image('nvme.raw')} 64M; truncate -s 16M ${image('doomed.raw')}`,
    );
    sum = (await nested(`sha256sum <${image('scsi.raw')}`)).slice(0, 64);

    const raw = (name: string) => [
      { driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: image(name) } },
    ];
    const nvme = (serial: string, name: string): QemuPciOptions => ({
      ...{ type: 'qemu-pci', id: serial, device: 'nvme' },
      ...{ props: { serial, drive: 'disk' }, blockdevs: raw(name) },
    });
    const disks: QemuPciOptions[] = [
      nvme('kept', 'nvme.raw'),
      {
        ...{ type: 'qemu-pci', id: 'scsi', device: 'lsi53c895a', blockdevs: raw('scsi.raw') },
        attached: [{ device: 'scsi-hd', props: { drive: 'disk' } }],
      },
      nvme('doomed', 'doomed.raw'),
    ];
    const cards: QemuPciOptions[] = [
      { type: 'qemu-pci', device: 'e1000', netdev: { type: 'user' } },
      { type: 'qemu-pci', device: 'AC97' },
    ];
    const { files } = guestSetup({ console: 'serial', drives: 0, nets: 1, rng: false, transport: 'pci' });
    const options = async (name: string, modules: string[], script: string) => ({
      ...(await linuxGuest(image(`${name}.cpio`), {
        flavour: 'generic',
        modules,
        files,
        command: ['sh', '-c', script],
      })),
      memory: '512M',
    });
    guests = await bootGuests([
      {
        name: 'disks',
        options: { ...(await options('disks', DISK_MODULES, DISKS)), devices: disks },
        steps: [
          { when: 'now: kill', act: 'stats', as: 'before' },
          { when: 'now: kill', act: 'killQemu', like: 'serial=doomed' },
          { when: 'now: kill', act: 'type', text: 'on\n' },
        ],
      },
      {
        name: 'cards',
        options: { ...(await options('cards', CARD_MODULES, CARDS)), devices: cards },
        serve: { port: WEB_PORT, body: 'from the host' },
      },
    ]);
    for (const { output, stats } of Object.values(guests)) {
      console.log(output.match(/^ *\d+:.*(nvme|eth|sym|intel8x0).*$/gm)?.join('\n'));
      console.log(JSON.stringify(stats['before'] ?? stats['end']));
    }
  });

  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  it.each(['disks', 'cards'])("serve Debian's drivers: a guest with %s ends as it should", (name) => {
    const { exit, error, output } = guests[name];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
  });

  it('are an NVMe disk that reads and keeps what is written, on a whole file system', async () => {
    const { output } = guests['disks'];
    expect(output).toContain('nvme: read\n');
    expect(output).toContain('nvme: written, and read\n');
    expect(await nested(`e2fsck -fn ${image('nvme.raw')} 2>&1`)).toMatch(/nvme\.raw: \d+\/\d+ files/);
  });

  it('are a SCSI disk behind an LSI 53C895A', async () => {
    const { output } = guests['disks'];
    expect(output).toContain('scsi: QEMU QEMU HARDDISK');
    expect(output).toContain(`scsi: sum ${sum}`);
    expect(output).toContain('scsi: written');
    expect(await nested(`head -c 262144 ${image('scsi.raw')} | tr -d '\\0' | wc -c`)).toBe('0\n');
  });

  it('are an e1000 with a DHCP lease, and the web behind it', () => {
    const { output, deviceErrors } = guests['cards'];
    expect(output).toContain('address: inet 10.0.2.15');
    expect(output).toContain('web: from the host');
    expect(deviceErrors).toEqual([]);
  });

  it('are an AC97 sound card', () => {
    expect(guests['cards'].output).toContain('sound: Intel 82801AA-ICH');
  });

  it('fail alone when their process is killed under load, which is told', () => {
    const { output, deviceErrors, stats } = guests['disks'];
    expect(deviceErrors).toEqual([
      {
        device: 'doomed',
        code: 'QEMU_FAILED',
        message: 'the QEMU process of nvme is gone: it was killed by SIGKILL',
      },
    ]);
    const after = output.slice(output.indexOf('now: kill'));
    expect(after).toContain('doomed: failed');
    expect(after).toContain('nvme: still there');
    expect(stats['end'].devices['doomed'].error).toBe(deviceErrors[0].message);
  });

  it('leave no process behind', async () => {
    expect(await nested('pidof qemu-system-x86_64 || echo none')).toBe('none\n');
  });
});
