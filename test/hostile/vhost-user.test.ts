import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { VhostUserDevice } from '../../src/backends/vhost-user/device.js';
import { vhostUserFs } from '../../src/backends/vhost-user/kinds.js';
import { BACKEND_REQUEST, encodeHeader, PROTOCOL_F, REQUEST } from '../../src/backends/vhost-user/protocol.js';
import type { VmmError } from '../../src/errors.js';
import { STATUS_NEEDS_RESET, VIRTIO_ID_BLOCK } from '../../src/virtio/defs.js';
import { ExternalGuest, until } from '../support/external-guest.js';
import { CONFIG, FakeBackend, type Connection, type Lies } from '../support/vhost-user-backend.js';

const TIMEOUT_MS = 150;
const QUEUES = 2;
const openFds = () => readdirSync('/proc/self/fd').length;
const nothing = () => {};
const u64 = (value: bigint) => new Uint8Array(BigUint64Array.of(value).buffer);

/** Answers with so many descriptors, wanted or not. */
const withFds =
  (count: number) =>
  (connection: Connection, message: { request: number; payload: Uint8Array }): void => {
    const file = openSync('/dev/null', 'r');
    connection.answer(
      message,
      message.payload.length > 0 ? message.payload : new Uint8Array(8),
      Array<number>(count).fill(file),
    );
    closeSync(file);
  };
const withPayload =
  (payload: Uint8Array) =>
  (connection: Connection, message: { request: number }): void =>
    connection.answer(message, payload);

/** A disk, whose configuration space is the backend's, and a file system, whose space is the frontend's. */
const KINDS = {
  blk: {
    name: 'fake-blk',
    type: VIRTIO_ID_BLOCK,
    queueSizes: Array<number>(QUEUES).fill(16),
    config: CONFIG.length,
  },
  fs: { ...vhostUserFs('tag'), name: 'fake-fs', inOrder: true },
};

/** Frontend and backend share this event loop: a millisecond is a turn of it, however long the processor was elsewhere. */
let ticking: NodeJS.Immediate;
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'] });
  const tick = () => {
    vi.advanceTimersByTime(1);
    ticking = setImmediate(tick);
  };
  tick();
});
afterEach(() => {
  clearImmediate(ticking);
  vi.useRealTimers();
});

