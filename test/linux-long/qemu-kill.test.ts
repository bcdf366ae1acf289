import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport, type GuestStep } from '../support/linux-guests.js';
import { nestedShell } from '../support/nested.js';

const nested = nestedShell(120_000);

const MIB = 2 ** 20;
const KILLS = 3;
const BLOCKS = 16;
const WEB_PORT = 8124;

/** None of the writers knows of the disks' processes. */
const SCRIPT = `
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/data bs=64k count=${BLOCKS} 2>/dev/null

# Files, each made durable, and its sum.
files() {
  i=0
  while [ ! -e /tmp/over ]; do
    i=$((i + 1))
    dd if=/data of=/mnt/$1-$i bs=64k skip=$((i % ${BLOCKS / 2})) count=${BLOCKS / 2} conv=fsync 2>/dev/null || echo "file $1-$i: failed"
    sha256sum /mnt/$1-$i >>/tmp/files-$1
  done
}
# Blocks past the page cache, each in a new place, which nothing flushes.
blocks() {
  i=0
  while [ ! -e /tmp/over ]; do
    dd if=/data of=/dev/vdb bs=64k skip=$((i % ${BLOCKS})) seek=$i count=1 oflag=direct 2>/dev/null || echo "block $i: failed"
    i=$((i + 1))
    echo $i >>/tmp/blocks
  done
}
lines() { cat $1 2>/dev/null | wc -l; }
files a & files b & blocks &
for kill in $(seq 0 ${KILLS - 1}); do
  # More than what was under way: both disks work.
  f=$(lines '/tmp/files-*') b=$(lines /tmp/blocks)
  until [ $(lines '/tmp/files-*') -gt $((f + 2)) ] && [ $(lines /tmp/blocks) -gt $((b + 2)) ]; do sleep 0.1; done
  echo "now: kill $kill"; read line
done
touch /tmp/over; wait
umount /mnt; mount -t ext4 /dev/vda /mnt
echo "files: $(lines '/tmp/files-*')"
echo "files as written: $(cat /tmp/files-* | sha256sum -c 2>/dev/null | grep -c OK)"
umount /mnt
blocks=$(lines /tmp/blocks)
for i in $(seq 0 $((blocks / ${BLOCKS}))); do cat /data; done | head -c $((blocks * 65536)) >/tmp/expected
dd if=/dev/vdb bs=64k count=$blocks iflag=direct 2>/dev/null | cmp - /tmp/expected && echo "blocks as written: $blocks"

(
  while timeout 15 wget -q -O /dev/null http://10.0.2.2:${WEB_PORT}/large; do echo fetched; done >/tmp/fetched
  echo failed >/tmp/failed
) &
for i in $(seq 300); do [ -s /tmp/fetched ] && break; sleep 0.1; done
echo "now: kill the card"; read line
for i in $(seq 200); do [ -e /tmp/failed ] && break; sleep 0.5; done
echo "network: $(cat /tmp/failed), after $(lines /tmp/fetched) downloads"
`;

describe('QEMU processes that are killed under load', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guest: GuestReport;
  const image = (name: string) => join(scratch.path, name);
  const errorsOf = (device: string) => guest.deviceErrors.filter((error) => error.device === device);

  beforeAll(async () => {
    await ensureInstalled([
      QEMU_X86,
      { programs: ['qemu-storage-daemon'], package: 'qemu-system-common', code: 'IMAGE_NOT_FOUND' },
      { programs: ['qemu-img'], package: 'qemu-utils', code: 'IMAGE_NOT_FOUND' },
      { programs: ['mke2fs', 'e2fsck'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' },
    ]);
    scratch = await sharedFolder();
    await nested(`mke2fs -q -t ext4 ${image('files')} 64M; qemu-img create -q -f qcow2 ${image('blocks.qcow2')} 256M`);
    const devices = [{ device: 'e1000', hasNetwork: true }];
    const setup = guestSetup({ console: 'serial', drives: 2, nets: 0, rng: false, transport: 'pci', devices });
    const kills = Array.from({ length: KILLS }, (_, i): GuestStep[] => [
      { when: `now: kill ${i}`, act: 'killDrive', drive: 0 },
      { when: `now: kill ${i}`, act: 'killDrive', drive: 1 },
      { when: `now: kill ${i}`, act: 'type', text: 'on\n' },
    ]);
    const guests = await bootGuests([
      {
        name: 'guest',
        options: {
          ...(await linuxGuest(image('initramfs'), { flavour: 'generic', ...setup, command: ['sh', '-c', SCRIPT] })),
          cpus: 2,
          memory: '512M',
          drives: [
            { path: image('files'), backend: 'qemu' },
            { path: image('blocks.qcow2'), backend: 'qemu' },
          ],
          devices: [{ type: 'qemu-pci', id: 'card', device: 'e1000', netdev: { type: 'user' } }],
        },
        serve: { port: WEB_PORT, body: '', largeBytes: MIB },
        steps: [
          ...kills.flat(),
          { when: 'now: kill the card', act: 'killQemu', like: 'e1000' },
          { when: 'now: kill the card', act: 'type', text: 'on\n' },
        ],
        timeoutMs: 540_000,
      },
    ]);
    guest = guests['guest'];
  }, 900_000);

  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  it('leave a guest that ends in order', () => {
    const { exit, error, output } = guest;
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
  });

  it.each(['drive0', 'drive1'])('and are storage daemons are told of each time: %s', (drive) => {
    expect(guest.died).toMatch(/qemu-storage-daemon died: it was killed by SIGKILL/);
    const codes = errorsOf(drive).map(({ code }) => code);
    expect(codes.length).toBeGreaterThanOrEqual(KILLS);
    expect(new Set(codes)).toEqual(new Set(['BACKEND_FAILED']));
  });

  it('cost a raw disk nothing: no write fails, every file is as written', async () => {
    const { output } = guest;
    expect(output).not.toMatch(/^(file|block) .*: failed/m);
    const files = Number(/^files: (\d+)\s*$/m.exec(output)?.[1]);
    expect(files).toBeGreaterThan(3 * (KILLS - 1));
    expect(output).toMatch(new RegExp(`^files as written: ${files}\\s*$`, 'm'));
    expect(await nested(`e2fsck -fn ${image('files')} 2>&1`)).toMatch(/files: \d+\/\d+ files/);
  });

  it('cost a qcow2 disk nothing either, also of what was answered and never flushed', async () => {
    expect(guest.output).toMatch(/^blocks as written: [1-9]\d+/m);
    expect(await nested(`qemu-img check ${image('blocks.qcow2')}`)).toContain('No errors');
  });

  it('are a network card that failed, once, in a guest that goes on', () => {
    expect(errorsOf('card')).toEqual([
      {
        device: 'card',
        code: 'QEMU_FAILED',
        message: 'the QEMU process of e1000 is gone: it was killed by SIGKILL',
      },
    ]);
    expect(guest.output).toMatch(/^network: failed, after [1-9]\d* downloads/m);
  });

  it('leave no process behind', async () => {
    expect(await nested('pidof qemu-storage-daemon qemu-system-x86_64 || echo none')).toBe('none\n');
  });
});
