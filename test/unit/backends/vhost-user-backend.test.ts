import { mkdtempSync, openSync, closeSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VhostUserDevice } from '../../../src/backends/vhost-user/device.js';
import { encodeHeader, REQUEST } from '../../../src/backends/vhost-user/protocol.js';
import { VhostUserServer } from '../../../src/backends/vhost-user/server.js';
import { CONFIG_BYTES } from '../../../src/devices/virtio/blk/defs.js';
import { QUEUE_SIZE } from '../../../src/devices/virtio/blk/config.js';
import { VmmError } from '../../../src/errors.js';
import { serveDevice, type ServedDevice } from '../../../src/machine/serve-device.js';
import { addon, native } from '../../../src/native/addon.js';
import { STATUS_NEEDS_RESET, VIRTIO_ID_BLOCK } from '../../../src/virtio/defs.js';
import { ExternalGuest, until } from '../../support/external-guest.js';
import { RAM_BYTES, RawFrontend, u64, USER_BASE } from '../../support/vhost-user-frontend.js';
import { EchoDevice } from '../virtio/echo-device.js';

const SECTOR = 512;
const openFds = () => readdirSync('/proc/self/fd').length;

let folder: string;
let socket: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
  socket = join(folder, 'socket');
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('a device that is served, to our own frontend', () => {
  let served: ServedDevice;
  let device: VhostUserDevice | undefined;
  let guest: ExternalGuest | undefined;

  afterEach(async () => {
    await guest?.reset();
    device?.close();
    guest?.close();
    guest = device = undefined;
    await served.close();
  });

  async function boot(queues: number, queueSize: number, configBytes: number) {
    device = await VhostUserDevice.connect({
      name: 'served',
      type: VIRTIO_ID_BLOCK,
      path: socket,
      queueSizes: Array<number>(queues).fill(queueSize),
      config: configBytes,
    });
    guest = new ExternalGuest(device);
    guest.driver.start();
    return guest;
  }

  /** One request of the disk: virtio 1.2, 5.2.6. @returns Its status and the data read. */
  async function request(queue: number, type: number, sector: number, data: Uint8Array) {
    const header = guest!.arena.place(16);
    guest!.memory.dataView(header, 16).setUint32(0, type, true);
    guest!.memory.dataView(header, 16).setBigUint64(8, BigInt(sector), true);
    const isWrite = type === 1;
    const gpa = guest!.arena.place(isWrite ? data : data.length);
    const status = guest!.arena.place(Uint8Array.of(0xff));
    await guest!.submit(queue, [
      { gpa: header, length: 16 },
      ...(data.length > 0 ? [{ gpa, length: data.length, writable: !isWrite }] : []),
      { gpa: status, length: 1, writable: true },
    ]);
    return { status: guest!.memory.read(status, 1)[0], data: guest!.memory.read(gpa, data.length) };
  }

  it('is a disk: it reads and writes the image from several queues, and tells its size', async () => {
    const image = join(folder, 'disk');
    const content = randomBytes(64 * SECTOR);
    writeFileSync(image, content);
    served = await serveDevice({ type: 'blk', path: image, socket, queues: 2, serial: 'S' });
    const { driver } = await boot(2, QUEUE_SIZE, CONFIG_BYTES);
    expect(driver.get(0x100)).toBe(64); // capacity in sectors
    const [read, write] = await Promise.all([
      request(0, 0, 7, new Uint8Array(9 * SECTOR)),
      request(1, 1, 40, content.subarray(0, SECTOR)),
    ]);
    expect(read).toEqual({ status: 0, data: new Uint8Array(content.subarray(7 * SECTOR, 16 * SECTOR)) });
    expect(write.status).toBe(0);
    expect(readFileSync(image).subarray(40 * SECTOR, 41 * SECTOR)).toEqual(content.subarray(0, SECTOR));
    expect((await request(0, 0, 64, new Uint8Array(SECTOR))).status).toBe(1); // past the end
  });

  it('tells of changes of its configuration space', async () => {
    const echo = new EchoDevice([8]);
    served = await serveDevice({ type: 'device', device: echo, socket });
    const { driver } = await boot(1, 8, echo.config.length);
    await until(() => echo.context !== undefined);
    echo.config[0] = 0x77;
    echo.context!.configChanged();
    await until(() => guest!.configChanges === 1);
    expect(driver.get(0x100)).toBe(0x77);
    driver.set(0x100, 0x1234);
    await until(() => echo.config[1] === 0x12);
  });

  it('goes on where it stopped, without a reset, when its frontend stops and resumes', async () => {
    const echo = Object.assign(new EchoDevice([8]), { quiesce: () => Promise.resolve(), resume: () => {} });
    served = await serveDevice({ type: 'device', device: echo, socket });
    const { arena, memory } = await boot(1, 8, 0);
    const say = async (text: string) => {
      const [from, to] = [arena.place(text), arena.place(text.length)];
      await guest!.submit(0, [
        { gpa: from, length: text.length },
        { gpa: to, length: text.length, writable: true },
      ]);
      return Buffer.from(memory.read(to, text.length)).toString();
    };
    expect(await say('before')).toBe('before');
    const { resets } = echo;
    await device!.quiesce();
    device!.resume();
    expect(await say('after')).toBe('after');
    expect(echo.resets).toBe(resets);
  });

  it('is there for the next frontend, and a next server at the socket takes over', async () => {
    const echo = new EchoDevice([8]);
    served = await serveDevice({ type: 'device', device: echo, socket });
    await boot(1, 8, 0);
    const gpa = guest!.arena.place('hello');
    expect(
      (
        await guest!.submit(0, [
          { gpa, length: 5 },
          { gpa: 0x8000, length: 5, writable: true },
        ])
      ).writtenBytes,
    ).toBe(5);
    await served.close();
    await guest!.status(STATUS_NEEDS_RESET, true);
    served = await serveDevice({ type: 'device', device: echo, socket });
    await guest!.status(STATUS_NEEDS_RESET, false);
    expect(
      (
        await guest!.submit(0, [
          { gpa, length: 5 },
          { gpa: 0x8000, length: 5, writable: true },
        ])
      ).writtenBytes,
    ).toBe(5);
  });
});

