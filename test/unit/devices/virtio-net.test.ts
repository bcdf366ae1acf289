import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { NetBackend, NetClient, NetOffload, SendResult } from '../../../src/devices/virtio/net/backend.js';
import { VirtioNet, type VirtioNetConfig } from '../../../src/devices/virtio/net/net.js';
import { VmmError } from '../../../src/errors.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { type GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { MMIO_CONFIG, MMIO_STATUS, STATUS_NEEDS_RESET, VIRTIO_F_EVENT_IDX } from '../../../src/virtio/defs.js';
import { DriverArena } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../../src/virtio/transport/mmio.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

const [RX, TX] = [0, 1];
const HEADER = 12;
const ALL: readonly NetOffload[] = ['checksum', 'tso4', 'tso6', 'tso-ecn', 'ufo'];
const MRG_RXBUF = 1n << 15n;
const MTU = 1n << 3n;

/** A backend that keeps what it gets, and does as it is told. */
class Cable implements NetBackend {
  readonly name = 'cable';
  readonly sent: { frame: Buffer; header: Buffer }[] = [];
  client!: NetClient;
  paused = false;
  flushes = 0;
  answer: SendResult = 'sent';
  receiveOffloads: readonly NetOffload[] = [];
  constructor(
    readonly offloads: readonly NetOffload[] = [],
    readonly mtu?: number,
  ) {}
  connect(client: NetClient): void {
    this.client = client;
  }
  setReceiveOffloads(offloads: readonly NetOffload[]): void {
    this.receiveOffloads = offloads;
  }
  send(frame: readonly Uint8Array[], header: Uint8Array): SendResult {
    if (this.answer === 'sent') this.sent.push({ frame: Buffer.concat(frame), header: Buffer.from(header) });
    return this.answer;
  }
  flush(): void {
    this.flushes++;
  }
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

let memory: GuestMemory;
let arena: DriverArena;
let irq: FakeIrqLine;
let cable: Cable;
let net: VirtioNet;
let mmio: VirtioMmio;
let driver: MmioDriver;

function start(config: Partial<VirtioNetConfig> = {}, features = ~VIRTIO_F_EVENT_IDX, queueSize = 16): void {
  memory = heapGuestMemory({ gpa: 0, sizeBytes: 16 * 2 ** 20 });
  arena = new DriverArena(memory, 0x1000);
  irq = new FakeIrqLine();
  cable = (config.backend as Cable) ?? new Cable();
  net = new VirtioNet({ backend: cable, ...config });
  mmio = new MappedMmio({ device: net, memory, irq });
  driver = new MmioDriver(mmio, arena);
  driver.start(features, queueSize);
}

/** Frames of so many bytes, each different. */
const frameOf = (bytes: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + seed * 31) & 0xff);

const header = (fields: {
  flags?: number;
  gsoType?: number;
  hdrLen?: number;
  gsoSize?: number;
  csumStart?: number;
  csumOffset?: number;
}): Uint8Array => {
  const bytes = new Uint8Array(HEADER);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, fields.flags ?? 0);
  view.setUint8(1, fields.gsoType ?? 0);
  view.setUint16(2, fields.hdrLen ?? 0, true);
  view.setUint16(4, fields.gsoSize ?? 0, true);
  view.setUint16(6, fields.csumStart ?? 0, true);
  view.setUint16(8, fields.csumOffset ?? 0, true);
  return bytes;
};

/** The guest sends bytes, header first, cut into pieces of these lengths (the last one takes the rest). */
function post(bytes: Uint8Array, cuts: readonly number[] = []): void {
  const buffers = [];
  let at = 0;
  for (const length of [...cuts, bytes.length]) {
    const piece = bytes.subarray(at, at + length);
    if (piece.length > 0) buffers.push({ gpa: arena.place(piece), length: piece.length });
    at += piece.length;
  }
  driver.queues[TX].add(buffers);
}

function transmit(
  frame: Uint8Array,
  withHeader: Uint8Array = new Uint8Array(HEADER),
  cuts: readonly number[] = [],
): void {
  post(Buffer.concat([withHeader, frame]), cuts);
  driver.kick(TX);
}

const posted: { head: number; gpa: number; length: number }[] = [];
function giveBuffers(count: number, length: number): void {
  for (let i = 0; i < count; i++) {
    const gpa = arena.place(length);
    posted.push({ head: driver.queues[RX].add([{ gpa, length, writable: true }]), gpa, length });
  }
}

