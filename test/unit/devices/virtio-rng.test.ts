import { setImmediate } from 'node:timers/promises';
import { beforeEach, expect, it } from 'vitest';
import { VirtioRng } from '../../../src/devices/virtio/rng/rng.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { MMIO_DEVICE_ID } from '../../../src/virtio/defs.js';
import { DriverArena } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

const RAM = 4 * 2 ** 20;
const memory = heapGuestMemory({ gpa: 0, sizeBytes: RAM });
let irq: FakeIrqLine;
let arena: DriverArena;
let driver: MmioDriver;

function start(fill?: (bytes: Uint8Array) => void): void {
  irq = new FakeIrqLine();
  arena = new DriverArena(memory, 0);
  driver = new MmioDriver(new MappedMmio({ device: new VirtioRng(fill && { fill }), memory, irq }), arena);
  driver.start();
}

beforeEach(() => start());

it('is an entropy device', () => {
  expect(driver.get(MMIO_DEVICE_ID)).toBe(4);
});

it('fills each buffer, differently', () => {
  const buffers = [32, 1, 33].map((length) => ({ gpa: arena.place(length), length, writable: true }));
  driver.queues[0].add(buffers.slice(0, 2));
  driver.queues[0].add(buffers.slice(2));
  driver.kick(0);
  expect([driver.queues[0].takeUsed()?.writtenBytes, driver.queues[0].takeUsed()?.writtenBytes]).toEqual([33, 33]);
  expect(irq.level).toBe(true);
  const [first, , third] = buffers.map(({ gpa, length }) => Buffer.from(memory.read(gpa, length)));
  expect(new Set(first).size).toBeGreaterThan(8);
  expect(first.equals(third.subarray(0, 32))).toBe(false);
});

it('gives back a buffer without room untouched', () => {
  driver.queues[0].add([{ gpa: arena.place('readable'), length: 8 }]);
  driver.kick(0);
  expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(0);
});

it('gives a greedy guest part of what it wants, and the event loop its turns', async () => {
  let filled = 0;
  start((bytes) => void (filled += bytes.length));
  const big = { gpa: arena.place(2 ** 20), length: 2 ** 20, writable: true };
  for (let i = 0; i < 40; i++) driver.queues[0].add([big]);
  driver.kick(0);
  expect(driver.queues[0].usedIdx).toBe(16);
  driver.kick(0); // no way around the pause
  expect([driver.queues[0].usedIdx, filled]).toEqual([16, 2 ** 20]);
  await setImmediate();
  await setImmediate();
  await setImmediate();
  expect([driver.queues[0].usedIdx, filled]).toEqual([40, 40 * 65536]);
});

it('stops at a reset, also between two turns', async () => {
  start();
  const big = { gpa: arena.place(2 ** 20), length: 2 ** 20, writable: true };
  for (let i = 0; i < 40; i++) driver.queues[0].add([big]);
  driver.kick(0);
  const queue = driver.queues[0];
  driver.set(0x70, 0);
  const before = queue.usedIdx;
  await setImmediate();
  await setImmediate();
  expect(queue.usedIdx).toBe(before);
});
