import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { VhostUserDevice } from '../../../src/backends/vhost-user/device.js';
import { vhostUserDevice, vhostUserNet, vhostUserRng } from '../../../src/backends/vhost-user/kinds.js';
import { VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS } from '../../../src/devices/virtio/net/defs.js';
import { STATUS_NEEDS_RESET, VIRTIO_F_VERSION_1, VIRTIO_ID_ENTROPY } from '../../../src/virtio/defs.js';
import { ExternalGuest, until } from '../../support/external-guest.js';
import { CONFIG, FakeBackend } from '../../support/vhost-user-backend.js';

const openFds = () => readdirSync('/proc/self/fd').length;
const BYTES = 100;

describe('a device of a vhost-user backend', () => {
  let folder: string;
  let path: string;
  let fdsBefore: number;
  const cleanups: (() => unknown)[] = [];

  beforeEach(() => {
    fdsBefore = openFds();
    folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
    path = join(folder, 'socket');
  });

  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    rmSync(folder, { recursive: true });
    await until(() => openFds() === fdsBefore);
  });

  function plug(device: VhostUserDevice): ExternalGuest {
    const guest = new ExternalGuest(device);
    cleanups.push(async () => {
      await guest.reset();
      device.close();
      guest.close();
    });
    guest.driver.start();
    return guest;
  }

  describe('that knows the first version of the protocol alone', () => {
    let programs: string;
    let backend: ChildProcess;
    const failures: string[] = [];

    beforeAll(() => {
      programs = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
      const source = fileURLToPath(new URL('../../support/programs/vhost-user-rng.c', import.meta.url));
      execFileSync('gcc', ['-O1', '-Wall', '-Werror', '-o', join(programs, 'rng'), source]);
    });
    afterAll(() => rmSync(programs, { recursive: true }));

    async function serve(): Promise<void> {
      rmSync(path, { force: true });
      backend = spawn(join(programs, 'rng'), [path], { stdio: ['ignore', 'pipe', 'inherit'] });
      cleanups.push(() => end());
      await once(backend.stdout!, 'data');
    }

    async function end(): Promise<void> {
      if (backend.exitCode !== null || backend.signalCode !== null) return;
      backend.kill('SIGKILL');
      await once(backend, 'close');
    }

    async function random(guest: ExternalGuest, gpa: number): Promise<number[]> {
      expect(await guest.submit(0, [{ gpa, length: BYTES, writable: true }])).toMatchObject({ writtenBytes: BYTES });
      return [...guest.memory.read(gpa, BYTES)];
    }

    it.each([
      ['by name', vhostUserRng()],
      ['by its number', vhostUserDevice(VIRTIO_ID_ENTROPY, 1, 0)],
    ])('serves an entropy device, known %s, and another goes on when it died', async (_, kind) => {
      failures.length = 0;
      await serve();
      const device = await VhostUserDevice.connect({ ...kind, path, onFailure: ({ code }) => failures.push(code) });
      const guest = plug(device);
      const gpa = guest.arena.place(BYTES);
      const counting = (from: number) => Array.from({ length: BYTES }, (_, i) => (from + i) & 0xff);
      for (let i = 0; i < 5; i++) expect(await random(guest, gpa)).toEqual(counting(i * BYTES));
      await end();
      await guest.status(STATUS_NEEDS_RESET, true);
      expect(failures).toEqual(['BACKEND_FAILED']);
      await serve();
      await guest.status(STATUS_NEEDS_RESET, false);
      expect(await random(guest, gpa)).toEqual(counting(0));
    });
  });

  it('has the address of a card, which the backend never hears of, and no feature that needs more queues', async () => {
    const CTRL_VQ = 1n << 17n;
    const MQ = 1n << 22n;
    const offered = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | CTRL_VQ | MQ;
    const backend = new FakeBackend(path);
    cleanups.push(() => backend.close());
    let agreed: bigint | undefined;
    backend.lies = {
      getFeatures: ({ answer }, message) => answer(message, u64(offered)),
      setFeatures: (_, { payload }) => (agreed = Buffer.from(payload).readBigUInt64LE()),
    };
    const mac = Uint8Array.of(2, 0, 0, 0, 0, 1);
    const device = await VhostUserDevice.connect({ ...vhostUserNet(mac), path });
    expect(device.features).toBe(VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS);
    const guest = plug(device);
    await until(() => agreed !== undefined);
    expect(agreed).toBe(VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF);
    expect([0, 1, 2, 3, 4, 5].map((i) => guest.mmio.read(0x100 + i, 1))).toEqual([...mac]);
    backend.lies.getVringBase = ({ answer }, message) => answer(message, message.payload);
  });

  it('has a configuration space of the backend or of the frontend, as it was told', async () => {
    const backend = new FakeBackend(path);
    cleanups.push(() => backend.close());
    const own = await VhostUserDevice.connect({ ...vhostUserDevice(34, 1, Uint8Array.of(7, 8)), path });
    expect(plug(own).mmio.read(0x100, 2)).toBe(0x0807);
    const theirs = await VhostUserDevice.connect({ ...vhostUserDevice(34, 1, CONFIG.length), path });
    expect(plug(theirs).mmio.read(0x100, 2)).toBe(0x0201);
  });
});

const u64 = (value: bigint) => new Uint8Array(BigUint64Array.of(value).buffer);
