import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { VsockRequest } from '../../../src/devices/virtio/vsock/backend.js';
import { VirtioVsock } from '../../../src/devices/virtio/vsock/vsock.js';
import { MMIO_CONFIG } from '../../../src/virtio/defs.js';
import { GUEST_CID, OP, type Packet, VsockGuest, type VsockGuestOptions } from '../../support/vsock-guest.js';

const RECEIVE = 1;
const SEND = 2;
const BOTH = RECEIVE | SEND;

let guest: VsockGuest;
/** What the host accepted, in order. */
let accepted: Duplex[];

function start(options: VsockGuestOptions = {}): void {
  accepted = [];
  guest = new VsockGuest({
    onRequest: (request) => {
      if (request.port !== 50) return false;
      accepted.push(request.accept());
      return true;
    },
    ...options,
  });
}

const opsOf = (packets: readonly Packet[]) => packets.map(({ op }) => op);
const payloadOf = (packets: readonly Packet[]) => Buffer.concat(packets.map(({ payload }) => payload)).toString();
const failureOf = (stream: Duplex) => once(stream, 'error').then(([error]) => error as { code: string; errno: string });
const bytesOf = (length: number, seed = 1) => Buffer.from(Array.from({ length }, (_, i) => (i * 7 + seed * 31) & 0xff));

/** A connection that the guest made, both ends. */
function connected(options: VsockGuestOptions = {}, bufAlloc = 64 * 1024): Duplex {
  start(options);
  guest.send({ op: OP.REQUEST, bufAlloc });
  expect(opsOf(guest.packets())).toEqual([OP.RESPONSE]);
  return accepted[0];
}

/** Reads a stream to its end. */
async function textOf(stream: Duplex): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;
function liveArrayBufferBytes(): number {
  collectGarbage();
  return process.memoryUsage().arrayBuffers;
}

afterEach(() => void vi.useRealTimers());