describe.each(['blk', 'fs'] as const)('a vhost-user backend of type %s that lies', (type) => {
  const kind = KINDS[type];
  const hasConfig = typeof kind.config === 'number';
  let folder: string;
  let path: string;
  let backend: FakeBackend;
  let device: VhostUserDevice | undefined;
  let guest: ExternalGuest | undefined;
  let fdsBefore: number;
  const failures: VmmError[] = [];

  beforeEach(() => {
    fdsBefore = openFds();
    failures.length = 0;
    folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
    path = join(folder, 'socket');
    backend = new FakeBackend(path);
  });

  afterEach(async () => {
    await guest?.reset();
    device?.close();
    guest?.close();
    guest = device = undefined;
    backend.close();
    rmSync(folder, { recursive: true });
    await until(() => openFds() === fdsBefore).catch(() => expect(openFds()).toBe(fdsBefore));
  });

  async function connect(): Promise<VhostUserDevice> {
    device = await VhostUserDevice.connect({
      ...kind,
      path,
      timeoutMs: TIMEOUT_MS,
      onFailure: (error) => failures.push(error),
    });
    return device;
  }

  /** A guest whose driver has started, with the backend's queues running. */
  async function boot(): Promise<ExternalGuest> {
    guest = new ExternalGuest(await connect());
    guest.driver.start();
    await until(() => backend.seen.filter((name) => name === 'setVringEnable').length === QUEUES);
    return guest;
  }

  async function msToReset(guest: ExternalGuest): Promise<number> {
    const startMs = performance.now();
    await guest.reset();
    return performance.now() - startMs;
  }

  it('is told apart from one that does not', async () => {
    const { driver } = await boot();
    expect(driver.get(0x100)).toBe(hasConfig ? 0x04030201 : 0x00676174);
    expect(driver.status & STATUS_NEEDS_RESET).toBe(0);
    expect(failures).toEqual([]);
  });

  const TIMEOUT = { code: 'TIMEOUT' };
  const FAILED = { code: 'BACKEND_FAILED' };
  it.each<[string, Lies, object]>([
    ['says nothing', { getFeatures: nothing }, TIMEOUT],
    ['acknowledges nothing', { setBackendReqFd: nothing }, TIMEOUT],
    ['hangs up', { getFeatures: (connection) => connection.close() }, FAILED],
    ['speaks another version', { getFeatures: ({ raw }) => raw(new Uint8Array(20)) }, FAILED],
    [
      'announces a gigabyte',
      { getFeatures: ({ raw }) => raw(new Uint8Array(Uint32Array.of(1, 5, 2 ** 30).buffer)) },
      FAILED,
    ],
    ['sends half a header', { getFeatures: ({ raw }) => raw(new Uint8Array(5).fill(1)) }, TIMEOUT],
    ['answers another request', { getFeatures: ({ answer }) => answer({ request: 15 }, new Uint8Array(8)) }, FAILED],
    [
      'answers twice',
      { getProtocolFeatures: (c, m) => (c.answer(m, u64(PROTOCOL_F.MQ)), c.answer(m, u64(PROTOCOL_F.MQ))) },
      FAILED,
    ],
    ['answers too short', { getFeatures: withPayload(new Uint8Array(4)) }, FAILED],
    ['answers too long', { getFeatures: withPayload(new Uint8Array(16)) }, FAILED],
    ['adds descriptors', { getFeatures: withFds(3) }, FAILED],
    ['adds more descriptors than anybody takes', { getFeatures: withFds(32) }, FAILED],
    ['knows no virtio 1', { getFeatures: withPayload(new Uint8Array(8)) }, FAILED],
    ['has too few queues', { getQueueNum: withPayload(u64(1n)) }, FAILED],
  ])('%s: is refused when it is connected', async (_, lies, error) => {
    backend.lies = lies;
    await expect(connect()).rejects.toMatchObject(error);
  });

  it.runIf(hasConfig).each<[string, Lies, object]>([
    ['has no configuration', { getConfig: withPayload(new Uint8Array(0)) }, FAILED],
    [
      'has a small configuration',
      { getConfig: withPayload(REQUEST.getConfig.query.encode({ offset: 0, bytes: new Uint8Array(8) })) },
      FAILED,
    ],
    [
      'has a large configuration',
      { getConfig: withPayload(REQUEST.getConfig.query.encode({ offset: 0, bytes: new Uint8Array(200) })) },
      FAILED,
    ],
    ['lies about a size', { getConfig: withPayload(new Uint8Array(28)) }, FAILED],
  ])(
    '%s: is refused when it is connected (skipped where the configuration is the frontend’s)',
    async (_, lies, error) => {
      backend.lies = lies;
      await expect(connect()).rejects.toMatchObject(error);
    },
  );

  it('is refused when nobody listens', async () => {
    backend.close();
    await expect(connect()).rejects.toMatchObject({ ...FAILED, message: expect.stringContaining(path) as string });
    backend = new FakeBackend(join(folder, 'other'));
  });

  const refuse = withPayload(Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
  it.each<[string, Lies]>([
    ['refuses the features', { setFeatures: refuse }],
    ['never acknowledges guest memory', { setMemTable: nothing }],
    ['dies with guest memory', { setMemTable: (connection) => connection.close() }],
    ['has no inflight descriptor', { getInflightFd: withFds(0) }],
    ['has two inflight descriptors', { getInflightFd: withFds(2) }],
    ['refuses its inflight area', { setInflightFd: refuse }],
    ['refuses a queue', { setVringEnable: refuse }],
  ])('%s: fails the device, which works with the next one', async (_, lies) => {
    backend.lies = lies;
    guest = new ExternalGuest(await connect());
    guest.driver.start();
    await guest.status(STATUS_NEEDS_RESET, true);
    expect(failures[0]).toMatchObject({ message: expect.stringContaining(kind.name) as string });
    expect(guest.configChanges).toBeGreaterThan(0);
    backend.lies = {};
    await guest.status(STATUS_NEEDS_RESET, false);
  });

  it('dies, and dies again: the device fails and recovers each time', async () => {
    const guest = await boot();
    for (let i = 1; i <= 3; i++) {
      backend.drop();
      await until(() => failures.length === i);
      await guest.status(STATUS_NEEDS_RESET, false);
    }
  });

  it('is gone: the driver can reset the device, and start it once there is another', async () => {
    const guest = await boot();
    backend.close();
    await guest.status(STATUS_NEEDS_RESET, true);
    await guest.reset();
    guest.driver.start();
    expect(guest.driver.status & STATUS_NEEDS_RESET).toBeTruthy();
    rmSync(path);
    backend = new FakeBackend(path);
    await guest.status(STATUS_NEEDS_RESET, false);
  });

  it('does not stop: the reset ends all the same', async () => {
    const guest = await boot();
    backend.lies = { getVringBase: nothing };
    expect(await msToReset(guest)).toBeLessThan(2 * TIMEOUT_MS);
    expect(failures[0]).toMatchObject(TIMEOUT);
  });

  it('stops with requests undone that it never took: the reset ends all the same', async () => {
    const guest = await boot();
    backend.lies = { getVringBase: withPayload(REQUEST.getVringBase.query.encode({ index: 0, num: 5 })) };
    expect(await msToReset(guest)).toBeLessThan(2 * TIMEOUT_MS);
    expect(failures[0]).toMatchObject(TIMEOUT);
  });

  it('gives a queue up: the device fails', async () => {
    const guest = await boot();
    writeSync(backend.errFd!, BigUint64Array.of(1n));
    await guest.status(STATUS_NEEDS_RESET, true);
  });

  it('never stops telling of changes: the event loop and the device go on', async () => {
    const guest = await boot();
    const message = encodeHeader({ request: BACKEND_REQUEST.configChange.id, flags: 0, payloadBytes: 0 });
    let sent = 0;
    const flood = setInterval(() => {
      for (let i = 0; i < 200; i++) sent += backend.channel!.send(message, []);
    }, 1);
    await new Promise((resolve) => setTimeout(resolve, 200));
    clearInterval(flood);
    expect(sent).toBeGreaterThan(0);
    expect(guest.configChanges).toBe(0); // nothing changed
    expect(guest.driver.status & STATUS_NEEDS_RESET).toBe(0);
  });

  it('sends descriptors over its own channel: they are closed', async () => {
    const guest = await boot();
    const file = openSync('/dev/null', 'r');
    const message = encodeHeader({ request: 99, flags: 0, payloadBytes: 0 });
    for (let i = 0; i < 20; i++) backend.channel!.send(message, Array<number>(8).fill(file));
    closeSync(file);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(guest.driver.status & STATUS_NEEDS_RESET).toBe(0);
  });

  it.runIf(!hasConfig)(
    'has a configuration of its own, which nobody asks for (skipped where it is the backend’s)',
    async () => {
      const guest = await boot();
      backend.channel!.send(encodeHeader({ request: BACKEND_REQUEST.configChange.id, flags: 0, payloadBytes: 0 }), []);
      guest.mmio.write(0x100, 4, 0xffff_ffff);
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(guest.driver.get(0x100)).toBe(0x00676174);
      expect(backend.seen).not.toContain('getConfig');
      expect(backend.seen).not.toContain('setConfig');
    },
  );

  it.runIf(hasConfig)(
    'has another configuration later, of which the driver is told (skipped where it is the frontend’s)',
    async () => {
      const guest = await boot();
      const other = CONFIG.map((byte) => byte + 1);
      backend.lies = { getConfig: withPayload(REQUEST.getConfig.query.encode({ offset: 0, bytes: other })) };
      const message = encodeHeader({ request: BACKEND_REQUEST.configChange.id, flags: 0, payloadBytes: 0 });
      backend.channel!.send(message, []);
      await until(() => guest.configChanges === 1);
      expect(guest.driver.get(0x100)).toBe(0x05040302);
    },
  );
});
