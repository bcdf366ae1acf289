/** HOSTILE cases 1 to 5, 10, 11 and 14 to 16 for the network device, and queues and frames of random bytes. */
import { once } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import type { NetBackend, NetClient, NetOffload, SendResult } from '../../src/devices/virtio/net/backend.js';
import { VirtioNet } from '../../src/devices/virtio/net/net.js';
import { FakeIrqLine } from '../../src/irq/irq-line.js';
import { GuestMemory, WINDOW_STRIDE } from '../../src/memory/guest-memory.js';
import {
  MMIO_STATUS,
  STATUS_NEEDS_RESET,
  VIRTQ_DESC_F_INDIRECT as INDIRECT,
  VIRTQ_DESC_F_NEXT as NEXT,
  VIRTQ_DESC_F_WRITE as WRITE,
} from '../../src/virtio/defs.js';
import { DriverArena } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../src/virtio/transport/mmio.js';
import { MappedMmio } from '../support/mapped-mmio.js';

const [RX, TX] = [0, 1];
const HEADER = 12;
const RAM_BYTES = 4 * 2 ** 20;
const HIGH_GPA = RAM_BYTES + 4096;
const QUEUE_SIZE = 16;
const OFFLOADS: readonly NetOffload[] = ['checksum', 'tso4', 'tso6', 'tso-ecn', 'ufo'];

