/** HOSTILE cases 1 to 5, 14, 15 and 17 for the socket device, and packets and queues of random content. */
import type { Duplex } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import {
  VIRTQ_DESC_F_INDIRECT as INDIRECT,
  VIRTQ_DESC_F_NEXT as NEXT,
  VIRTQ_DESC_F_WRITE as WRITE,
} from '../../src/virtio/defs.js';
import { OP, VsockGuest, type VsockGuestOptions } from '../support/vsock-guest.js';

const HEADER = 44;
const RAM_BYTES = 8 * 2 ** 20;
const [RX, TX] = [0, 1];

let guest: VsockGuest;
let accepted: Duplex[];

function start(options: VsockGuestOptions = {}): void {
  accepted = [];
  guest = new VsockGuest({
    onRequest: (request) => {
      const stream = request.accept();
      stream.on('error', () => {}).resume();
      accepted.push(stream);
      return true;
    },
    ...options,
  });
}

beforeEach(() => start());

const faults = () => guest.device.counters.faults;

/** After a reset by the driver a connection works both ways. */
async function expectAlive(): Promise<void> {
  guest.start();
  guest.send({ op: OP.REQUEST, srcPort: 77 });
  expect(guest.packets().map(({ op }) => op)).toEqual([OP.RESPONSE]);
  accepted.at(-1)!.write('alive');
  await setImmediate();
  expect(String(guest.packets()[0].payload)).toBe('alive');
}

