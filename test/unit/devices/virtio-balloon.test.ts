import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VirtioBalloon } from '../../../src/devices/virtio/balloon/balloon.js';
import { pageRuns } from '../../../src/devices/virtio/balloon/page-runs.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { MMIO_CONFIG, MMIO_CONFIG_GENERATION, MMIO_DEVICE_ID, MMIO_STATUS } from '../../../src/virtio/defs.js';
import { DriverArena } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../../src/virtio/transport/mmio.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

const RAM = 64 * 2 ** 20;
const PAGE = 4096;
const F_STATS_VQ = 1n << 1n;
const ALL = ~0n;
const memory = heapGuestMemory({ gpa: 0, sizeBytes: RAM });
let device: VirtioBalloon;
let transport: VirtioMmio;
let irq: FakeIrqLine;
let arena: DriverArena;
let driver: MmioDriver;
let discarded: [gpa: number, length: number][];

function start(features = ALL): void {
  discarded = [];
  device = new VirtioBalloon({
    discard: (gpa, length) => {
      if (gpa % PAGE !== 0 || length % PAGE !== 0 || gpa + length > RAM) return false;
      discarded.push([gpa, length]);
      return true;
    },
  });
  irq = new FakeIrqLine();
  arena = new DriverArena(memory, 0);
  transport = new MappedMmio({ device, memory, irq });
  driver = new MmioDriver(transport, arena);
  driver.start(features);
}

beforeEach(() => start());
// Turns that are due must not see the next test's queues.
afterEach(() => driver.set(MMIO_STATUS, 0));

const config = (offset: number) => transport.read(MMIO_CONFIG + offset, 4);
/** Sends page numbers. @returns Whether the device took the buffer. */
function send(queue: number, pages: readonly number[]): boolean {
  const bytes = new Uint8Array(Uint32Array.from(pages).buffer);
  driver.queues[queue].add([{ gpa: arena.place(bytes), length: bytes.length }]);
  driver.kick(queue);
  return driver.queues[queue].takeUsed() !== undefined;
}
function statistics(...stats: [tag: number, value: bigint][]): { gpa: number; length: number } {
  const bytes = new Uint8Array(10 * stats.length);
  const view = new DataView(bytes.buffer);
  stats.forEach(([tag, value], i) => {
    view.setUint16(10 * i, tag, true);
    view.setBigUint64(10 * i + 2, value, true);
  });
  return { gpa: arena.place(bytes), length: bytes.length };
}

