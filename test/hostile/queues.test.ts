/** HOSTILE cases 1 to 11 and 15 for every queue of every virtio device, over both transports. */
import { once } from 'node:events';
import { setImmediate as turn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryBackend } from '../../src/backends/local/memory.js';
import { PortNetwork } from '../../src/backends/net/port.js';
import { Virtio9p } from '../../src/devices/virtio/9p/9p.js';
import { VirtioBalloon } from '../../src/devices/virtio/balloon/balloon.js';
import { VirtioBlk } from '../../src/devices/virtio/blk/blk.js';
import { VirtioConsole } from '../../src/devices/virtio/console/console.js';
import * as control from '../../src/devices/virtio/console/control.js';
import { VirtioNet } from '../../src/devices/virtio/net/net.js';
import { VirtioRng } from '../../src/devices/virtio/rng/rng.js';
import { VirtioVsock } from '../../src/devices/virtio/vsock/vsock.js';
import { GuestMemory, WINDOW_STRIDE } from '../../src/memory/guest-memory.js';
import {
  DESCRIPTOR_BYTES,
  STATUS_DRIVER_OK,
  STATUS_NEEDS_RESET,
  VIRTIO_F_INDIRECT_DESC,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  usedRingBytes,
} from '../../src/virtio/defs.js';
import type { VirtioDevice } from '../../src/virtio/device.js';
import type { DriverQueue } from '../../src/virtio/driver.js';
import { RIGS, type VirtioRig } from '../support/virtio-rigs.js';

const LOW_BYTES = 2 ** 20;
/** Behind a hole of a page. */
const HIGH_GPA = LOW_BYTES + 4096;
const QUEUE_SIZE = 16;

interface Subject {
  device: VirtioDevice;
  /** Makes the device want its queues for what comes from the host. */
  stir: (rig: VirtioRig, attacked: number) => void;
  /** Queues that the device never looks at: nothing to tell the driver by them. */
  unused?: readonly number[];
}

const CONTROL_TX = 3;
const SUBJECTS: Record<string, { queues: number; make: () => Subject }> = {
  blk: {
    queues: 2,
    make: () => ({
      device: new VirtioBlk({ backend: new MemoryBackend(new Uint8Array(64 * 512)), queues: 2 }),
      stir: () => {},
    }),
  },
  net: {
    queues: 2,
    make() {
      const backend = new PortNetwork();
      return { device: new VirtioNet({ backend }), stir: () => void backend.stream.write(Buffer.alloc(60, 0xff)) };
    },
  },
  console: {
    queues: 6,
    make() {
      const port = () => ({ output: { write: (bytes: Uint8Array) => bytes.length }, onInputRoom: () => {} });
      const device = new VirtioConsole({ ports: [port(), { ...port(), name: 'second' }] });
      return {
        device,
        stir: (rig, attacked) => {
          const messages = [
            control.encodeControl(0, control.CONTROL_DEVICE_READY, 1),
            ...[0, 1].map((id) => control.encodeControl(id, control.CONTROL_PORT_READY, 1)),
            ...[0, 1].map((id) => control.encodeControl(id, control.CONTROL_PORT_OPEN, 1)),
          ];
          if (attacked !== CONTROL_TX) {
            for (const bytes of messages) {
              rig.queue(CONTROL_TX).add([{ gpa: rig.arena.place(bytes), length: bytes.length }]);
            }
            rig.driver.kick(CONTROL_TX);
          }
          for (const port of device.ports) port.receive(Buffer.from('typed'));
        },
      };
    },
  },
  rng: { queues: 1, make: () => ({ device: new VirtioRng(), stir: () => {} }) },
  balloon: {
    queues: 4,
    make: () => ({ device: new VirtioBalloon({ discard: () => true }), stir: () => {} }),
  },
  '9p': {
    queues: 1,
    make() {
      const refusal = { head: new Uint8Array(11), dataBytes: 0 };
      const server = {
        serve: () => Promise.resolve(refusal),
        reset: () => {},
        save: () => undefined,
        restore: () => {},
        close: () => Promise.resolve(),
      };
      return { device: new Virtio9p({ server, tag: 'share' }), stir: () => {} };
    },
  },
  vsock: {
    queues: 3,
    make() {
      const device = new VirtioVsock({ cid: 7 });
      // The third queue carries one event, to a guest whose machine was restored.
      return { device, stir: () => void device.connect(50).catch(() => {}), unused: [2] };
    },
  },
};