describe('a packet', () => {
  const REQUEST = { op: OP.REQUEST, srcPort: 1000 };

  it.each([
    ['from a CID that is not its own', { ...REQUEST, srcCid: 8n }, 'forged cid'],
    ["from the host's CID", { ...REQUEST, srcCid: 2n }, 'forged cid'],
    ['from a CID of more than 32 bits', { ...REQUEST, srcCid: (1n << 32n) + 7n }, 'forged cid'],
    ['to another guest', { ...REQUEST, dstCid: 8n }, 'forged cid'],
    ['to the hypervisor', { ...REQUEST, dstCid: 0n }, 'forged cid'],
    ['of an unknown type', { ...REQUEST, type: 9 }, 'unknown type'],
    ['of sequenced packets', { ...REQUEST, type: 2 }, 'unknown type'],
    ['with payload where there can be none', { ...REQUEST, length: 5 }, 'wrong length'],
    ['for a connection that is not there', { op: OP.RW }, 'no connection'],
    ['that answers what nobody asked', { op: OP.RESPONSE }, 'no connection'],
    ['with an operation that does not exist', { op: 8 }, 'no connection'],
  ])('%s is answered by a reset', (_what, packet, fault) => {
    guest.send(packet);
    expect(guest.packets()).toMatchObject([{ op: OP.RST, dstCid: 7n, dstPort: 1000, srcPort: 50, length: 0 }]);
    expect([faults(), accepted.length, guest.failed]).toEqual([{ [fault]: 1 }, 0, false]);
  });

  it.each([
    ['longer than its buffer', { op: OP.RW, length: 6 }, 'wrong length'],
    ['shorter than its buffer', { op: OP.RW, length: 4 }, 'wrong length'],
    ['of 4 GiB', { op: OP.RW, length: 0xffff_ffff }, 'wrong length'],
    ['that asks for the connection again', { op: OP.REQUEST, length: 5 }, 'wrong length'],
  ])('%s costs it its connection, and no byte arrives', (_what, packet, fault) => {
    guest.send({ op: OP.REQUEST });
    guest.packets();
    guest.send(packet, 'hello');
    expect(guest.packets()).toMatchObject([{ op: OP.RST, dstPort: 1000 }]);
    expect([faults(), accepted[0].destroyed, guest.device.counters]).toMatchObject([
      { [fault]: 1 },
      true,
      { bytesFromGuest: 0, connections: 0 },
    ]);
  });

  it.each([
    ['another request', { op: OP.REQUEST }],
    ['a response', { op: OP.RESPONSE }],
    ['an operation that does not exist', { op: 0 }],
    ['another', { op: 0xffff }],
  ])('with %s costs it its connection', (_what, packet) => {
    guest.send({ op: OP.REQUEST });
    guest.packets();
    guest.send(packet);
    expect(guest.packets()).toMatchObject([{ op: OP.RST }]);
    expect([faults(), accepted[0].destroyed]).toEqual([{ 'unexpected packet': 1 }, true]);
  });

  it('that takes its acceptance back before the host could look ends nothing but the connection', async () => {
    const connecting = guest.device.connect(99);
    const [{ srcPort: dstPort }] = guest.packets();
    guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort });
    guest.send({ op: OP.RST, srcPort: 99, dstPort });
    const { stream } = await connecting;
    await setImmediate();
    expect([stream.destroyed, stream.errored]).toMatchObject([true, { errno: 'ECONNRESET' }]);
  });

  it('of a forged CID leaves the connection of the same ports alone', () => {
    guest.send({ op: OP.REQUEST });
    guest.packets();
    guest.send({ op: OP.RW, srcCid: 8n }, 'not mine');
    guest.send({ op: OP.RST, srcCid: 8n });
    expect([guest.packets().length, accepted[0].destroyed, guest.device.counters.bytesFromGuest]).toEqual([
      1, // a reset is never answered by one
      false,
      0,
    ]);
  });

  it.each([0, 1, 43])('of %i bytes is dropped and counted', (length) => {
    const queue = guest.driver.queues[TX];
    queue.add([{ gpa: 0x10_0000, length }]);
    guest.driver.kick(TX);
    expect([faults(), queue.takeUsed()?.writtenBytes, guest.packets(), guest.failed]).toEqual([
      { 'short packet': 1 },
      0,
      [],
      false,
    ]);
  });

  it('of any content is survived, whatever the connection does', async () => {
    const small = fc.constantFrom(0, 1, 2, 3, 50, 51, 1000, 0xffff_ffff);
    const packet = fc.record({
      op: fc.integer({ min: 0, max: 9 }),
      srcPort: fc.constantFrom(1000, 1001),
      dstPort: fc.constantFrom(50, 2 ** 30 + 1),
      flags: fc.nat(7),
      type: fc.constantFrom(1, 1, 1, 2),
      srcCid: fc.constantFrom(7n, 7n, 7n, 2n),
      bufAlloc: small,
      fwdCnt: small,
    });
    const step = fc.record({
      packet,
      payload: fc.nat(3000),
      write: fc.nat(5000),
      act: fc.constantFrom('', '', 'end', 'destroy', 'pause', 'connect', 'starve'),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
        start({ maxConnections: 8, connectTimeoutMs: 5 });
        const connecting = [];
        for (const { packet, payload, write, act } of steps) {
          guest.send(packet, packet.op === OP.RW ? Buffer.alloc(payload) : '');
          const stream = accepted.at(-1);
          if (stream && !stream.writableEnded) stream.write(Buffer.alloc(write));
          if (act === 'end') stream?.end();
          if (act === 'destroy') stream?.destroy();
          if (act === 'pause') stream?.pause();
          if (act === 'connect') connecting.push(guest.device.connect(1000).catch(() => {}));
          if (act === 'starve') guest.fetch();
          else guest.packets();
          await setImmediate();
          expect([guest.failed, guest.device.counters.connections <= 8]).toEqual([false, true]);
        }
        await expectAlive();
        await Promise.all(connecting);
      }),
      { numRuns: 100 },
    );
  });
});