describe('the balloon device', () => {
  it('is one, and offers statistics, deflation on demand and free page reporting', () => {
    expect(driver.get(MMIO_DEVICE_ID)).toBe(5);
    expect(device.features).toBe(0b100110n);
  });

  it('tells the driver of a new target, and learns what the balloon holds', () => {
    const before = driver.get(MMIO_CONFIG_GENERATION);
    device.setTarget(10 * 2 ** 20 + 17);
    expect(irq.level).toBe(true);
    expect(driver.get(MMIO_CONFIG_GENERATION)).not.toBe(before);
    expect([config(0), config(4)]).toEqual([2560, 0]);
    transport.write(MMIO_CONFIG + 4, 4, 1280);
    transport.write(MMIO_CONFIG, 4, 7); // the target is the host's
    expect([config(0), config(4)]).toEqual([2560, 1280]);
    expect(device.counters).toMatchObject({ targetBytes: 10 * 2 ** 20, actualBytes: 5 * 2 ** 20 });
  });

  it.each([-1, NaN, 2 ** 45])('refuses %d bytes as a target', (bytes) => {
    expect(() => device.setTarget(bytes)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('gives back what the guest inflates the balloon with, neighbours together', () => {
    expect(send(0, [0x300, 0x302, 0x301, 0x500, 0x301])).toBe(true);
    expect(discarded).toEqual([
      [0x300 * PAGE, 3 * PAGE],
      [0x500 * PAGE, PAGE],
    ]);
    expect(device.counters).toMatchObject({ inflatedBytes: 4 * PAGE, refused: 0 });
  });

  it('takes pages back from the balloon without a word', () => {
    expect(send(1, [0x300, 0x301])).toBe(true);
    expect(discarded).toEqual([]);
  });

  it('counts pages that are no memory, and gives back the others', () => {
    expect(send(0, [0xffffffff, RAM / PAGE, 0x400])).toBe(true);
    expect(discarded).toEqual([[0x400 * PAGE, PAGE]]);
    expect(device.counters.refused).toBe(2);
  });

  it('ignores what is no whole page number, and all beyond the first 1,024', () => {
    driver.queues[0].add([{ gpa: arena.place(new Uint8Array(6)), length: 6 }]);
    driver.kick(0);
    expect(discarded).toEqual([[0, PAGE]]);
    send(
      0,
      Array.from({ length: 3000 }, (_, i) => 2 * i),
    );
    expect(discarded).toHaveLength(1 + 1024);
  });

  it('lets the event loop have its turns while a guest floods it', async () => {
    const pages = Array.from({ length: 1024 }, (_, i) => 2 * i);
    const bytes = new Uint8Array(Uint32Array.from(pages).buffer);
    const gpa = arena.place(bytes);
    for (let i = 0; i < 10; i++) driver.queues[0].add([{ gpa, length: bytes.length }]);
    driver.kick(0);
    driver.kick(0); // no way around the pause
    expect(discarded).toHaveLength(1024);
    for (let i = 0; i < 10; i++) await turn();
    expect(discarded).toHaveLength(10 * 1024);
  });

  it('gives back free pages that the guest reports', () => {
    const [a, b] = [0x800000, 0xc00000];
    driver.queues[3].add([
      { gpa: a, length: 2 ** 21, writable: true },
      { gpa: b, length: PAGE, writable: true },
    ]);
    driver.kick(3);
    expect(driver.queues[3].takeUsed()).toMatchObject({ writtenBytes: 0 });
    expect(discarded).toEqual([
      [a, 2 ** 21],
      [b, PAGE],
    ]);
    expect(device.counters.reportedBytes).toBe(2 ** 21 + PAGE);
  });

  it('refuses reported ranges that are no whole pages', () => {
    driver.queues[3].add([{ gpa: 0x800100, length: PAGE, writable: true }]);
    driver.kick(3);
    expect([discarded, device.counters.refused]).toEqual([[], 1]);
  });

  it('numbers its queues without gaps when the driver wants no statistics', () => {
    start(ALL & ~F_STATS_VQ);
    driver.queues[2].add([{ gpa: 0x800000, length: PAGE, writable: true }]);
    driver.kick(2);
    expect(discarded).toEqual([[0x800000, PAGE]]);
  });

  it('asks for statistics, and hands them to everyone who waits', async () => {
    // The driver brings a buffer at once, and fills it anew whenever it comes back.
    driver.queues[2].add([statistics([4, 1000n])]);
    driver.kick(2);
    expect(driver.queues[2].takeUsed()).toBeUndefined();
    const waiting = [device.refreshStats(), device.refreshStats()];
    expect(driver.queues[2].takeUsed()).toBeDefined();
    driver.queues[2].add([statistics([4, 2000n], [0xffff, 1n], [5, 2n ** 40n], [6, 7n])]);
    driver.kick(2);
    const stats = { freeBytes: 2000, totalBytes: 2 ** 40, availableBytes: 7 };
    expect(await Promise.all(waiting)).toEqual([stats, stats]);
    const next = device.refreshStats();
    expect(driver.queues[2].takeUsed()).toBeDefined();
    driver.set(MMIO_STATUS, 0);
    expect(await next).toBeUndefined();
  });

  it('has no statistics where the driver has none', async () => {
    start(ALL & ~F_STATS_VQ);
    expect(await device.refreshStats()).toBeUndefined();
  });

  it('keeps one statistics buffer, however many a driver brings', () => {
    for (let i = 0; i < 5; i++) driver.queues[2].add([statistics([4, BigInt(i)])]);
    driver.kick(2);
    expect(driver.queues[2].usedIdx).toBe(4);
  });

  it('keeps its target over a reset, and both sizes over a snapshot', () => {
    device.setTarget(2 ** 20);
    transport.write(MMIO_CONFIG + 4, 4, 200);
    const state = device.save();
    driver.set(MMIO_STATUS, 0);
    expect(device.counters).toMatchObject({ targetBytes: 2 ** 20, actualBytes: 0 });
    const other = new VirtioBalloon({ discard: () => true });
    other.restore(state);
    expect(other.counters).toMatchObject({ targetBytes: 2 ** 20, actualBytes: 200 * PAGE });
    expect(() => other.restore({ targetPages: -1 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

it('puts page numbers into runs', () => {
  expect(pageRuns(Uint32Array.of(5, 3, 4, 9, 0xffffffff, 4))).toEqual([
    { first: 3, count: 3 },
    { first: 9, count: 1 },
    { first: 0xffffffff, count: 1 },
  ]);
  expect(pageRuns(new Uint32Array(0))).toEqual([]);
});
