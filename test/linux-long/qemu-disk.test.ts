import { randomBytes } from 'node:crypto';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestPlan, type GuestReport } from '../support/linux-guests.js';
import { nestedShell } from '../support/nested.js';

const nested = nestedShell(120_000);

const MIB = 2 ** 20;
const FILE_BYTES = 3 * MIB + 17;
const GROWN_BYTES = 192 * MIB;
const GROWN_ROOT_BYTES = 64 * MIB;

/** Reads the backing file's data, and writes before and after each thing that is done to the disk meanwhile. */
const SCRIPT = `
mount -t ext4 /dev/vda /mnt
(cd /mnt && sha256sum file | cmp - SUM && echo 'backing file: read') || exit 1
write() { dd if=/dev/urandom of=/mnt/$1 bs=1M count=8 2>/dev/null; sync; sha256sum /mnt/$1 >>/mnt/LIST; }
pause() { sync; echo "now: $1"; read line; }
write before
pause snapshot
write after-snapshot
pause resize
for i in $(seq 50); do [ $(cat /sys/block/vda/size) = ${GROWN_BYTES / 512} ] && break; sleep 0.1; done
echo "sectors: $(cat /sys/block/vda/size)"
write after-resize
pause kill
write after-kill
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /mnt/LIST && echo 'all files: read'
umount /mnt
`;

/** Keeps the disk busy while its process is killed, and goes on with the next one. */
const LOAD_SCRIPT = `
load() { while dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct 2>/dev/null; do :; done; }
load & load & load &
sleep 2
echo 'now: kill'; read line
dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null
dd if=/data of=/dev/vda bs=64k seek=64 oflag=direct 2>/dev/null &&
dd if=/dev/vda bs=64k skip=64 count=16 iflag=direct 2>/dev/null | cmp - /data && echo 'the disk goes on'
`;