/** Keeps what is sent, and checks that it is what a backend may be given. */
class StrictBackend implements NetBackend {
  readonly name = 'strict';
  readonly offloads = OFFLOADS;
  readonly sent: { bytes: number; header: Buffer }[] = [];
  client!: NetClient;
  paused = false;
  connect(client: NetClient): void {
    this.client = client;
  }
  setReceiveOffloads(): void {}
  send(frame: readonly Uint8Array[], borrowed: Uint8Array): SendResult {
    const header = Buffer.from(borrowed);
    const bytes = frame.reduce((sum, piece) => sum + piece.length, 0);
    expect(bytes).toBeGreaterThanOrEqual(14);
    expect(bytes).toBeLessThanOrEqual(65550);
    expectSound(header, bytes);
    this.sent.push({ bytes, header });
    return 'sent';
  }
  flush(): void {}
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    this.paused = false;
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** What virtio 1.2, 5.1.6.2.1 lets a driver put into the header of a frame. */
function expectSound(header: Buffer, frameBytes: number): void {
  const [flags, gso] = header;
  expect([flags & ~1, header.readUInt16LE(10), header.length]).toEqual([0, 0, HEADER]);
  if (flags & 1) expect(header.readUInt16LE(6) + header.readUInt16LE(8) + 2).toBeLessThanOrEqual(frameBytes);
  if (gso === 0) return;
  expect([1, 3, 4, 0x81, 0x84]).toContain(gso);
  expect(flags).toBe(1);
  expect(header.readUInt16LE(4)).toBeGreaterThan(0);
}

let low: Uint8Array;
let high: Uint8Array;
let memory: GuestMemory;
let arena: DriverArena;
let backend: StrictBackend;
let net: VirtioNet;
let mmio: VirtioMmio;
let driver: MmioDriver;

function setUp(ram: ArrayBufferLike = new ArrayBuffer(RAM_BYTES)): void {
  low = new Uint8Array(ram);
  high = new Uint8Array(4096);
  memory = new GuestMemory();
  memory.addRegion({ gpa: 0, sizeBytes: RAM_BYTES, windows: [low], windowStride: WINDOW_STRIDE });
  memory.addRegion({ gpa: HIGH_GPA, sizeBytes: 4096, windows: [high], windowStride: WINDOW_STRIDE });
  backend = new StrictBackend();
  net = new VirtioNet({ backend });
  mmio = new MappedMmio({ device: net, memory, irq: new FakeIrqLine() });
  start();
}

function start(): void {
  arena = new DriverArena(memory, 0x1000);
  driver = new MmioDriver(mmio, arena);
  driver.start(~0n, QUEUE_SIZE);
}

beforeEach(() => setUp());

const failed = () => (driver.status & STATUS_NEEDS_RESET) !== 0;
const receive = (bytes = 60, header?: Uint8Array) => {
  backend.client.receive([new Uint8Array(bytes).fill(0xee)], header);
  backend.client.receiveEnd();
};
const send = (bytes: Uint8Array) => {
  driver.queues[TX].add([{ gpa: arena.place(bytes), length: bytes.length }]);
  driver.kick(TX);
};

/** Descriptors that the device reads meanwhile: four words each. */
function descriptorsReadBy(act: () => void): number {
  const reads = vi.spyOn(DataView.prototype, 'getUint32');
  try {
    act();
    return reads.mock.calls.length / 4;
  } finally {
    reads.mockRestore();
  }
}

/** After a reset by the driver both directions work. */
function expectAlive(): void {
  start();
  const sent = backend.sent.length;
  send(new Uint8Array(HEADER + 60));
  expect(backend.sent.length).toBe(sent + 1);
  driver.queues[RX].add([{ gpa: arena.place(2048), length: 2048, writable: true }]);
  driver.kick(RX);
  receive();
  expect(driver.queues[RX].takeUsed()?.writtenBytes).toBe(HEADER + 60);
}

describe.each([
  ['receive', RX, WRITE],
  ['transmit', TX, 0],
])('a chain in the %s queue', (_name, index, direction) => {
  const queue = () => driver.queues[index];

  it.each<[string, () => void]>([
    [
      'loops',
      () => {
        queue().setDescriptor(0, 0x1000, 16, NEXT | direction, 1);
        queue().setDescriptor(1, 0x2000, 16, NEXT | direction, 0);
      },
    ],
    ['has a buffer that wraps 2^64', () => queue().setDescriptor(0, 0xffff_ffff_ffff_ff00n, 1024, direction)],
    ['spans the hole', () => queue().setDescriptor(0, RAM_BYTES - 100, 100 + 4096 + 100, direction)],
    ['is in the hole', () => queue().setDescriptor(0, RAM_BYTES + 16, 64, direction)],
    ['goes past the end of memory', () => queue().setDescriptor(0, HIGH_GPA + 4000, 97, direction)],
    ['names a descriptor past the table', () => queue().setDescriptor(0, 0x1000, 60, NEXT | direction, QUEUE_SIZE)],
    [
      'has a buffer to read behind one to write',
      () => {
        queue().setDescriptor(0, 0x1000, 64, NEXT | WRITE, 1);
        queue().setDescriptor(1, 0x2000, 64);
      },
    ],
    [
      'has an indirect table inside an indirect table',
      () => {
        const table = arena.place(32);
        memory.dataView(table, 16).setUint16(12, INDIRECT, true);
        memory.dataView(table, 16).setUint32(8, 16, true);
        queue().setDescriptor(0, table, 32, INDIRECT);
      },
    ],
    ['has an indirect table of 17 bytes', () => queue().setDescriptor(0, 0x1000, 17, INDIRECT)],
  ])('that %s fails the device with no byte moved, and a reset brings it back', (_what, build) => {
    build();
    low.fill(0xcc, RAM_BYTES - 4096);
    high.fill(0xcc);
    queue().publish(0);
    driver.kick(index);
    receive(1000);
    expect([failed(), mmio.core.failures, backend.sent.length, queue().usedIdx]).toEqual([true, 1, 0, 0]);
    expect(low.subarray(-4096).every((byte) => byte === 0xcc) && high.every((byte) => byte === 0xcc)).toBe(true);
    expectAlive();
  });

  it('fails the device when the available index jumps', () => {
    queue().availIdx = QUEUE_SIZE + 1;
    driver.kick(index);
    receive();
    expect([failed(), backend.sent.length]).toEqual([true, 0]);
    expectAlive();
  });
});

describe('a receive buffer', () => {
  it.each([
    ['without room for a header', { gpa: 0x1000, length: 11, writable: true }],
    ['of one byte', { gpa: 0x1000, length: 1, writable: true }],
    ['that is not to be written', { gpa: 0x1000, length: 2048 }],
  ])('%s fails the device', (_what, buffer) => {
    driver.queues[RX].add([buffer]);
    driver.kick(RX);
    receive();
    expect([failed(), driver.queues[RX].usedIdx]).toEqual([true, 0]);
    expectAlive();
  });

  it('is written no more after a reset, though frames waited for one', () => {
    for (let i = 0; i < 10; i++) receive();
    driver.queues[RX].add([{ gpa: 0x20_0000, length: 2048, writable: true }]);
    driver.set(MMIO_STATUS, 0);
    receive();
    expect(low.subarray(0x20_0000, 0x20_0800).every((byte) => byte === 0)).toBe(true);
    expectAlive();
  });

  it('offered by 10,000 notifications and never added costs no memory and one look at the queue each', () => {
    for (let i = 0; i < QUEUE_SIZE; i++) {
      driver.queues[RX].add([{ gpa: 0x20_0000, length: HEADER, writable: true }]);
    }
    driver.queues[RX].availIdx = QUEUE_SIZE - 1; // one less than a frame could use
    for (let i = 0; i < 300; i++) receive(HEADER * (QUEUE_SIZE - 1));
    for (let i = 0; i < 10_000; i++) driver.kick(RX);
    expect(descriptorsReadBy(() => driver.kick(RX))).toBe(QUEUE_SIZE - 1);
    expect([backend.paused, net.counters.received.dropped, failed()]).toEqual([true, { 'no room': 44 }, false]);
    expectAlive();
  });
});

describe('a frame of the guest', () => {
  it.each([
    ['nothing at all', 0, { 'bad header': 1 }],
    ['one byte', 1, { 'bad header': 1 }],
    ['half a header', 11, { 'bad header': 1 }],
    ['a header and no frame', HEADER, { 'too short': 1 }],
    ['a header and 13 bytes', HEADER + 13, { 'too short': 1 }],
    ['over 64 KiB', HEADER + 65551, { 'too long': 1 }],
    ['a megabyte', 2 ** 20, { 'too long': 1 }],
  ])('of %s is dropped and counted, and its buffer given back', (_what, length, dropped) => {
    driver.queues[TX].add([{ gpa: 0x10_0000, length }]);
    driver.kick(TX);
    expect(net.counters.transmitted).toEqual({ frames: 0, bytes: 0, dropped });
    expect([backend.sent.length, driver.queues[TX].takeUsed()?.writtenBytes, failed()]).toEqual([0, 0, false]);
  });

  it('in a buffer that is to be written is dropped, and nothing is written', () => {
    driver.queues[TX].add([{ gpa: 0x10_0000, length: 2048, writable: true }]);
    driver.kick(TX);
    expect([net.counters.transmitted.dropped, driver.queues[TX].takeUsed()?.writtenBytes]).toEqual([
      { 'bad header': 1 },
      0,
    ]);
  });

  it('of 64 MiB, made of one buffer many times, is not looked into, and the next one waits for its turn', async () => {
    const table = arena.place(16 * QUEUE_SIZE);
    const view = memory.dataView(table, 16 * QUEUE_SIZE);
    for (let i = 0; i < QUEUE_SIZE; i++) {
      view.setUint32(16 * i + 8, RAM_BYTES, true);
      view.setUint16(16 * i + 12, i + 1 < QUEUE_SIZE ? NEXT : 0, true);
      view.setUint16(16 * i + 14, i + 1, true);
    }
    for (let i = 0; i < QUEUE_SIZE; i++) {
      driver.queues[TX].setDescriptor(i, table, 16 * QUEUE_SIZE, INDIRECT);
      driver.queues[TX].publish(i);
    }
    const copies = vi.spyOn(Uint8Array.prototype, 'set');
    onTestFinished(() => copies.mockRestore());
    expect(descriptorsReadBy(() => driver.kick(TX))).toBe(1 + QUEUE_SIZE);
    for (let dropped = 1; dropped <= QUEUE_SIZE; dropped++) {
      expect(net.counters.transmitted.dropped).toEqual({ 'too long': dropped });
      await setImmediate();
    }
    expect(net.counters.transmitted.dropped).toEqual({ 'too long': QUEUE_SIZE });
    const ofGuest = copies.mock.calls.filter(([source]) => ArrayBuffer.isView(source) && source.buffer === low.buffer);
    expect(ofGuest.length).toBe(0);
  });

  it('reaches the backend with a sound header only, whatever the guest wrote there', () => {
    const word = fc.oneof(fc.nat(0xffff), fc.constantFrom(0, 1, 14, 34, 54, 98, 100, 0xfffe, 0xffff));
    const types = fc.oneof(fc.nat(255), fc.constantFrom(0, 0, 0, 1, 3, 4, 0x80, 0x81, 0x83, 0x84));
    const headers = fc.tuple(
      fc.oneof(fc.nat(255), fc.constantFrom(0, 1)),
      types,
      fc.array(word, { minLength: 5, maxLength: 5 }),
    );
    let [accepted, refused] = [0, 0];
    fc.assert(
      fc.property(headers, fc.integer({ min: 14, max: 200 }), ([flags, type, words], bytes) => {
        const frame = Buffer.alloc(HEADER + bytes);
        frame.set([flags, type]);
        words.forEach((value, i) => frame.writeUInt16LE(value, 2 + 2 * i));
        const gpa = 0x10_0000;
        memory.write(gpa, frame);
        const before = backend.sent.length;
        driver.queues[TX].add([{ gpa, length: frame.length }]);
        driver.kick(TX);
        expect(driver.queues[TX].takeUsed()?.writtenBytes).toBe(0);
        if (backend.sent.length > before) accepted++;
        else refused++;
      }),
      { numRuns: 2000 },
    );
    expect(accepted).toBeGreaterThan(50);
    expect(net.counters.transmitted).toMatchObject({ frames: accepted, dropped: { 'bad header': refused } });
  });

  it('reaches the backend with a sound header only, while another processor rewrites it', async () => {
    const ram = new SharedArrayBuffer(RAM_BYTES);
    setUp(ram);
    const gpa = 0x10_0000;
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(SCRIBBLER, { eval: true, workerData: { ram, gpa, stop } });
    onTestFinished(async () => {
      Atomics.store(stop, 0, 1);
      await worker.terminate();
    });
    await once(worker, 'message');
    const endMs = performance.now() + 100_000;
    while (performance.now() < endMs) {
      for (let i = 0; i < 500; i++) {
        driver.queues[TX].add([{ gpa, length: HEADER + 100 }]);
        driver.kick(TX);
        driver.queues[TX].takeUsed();
      }
      const { frames, dropped } = net.counters.transmitted;
      if (frames > 2_000 && (dropped['bad header'] ?? 0) > 500) break;
    }
    expect(net.counters.transmitted.frames).toBeGreaterThan(2_000);
    expect(net.counters.transmitted.dropped['bad header']).toBeGreaterThan(500);
    expect(failed()).toBe(false);
  });
});

describe('a frame for the guest', () => {
  it.each([
    ['nothing', 0, { 'too short': 1 }],
    ['13 bytes', 13, { 'too short': 1 }],
    ['over 64 KiB', 65551, { 'too long': 1 }],
  ])('of %s is dropped and counted', (_what, bytes, dropped) => {
    driver.queues[RX].add([{ gpa: 0x10_0000, length: 2 ** 20, writable: true }]);
    driver.kick(RX);
    receive(bytes);
    expect([net.counters.received.dropped, driver.queues[RX].usedIdx]).toEqual([dropped, 0]);
  });

  it('with a header of any bytes and any length never throws, nor fails the device', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 20 }), fc.array(fc.uint8Array({ maxLength: 40 })), (header, pieces) => {
        backend.client.receive(pieces, header);
        backend.client.receiveEnd();
        expect(failed()).toBe(false);
      }),
    );
  });
});