/** The next frame that arrived in the buffers given, with its header; checks what a driver relies on. */
function takeFrame(): { header: Buffer; frame: Buffer; buffers: number } | undefined {
  const queue = driver.queues[RX];
  const parts: Uint8Array[] = [];
  for (let left = 1; left > 0; left--) {
    const used = queue.takeUsed();
    if (!used) {
      expect(parts).toEqual([]); // a frame is there as a whole or not at all
      return undefined;
    }
    const buffer = posted.shift()!;
    expect(used.head).toBe(buffer.head);
    parts.push(memory.read(buffer.gpa, used.writtenBytes));
    if (parts.length === 1) left = new DataView(parts[0].buffer, parts[0].byteOffset).getUint16(10, true);
    if (left > 1) expect(used.writtenBytes).toBe(buffer.length);
  }
  const bytes = Buffer.concat(parts);
  return { header: bytes.subarray(0, HEADER), frame: bytes.subarray(HEADER), buffers: parts.length };
}

function receive(frame: Uint8Array, withHeader?: Uint8Array): void {
  cable.client.receive([frame], withHeader);
  cable.client.receiveEnd();
}

const dropsOf = (direction: 'transmitted' | 'received') => net.counters[direction].dropped;
const needsReset = () => (driver.get(MMIO_STATUS) & STATUS_NEEDS_RESET) !== 0;

beforeEach(() => {
  posted.length = 0;
  start();
});

afterEach(() => void vi.useRealTimers());