/** The first program of a system whose root is the disk. */
const ROOT_INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
grep ' / ' /proc/mounts | tail -n 1
cd / && sha256sum -c SUM >/dev/null && echo 'backing file: read'
write() { dd if=/dev/urandom of=/$1 bs=1M count=4 2>/dev/null; sync; sha256sum /$1 >>/LIST; }
pause() { sync; echo "now: $1"; read line; }
write before
pause snapshot
write after-snapshot
pause resize
for i in $(seq 50); do [ $(cat /sys/block/vda/size) = ${GROWN_ROOT_BYTES / 512} ] && break; sleep 0.1; done
echo "sectors: $(cat /sys/block/vda/size)"
write after-resize
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /LIST && echo 'all files: read'
mount -o remount,ro /
poweroff -f
`;

describe('a disk of QEMU under a guest', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;
  const image = (name: string) => join(scratch.path, name);

  beforeAll(async () => {
    await ensureInstalled([
      { programs: ['qemu-storage-daemon'], package: 'qemu-system-common', code: 'IMAGE_NOT_FOUND' },
      { programs: ['qemu-img'], package: 'qemu-utils', code: 'IMAGE_NOT_FOUND' },
      { programs: ['mke2fs'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' },
    ]);
    scratch = await sharedFolder();
    const { path } = scratch;
    await mkdir(image('data'));
    await writeFile(image('data/file'), randomBytes(FILE_BYTES));
    for (const name of ['bin', 'proc', 'sbin', 'sys', 'dev'])
      await mkdir(join(path, 'root', name), { recursive: true });
    await copyFile(await findBusybox(), image('root/bin/busybox'));
    await writeFile(image('root/sbin/init'), ROOT_INIT, { mode: 0o755 });
    await writeFile(image('root/file'), randomBytes(FILE_BYTES));
    for (const name of ['data', 'root']) await nested(`cd ${path}/${name} && sha256sum file >SUM`);
    for (const [name, size] of [
      ['data', '128M'],
      ['root', '32M'],
    ]) {
      await nested(
        `mke2fs -q -t ext4 -d ${path}/${name} ${path}/${name}.raw ${size}; sha256sum ${path}/${name}.raw >${path}/${name}.sum`,
      );
    }
    for (const [top, base] of [
      ['pci', 'data'],
      ['mmio', 'data'],
      ['load', 'data'],
      ['root', 'root'],
    ]) {
      await nested(`qemu-img create -q -f qcow2 -b ${path}/${base}.raw -F raw ${path}/${top}.qcow2`);
    }

    const plans: GuestPlan[] = [];
    for (const transport of ['pci', 'mmio'] as const) {
      const { modules } = guestSetup({ console: 'serial', drives: 1, nets: 0, rng: false, transport });
      const guest = await linuxGuest(image(`${transport}.cpio`), { modules, command: ['sh', '-c', SCRIPT] });
      plans.push({
        name: transport,
        options: {
          ...guest,
          cpus: 2,
          virtioTransport: transport,
          drives: [{ path: image(`${transport}.qcow2`), backend: 'qemu' }],
        },
        steps: [
          {
            when: 'now: snapshot',
            act: 'drive',
            drive: 0,
            method: 'snapshot',
            args: [{ path: image(`${transport}-2.qcow2`) }],
          },
          { when: 'now: snapshot', act: 'type', text: 'on\n' },
          { when: 'now: resize', act: 'drive', drive: 0, method: 'resize', args: [GROWN_BYTES] },
          { when: 'now: resize', act: 'type', text: 'on\n' },
          { when: 'now: kill', act: 'killDrive', drive: 0 },
          { when: 'now: kill', act: 'type', text: 'on\n' },
        ],
      });
    }
    const { modules } = guestSetup({ console: 'serial', drives: 1, nets: 0, rng: false, transport: 'pci' });
    const kill = { when: 'now: kill', act: 'killDrive', drive: 0 } as const;
    plans.push({
      name: 'load',
      options: {
        ...(await linuxGuest(image('load.cpio'), { modules, command: ['sh', '-c', LOAD_SCRIPT] })),
        drives: [{ path: image('load.qcow2'), backend: 'qemu' }],
      },
      steps: [kill, { when: 'now: kill', act: 'type', text: 'on\n' }],
    });
    const onDisk = await linuxGuest(image('root.cpio'), {
      modules,
      setup: [
        'mount -t ext4 /dev/vda /mnt',
        'umount /dev/pts /dev/shm',
        'mount --move /dev /mnt/dev',
        'exec switch_root /mnt /sbin/init',
      ],
    });
    plans.push({
      name: 'root',
      options: { ...onDisk, drives: [{ path: image('root.qcow2'), backend: 'qemu' }] },
      steps: [
        { when: 'now: snapshot', act: 'drive', drive: 0, method: 'snapshot', args: [{ path: image('root-2.qcow2') }] },
        { when: 'now: snapshot', act: 'type', text: 'on\n' },
        { when: 'now: resize', act: 'drive', drive: 0, method: 'resize', args: [GROWN_ROOT_BYTES] },
        { when: 'now: resize', act: 'type', text: 'on\n' },
      ],
    });
    guests = await bootGuests(plans);
  });

  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  it('goes on with the next process when one is killed under load', () => {
    const { exit, error, output, died } = guests['load'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    expect(died).toMatch(/qemu-storage-daemon died: it was killed by SIGKILL/);
    expect(output).toContain('the disk goes on\n');
  });

  describe.each(['pci', 'mmio'])('over %s', (transport) => {
    it('reads through to the backing file, and keeps every byte over snapshot, resize and a killed process', () => {
      const { exit, error, output } = guests[transport];
      expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
      expect(output).toContain('backing file: read');
      expect(output).toContain('all files: read');
    });

    it('shows the guest its new size', () => {
      expect(guests[transport].output).toContain(`sectors: ${GROWN_BYTES / 512}\n`);
    });

    it('says that its process was killed', () => {
      expect(guests[transport].died).toMatch(/qemu-storage-daemon died: it was killed by SIGKILL/);
    });

    it('moves data past this process: few kicks reach it, and over PCI no interrupt of the disk', () => {
      const { exits, kicks, interrupts } = guests[transport].stats['end'];
      console.log(`vhost-user-blk over ${transport}:`, { exits, kicks, interrupts });
      expect(kicks).toBe(0);
      // Of changes to the configuration alone: resizing, and the loss and return of the process.
      if (transport === 'pci') expect(interrupts).toBeLessThan(20);
    });

    it('leaves images that are whole: the first overlay as at the snapshot, the second with what came after', async () => {
      const [first, second] = [image(`${transport}.qcow2`), image(`${transport}-2.qcow2`)];
      expect(await nested(`qemu-img check ${first}; qemu-img check ${second}`)).toMatch(/No errors.*No errors/s);
      await nested(`qemu-img convert -O raw ${second} ${image('flat.raw')}`);
      expect(await nested(`e2fsck -fn ${image('flat.raw')} 2>&1`)).toMatch(/flat\.raw: \d+\/\d+ files/);
      const names = await nested(`debugfs -R 'ls -p' ${image('flat.raw')} 2>/dev/null`);
      expect(names).toContain('/after-kill/');
      await nested(`qemu-img convert -O raw ${first} ${image('flat.raw')}`);
      // Of a mounted file system: its journal comes first.
      await nested(`e2fsck -fp ${image('flat.raw')} >/dev/null || [ $? = 1 ]`);
      const before = await nested(`debugfs -R 'ls -p' ${image('flat.raw')} 2>/dev/null`);
      expect(before).toContain('/before/');
      expect(before).not.toContain('/after-snapshot/');
      await nested(`rm ${image('flat.raw')}`);
    });
  });

  it('may hold the root, which is read, frozen and grown while the guest runs on it', async () => {
    const { exit, error, output } = guests['root'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown' }, error: undefined });
    const said = ['/dev/vda / ext4 rw', 'backing file: read', `sectors: ${GROWN_ROOT_BYTES / 512}`, 'all files: read'];
    for (const line of said) expect(output).toContain(line);
    const [first, second] = [image('root.qcow2'), image('root-2.qcow2')];
    expect(await nested(`qemu-img check ${first}; qemu-img check ${second}`)).toMatch(/No errors.*No errors/s);
    await nested(`qemu-img convert -O raw ${second} ${image('flat.raw')}`);
    expect(await nested(`e2fsck -fn ${image('flat.raw')} 2>&1`)).toMatch(/flat\.raw: \d+\/\d+ files/);
    const list = await nested(`debugfs -R 'cat LIST' ${image('flat.raw')} 2>/dev/null`);
    for (const line of list.trim().split('\n')) {
      const [sum, file] = line.split(/\s+/);
      expect(await nested(`debugfs -R 'cat ${file}' ${image('flat.raw')} 2>/dev/null | sha256sum`)).toBe(`${sum}  -\n`);
    }
    expect(list.trim().split('\n')).toHaveLength(3);
    await nested(`qemu-img convert -O raw ${first} ${image('flat.raw')}`);
    await nested(`e2fsck -fp ${image('flat.raw')} >/dev/null || [ $? = 1 ]`);
    const frozen = await nested(`debugfs -R 'ls -p' ${image('flat.raw')} 2>/dev/null`);
    expect(frozen).toContain('/before/');
    expect(frozen).not.toContain('/after-snapshot/');
    await nested(`rm ${image('flat.raw')}`);
  });

  it('leaves backing files as they were, and no process behind', async () => {
    for (const name of ['data', 'root']) {
      expect(await nested(`sha256sum -c ${image(`${name}.sum`)}`)).toContain('OK');
    }
    expect(await nested('pidof qemu-storage-daemon || echo none')).toBe('none\n');
  });
});