describe('a frontend that lies', () => {
  let echo: EchoDevice;
  let server: VhostUserServer;
  let frontend: RawFrontend;
  let ends: VmmError[];
  let fdsBefore: number;

  beforeEach(() => {
    fdsBefore = openFds();
    echo = new EchoDevice([8, 8]);
    server = new VhostUserServer(echo, socket);
    ends = [];
    server.on('disconnect', (error) => ends.push(error));
    frontend = new RawFrontend(socket);
  });

  afterEach(async () => {
    frontend.close();
    await server.close();
    await until(() => openFds() === fdsBefore).catch(() => expect(openFds()).toBe(fdsBefore));
  });

  const state = (index: number, num: number) => REQUEST.setVringNum.query.encode({ index, num });
  const table = (change: object) => REQUEST.setMemTable.query.encode([{ ...frontend.region(), ...change }]);
  const devNull = () => openSync('/dev/null', 'r');

  /** The connection ends for that reason, and the next frontend is served. */
  async function isRefused(reason: RegExp): Promise<void> {
    await until(() => ends.length === 1);
    expect(ends[0]).toBeInstanceOf(VmmError);
    expect(ends[0].message).toMatch(reason);
    expect(echo.context).toBeUndefined();
    frontend.close();
    frontend = new RawFrontend(socket);
    const queue = await frontend.run();
    queue.add([{ gpa: 0x8000, length: 4 }]);
    frontend.kick.signal();
    await until(() => queue.usedIdx === 1);
  }

  it('is told apart from one that does not', async () => {
    const queue = await frontend.run();
    frontend.memory.write(0x8000, Buffer.from('data'));
    queue.add([
      { gpa: 0x8000, length: 4 },
      { gpa: 0x9000, length: 4, writable: true },
    ]);
    frontend.kick.signal();
    await until(() => queue.usedIdx === 1);
    expect(Buffer.from(frontend.memory.read(0x9000, 4)).toString()).toBe('data');
    expect(frontend.call.read()).toBeGreaterThan(0n);
    expect(ends).toEqual([]);
  });

  it.each([
    ['more memory than its file has', { sizeBytes: BigInt(2 * RAM_BYTES) }, /F_SEAL_SHRINK/],
    ['memory past the end of its file', { mmapOffset: BigInt(RAM_BYTES) }, /F_SEAL_SHRINK/],
    ['an offset that is no page', { mmapOffset: 512n }, /no memory can be/],
    ['no memory at all', { sizeBytes: 0n }, /no memory can be/],
    ['memory that wraps around', { gpa: (1n << 64n) - 4096n }, /no memory can be/],
  ])('and announces %s is refused', async (_name, change, reason) => {
    await frontend.negotiate();
    frontend.send(REQUEST.setMemTable.id, table(change), [frontend.ram.fd!]);
    await isRefused(reason);
  });

  it('and shares memory that it could take away is refused, and told what to do', async () => {
    const file = join(folder, 'ram');
    writeFileSync(file, Buffer.alloc(RAM_BYTES));
    const fd = openSync(file, 'r+');
    frontend.send(REQUEST.setMemTable.id, table({}), [fd]);
    closeSync(fd);
    await isRefused(/memory-backend-memfd/);
  });

  it('and sends a memory table without its memory is refused', async () => {
    frontend.send(REQUEST.setMemTable.id, table({}), []);
    await isRefused(/1 regions came with 0 descriptors/);
  });

  it.each([
    ['of no size', { size: 0 }],
    ['of a size that is no power of two', { size: 5 }],
    ['larger than any of QEMU', { size: 2048 }],
    ['outside the memory', { desc: USER_BASE + BigInt(RAM_BYTES) }],
    ['that reaches past the memory', { used: USER_BASE + BigInt(RAM_BYTES) - 8n }],
    ['that is not aligned', { avail: USER_BASE + 0x3001n }],
    ['whose parts overlap', { used: USER_BASE + 0x2000n }],
  ])('and has a ring %s is refused', async (_name, { size = 8, ...change }: Record<string, unknown>) => {
    await frontend.negotiate();
    const address = { index: 0, desc: USER_BASE + 0x2000n, avail: USER_BASE + 0x3000n, used: USER_BASE + 0x4000n };
    await frontend.ask(REQUEST.setVringNum.id, state(0, size as number));
    await frontend.ask(REQUEST.setVringAddr.id, REQUEST.setVringAddr.query.encode({ ...address, ...change }));
    await frontend.ask(REQUEST.setVringKick.id, u64(0n), [frontend.kick.fd]);
    frontend.send(REQUEST.setVringEnable.id, state(0, 1));
    await isRefused(/ring 0/);
  });

  it.each([
    ['a ring that is not there', () => frontend.send(REQUEST.setVringNum.id, state(2, 8)), /no ring 2/],
    ['a request nobody offered', () => frontend.send(99, new Uint8Array(0)), /request 99/],
    ['a payload of the wrong size', () => frontend.send(REQUEST.setVringNum.id, new Uint8Array(7)), /makes no sense/],
    ['features the device lacks', () => frontend.send(REQUEST.setFeatures.id, u64((1n << 32n) | 2n)), /does not have/],
    ['features of long ago', () => frontend.send(REQUEST.setFeatures.id, u64(1n)), /before version 1/],
    ['an index past all', () => frontend.send(REQUEST.setVringBase.id, state(0, 0x10000)), /cannot begin/],
    ['a kick it would have polled for', () => frontend.send(REQUEST.setVringKick.id, u64(0x100n)), /polls/],
    [
      'a kick that is no eventfd',
      () => {
        const fd = devNull();
        frontend.send(REQUEST.setVringKick.id, u64(0n), [fd]);
        closeSync(fd);
      },
      /no eventfd/,
    ],
    [
      'two descriptors for one',
      () => frontend.send(REQUEST.setVringCall.id, u64(0n), [frontend.call.fd, frontend.err.fd]),
      /came with 2/,
    ],
    [
      'a channel that is no socket',
      () => frontend.send(REQUEST.setBackendReqFd.id, new Uint8Array(0), [frontend.call.fd]),
      /./,
    ],
  ])('and sends %s is refused', async (_name, lie, reason) => {
    await frontend.negotiate();
    lie();
    await isRefused(reason);
  });

  it('and takes no answers is refused, before they fill our memory', async () => {
    frontend.close();
    await until(() => ends.length === 1);
    const deaf = native(() => new (addon().UnixSocket)('connect', socket));
    const message = encodeHeader({ request: REQUEST.getFeatures.id, flags: 0, payloadBytes: 0 });
    while (ends.length < 2) {
      native(() => deaf.send(message, []));
      await turn();
    }
    expect(ends[1].message).toMatch(/reads no messages/);
    deaf.close();
    frontend = new RawFrontend(socket);
    await frontend.run();
  });

  it("hears of a driver that breaks the queue's rules, and can start over", async () => {
    const queue = await frontend.run();
    queue.publish(9); // no such descriptor
    frontend.kick.signal();
    await until(() => frontend.err.read() > 0n);
    const stopped = await frontend.ask(REQUEST.getVringBase.id, state(0, 0));
    expect(stopped).toEqual(state(0, 0));
    const other = await frontend.run();
    other.add([{ gpa: 0x8000, length: 4 }]);
    frontend.kick.signal();
    await until(() => other.usedIdx === 1);
  });

  it('cannot have the device while another has it', async () => {
    await frontend.run();
    const second = new RawFrontend(socket);
    second.send(REQUEST.getFeatures.id, new Uint8Array(0), [], 0);
    for (let i = 0; i < 20; i++) await turn();
    expect(ends).toEqual([]);
    const answered = second.ask(REQUEST.getQueueNum.id, new Uint8Array(0));
    frontend.close();
    expect(await answered).toBeDefined();
    second.close();
  });
});

describe('a server', () => {
  it('takes the place of one that was killed, and of nothing else', async () => {
    const first = new VhostUserServer(new EchoDevice(), socket);
    expect(() => new VhostUserServer(new EchoDevice(), socket)).toThrow(expect.objectContaining({ code: 'BUSY' }));
    await first.close();
    expect(readdirSync(folder)).toEqual([]);
    writeFileSync(socket, 'precious');
    expect(() => new VhostUserServer(new EchoDevice(), socket)).toThrow(expect.objectContaining({ code: 'BUSY' }));
    expect(readFileSync(socket, 'utf8')).toBe('precious');
  });

  it('says what is wrong with its options', async () => {
    await expect(serveDevice({ type: 'blk', path: join(folder, 'none'), socket })).rejects.toMatchObject({
      code: 'SYSCALL',
    });
    await expect(serveDevice({ type: 'fax', socket } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(serveDevice({ type: 'vsock', socket, cid: 2 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