describe('the configuration', () => {
  it('tells address, link, MTU and one pair of queues', () => {
    start({ mac: '52:54:00:ab:cd:ef', mtu: 9000 });
    const config = Array.from({ length: 14 }, (_, i) => mmio.read(MMIO_CONFIG + i, 1));
    expect(config).toEqual([0x52, 0x54, 0, 0xab, 0xcd, 0xef, 1, 0, 1, 0, 0x28, 0x23, 0xff, 0xff]);
    expect([net.mac, driver.get(0x008), driver.queueSizeMax(2)]).toEqual(['52:54:00:ab:cd:ef', 1, 0]);
  });

  it('offers offloads and an MTU only when the backend has them', () => {
    expect(driver.deviceFeatures() & 0xffffffn & ~0x18020n).toBe(0n);
    start({ backend: new Cable(ALL, 1500) });
    expect(driver.deviceFeatures() & 0xffffffn).toBe(0x1ffabn);
    expect(new Set(cable.receiveOffloads)).toEqual(new Set(ALL));
  });

  it('makes up a unicast, locally administered address, another one each time', () => {
    const macs = Array.from({ length: 20 }, () => new VirtioNet({ backend: new Cable() }).mac);
    expect(new Set(macs).size).toBe(20);
    for (const mac of macs) expect(parseInt(mac.slice(0, 2), 16) & 3).toBe(2);
  });

  it.each([
    { mac: '52:54:00:12:34' },
    { mac: '53:54:00:12:34:56' },
    { mac: '00:00:00:00:00:00' },
    { mtu: 67 },
    { mtu: 65536 },
    { mtu: 1500.5 },
    { transmitLimit: { bytesPerSecond: -1 } },
  ])('refuses %j', (config) => {
    expect(() => new VirtioNet({ backend: new Cable(), ...config })).toThrowError(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  it('counts offloads without the checksum as not agreed on', () => {
    start({ backend: new Cable(ALL) }, ~(VIRTIO_F_EVENT_IDX | 3n));
    expect(cable.receiveOffloads).toEqual([]);
    transmit(frameOf(3000), header({ flags: 1, gsoType: 1, gsoSize: 1000, csumStart: 34, csumOffset: 16 }));
    expect(dropsOf('transmitted')).toEqual({ 'bad header': 1 });
  });
});

describe('frames of the guest', () => {
  it('go out as they are, in order, each batch flushed once', () => {
    for (const seed of [1, 2, 3]) post(Buffer.concat([new Uint8Array(HEADER), frameOf(60 + seed, seed)]));
    const { flushes } = cable;
    driver.kick(TX);
    expect(cable.sent.map(({ frame }) => frame)).toEqual(
      [1, 2, 3].map((seed) => Buffer.from(frameOf(60 + seed, seed))),
    );
    expect([cable.flushes - flushes, irq.level, driver.queues[TX].takeUsed()?.writtenBytes]).toEqual([1, true, 0]);
    expect(net.counters.transmitted).toEqual({ frames: 3, bytes: 186, dropped: {} });
  });

  it('may be cut anywhere, also inside the header', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 30 }), { maxLength: 8 }),
        fc.integer({ min: 14, max: 200 }),
        (cuts, bytes) => {
          start();
          const frame = frameOf(bytes);
          transmit(frame, undefined, cuts);
          expect(cable.sent.map((sent) => sent.frame)).toEqual([Buffer.from(frame)]);
        },
      ),
      { numRuns: 50 },
    );
  });

  it('keep a header within what was agreed on', () => {
    start({ backend: new Cable(ALL) });
    const tso = header({ flags: 1, gsoType: 0x81, hdrLen: 54, gsoSize: 1448, csumStart: 34, csumOffset: 16 });
    transmit(frameOf(65550), tso);
    expect(cable.sent[0].header).toEqual(Buffer.from(tso));
    expect(cable.sent[0].frame.length).toBe(65550);
  });

  it('lose flags that only a device sets, and num_buffers', () => {
    const odd = header({ flags: 6 });
    odd.set([7, 7], 10);
    transmit(frameOf(60), odd);
    expect(cable.sent[0].header).toEqual(Buffer.alloc(HEADER));
  });

  it('are dropped and counted while the link is down', () => {
    net.setLink(false);
    expect(mmio.read(MMIO_CONFIG + 6, 2)).toBe(0);
    expect(driver.acknowledge() & 2).toBe(2);
    transmit(frameOf(60));
    receive(frameOf(60));
    net.setLink(true);
    transmit(frameOf(60));
    expect([dropsOf('transmitted'), dropsOf('received'), cable.sent.length]).toEqual([
      { 'link down': 1 },
      { 'link down': 1 },
      1,
    ]);
  });

  it('wait in the queue while the backend has no room, and are counted when it refuses them', () => {
    cable.answer = 'busy';
    transmit(frameOf(60, 1));
    transmit(frameOf(60, 2));
    expect(driver.queues[TX].usedIdx).toBe(0);
    cable.answer = 'sent';
    driver.kick(TX); // the backend said that it would call
    expect(driver.queues[TX].usedIdx).toBe(0);
    cable.client.drained();
    expect([driver.queues[TX].usedIdx, cable.sent.map(({ frame }) => frame)]).toEqual([
      2,
      [1, 2].map((seed) => Buffer.from(frameOf(60, seed))),
    ]);
    cable.answer = 'refused';
    transmit(frameOf(60));
    expect([driver.queues[TX].usedIdx, net.counters.transmitted]).toEqual([
      3,
      { frames: 2, bytes: 120, dropped: { refused: 1 } },
    ]);
  });

  it('leave the event loop its turns', async () => {
    start({ backend: new Cable(ALL) }, undefined, 64);
    const tso = header({ flags: 1, gsoType: 1, gsoSize: 1448, csumStart: 34, csumOffset: 16 });
    const big = { gpa: arena.place(Buffer.concat([tso, frameOf(65550)])), length: HEADER + 65550 };
    for (let i = 0; i < 40; i++) driver.queues[TX].add([big]);
    driver.kick(TX);
    expect(cable.sent.length).toBe(16);
    await setImmediate();
    await setImmediate();
    await setImmediate();
    expect(cable.sent.length).toBe(40);
  });

  it('go no faster than their limit', () => {
    vi.useFakeTimers();
    start({ transmitLimit: { opsPerSecond: 100, burstOps: 3 } });
    for (let i = 0; i < 8; i++) post(Buffer.concat([new Uint8Array(HEADER), frameOf(60, i)]));
    driver.kick(TX);
    driver.kick(TX);
    expect([cable.sent.length, driver.queues[TX].usedIdx]).toEqual([3, 3]);
    vi.advanceTimersByTime(15);
    expect(cable.sent.length).toBe(5);
    vi.advanceTimersByTime(100);
    expect([cable.sent.length, driver.queues[TX].usedIdx, vi.getTimerCount()]).toEqual([8, 8, 0]);
  });
});