/** What no driver may do to a queue; `free` is guest memory that nobody uses. */
const ATTACKS: Record<string, (queue: DriverQueue, free: number, rig: VirtioRig) => void> = {
  'a chain that loops': (queue, free) => {
    queue.setDescriptor(0, free, 16, VIRTQ_DESC_F_NEXT, 1);
    queue.setDescriptor(1, free, 16, VIRTQ_DESC_F_NEXT, 0);
    queue.publish(0);
  },
  'a buffer that wraps 2^64': (queue) => {
    queue.setDescriptor(0, 0xffff_ffff_ffff_fff0n, 0x20, VIRTQ_DESC_F_WRITE);
    queue.publish(0);
  },
  'a buffer over the hole in memory': (queue) => {
    queue.setDescriptor(0, LOW_BYTES - 512, 4096 + 1024, VIRTQ_DESC_F_WRITE);
    queue.publish(0);
  },
  'a next descriptor past the table': (queue, free) => {
    queue.setDescriptor(0, free, 16, VIRTQ_DESC_F_NEXT, queue.size);
    queue.publish(0);
  },
  'a head past the table': (queue) => queue.publish(queue.size),
  'an available index that jumps': (queue) => (queue.availIdx = queue.size + 1),
  'an indirect table in an indirect table': (queue, free, { memory }) => {
    queue.setDescriptor(0, free, DESCRIPTOR_BYTES, VIRTQ_DESC_F_INDIRECT);
    const table = memory.dataView(free, DESCRIPTOR_BYTES);
    table.setBigUint64(0, BigInt(free + 256), true);
    table.setUint32(8, DESCRIPTOR_BYTES, true);
    table.setUint16(12, VIRTQ_DESC_F_INDIRECT, true);
    queue.publish(0);
  },
  'an indirect table of 24 bytes': (queue, free) => {
    queue.setDescriptor(0, free, 24, VIRTQ_DESC_F_INDIRECT);
    queue.publish(0);
  },
  'what is to be read behind what is to be written': (queue, free) => {
    queue.setDescriptor(0, free, 16, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1);
    queue.setDescriptor(1, free + 16, 16);
    queue.publish(0);
  },
};

function memoryWithHole(low: Uint8Array = new Uint8Array(LOW_BYTES)): GuestMemory {
  const memory = new GuestMemory();
  memory.addRegion({ gpa: 0, sizeBytes: LOW_BYTES, windows: [low], windowStride: WINDOW_STRIDE });
  const high = new Uint8Array(8192);
  memory.addRegion({ gpa: HIGH_GPA, sizeBytes: high.length, windows: [high], windowStride: WINDOW_STRIDE });
  return memory;
}

/** All memory but what a queue tells the driver of itself, which is its device's to write. */
function contentOf({ memory, driver }: VirtioRig): Buffer {
  const low = Buffer.from(memory.read(0, LOW_BYTES));
  for (const queue of driver.queues) low.fill(0, queue.used, queue.used + usedRingBytes(queue.size));
  return Buffer.concat([low, memory.read(HIGH_GPA, 8192)]);
}

const settle = async () => {
  for (let i = 0; i < 4; i++) await turn();
};
const isFailed = ({ driver }: VirtioRig) => (driver.status & STATUS_NEEDS_RESET) !== 0;

