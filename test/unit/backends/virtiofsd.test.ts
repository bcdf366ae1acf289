import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { findProgram } from '../../../src/backends/qemu/supervised.js';
import { Virtiofsd } from '../../../src/backends/qemu/virtiofsd.js';
import { VhostUserDevice } from '../../../src/backends/vhost-user/device.js';
import { vhostUserFs } from '../../../src/backends/vhost-user/kinds.js';
import { STATUS_NEEDS_RESET } from '../../../src/virtio/defs.js';
import { until } from '../../support/external-guest.js';
import { FuseGuest } from '../../support/fuse-guest.js';

const openFds = () => readdirSync('/proc/self/fd').length;
const isInstalled = (() => {
  try {
    return Boolean(findProgram('virtiofsd'));
  } catch {
    return false;
  }
})();

describe.skipIf(!isInstalled || process.geteuid?.() !== 0)(
  'a directory served by virtiofsd (skipped unless root, with virtiofsd installed)',
  () => {
    let folder: string;
    let dir: string;
    let fdsBefore: number;
    const failures: string[] = [];
    const cleanups: (() => unknown)[] = [];

    beforeEach(() => {
      fdsBefore = openFds();
      failures.length = 0;
      folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
      // What is special in its options.
      dir = join(folder, 'a, b\\c=d');
      mkdirSync(dir);
    });

    afterEach(async () => {
      for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
      rmSync(folder, { recursive: true });
      await expect.poll(openFds).toBe(fdsBefore);
    });

    async function startDaemon({ readOnly = false } = {}): Promise<Virtiofsd> {
      const daemon = await Virtiofsd.start({ dir, readOnly });
      cleanups.push(() => daemon.close());
      return daemon;
    }

    /** A guest that has the share mounted; the function unplugs it. */
    async function plug(daemon: Virtiofsd): Promise<{ guest: FuseGuest; unplug: () => Promise<void> }> {
      const device = await VhostUserDevice.connect({
        ...vhostUserFs('tag'),
        inOrder: true,
        path: daemon.socketPath,
        onFailure: (error) => failures.push(error.message),
      });
      const guest = new FuseGuest(device);
      let isPlugged = true;
      const unplug = async () => {
        if (!isPlugged) return;
        isPlugged = false;
        await guest.reset();
        device.close();
        guest.close();
      };
      cleanups.push(unplug);
      await guest.init();
      return { guest, unplug };
    }

    it('is read and written by a guest', async () => {
      const bytes = randomBytes(30_000);
      writeFileSync(join(dir, 'to guest'), bytes);
      const { guest } = await plug(await startDaemon());
      expect((await guest.read('to guest')).equals(bytes)).toBe(true);
      await guest.write('from guest', bytes);
      expect(readFileSync(join(dir, 'from guest')).equals(bytes)).toBe(true);
      expect(Buffer.from([0, 1, 2, 3].map((i) => guest.mmio.read(0x100 + i, 1))).toString()).toBe('tag\0');
    });

    it('does not change when it is shared read-only', async () => {
      writeFileSync(join(dir, 'file'), 'content');
      const { guest } = await plug(await startDaemon({ readOnly: true }));
      expect((await guest.read('file')).toString()).toBe('content');
      await expect(guest.write('other', Uint8Array.of(1))).rejects.toThrow('errno 30'); // EROFS
      expect(readdirSync(dir)).toEqual(['file']);
      writeFileSync(join(dir, 'other'), 'by the host');
      expect((await guest.read('other')).toString()).toBe('by the host');
    });

    it('is served again after a machine was reset, by another process', async () => {
      writeFileSync(join(dir, 'file'), 'content');
      const daemon = await startDaemon();
      for (let i = 0; i < 3; i++) {
        const { guest, unplug } = await plug(daemon);
        expect((await guest.read('file')).toString()).toBe('content');
        await unplug();
      }
      await until(() => !daemon.running);
      expect(failures).toEqual([]);
    });

    it('fails the device when the process dies, says so, and goes on with the next process', async () => {
      writeFileSync(join(dir, 'file'), 'content');
      const daemon = await startDaemon();
      const { guest } = await plug(daemon);
      const died = new Promise<Error>((resolve) => daemon.once('died', resolve));
      process.kill(daemon.pid!, 'SIGKILL');
      expect(await died).toMatchObject({ code: 'QEMU_FAILED', message: expect.stringContaining('SIGKILL') as string });
      await guest.status(STATUS_NEEDS_RESET, true);
      expect(failures).toEqual([expect.stringContaining('connection')]);
      expect(daemon.running).toBe(false);
      const read = guest.read('file');
      await Promise.all([daemon.restart(), expect(read).rejects.toThrow('errno 5')]); // EIO: nothing is mounted there
      await guest.status(STATUS_NEEDS_RESET, false);
      await guest.init();
      expect((await guest.read('file')).toString()).toBe('content');
    });

    it('is restarted while it runs', async () => {
      const daemon = await startDaemon();
      const { guest } = await plug(daemon);
      const { pid } = daemon;
      await daemon.restart();
      expect(daemon.pid).not.toBe(pid);
      await until(() => failures.length === 1);
      await guest.status(STATUS_NEEDS_RESET, false);
      await guest.init();
    });

    it('says what virtiofsd says of a directory that is none', async () => {
      dir = join(folder, 'none');
      await expect(Virtiofsd.start({ dir, readOnly: false })).rejects.toMatchObject({
        code: 'QEMU_FAILED',
        message: expect.stringContaining('No such file') as string,
      });
      await expect(Virtiofsd.start({ dir, readOnly: true })).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    });

    it('leaves neither process nor folder behind', async () => {
      const daemon = await startDaemon();
      const { pid, socketPath } = daemon;
      await daemon.close();
      await daemon.close();
      expect(existsSync(`/proc/${pid}`)).toBe(false);
      expect(existsSync(join(socketPath, '..'))).toBe(false);
      await expect(daemon.restart()).rejects.toMatchObject({ code: 'CLOSED' });
    });
  },
);