describe('the configuration', () => {
  it("tells the guest's CID, as 64 bits, and three queues", () => {
    start({ cid: 0x0102_0304 });
    const config = Array.from({ length: 10 }, (_, i) => guest.mmio.read(MMIO_CONFIG + i, 1));
    expect(config).toEqual([4, 3, 2, 1, 0, 0, 0, 0, 0xff, 0xff]);
    expect([guest.driver.get(0x008), guest.driver.queueSizeMax(2) > 0, guest.driver.queueSizeMax(3)]).toEqual([
      19,
      true,
      0,
    ]);
    expect(guest.driver.deviceFeatures() & 0xffffffn).toBe(1n);
  });

  it.each([0, 1, 2, 0xffff_ffff, 2 ** 32, 3.5, NaN, -3])('refuses %s as the CID of a guest', (cid) => {
    expect(() => new VirtioVsock({ cid })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('a connection of the guest', () => {
  it('is accepted, carries bytes both ways, and tells of its buffer', async () => {
    const stream = connected();
    guest.send({ op: OP.RW }, 'hello');
    stream.write('good ');
    stream.write('day');
    expect((await once(stream, 'data'))[0]).toEqual(Buffer.from('hello'));
    await setImmediate();
    const packets = guest.packets();
    expect([payloadOf(packets), packets[0]]).toMatchObject([
      'good day',
      { op: OP.RW, srcCid: 2n, dstCid: BigInt(GUEST_CID), srcPort: 50, dstPort: 1000, type: 1, bufAlloc: 256 * 1024 },
    ]);
    expect(guest.device.counters).toMatchObject({ connections: 1, opened: 1, bytesFromGuest: 5, bytesToGuest: 8 });
  });

  it('is refused where nobody listens', () => {
    start();
    guest.send({ op: OP.REQUEST, dstPort: 51 });
    expect(guest.packets()).toMatchObject([{ op: OP.RST, srcPort: 51, dstPort: 1000 }]);
    expect(guest.device.counters).toMatchObject({ connections: 0, faults: { refused: 1 } });
  });

  it('may be answered later, and is forgotten when the guest gives up first', async () => {
    const requests: VsockRequest[] = [];
    start({ onRequest: (request) => requests.push(request) > 0 });
    guest.send({ op: OP.REQUEST, srcPort: 1 });
    guest.send({ op: OP.REQUEST, srcPort: 2 });
    guest.send({ op: OP.REQUEST, srcPort: 3 });
    guest.send({ op: OP.RST, srcPort: 2 });
    expect(guest.packets()).toEqual([]);
    expect(requests.map(({ port, guestPort }) => [port, guestPort])).toEqual([
      [50, 1],
      [50, 2],
      [50, 3],
    ]);
    const late = requests[1].accept();
    requests[0].accept();
    requests[2].reject();
    requests[2].reject();
    await setImmediate();
    expect(late.destroyed).toBe(true);
    const answers = guest.packets().map(({ op, dstPort }) => [op, dstPort]);
    expect(new Set(answers.map(String))).toEqual(new Set([`${OP.RESPONSE},1`, `${OP.RST},3`]));
    expect(guest.device.counters.connections).toBe(1);
  });
});

describe('a connection of the host', () => {
  it('is established by the answer of the guest', async () => {
    start();
    const connecting = guest.device.connect(99);
    const [request] = guest.packets();
    expect(request).toMatchObject({ op: OP.REQUEST, dstPort: 99, length: 0 });
    guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort: request.srcPort });
    const { stream, hostPort } = await connecting;
    expect(hostPort).toBe(request.srcPort);
    stream.write('ping');
    guest.send({ op: OP.RW, srcPort: 99, dstPort: hostPort }, 'pong');
    expect([payloadOf(guest.packets()), String((await once(stream, 'data'))[0])]).toEqual(['ping', 'pong']);
  });

  it('has a port of its own each time', () => {
    start();
    const settled = [99, 99, 98].map((port) => guest.device.connect(port).catch(() => {}));
    expect(new Set(guest.packets().map(({ srcPort }) => srcPort)).size).toBe(3);
    guest.driver.set(0x070, 0);
    return Promise.all(settled);
  });

  it('fails with ECONNREFUSED by a reset, ETIMEDOUT without an answer', async () => {
    start({ connectTimeoutMs: 20 });
    const refused = guest.device.connect(99);
    const [request] = guest.packets();
    guest.send({ op: OP.RST, srcPort: 99, dstPort: request.srcPort });
    await expect(refused).rejects.toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNREFUSED' });
    const silent = guest.device.connect(99);
    guest.packets();
    await expect(silent).rejects.toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ETIMEDOUT' });
    expect([opsOf(guest.packets()), guest.device.counters.connections]).toEqual([[OP.RST], 0]);
  });

  it('sends no reset for a request that the guest never saw', async () => {
    start({ connectTimeoutMs: 20, buffers: 0 });
    await expect(guest.device.connect(99)).rejects.toMatchObject({ errno: 'ETIMEDOUT' });
    expect([guest.fetch(), guest.device.counters.connections]).toEqual([[], 0]);
  });

  it('fails where the guest has no driver, and with what is no port', async () => {
    const device = new VirtioVsock({ cid: GUEST_CID });
    await expect(device.connect(99)).rejects.toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNREFUSED' });
    for (const port of [-1, 1.5, NaN, 2 ** 32 - 1, 2 ** 40]) {
      await expect(device.connect(port)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });

  it('ends with ECONNRESET when the driver starts over, and so does one that waits for its answer', async () => {
    const stream = connected();
    const failure = failureOf(stream);
    const connecting = guest.device.connect(99);
    guest.start();
    expect(await failure).toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNRESET' });
    await expect(connecting).rejects.toMatchObject({ errno: 'ECONNRESET' });
    expect([guest.packets(), guest.device.counters.connections]).toEqual([[], 0]);
  });
});

describe('credit', () => {
  it('keeps the host from sending more than the guest has room for, and is asked for once', async () => {
    const stream = connected({}, 10);
    stream.write('0123456789abcdef');
    await setImmediate();
    const first = guest.packets();
    expect([opsOf(first), payloadOf(first)]).toEqual([[OP.RW, OP.CREDIT_REQUEST], '0123456789']);
    guest.send({ op: OP.CREDIT_UPDATE, bufAlloc: 10, fwdCnt: 0 });
    expect(guest.packets()).toEqual([]);
    guest.send({ op: OP.CREDIT_UPDATE, bufAlloc: 10, fwdCnt: 4 });
    expect(payloadOf(guest.packets())).toBe('abcd');
    guest.send({ op: OP.CREDIT_UPDATE, bufAlloc: 12, fwdCnt: 4 });
    expect(payloadOf(guest.packets())).toBe('ef');
  });

  it.each([
    ['a count of bytes that were never sent', { bufAlloc: 1000, fwdCnt: 5 }],
    ['a buffer smaller than what is under way', { bufAlloc: 3, fwdCnt: 0 }],
  ])('is none with %s', async (_what, credit) => {
    const stream = connected({}, 4);
    stream.write('abcdefgh');
    await setImmediate();
    guest.packets();
    guest.send({ op: OP.CREDIT_UPDATE, ...credit });
    expect(payloadOf(guest.packets())).toBe('');
  });

  it('goes on across the wrap of its 32 bits', async () => {
    const stream = connected({}, 0xffff_ffff);
    guest.send({ op: OP.CREDIT_UPDATE, bufAlloc: 5, fwdCnt: 0xffff_fffe }); // two "bytes" from before are under way
    stream.write('abcdef');
    await setImmediate();
    expect(payloadOf(guest.packets())).toBe('abc');
    guest.send({ op: OP.CREDIT_UPDATE, bufAlloc: 5, fwdCnt: 1 });
    expect(payloadOf(guest.packets())).toBe('def');
  });

  it('is given back as the host reads, in steps, and on request', async () => {
    const stream = connected();
    const block = bytesOf(64 * 1024);
    for (let i = 0; i < 4; i++) guest.send({ op: OP.RW }, block);
    expect(guest.packets()).toEqual([]); // nobody reads: not a byte of credit
    guest.send({ op: OP.CREDIT_REQUEST });
    expect(guest.packets()).toMatchObject([{ op: OP.CREDIT_UPDATE, fwdCnt: 0, bufAlloc: 256 * 1024 }]);
    let bytes = 0;
    stream.on('data', (chunk: Buffer) => (bytes += chunk.length));
    await setImmediate();
    expect(bytes).toBe(256 * 1024);
    expect(guest.packets().at(-1)).toMatchObject({ op: OP.CREDIT_UPDATE, fwdCnt: 256 * 1024 });
  });

  it('costs a guest that goes beyond it its connection', async () => {
    const stream = connected();
    const failure = failureOf(stream);
    for (let i = 0; i < 4; i++) guest.send({ op: OP.RW }, bytesOf(64 * 1024));
    expect(guest.packets()).toEqual([]);
    guest.send({ op: OP.RW }, 'x');
    expect(opsOf(guest.packets())).toEqual([OP.RST]);
    expect(await failure).toMatchObject({ errno: 'ECONNRESET' });
    expect(guest.device.counters).toMatchObject({ connections: 0, faults: { 'over credit': 1 } });
  });

  it('lets 256 KiB of single bytes cost about as much memory as they are', () => {
    connected();
    const before = liveArrayBufferBytes();
    for (let i = 0; i < 256 * 1024; i++) guest.send({ op: OP.RW }, 'x');
    expect(liveArrayBufferBytes() - before).toBeLessThan(2 ** 20);
    expect(guest.device.counters).toMatchObject({ bytesFromGuest: 256 * 1024, faults: {} });
  }, 300_000);
});

describe('a stream', () => {
  it('arrives whole and in order, in pieces, buffers and credits of any size', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 9000 }), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 50, max: 5000 }),
        fc.integer({ min: 100, max: 6000 }),
        fc.integer({ min: 1, max: 20 }),
        async (writes, room, bufAlloc, buffers) => {
          const stream = connected({ bufferBytes: 44 + room, buffers }, bufAlloc);
          const all = Buffer.concat(writes.map((length, i) => bytesOf(length, i)));
          writes.forEach((length, i) => stream.write(bytesOf(length, i)));
          stream.end();
          const arrived: Buffer[] = [];
          let [received, forwarded, ended] = [0, 0, false];
          while (!ended) {
            await setImmediate();
            for (const packet of guest.packets()) {
              received += packet.length;
              expect(received - forwarded).toBeLessThanOrEqual(bufAlloc);
              if (packet.op === OP.RW) arrived.push(packet.payload);
              if (packet.op === OP.SHUTDOWN) ended = true;
            }
            forwarded = received;
            guest.send({ op: OP.CREDIT_UPDATE, bufAlloc, fwdCnt: forwarded });
          }
          expect(Buffer.concat(arrived).equals(all)).toBe(true);
        },
      ),
      { numRuns: 25 },
    );
  });

  it('of the guest arrives whole and in order at a reader of any speed', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 20_000 }), { minLength: 1, maxLength: 30 }),
        fc.array(fc.boolean(), { minLength: 1, maxLength: 10 }),
        async (sends, pauses) => {
          const stream = connected();
          const arrived: Buffer[] = [];
          stream.on('data', (chunk: Buffer) => arrived.push(chunk));
          let [sent, acknowledged] = [0, 0];
          for (const [i, length] of sends.entries()) {
            if (pauses[i % pauses.length]) stream.pause();
            else stream.resume();
            await setImmediate();
            for (const { fwdCnt } of guest.packets()) acknowledged = fwdCnt;
            if (sent - acknowledged + length > 256 * 1024) continue;
            guest.send({ op: OP.RW }, bytesOf(length, i));
            sent += length;
          }
          guest.send({ op: OP.SHUTDOWN, flags: SEND });
          stream.resume();
          await once(stream, 'end');
          expect(Buffer.concat(arrived).length).toBe(sent);
          stream.destroy();
        },
      ),
      { numRuns: 25 },
    );
  });

  it('shares the buffers of the guest with the others, in turns', async () => {
    start({ buffers: 1 });
    for (const srcPort of [1, 2, 3]) guest.send({ op: OP.REQUEST, srcPort });
    guest.packets();
    for (const stream of accepted) stream.write(Buffer.alloc(3 * 4096));
    await setImmediate();
    const ports = guest.packets().map(({ dstPort }) => dstPort);
    expect(ports).toEqual([1, 1, 2, 3, 1, 2, 3, 2, 3]); // the first one had begun before there were others
  });

  it('holds the writer back while the guest gives no buffers', async () => {
    const stream = connected({ buffers: 1 });
    let written = 0;
    for (let i = 0; i < 3; i++) stream.write(Buffer.alloc(4096), () => written++);
    await setImmediate();
    expect([guest.fetch().length, written]).toEqual([1, 1]);
    guest.refill();
    await setImmediate();
    expect([guest.fetch().length, written]).toEqual([1, 2]);
    guest.refill();
    await setImmediate();
    expect(written).toBe(3);
  });

  it('leaves the event loop its turns', async () => {
    const stream = connected({ buffers: 256, bufferBytes: 16 * 1024 }, 0xffff_ffff);
    stream.write(Buffer.alloc(3 * 2 ** 20));
    expect(guest.fetch().length).toBeLessThan(80);
    await setImmediate();
    await setImmediate();
    await setImmediate();
    await setImmediate();
    expect(guest.device.counters.bytesToGuest).toBe(3 * 2 ** 20);
  });
});