describe.each(Object.keys(RIGS) as (keyof typeof RIGS)[])('over %s', (transport) => {
  describe.each(Object.entries(SUBJECTS))('%s', (_name, { queues, make }) => {
    const begin = (low?: Uint8Array) => {
      const subject = make();
      const rig = RIGS[transport](subject.device, memoryWithHole(low));
      expect(rig.core.queueCount).toBe(queues);
      return { ...subject, rig };
    };
    const each = Array.from({ length: queues }, (_, index) => index);

    it.each(each.flatMap((index) => Object.keys(ATTACKS).map((attack) => [index, attack] as const)))(
      'queue %i, given %s, fails the device, moves nothing, and works after a reset',
      async (index, attack) => {
        const { rig, stir, unused = [] } = begin();
        rig.driver.start(~0n, QUEUE_SIZE);
        const free = rig.arena.place(1024);
        ATTACKS[attack](rig.queue(index), free, rig);
        const attacked = rig.queue(index);
        const guarded = () => contentOf(rig).subarray(free, free + 1024);
        const before = Buffer.from(guarded());
        const usedBefore = attacked.usedIdx;
        rig.driver.kick(index);
        stir(rig, index);
        await settle();
        expect(isFailed(rig)).toBe(!unused.includes(index));
        expect(rig.core.failures).toBe(unused.includes(index) ? 0 : 1);
        expect(guarded().equals(before)).toBe(true);
        expect(rig.memory.read(LOW_BYTES - 512, 512).every((byte) => byte === 0)).toBe(true);
        expect(attacked.usedIdx).toBe(usedBefore);
        rig.reset();
        await settle();
        rig.driver.start(~0n, QUEUE_SIZE);
        expect(rig.driver.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)).toBe(STATUS_DRIVER_OK);
      },
    );

    it.each(each)('queue %i cannot be enabled with a size or rings that cannot be', (index) => {
      const { rig } = begin();
      const max = rig.core.queue(index)!.maxSize;
      const good = { size: max, desc: 0x10000, avail: 0x20000, used: 0x30000 };
      const bad = [
        ...[0, 3, max + 1, 2 * max, 0xffff].map((size) => ({ ...good, size })),
        { ...good, avail: good.desc },
        { ...good, used: good.avail },
        { ...good, desc: LOW_BYTES - 16 },
        { ...good, avail: LOW_BYTES },
        { ...good, used: 2 ** 40 },
        { ...good, desc: good.desc + 8 },
      ];
      for (const layout of bad) {
        rig.driver.negotiate();
        expect(rig.enable(index, layout), JSON.stringify(layout)).toBe(0);
      }
      rig.driver.negotiate();
      expect(rig.enable(index, good)).toBe(1);
    });

    it.each(each)('queue %i keeps size and addresses after DRIVER_OK', (index) => {
      const { rig } = begin();
      rig.driver.start(~0n, QUEUE_SIZE);
      const before = { registers: rig.registersOf(index), state: rig.core.save().queues };
      rig.driver.setQueue(index, { size: 2, desc: 0x100, avail: 0x200, used: 0x300 });
      expect({ registers: rig.registersOf(index), state: rig.core.save().queues }).toEqual(before);
    });

    it('reads 0 of a queue that does not exist, and ignores writes to it', () => {
      const { rig } = begin();
      rig.driver.start(~0n, QUEUE_SIZE);
      const before = rig.core.save().queues;
      for (const index of [queues, 0x7fff, 0xffff]) {
        rig.scribble(index);
        expect(new Set(rig.registersOf(index))).toEqual(new Set([0]));
      }
      expect(rig.core.save().queues).toEqual(before);
      expect(isFailed(rig)).toBe(false);
    });

    it('writes nothing to guest memory after a reset with all queues full', async () => {
      const { rig, stir } = begin();
      rig.driver.start(~0n, QUEUE_SIZE);
      for (const index of each) {
        for (let i = 0; i < QUEUE_SIZE / 2; i++) {
          const buffers = [64, 600].map((length) => ({ gpa: rig.arena.place(length), length }));
          rig.queue(index).add([buffers[0], { ...buffers[1], writable: true }]);
        }
      }
      const queuesThen = [...rig.driver.queues];
      for (const index of each) rig.driver.kick(index);
      stir(rig, CONTROL_TX);
      rig.reset();
      while (rig.driver.status !== 0) await turn();
      const all = () => Buffer.concat([rig.memory.read(0, LOW_BYTES), rig.memory.read(HIGH_GPA, 8192)]);
      const before = all();
      for (const index of each) rig.driver.kick(index);
      await settle();
      expect(all().equals(before)).toBe(true);
      expect(queuesThen).toHaveLength(queues);
    });

    it('neither throws nor stops for good while another processor rewrites its rings', async () => {
      const ram = new SharedArrayBuffer(LOW_BYTES);
      const { rig, stir } = begin(new Uint8Array(ram));
      rig.driver.start(VIRTIO_F_INDIRECT_DESC, QUEUE_SIZE);
      const parts = rig.driver.queues.map(({ desc, avail }) => ({ desc, avail }));
      const stop = new SharedArrayBuffer(4);
      const worker = new Worker(SCRIBBLER, { eval: true, workerData: { ram, parts, size: QUEUE_SIZE, stop } });
      onTestFinished(async () => void (await worker.terminate()));
      await once(worker, 'message');
      let restarts = 0;
      const deadline = performance.now() + 100_000;
      for (let round = 0; restarts < 20 && performance.now() < deadline; round++) {
        for (const index of each) rig.driver.kick(index);
        if (round % 16 === 0) stir(rig, CONTROL_TX);
        await turn();
        if (!isFailed(rig)) continue;
        restarts++;
        rig.reset();
        while (rig.driver.status !== 0) await turn();
        // The same rings, so that the other processor stays at them.
        rig.driver.negotiate(VIRTIO_F_INDIRECT_DESC);
        for (const index of each) rig.enable(index, { ...layoutOf(parts[index]), size: QUEUE_SIZE });
        rig.driver.addStatus(STATUS_DRIVER_OK);
      }
      Atomics.store(new Int32Array(stop), 0, 1);
      await once(worker, 'exit');
      expect(restarts).toBe(20);
      rig.reset();
      while (rig.driver.status !== 0) await turn();
      rig.driver.start(~0n, QUEUE_SIZE);
      expect(isFailed(rig)).toBe(false);
    });
  });
});