it('survives queues and notifications of random content, and works after a reset', () => {
  const descriptor = fc.record({
    index: fc.nat(QUEUE_SIZE),
    gpa: fc.oneof(fc.nat(RAM_BYTES + 8192), fc.constantFrom(0xffff_ffff_f000, 2 ** 63)),
    length: fc.oneof(fc.nat(4096), fc.nat(0xffff_ffff)),
    flags: fc.nat(7),
    next: fc.nat(QUEUE_SIZE),
  });
  const step = fc.record({
    queue: fc.constantFrom(RX, TX),
    descriptors: fc.array(descriptor, { maxLength: 4 }),
    heads: fc.array(fc.nat(QUEUE_SIZE), { maxLength: 4 }),
    frameBytes: fc.nat(3000),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
      setUp();
      for (const { queue, descriptors, heads, frameBytes } of steps) {
        const target = driver.queues[queue];
        for (const { index, gpa, length, flags, next } of descriptors) {
          target.setDescriptor(index % QUEUE_SIZE, BigInt(gpa), length, flags, next);
        }
        for (const head of heads) target.publish(head);
        driver.kick(queue);
        receive(frameBytes);
      }
      expectAlive();
    }),
    { numRuns: 150 },
  );
});

/** Headers good and bad, over and over. */
const SCRIBBLER = `
const { workerData, parentPort } = require('node:worker_threads');
const { ram, gpa, stop } = workerData;
const header = new DataView(ram, gpa, 12);
const flag = new Int32Array(stop.buffer);
const random = (below) => Math.floor(Math.random() * below);
parentPort.postMessage('running');
while (Atomics.load(flag, 0) === 0) {
  header.setUint8(0, random(8) ? 1 : random(256));
  header.setUint8(1, random(3) ? random(5) : random(256));
  header.setUint16(4, random(4) ? 1000 : 0, true);
  header.setUint16(6, random(3) ? random(80) : random(0x10000), true);
  header.setUint16(8, random(3) ? random(20) : random(0x10000), true);
}
`;