describe('the end of a connection', () => {
  it('comes by halves: the host first', async () => {
    const stream = connected();
    const text = textOf(stream);
    stream.end('last words');
    await once(stream, 'finish');
    expect(guest.packets()).toMatchObject([{ op: OP.RW }, { op: OP.SHUTDOWN, flags: SEND }]);
    guest.send({ op: OP.RW }, 'and mine');
    guest.send({ op: OP.SHUTDOWN, flags: BOTH });
    expect(opsOf(guest.packets())).toEqual([OP.RST]);
    expect([await text, stream.closed]).toEqual(['and mine', true]);
    expect(guest.device.counters).toMatchObject({ connections: 0, faults: {} });
  });

  it('comes by halves: the guest first', async () => {
    const stream = connected();
    guest.send({ op: OP.RW }, 'a question');
    guest.send({ op: OP.SHUTDOWN, flags: SEND });
    const closed = once(stream, 'close');
    stream.once('end', () => stream.end('an answer'));
    expect(String((await once(stream, 'data'))[0])).toBe('a question');
    await closed;
    const packets = guest.packets();
    expect(opsOf(packets)).toEqual([OP.RW, OP.SHUTDOWN, OP.SHUTDOWN]);
    expect(packets.map(({ flags }) => flags)).toEqual([0, SEND, BOTH]);
    expect(guest.device.counters.connections).toBe(1);
    guest.send({ op: OP.RST });
    expect([guest.packets(), guest.device.counters.connections]).toEqual([[], 0]);
  });

  it('is forced where the guest does not confirm it', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const stream = connected();
    await once(stream.end(), 'finish');
    await once(stream.destroy(), 'close');
    expect(guest.packets().map(({ flags }) => flags)).toEqual([SEND, BOTH]);
    guest.send({ op: OP.RW }, 'too late'); // sent before it knew
    vi.advanceTimersByTime(7_999);
    expect([guest.packets(), guest.device.counters.connections]).toEqual([[], 1]);
    vi.advanceTimersByTime(1);
    expect([opsOf(guest.packets()), guest.device.counters.connections]).toEqual([[OP.RST], 0]);
  });

  it('keeps what the guest said before it closed for a reader that comes late, and counts it until then', async () => {
    const stream = connected();
    guest.send({ op: OP.RW }, 'remember me');
    guest.send({ op: OP.SHUTDOWN, flags: BOTH });
    expect(opsOf(guest.packets())).toEqual([OP.RST]);
    expect(guest.device.counters.connections).toBe(1);
    guest.send({ op: OP.REQUEST }); // its ports are free again
    expect([opsOf(guest.packets()), accepted.length]).toEqual([[OP.RESPONSE], 2]);
    const failure = failureOf(accepted[1]);
    guest.start();
    expect(await failure).toMatchObject({ errno: 'ECONNRESET' });
    expect(await textOf(stream)).toBe('remember me');
    expect(guest.device.counters.connections).toBe(0);
  });

  it('fails what the host still writes, after all that the guest wrote was read', async () => {
    const stream = connected({}, 1);
    const failure = failureOf(stream);
    stream.write('more than fits');
    guest.send({ op: OP.RW, bufAlloc: 1 }, 'I go');
    guest.send({ op: OP.SHUTDOWN, flags: BOTH, bufAlloc: 1 });
    expect(String((await once(stream, 'data'))[0])).toBe('I go');
    expect(await failure).toMatchObject({ code: 'CONNECTION_FAILED', errno: 'EPIPE' });
  });

  it('fails a write at once when the guest only wants to send', async () => {
    const stream = connected();
    guest.send({ op: OP.SHUTDOWN, flags: RECEIVE });
    const failure = failureOf(stream);
    stream.write('hello?');
    expect(await failure).toMatchObject({ errno: 'EPIPE' });
    await setImmediate();
    expect(opsOf(guest.packets())).toEqual([OP.RST]);
  });

  it('is a reset when the host destroys the stream before its end, and an error when the guest resets', async () => {
    const stream = connected();
    stream.write('not all');
    stream.destroy();
    await setImmediate();
    expect(opsOf(guest.packets()).at(-1)).toBe(OP.RST);
    const other = connected();
    const failure = failureOf(other);
    guest.send({ op: OP.RST });
    expect(await failure).toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNRESET' });
    expect([guest.packets(), guest.device.counters.connections]).toEqual([[], 0]);
  });
});

describe('a saved device', () => {
  it('tells the guest after its restore that the connections are gone', async () => {
    const stream = connected();
    const failure = failureOf(stream);
    const event = guest.postEvent();
    await guest.device.quiesce();
    expect(event()).toBeUndefined();
    const state = guest.mmio.save();
    guest.mmio.restore(state);
    guest.device.resume();
    expect(await failure).toMatchObject({ errno: 'ECONNRESET' });
    guest.driver.kick(2);
    expect(event()).toEqual(Buffer.from([0, 0, 0, 0]));
    guest.send({ op: OP.REQUEST });
    expect(opsOf(guest.packets())).toEqual([OP.RESPONSE]);
  });

  it('moves nothing while it is quiet', async () => {
    const stream = connected();
    await guest.device.quiesce();
    stream.write('wait');
    guest.send({ op: OP.RW }, 'for me');
    await setImmediate();
    expect([guest.packets(), stream.readableLength, guest.driver.queues[1].usedIdx]).toEqual([[], 0, 1]);
    guest.device.resume();
    expect([String(stream.read()), payloadOf(guest.packets())]).toEqual(['for me', 'wait']);
  });
});