/** The used ring's place is where the first driver put it: right behind the available ring, aligned to 16. */
function layoutOf({ desc, avail }: { desc: number; avail: number }) {
  return { desc, avail, used: Math.ceil((avail + 6 + 2 * QUEUE_SIZE) / 16) * 16 };
}

/** Writes good and bad descriptors into the tables, and makes some of them available, until it is told to stop. */
const SCRIBBLER = `
const { workerData, parentPort } = require('node:worker_threads');
const { ram, parts, size, stop } = workerData;
const flag = new Int32Array(stop);
const random = (below) => Math.floor(Math.random() * below);
parentPort.postMessage('running');
while (Atomics.load(flag, 0) === 0) {
  for (const { desc, avail } of parts) {
    const table = new DataView(ram, desc, 16 * size);
    const ring = new Uint16Array(ram, avail, size + 2);
    for (let i = 0; i < 4; i++) {
      const at = 16 * random(size);
      table.setUint32(at, random(4) ? 0x80000 + random(0x10000) : 0xffffffff, true);
      table.setUint32(at + 4, random(8) ? 0 : random(0x100000000), true);
      table.setUint32(at + 8, random(4) ? random(256) : 16 * random(0x10000), true);
      table.setUint16(at + 12, random(8), true);
      table.setUint16(at + 14, random(16) ? random(size) : 0xffff, true);
      ring[2 + random(size)] = random(32) ? random(size) : size;
    }
    Atomics.store(ring, 1, (Atomics.load(ring, 1) + random(3)) & 0xffff);
  }
}
`;
