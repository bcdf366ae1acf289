/** HOSTILE case 10, for real: another thread rewrites rings and descriptors while the device works on them. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, it, onTestFinished } from 'vitest';
import { GuestMemory, WINDOW_STRIDE } from '../../../src/memory/guest-memory.js';
import { VIRTIO_F_INDIRECT_DESC } from '../../../src/virtio/defs.js';
import { DriverArena, DriverQueue } from '../../../src/virtio/driver.js';
import { VirtQueue } from '../../../src/virtio/queue/queue.js';
import { QueueSetup } from '../../../src/virtio/queue/state.js';

const SIZE = 16;
const RAM_BYTES = 0x10000;
/** Go on until both outcomes were seen often, however the threads are scheduled. */
const ENOUGH_CHAINS = 1000;
const ENOUGH_FAULTS = 200;
const LIMIT_MS = 100_000;

/** Writes good and bad descriptors, now and then a bad head, and always makes some of them available. */
const SCRIBBLER = `
const { workerData, parentPort } = require('node:worker_threads');
const { ram, desc, avail, size, stop } = workerData;
const table = new DataView(ram, desc, 16 * size);
const ring = new Uint16Array(ram, avail, size + 3);
const flag = new Int32Array(stop);
const random = (below) => Math.floor(Math.random() * below);
parentPort.postMessage('running');
for (let idx = 0; Atomics.load(flag, 0) === 0; ) {
  const at = 16 * random(size);
  table.setUint32(at, random(4) ? random(0x10000) : 0xffffffff, true);
  table.setUint32(at + 4, random(8) ? 0 : random(0x100000000), true);
  table.setUint32(at + 8, random(4) ? random(256) : 16 * random(0x10000), true);
  table.setUint16(at + 12, random(4) ? random(4) : random(8), true);
  table.setUint16(at + 14, random(16) ? random(size) : 0xffff, true);
  ring[2 + (idx & (size - 1))] = random(32) ? random(size) : size;
  // Stay within what the queue's owner may have pending, mostly: it tells by the first word of RAM.
  if (((idx - new Uint16Array(ram, 0, 1)[0]) & 0xffff) < size - 1) idx = (idx + (random(100) ? 1 : size + 1)) & 0xffff;
  Atomics.store(ring, 1, idx);
}
`;

it('never lets the device leave memory, throw or loop, whatever another processor writes meanwhile', async () => {
  const ram = new SharedArrayBuffer(RAM_BYTES);
  const memory = new GuestMemory();
  memory.addRegion({
    gpa: 0,
    sizeBytes: RAM_BYTES,
    windows: [new Uint8Array(ram)],
    windowStride: WINDOW_STRIDE,
  });
  const driver = new DriverQueue(new DriverArena(memory, 16), SIZE);
  const setup = new QueueSetup(SIZE);
  for (const part of ['desc', 'avail', 'used'] as const) setup.onDriverAddress(part, 0, driver[part]);
  const faults = new Map<string, number>();
  const open = (nextAvail: number) => {
    const queue = new VirtQueue({
      memory,
      size: SIZE,
      views: setup.views(memory)!,
      features: VIRTIO_F_INDIRECT_DESC,
      interrupt: () => {},
      onFault: (fault) => faults.set(fault, (faults.get(fault) ?? 0) + 1),
    });
    queue.restore({ nextAvail, nextUsed: 0, signalledUsed: 0 });
    return queue;
  };

  const stop = new SharedArrayBuffer(4);
  const { desc, avail } = driver;
  const worker = new Worker(SCRIBBLER, { eval: true, workerData: { ram, desc, avail, size: SIZE, stop } });
  onTestFinished(async () => void (await worker.terminate()));
  await once(worker, 'message');
  let chains = 0;
  let queue = open(0);
  const taken = new Uint16Array(ram, 0, 1);
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  const faultCount = () => [...faults.values()].reduce((sum, count) => sum + count, 0);
  const deadline = performance.now() + LIMIT_MS;
  const seenEnough = () => chains >= ENOUGH_CHAINS && faultCount() >= ENOUGH_FAULTS && faults.size > 3;
  while (!seenEnough() && performance.now() < deadline) {
    if (queue.closed) {
      // Behind what was bad: that head, or a jump of the index.
      const bad = queue.save().nextAvail;
      const end = driver.availIdx;
      queue = open(((end - bad) & 0xffff) > SIZE ? end : (bad + 1) & 0xffff);
    }
    const before = chains;
    queue.drain((chain) => {
      chains++;
      const pieces = [...chain.readable, ...chain.writable];
      expect(pieces.length).toBeLessThanOrEqual(SIZE);
      for (const piece of pieces) expect(piece.byteOffset + piece.length).toBeLessThanOrEqual(RAM_BYTES);
      expect(pieces.reduce((sum, piece) => sum + piece.length, 0)).toBe(chain.readableBytes + chain.writableBytes);
      queue.push(chain, Math.min(chain.writableBytes, 1));
    });
    taken[0] = queue.save().nextAvail;
    // The other thread may have to share a processor with this one.
    if (chains === before && !queue.closed) Atomics.wait(nobody, 0, 0, 1);
  }
  Atomics.store(new Int32Array(stop), 0, 1);
  await once(worker, 'exit');
  expect({ chains, faults, enough: seenEnough() }).toMatchObject({ enough: true });
}, 120_000);