describe('100,000 connections', { timeout: 600_000 }, () => {
  it('are refused beyond the cap, and cost nothing more', () => {
    start({ maxConnections: 100 });
    let resets = 0;
    for (let i = 0; i < 100_000; i++) {
      guest.send({ op: OP.REQUEST, srcPort: i });
      if (i % 10 === 9) resets += guest.packets().filter(({ op }) => op === OP.RST).length;
    }
    expect([accepted.length, resets, guest.device.counters]).toMatchObject([
      100,
      99_900,
      { connections: 100, droppedResets: 0, faults: { 'too many connections': 99_900 } },
    ]);
  });

  it('without a look at the answers cost a bounded number of those', async () => {
    start({ maxConnections: 100 });
    for (let i = 0; i < 100_000; i++) guest.send({ op: OP.REQUEST, srcPort: i });
    expect(guest.device.counters).toMatchObject({ connections: 100, faults: { 'too many connections': 99_900 } });
    expect(guest.device.counters.droppedResets).toBeGreaterThan(95_000);
    expect(guest.packets().length).toBeLessThan(5_000);
    await expectAlive();
  });

  it('opened and closed one after the other leave nothing behind', async () => {
    for (let i = 0; i < 100_000; i++) {
      guest.send({ op: OP.REQUEST, srcPort: i });
      guest.send({ op: OP.SHUTDOWN, srcPort: i, flags: 3 });
      if (i % 5 === 4) guest.packets();
      if (i % 100 !== 99) continue;
      await setImmediate();
      await setImmediate();
    }
    expect(guest.device.counters).toMatchObject({ connections: 0, opened: 100_000, faults: {} });
  });
});

describe('what the host keeps for the guest', () => {
  it('is bounded where nobody reads, though connections end', async () => {
    start({ maxConnections: 4, onRequest: (request) => accepted.push(request.accept()) > 0 });
    for (let i = 0; i < 50; i++) {
      guest.send({ op: OP.REQUEST, srcPort: i });
      guest.send({ op: OP.RW, srcPort: i }, Buffer.alloc(200_000));
      guest.send({ op: OP.SHUTDOWN, srcPort: i, flags: 3 });
      guest.packets();
    }
    expect([accepted.length, guest.device.counters.connections]).toEqual([4, 4]);
    for (const stream of accepted) stream.destroy();
    await expectAlive();
  });
});

describe.each([
  ['receive', RX, WRITE],
  ['transmit', TX, 0],
])('a chain in the %s queue', (_name, index, direction) => {
  const queue = () => guest.driver.queues[index];

  it.each<[string, () => void]>([
    [
      'loops',
      () => {
        queue().setDescriptor(0, 0x1000, 16, NEXT | direction, 1);
        queue().setDescriptor(1, 0x2000, 16, NEXT | direction, 0);
      },
    ],
    ['has a buffer that wraps 2^64', () => queue().setDescriptor(0, 0xffff_ffff_ffff_ff00n, 1024, direction)],
    ['goes past the end of memory', () => queue().setDescriptor(0, RAM_BYTES - 100, 101, direction)],
    ['names a descriptor past the table', () => queue().setDescriptor(0, 0x1000, 60, NEXT | direction, 256)],
    ['has an indirect table of 17 bytes', () => queue().setDescriptor(0, 0x1000, 17, INDIRECT)],
  ])('that %s fails the device with no byte moved, and a reset brings it back', async (_what, build) => {
    start({ buffers: 0 });
    build();
    queue().publish(0);
    guest.driver.kick(index);
    guest.send({ op: OP.REQUEST, dstPort: 51 }); // an answer is due
    expect([guest.failed, guest.mmio.core.failures]).toEqual([true, 1]);
    await expect(guest.device.connect(99)).rejects.toMatchObject({ errno: 'ECONNREFUSED' });
    start();
    await expectAlive();
  });
});

it.each([
  ['without room for a header', { length: HEADER - 1, writable: true }],
  ['with room for a header alone', { length: HEADER, writable: true }],
  ['that is not to be written', { length: 4096 }],
])('a receive buffer %s fails the device', async (_what, buffer) => {
  start({ buffers: 0 });
  guest.driver.queues[RX].add([{ gpa: 0x10_0000, ...buffer }]);
  guest.driver.kick(RX);
  guest.send({ op: OP.RW });
  expect([guest.failed, guest.driver.queues[RX].usedIdx]).toEqual([true, 0]);
  start();
  await expectAlive();
});

it('writes nothing to guest memory after a reset, though bytes wait', async () => {
  start({ buffers: 1 });
  guest.send({ op: OP.REQUEST });
  accepted[0].write(Buffer.alloc(100_000, 0xee));
  await setImmediate();
  guest.driver.set(0x070, 0);
  const before = guest.memory.read(0, RAM_BYTES);
  accepted[0].write('more');
  await setImmediate();
  await setImmediate();
  expect(Buffer.compare(before, guest.memory.read(0, RAM_BYTES))).toBe(0);
});