describe('frames for the guest', () => {
  it('arrive with a header that counts one buffer', () => {
    giveBuffers(2, 2048);
    receive(frameOf(60));
    expect(irq.level).toBe(true);
    const { header: seen, frame } = takeFrame()!;
    expect(seen).toEqual(Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
    expect(frame).toEqual(Buffer.from(frameOf(60)));
    expect(net.counters.received).toEqual({ frames: 1, bytes: 60, dropped: {} });
  });

  it('arrive whole and in order in buffers of any size, from pieces of any size', () => {
    const sizes = fc.array(fc.integer({ min: 14, max: 4000 }), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(sizes, fc.integer({ min: 32, max: 3000 }), fc.integer({ min: 1, max: 2000 }), (frames, room, cut) => {
        start({}, undefined, 512);
        posted.length = 0;
        const arrived: Buffer[] = [];
        frames.forEach((bytes, i) => {
          const frame = frameOf(bytes, i);
          const pieces = [];
          for (let at = 0; at < bytes; at += cut) pieces.push(frame.subarray(at, at + cut));
          cable.client.receive(pieces);
          cable.client.receiveEnd();
        });
        expect(cable.paused).toBe(true);
        for (let i = 0; i < 8000 && arrived.length < frames.length; i++) {
          giveBuffers(1, room);
          driver.kick(RX);
          const next = takeFrame();
          if (next) arrived.push(next.frame);
        }
        expect(arrived).toEqual(frames.map((bytes, i) => Buffer.from(frameOf(bytes, i))));
        expect(cable.paused).toBe(false);
      }),
      { numRuns: 30 },
    );
  });

  it('wait for buffers, the backend paused, and go on when there are some', () => {
    receive(frameOf(60, 1));
    expect(cable.paused).toBe(true);
    receive(frameOf(61, 2));
    giveBuffers(1, 2048);
    driver.kick(RX);
    expect([takeFrame()?.frame.length, takeFrame(), cable.paused]).toEqual([60, undefined, true]);
    giveBuffers(1, 2048);
    driver.kick(RX);
    expect([takeFrame()?.frame.length, cable.paused]).toEqual([61, false]);
  });

  it('are dropped and counted when too many wait', () => {
    for (let i = 0; i < 300; i++) receive(frameOf(60));
    expect(dropsOf('received')).toEqual({ 'no room': 44 });
    start();
    for (let i = 0; i < 20; i++) receive(frameOf(65550));
    expect(dropsOf('received')).toEqual({ 'no room': 5 });
  });

  it('are dropped and counted without a driver', () => {
    driver.set(MMIO_STATUS, 0);
    receive(frameOf(60));
    expect([dropsOf('received'), cable.paused]).toEqual([{ 'no driver': 1 }, false]);
  });

  it('fill one buffer each when buffers do not merge, and are dropped where that is too small', () => {
    start({}, ~(VIRTIO_F_EVENT_IDX | MRG_RXBUF));
    giveBuffers(1, 100);
    receive(frameOf(89));
    expect([dropsOf('received'), driver.queues[RX].usedIdx]).toEqual([{ 'buffers too small': 1 }, 0]);
    receive(frameOf(88));
    expect(takeFrame()?.frame.length).toBe(88);
  });

  it('are dropped where all buffers together are too small', () => {
    giveBuffers(16, 12);
    receive(frameOf(200));
    expect([dropsOf('received'), cable.paused, needsReset()]).toEqual([{ 'buffers too small': 1 }, false, false]);
    receive(frameOf(180));
    expect(takeFrame()).toMatchObject({ buffers: 16 });
  });

  it('keep the header that the driver agreed to, and are dropped where it did not', () => {
    start({ backend: new Cable(ALL) });
    giveBuffers(16, 8192);
    const tso = header({ flags: 1, gsoType: 4, hdrLen: 74, gsoSize: 1428, csumStart: 54, csumOffset: 16 });
    receive(frameOf(60000), tso);
    expect(takeFrame()).toMatchObject({ header: Buffer.concat([tso.subarray(0, 10), Buffer.from([8, 0])]) });
    receive(frameOf(60), header({ flags: 2 }));
    expect(takeFrame()?.header[0]).toBe(2);
    start({ backend: new Cable(ALL) }, 0n);
    posted.length = 0;
    giveBuffers(1, 8192);
    receive(frameOf(60), header({ flags: 2 }));
    expect(takeFrame()?.header[0]).toBe(0);
    receive(frameOf(6000), tso);
    expect(dropsOf('received')).toEqual({ 'bad header': 1 });
  });

  it('keep to the MTU that the driver agreed to', () => {
    start({ mtu: 1500 });
    giveBuffers(4, 2048);
    receive(frameOf(1523));
    receive(frameOf(1522)); // with two VLAN tags
    expect([takeFrame()?.frame.length, dropsOf('received')]).toEqual([1522, { 'too long': 1 }]);
    start({ mtu: 1500 }, ~MTU);
    posted.length = 0;
    giveBuffers(4, 2048);
    receive(frameOf(1523));
    expect(takeFrame()?.frame.length).toBe(1523);
  });

  it('come no faster than their limit, the backend paused', () => {
    vi.useFakeTimers();
    start({ receiveLimit: { bytesPerSecond: 100_000, burstBytes: 1000 } });
    giveBuffers(8, 2048);
    for (let i = 0; i < 5; i++) receive(frameOf(1000, i));
    expect([driver.queues[RX].usedIdx, cable.paused]).toEqual([1, true]);
    vi.advanceTimersByTime(15);
    expect([driver.queues[RX].usedIdx, cable.paused]).toEqual([3, true]);
    vi.advanceTimersByTime(100);
    expect([driver.queues[RX].usedIdx, cable.paused, vi.getTimerCount()]).toEqual([5, false, 0]);
  });
});

describe('its life', () => {
  it('forgets at a reset what waited, and lets the backend go on', () => {
    receive(frameOf(60));
    cable.answer = 'busy';
    transmit(frameOf(60));
    driver.set(MMIO_STATUS, 0);
    expect(cable.paused).toBe(false);
    cable.answer = 'sent';
    cable.client.drained();
    expect(cable.sent).toEqual([]);
    driver.start(~VIRTIO_F_EVENT_IDX, 16);
    posted.length = 0;
    giveBuffers(2, 2048);
    driver.kick(RX);
    expect(takeFrame()).toBeUndefined();
    receive(frameOf(70));
    transmit(frameOf(80));
    expect([takeFrame()?.frame.length, cable.sent.length]).toEqual([70, 1]);
  });

  it('touches no buffer between quiesce and resume', async () => {
    giveBuffers(2, 2048);
    await net.quiesce();
    expect(cable.paused).toBe(true);
    receive(frameOf(60));
    transmit(frameOf(61));
    expect([driver.queues[RX].usedIdx, driver.queues[TX].usedIdx]).toEqual([0, 0]);
    net.resume();
    expect([takeFrame()?.frame.length, cable.sent.length, cable.paused]).toEqual([60, 1, false]);
  });

  it('goes on in another device where it was saved, also with frames under way', () => {
    start({ mac: '52:54:00:11:22:33' });
    net.setLink(false);
    net.setLink(true);
    giveBuffers(1, 100); // too small for the frame: taken back
    receive(frameOf(150));
    cable.answer = 'busy';
    transmit(frameOf(61));
    const saved = structuredClone(mmio.save());
    const otherCable = new Cable();
    const other = new VirtioNet({ backend: otherCable });
    const otherMmio = new MappedMmio({ device: other, memory, irq });
    otherMmio.restore(saved);
    expect([other.mac, other.linkUp, otherCable.sent.length]).toEqual(['52:54:00:11:22:33', true, 1]);
    giveBuffers(1, 100);
    otherCable.client.receive([frameOf(150)]);
    otherCable.client.receiveEnd();
    expect(takeFrame()).toMatchObject({ buffers: 2, frame: Buffer.from(frameOf(150)) });
  });

  it.each([undefined, {}, { mac: new Uint8Array(5), linkUp: true }, { mac: new Uint8Array(6), linkUp: 1 }])(
    'refuses the state %j and keeps its own',
    (state) => {
      const before = net.mac;
      expect(() => net.restore(state)).toThrowError(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(net.mac).toBe(before);
    },
  );

  it('pulls the cable when the backend breaks down', () => {
    const failures: VmmError[] = [];
    start({ onBackendFailure: (error) => failures.push(error) });
    cable.client.failed(new VmmError('CLOSED', 'gone'));
    expect([net.linkUp, failures.map(({ code }) => code), mmio.read(MMIO_CONFIG + 6, 2)]).toEqual([
      false,
      ['CLOSED'],
      0,
    ]);
  });
});
