import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';
import { nestedShell, runNested } from '../support/nested.js';

const nested = nestedShell(120_000);

const MIB = 2 ** 20;
const SCRIPT = `
sha256sum /dev/vda
dd if=/dev/urandom of=/dev/vda bs=1M count=4 seek=1 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
sha256sum /dev/vda
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng bs=16 count=4 2>/dev/null | od -An -v -tu1
mount -t virtiofs dir /mnt && cat /mnt/hello
`;

describe('devices of vhost-user backends that others started', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guest: GuestReport;
  let pids: string;
  let sumBefore: string;
  const at = (name: string) => join(scratch.path, name);

  beforeAll(async () => {
    scratch = await sharedFolder();
    const source = fileURLToPath(new URL('../support/programs/vhost-user-rng.c', import.meta.url));
    execFileSync('gcc', ['-static', '-O1', '-o', at('rng'), source]);
    await writeFile(at('disk.raw'), randomBytes(16 * MIB));
    sumBefore = (await nested(`sha256sum <${at('disk.raw')}`)).slice(0, 64);
    pids = await nested(`
      mkdir /tmp/vhost-user && cd /tmp/vhost-user && mkdir dir && echo 'from the host' >dir/hello
      qemu-storage-daemon --blockdev file,filename=${at('disk.raw')},node-name=disk \\
        --export vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path=blk,writable=on,num-queues=2 >log 2>&1 &
      echo $!
      ${at('rng')} rng >log 2>&1 &
      echo $!
      $(ls /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd 2>/dev/null | head -n 1) --socket-path=fs -o source=/tmp/vhost-user/dir >log 2>&1 &
      echo $!
      for i in $(seq 100); do [ -S blk ] && [ -S rng ] && [ -S fs ] && break; sleep 0.2; done`);
    const devices = { console: 'serial', drives: 1, nets: 0, rng: true, transport: 'pci' } as const;
    const { modules } = guestSetup(devices);
    const command = ['sh', '-c', SCRIPT];
    const options = await linuxGuest(at('initramfs.cpio'), { modules: [...modules, 'virtiofs'], command });
    const socket = (name: string) => `/tmp/vhost-user/${name}`;
    const reports = await bootGuests([
      {
        name: 'guest',
        options: {
          ...options,
          cpus: 2,
          vhostUser: [
            { socket: socket('blk'), type: 'blk' },
            { socket: socket('rng'), type: 4, queues: 1 },
            { socket: socket('fs'), type: 'fs', tag: 'dir' },
          ],
        },
      },
    ]);
    guest = reports['guest'];
  });

  afterAll(async () => {
    await nested(`kill ${pids.trim().split('\n').join(' ')}; rm -rf ${scratch.path} /tmp/vhost-user`);
    await scratch[Symbol.asyncDispose]();
  });

  it('are a disk, which reads and writes the image of a storage daemon', async () => {
    const { exit, error, output } = guest;
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    const sums = [...output.matchAll(/^([0-9a-f]{64}) {2}\/dev\/vda/gm)].map(([, sum]) => sum);
    const after = (await nested(`sha256sum <${at('disk.raw')}`)).slice(0, 64);
    expect(after).not.toBe(sumBefore);
    expect(sums).toEqual([sumBefore, after]);
  });

  it('are an entropy device by its ID, whose bytes are the backend’s', () => {
    expect(guest.output).toContain('virtio_rng.0');
    const lines = guest.output.split('\n').filter((line) => /^( +\d+){16}\s*$/.test(line));
    const bytes = lines.flatMap((line) => line.trim().split(/\s+/).map(Number));
    expect(bytes).toHaveLength(64);
    // The kernel takes some for itself, and gives the rest on in pieces, in order.
    for (let i = 1; i < 16; i++) expect((bytes[i] - bytes[i - 1] + 256) % 256).toBe(1);
  });

  it('are a file system', () => {
    expect(guest.output).toContain('from the host\n');
  });

  it('are had from the command line, too: vmexit run --vhost-user', async () => {
    const options = ['--accel', 'kvm', '--vhost-user', 'blk,socket=/tmp/vhost-user/blk'];
    const command = ['run', ...options, '--', 'sha256sum', '/dev/vda'];
    const { stdout, stderr, exitCode } = await runNested(['node', 'dist/cli/main.js', ...command], {
      timeoutMs: 240_000,
    });
    expect(exitCode, stderr).toBe(0);
    expect(stdout).toContain((await nested(`sha256sum <${at('disk.raw')}`)).slice(0, 64));
  });

  it('go by eventfds: no kick passes through this process', () => {
    expect(guest.stats['end'].kicks).toBe(0);
    expect(Object.keys(guest.stats['end'].devices)).toEqual(['vhostUser0', 'vhostUser1', 'vhostUser2']);
  });
});
