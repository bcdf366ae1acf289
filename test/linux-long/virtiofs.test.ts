import { randomBytes } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';
import { nestedShell, runNested } from '../support/nested.js';

const nested = nestedShell(120_000);

const FILE_BYTES = 5 * 2 ** 20 + 17;

const SCRIPT = `
cd /mnt/rw
sha256sum -c SUM >/dev/null && echo 'host to guest: whole'
dd if=/dev/urandom of=from-guest bs=1M count=8 2>/dev/null
sha256sum from-guest >SUM-guest
mkdir deep && mv SUM-guest deep/SUM && ln -s deep/SUM link
cd /
sha256sum /mnt/ro/file | cut -c 1-64 | cmp -n 64 - /mnt/ro/SUM && echo 'read-only: read'
(echo x >/mnt/ro/new) 2>/dev/null || echo 'read-only: kept'
(while [ ! -e /tmp/enough ]; do dd if=/dev/zero of=/mnt/rw/load bs=64k count=64 conv=fsync 2>/dev/null || sleep 1; done; echo 'load: over') &
sleep 1
echo 'now: kill'
read line
touch /tmp/enough
wait
cat /mnt/rw/file >/dev/null 2>&1 || echo 'old mount: refused'
umount /mnt/rw && mount -t virtiofs rw /mnt/rw && cd /mnt/rw && sha256sum -c SUM deep/SUM >/dev/null && echo 'new mount: whole'
echo x >after-kill
cd /
umount /mnt/rw
`;

describe('a share of virtiofsd under a guest', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guest: GuestReport;
  const at = (name: string) => join(scratch.path, name);

  beforeAll(async () => {
    const programs = ['/usr/libexec/virtiofsd', '/usr/lib/qemu/virtiofsd'];
    await ensureInstalled([{ programs, package: 'qemu-system-common', code: 'IMAGE_NOT_FOUND' }]);
    scratch = await sharedFolder();
    for (const name of ['rw', 'ro', 'cli']) {
      await mkdir(at(name));
      await writeFile(at(`${name}/file`), randomBytes(FILE_BYTES));
      await nested(`cd ${at(name)} && sha256sum file >SUM`);
    }
    const devices = { console: 'serial', drives: 0, nets: 0, rng: false, transport: 'pci' } as const;
    const { modules, setup } = guestSetup({ ...devices, virtiofs: ['rw', 'ro'] });
    const options = await linuxGuest(at('initramfs.cpio'), {
      flavour: 'generic',
      modules,
      setup,
      command: ['sh', '-c', SCRIPT],
    });
    const shares = [
      { dir: at('rw'), tag: 'rw', backend: 'virtiofsd' },
      { dir: at('ro'), tag: 'ro', backend: 'virtiofsd', readOnly: true },
    ] as const;
    const reports = await bootGuests([
      {
        name: 'guest',
        options: { ...options, cpus: 2, shares },
        steps: [
          { when: 'now: kill', act: 'killShare', share: 0 },
          { when: 'now: kill', act: 'type', text: 'on\n' },
        ],
      },
    ]);
    guest = reports['guest'];
  });

  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  it('carries files both ways, whole', async () => {
    const { exit, error, output } = guest;
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    expect(output).toContain('host to guest: whole');
    expect(await nested(`cd ${at('rw')} && sha256sum -c link`)).toBe('from-guest: OK\n');
  });

  it('is only read where it is read-only', async () => {
    expect(guest.output).toContain('read-only: read');
    expect(guest.output).toContain('read-only: kept');
    expect(await nested(`ls ${at('ro')}`)).toBe('SUM\nfile\n');
  });

  it('says that its process was killed under load; the guest lives, and mounts it again when there is another', async () => {
    expect(guest.died).toMatch(/virtiofsd died: it was killed by SIGKILL/);
    expect(guest.deviceErrors).toEqual([expect.objectContaining({ device: 'share0', code: 'BACKEND_FAILED' })]);
    for (const line of ['load: over', 'old mount: refused', 'new mount: whole']) expect(guest.output).toContain(line);
    expect(await nested(`cat ${at('rw/after-kill')}`)).toBe('x\n');
  });

  it('moves data past this process: no kick reaches it', () => {
    const { kicks, interrupts } = guest.stats['end'];
    console.log('virtio-fs:', { kicks, interrupts });
    expect(kicks).toBe(0);
    expect(interrupts).toBeLessThan(20);
  });

  it('is mounted by the initramfs of vmexit run', async () => {
    const share = `${at('cli')}:cli,backend=virtiofsd`;
    const script = 'cd /mnt/cli && sha256sum -c SUM && grep virtiofs /proc/mounts';
    const command = ['run', '--accel', 'kvm', '--share', share, '--', 'sh', '-c', script];
    const { stdout, stderr, exitCode } = await runNested(['node', 'dist/cli/main.js', ...command], {
      timeoutMs: 240_000,
    });
    expect(exitCode, stderr).toBe(0);
    expect(stdout).toMatch(/file: OK\ncli \/mnt\/cli virtiofs rw/);
  });

  it('leaves no process behind', async () => {
    expect(await nested('pidof virtiofsd || echo none')).toBe('none\n');
  });
});
