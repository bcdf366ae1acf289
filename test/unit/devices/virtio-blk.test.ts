import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FileBackend } from '../../../src/backends/local/file.js';
import { MemoryBackend } from '../../../src/backends/local/memory.js';
import type { BlockBackend } from '../../../src/devices/virtio/blk/backend.js';
import { VirtioBlk, type VirtioBlkConfig } from '../../../src/devices/virtio/blk/blk.js';
import * as defs from '../../../src/devices/virtio/blk/defs.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import * as virtio from '../../../src/virtio/defs.js';
import { BlkDriver, range } from '../../support/blk-driver.js';
import { RecordingBackend, VolatileBackend } from '../../support/block-backends.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

const { VIRTIO_BLK_S_OK: OK, VIRTIO_BLK_S_IOERR: IOERR, VIRTIO_BLK_S_UNSUPP: UNSUPP } = defs;
const SECTORS = 256;
const SIZE = SECTORS * 512;

const pattern = (length: number, seed = 1) =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);

function make(config: Partial<VirtioBlkConfig> = {}, features = ~0n) {
  const disk = pattern(SIZE);
  const recorder = new RecordingBackend(new MemoryBackend(disk, { readOnly: config.readOnly ?? false }));
  const device = new VirtioBlk({ backend: recorder, ...config });
  return { disk, recorder, device, guest: new BlkDriver(device, features) };
}

const folders: string[] = [];
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true });
});
async function tempFile(content: Uint8Array): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'vmexit-blk-'));
  folders.push(folder);
  await writeFile(join(folder, 'disk.img'), content);
  return join(folder, 'disk.img');
}

describe('configuration', () => {
  it('tells capacity, limits and block sizes', () => {
    const { device, guest } = make({ queues: 4 });
    const config = (offset: number, size: 1 | 2 | 4) => guest.mmio.read(virtio.MMIO_CONFIG + offset, size);
    expect(guest.driver.get(virtio.MMIO_DEVICE_ID)).toBe(2);
    expect([config(0, 4), config(4, 4)]).toEqual([SECTORS, 0]);
    expect([config(defs.CONFIG_SIZE_MAX, 4), config(defs.CONFIG_SEG_MAX, 4)]).toEqual([2 ** 20, 254]);
    expect(config(defs.CONFIG_BLK_SIZE, 4)).toBe(512);
    expect([config(defs.CONFIG_WRITEBACK, 1), config(defs.CONFIG_NUM_QUEUES, 2)]).toEqual([1, 4]);
    expect([config(defs.CONFIG_BYTES, 4), config(0xe00, 1)]).toEqual([0xffffffff, 0xff]);
    expect(device.queueSizes).toEqual([256, 256, 256, 256]);
  });

  it('tells the physical block of a backend that has a larger one', () => {
    const backend: BlockBackend = new MemoryBackend(new Uint8Array(SIZE));
    const geometry = { logicalBlockBytes: 512, physicalBlockBytes: 4096, optimalIoBytes: 65536 };
    const device = new VirtioBlk({ backend: Object.assign(backend, { geometry }) });
    expect(device.readConfig(defs.CONFIG_PHYSICAL_BLOCK_EXP, 1)).toBe(3);
    expect(device.readConfig(defs.CONFIG_MIN_IO_SIZE, 2)).toBe(8);
    expect(device.readConfig(defs.CONFIG_OPT_IO_SIZE, 4)).toBe(128);
    expect(device.readConfig(defs.CONFIG_DISCARD_SECTOR_ALIGNMENT, 4)).toBe(8);
  });

  it('offers what a writable and what a read-only disk has', () => {
    const bits = (features: bigint) => [...Array(32).keys()].filter((bit) => (features >> BigInt(bit)) & 1n);
    expect(bits(make().device.features)).toEqual([1, 2, 6, 9, 10, 11, 13, 14]);
    expect(bits(make({ queues: 2 }).device.features)).toEqual([1, 2, 6, 9, 10, 11, 12, 13, 14]);
    expect(bits(make({ readOnly: true }).device.features)).toEqual([1, 2, 5, 6, 10]);
  });

  it('reads as the serial number it was given', async () => {
    expect(await make({ serial: 'disk-0' }).guest.id()).toBe('disk-0');
    expect(await make({ serial: 'twenty characters ab' }).guest.id()).toBe('twenty characters ab');
    expect(await make().guest.id()).toBe('');
  });

  it.each([{ serial: 'twenty-one characters' }, { serial: 'ü' }, { queues: 0 }, { queues: 1.5 }, { queues: 65 }])(
    'refuses %o',
    (config) => {
      expect(() => make(config)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    },
  );
});

describe('reading and writing', () => {
  const queues = 3;
  const backends = {
    memory: (): Promise<{ backend: BlockBackend; content: () => Promise<Uint8Array> }> => {
      const bytes = pattern(SIZE);
      return Promise.resolve({ backend: new MemoryBackend(bytes), content: () => Promise.resolve(bytes) });
    },
    file: async () => {
      const path = await tempFile(pattern(SIZE));
      return { backend: await FileBackend.open({ path }), content: () => readFile(path) };
    },
  };

  it.each(Object.entries(backends))(
    'does what an array would, with requests in parallel over several queues (%s)',
    async (_name, open) => {
      const { backend, content } = await open();
      const model = pattern(SIZE);
      const device = new VirtioBlk({ backend, queues });
      const guest = new BlkDriver(device);
      // Each lane is a part of the disk that one request at a time uses: lanes run in parallel, on any queue.
      const lanes = 16;
      const laneSectors = SECTORS / lanes;
      const step = fc.record({
        op: fc.constantFrom('read', 'write', 'flush', 'discard', 'zero', 'unmap'),
        lane: fc.nat(lanes - 1),
        queue: fc.nat(queues - 1),
        sector: fc.nat(laneSectors - 1),
        sectors: fc.integer({ min: 1, max: laneSectors }),
        cuts: fc.array(fc.nat(512 * laneSectors), { maxLength: 5 }),
        seed: fc.nat(255),
      });
      await fc.assert(
        fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
          const ends = Array.from({ length: lanes }, () => Promise.resolve());
          for (const { op, lane, queue, sector, sectors, cuts, seed } of steps) {
            const count = Math.min(sectors, laneSectors - sector);
            const first = lane * laneSectors + sector;
            const part = model.subarray(first * 512, (first + count) * 512);
            const options = { queue, cuts: cuts.filter((cut) => cut < count * 512).sort((a, b) => a - b) };
            ends[lane] = ends[lane].then(async () => {
              if (op === 'read') {
                const { status, data } = await guest.read(first, part.length, options);
                expect([status, Buffer.compare(data, part)]).toEqual([OK, 0]);
              } else if (op === 'write') {
                part.set(pattern(part.length, seed));
                expect(await guest.write(first, part, options)).toBe(OK);
              } else if (op === 'flush') {
                expect(await guest.flush(options)).toBe(OK);
              } else {
                part.fill(0); // what is discarded may read as anything; on these backends, as zeroes
                const status =
                  op === 'discard'
                    ? await guest.discard(first, count)
                    : await guest.writeZeroes(first, count, op === 'unmap' ? defs.RANGE_FLAG_UNMAP : 0);
                expect(status).toBe(OK);
              }
            });
          }
          await Promise.all(ends);
          expect(Buffer.compare(await content(), model)).toBe(0);
        }),
        { numRuns: 30 },
      );
      expect(Object.values(device.counters.errors)).toEqual([0, 0, 0, 0, 0]);
      await device.quiesce();
      await backend.close();
    },
  );

  it('works on the guest’s own buffers, without a copy', async () => {
    const { guest, recorder } = make();
    const seen: Uint8Array[] = [];
    const readv = recorder.inner.readv.bind(recorder.inner);
    recorder.inner.readv = (buffers, position) => {
      seen.push(...buffers);
      return readv(buffers, position);
    };
    await guest.read(0, 1024, { cuts: [100] });
    expect(seen.map(({ length }) => length)).toEqual([100, 924]);
    for (const buffer of seen) expect(buffer.buffer).toBe(guest.memory.view(0, 1).buffer);
  });

  it('takes what the backend can read at once, in the turn of the kick, and leaves large reads to other threads', async () => {
    const { guest, recorder } = make();
    const sizes: number[] = [];
    let able = true;
    recorder.readvNow = (buffers) => {
      sizes.push(buffers.reduce((sum, { length }) => sum + length, 0));
      for (const buffer of buffers) buffer.fill(7);
      return able;
    };
    expect((await guest.read(0, 4096, { cuts: [100] })).data).toEqual(new Uint8Array(4096).fill(7));
    expect(recorder.log).toEqual([]);
    able = false;
    expect((await guest.read(0, 512)).data).not.toEqual(new Uint8Array(512).fill(7));
    await guest.read(0, 65536 + 512);
    expect(sizes).toEqual([4096, 512]);
  });

  it('has requests in flight in parallel, and completes them in whatever order they end', async () => {
    const { guest, recorder } = make();
    recorder.hold = true;
    const order: string[] = [];
    const all = [0, 1, 2].map(async (i) => {
      await guest.read(i, 512);
      order.push(`read ${i}`);
    });
    await turn();
    expect(recorder.held).toHaveLength(3);
    for (const i of [2, 0, 1]) {
      recorder.held[i].finish();
      await turn();
    }
    await Promise.all(all);
    expect(order).toEqual(['read 2', 'read 0', 'read 1']);
  });

  it('hands the backend 64 requests of a queue at most, and the others when those end', async () => {
    const { guest, recorder, device } = make({ queues: 2 });
    recorder.hold = true;
    const all = Array.from({ length: 80 }, (_, i) => guest.read(i, 512));
    all.push(guest.read(200, 512, { queue: 1 }));
    await turn();
    expect(device.inFlight).toBe(65); // the second queue does not wait for the first
    recorder.hold = false;
    for (const held of recorder.held) held.finish();
    const answers = await Promise.all(all);
    expect(answers.every(({ status }) => status === OK)).toBe(true);
    expect(recorder.log.filter((entry) => entry.startsWith('< '))).toHaveLength(81);
  });

  it('gives the backend a large request in parts', async () => {
    const big = 5 * 2 ** 20;
    const recorder = new RecordingBackend(new MemoryBackend(new Uint8Array(big)));
    const guest = new BlkDriver(new VirtioBlk({ backend: recorder }));
    const { arena, driver, memory } = guest;
    const header = arena.place(Uint8Array.of(1, ...new Array<number>(15).fill(0)));
    const data = arena.place(big);
    const status = arena.place(Uint8Array.of(0xff));
    driver.queues[0].add([
      { gpa: header, length: 16 },
      { gpa: data, length: big },
      { gpa: status, length: 1, writable: true },
    ]);
    driver.kick(0);
    while (memory.read(status, 1)[0] === 0xff) await turn();
    expect(recorder.log.filter((entry) => entry.startsWith('<'))).toEqual([
      '< 1 write 0+2097152',
      '< 2 write 2097152+2097152',
      '< 3 write 4194304+1048576',
    ]);
  });

  it('says IOERR when the backend fails, counts it, and goes on', async () => {
    const { guest, recorder, device } = make();
    recorder.hold = true;
    const write = guest.write(0, pattern(512));
    const flush = guest.flush();
    await turn();
    recorder.held[0].finish(new Error('no space'));
    await turn();
    recorder.held[1].finish(new Error('I/O error'));
    expect([await write, await flush]).toEqual([IOERR, IOERR]);
    recorder.hold = false;
    expect(await guest.write(0, pattern(512))).toBe(OK);
    expect(device.counters.errors.backend).toBe(2);
    expect(device.lastBackendError).toEqual(new Error('I/O error'));
  });

  it('says UNSUPP to what it does not know', async () => {
    const { guest, device } = make();
    for (const type of [2, 10, 14, 0xffffffff]) {
      expect((await guest.request(type, 0, { readBytes: 512 })).status).toBe(UNSUPP);
    }
    expect(device.counters.errors.unsupported).toBe(4);
  });
});

describe('durability', () => {
  it('answers a flush only after the backend’s flush, begun after every write that was answered', async () => {
    const { guest, recorder } = make();
    recorder.hold = true;
    let answered = false;
    const write = guest.write(0, pattern(512));
    await turn();
    recorder.held[0].finish();
    await write;
    const flush = guest.flush().then((status) => {
      answered = true;
      return status;
    });
    await turn();
    expect(answered).toBe(false);
    recorder.held[1].finish();
    expect(await flush).toBe(OK);
    expect(recorder.log).toEqual(['> 1 write 0+512', '< 1 write 0+512', '> 2 flush', '< 2 flush']);
  });

  it.each([
    ['without the flush feature', defs.VIRTIO_BLK_F_FLUSH | defs.VIRTIO_BLK_F_CONFIG_WCE, false],
    ['in writethrough mode, chosen by the driver', 0n, true],
  ])('flushes each write before it answers, %s', async (_how, without, choose) => {
    const { guest, recorder } = make({}, ~without);
    if (choose) {
      guest.mmio.write(virtio.MMIO_CONFIG + defs.CONFIG_WRITEBACK, 1, 0);
      expect(guest.mmio.read(virtio.MMIO_CONFIG + defs.CONFIG_WRITEBACK, 1)).toBe(0);
    }
    expect(await guest.write(1, pattern(512))).toBe(OK);
    expect(await guest.writeZeroes(8, 8)).toBe(OK);
    expect(recorder.log.filter((entry) => entry.startsWith('<'))).toEqual([
      '< 1 write 512+512',
      '< 2 flush',
      '< 3 zero 4096+4096',
      '< 4 flush',
    ]);
  });

  it('ignores writes to other configuration, and to the cache mode when that was not negotiated', () => {
    const { guest } = make({}, ~defs.VIRTIO_BLK_F_CONFIG_WCE);
    const config = () => Array.from({ length: 64 }, (_, i) => guest.mmio.read(virtio.MMIO_CONFIG + i, 1));
    const before = config();
    for (let i = 0; i < 64; i++) guest.mmio.write(virtio.MMIO_CONFIG + i, 1, 0x55);
    guest.mmio.write(virtio.MMIO_CONFIG + defs.CONFIG_WRITEBACK, 1, 0);
    expect(config()).toEqual(before);
  });

  it('loses nothing of what a flush was answered for, whenever the power is cut', async () => {
    let random = 12345;
    const next = (below: number) => (random = (random * 1103515245 + 12345) % 2 ** 31) % below;
    const disk = new VolatileBackend(SIZE, () => next(3));
    const guest = new BlkDriver(new VirtioBlk({ backend: disk, queues: 2 }));
    /** By sector: the generation written last and answered, and the one that a flush has been answered for. */
    const written = new Uint8Array(SECTORS);
    const promised = new Uint8Array(SECTORS);
    let checks = 0;
    const check = () => {
      for (let sector = 0; sector < SECTORS; sector++) {
        const durable = disk.durable[sector * 512];
        if (durable < promised[sector]) throw new Error(`sector ${sector}: ${durable} < ${promised[sector]}`);
      }
      checks++;
    };
    const writer = async (lane: number) => {
      for (let generation = 1; generation <= 60; generation++) {
        const sector = lane + 8 * next(SECTORS / 8);
        const value = Math.max(written[sector] + 1, generation);
        expect(await guest.write(sector, new Uint8Array(512).fill(value), { queue: lane & 1 })).toBe(OK);
        written[sector] = value;
        check();
      }
    };
    let writing = true;
    const flusher = async () => {
      while (writing) {
        const covered = written.slice();
        expect(await guest.flush({ queue: next(2) })).toBe(OK);
        covered.forEach((value, sector) => (promised[sector] = Math.max(promised[sector], value)));
        check();
      }
    };
    const flushers = [flusher(), flusher()];
    await Promise.all(Array.from({ length: 8 }, (_, lane) => writer(lane)));
    writing = false;
    await Promise.all(flushers);
    expect(checks).toBeGreaterThan(480);
    expect(promised.some((value) => value > 0)).toBe(true);
  });
});

describe('discard and write-zeroes', () => {
  it('take several ranges, and pass the unmap flag on', async () => {
    const { guest, recorder } = make();
    const data = new Uint8Array([...range(0, 1), ...range(8, 8, defs.RANGE_FLAG_UNMAP), ...range(255, 1)]);
    const { status } = await guest.request(defs.VIRTIO_BLK_T_WRITE_ZEROES, 0, { data });
    expect(status).toBe(OK);
    const ends = recorder.log.filter((entry) => entry.startsWith('<'));
    expect(ends).toEqual(['< 1 zero 0+512', '< 2 unmap 4096+4096', '< 3 zero 130560+512']);
  });

  it.each([
    ['no range', new Uint8Array(0), IOERR],
    ['half a range', range(0, 1).subarray(0, 8), IOERR],
    ['a range and a half', new Uint8Array([...range(0, 1), 1, 2, 3]), IOERR],
    ['too many ranges', new Uint8Array(16 * 33), IOERR],
    ['too many sectors', range(0, 2 ** 20 + 1), IOERR],
    ['a range past the end, behind a good one', new Uint8Array([...range(0, 1), ...range(255, 2)]), IOERR],
    ['a sector that wraps', range(0xffff_ffff_ffff_ffffn, 1), IOERR],
    ['an unknown flag, behind a good one', new Uint8Array([...range(0, 1), ...range(1, 1, 2)]), UNSUPP],
  ])('refuse %s, and do nothing', async (_what, data, status) => {
    const { guest, recorder } = make();
    for (const type of [defs.VIRTIO_BLK_T_DISCARD, defs.VIRTIO_BLK_T_WRITE_ZEROES]) {
      expect((await guest.request(type, 0, { data })).status).toBe(status);
    }
    expect(recorder.log).toEqual([]);
  });

  it('refuse "unmap" for a discard, and both when not negotiated', async () => {
    expect(await make().guest.discard(0, 8, defs.RANGE_FLAG_UNMAP)).toBe(UNSUPP);
    const { guest } = make({}, ~(defs.VIRTIO_BLK_F_DISCARD | defs.VIRTIO_BLK_F_WRITE_ZEROES));
    expect([await guest.discard(0, 8), await guest.writeZeroes(0, 8)]).toEqual([UNSUPP, UNSUPP]);
  });
});

describe('rate limit', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it('holds requests back without holding the event loop, and counts', async () => {
    const { guest, device } = make({ rateLimit: { opsPerSecond: 100, burstOps: 1 } });
    const startMs = performance.now();
    const answeredMs: number[] = [];
    for (let i = 0; i < 11; i++) void guest.read(i, 512).then(() => answeredMs.push(performance.now() - startMs));
    await vi.advanceTimersByTimeAsync(1000);
    // The burst, one that empties it to the last, and nine at 10 ms each.
    expect(answeredMs).toEqual([0, 1, 11, 21, 31, 41, 51, 61, 71, 81, 91]);
    expect(device.counters).toMatchObject({ reads: 11, bytesRead: 11 * 512, throttled: 11 });
  });

  it('shares among the queues', async () => {
    const { guest } = make({ queues: 3, rateLimit: { bytesPerSecond: 40 * 512, burstBytes: 512 } });
    const order: number[] = [];
    for (const queue of [0, 1, 2]) {
      for (let i = 0; i < 4; i++) void guest.read(i, 512, { queue }).then(() => order.push(queue));
    }
    await vi.advanceTimersByTimeAsync(1000);
    expect(order).toHaveLength(12);
    // Queue 0 alone asked at first. From then on nobody is served twice while another waits.
    for (const at of [2, 3, 4]) expect(order.slice(at, at + 3).sort()).toEqual([0, 1, 2]);
  });

  it('lets a reset through, and is quiet after it', async () => {
    const { guest, recorder } = make({ rateLimit: { opsPerSecond: 50, burstOps: 1 } });
    for (let i = 0; i < 5; i++) void guest.read(i, 512);
    await vi.advanceTimersByTimeAsync(5);
    guest.driver.set(virtio.MMIO_STATUS, 0);
    expect([guest.driver.status, vi.getTimerCount()]).toEqual([0, 0]);
    const { length } = recorder.log;
    await vi.advanceTimersByTimeAsync(1000);
    expect(recorder.log.length).toBe(length);
  });
});

describe('quiesce', () => {
  it('resolves when nothing is in flight, takes nothing more, and resume goes on', async () => {
    const { guest, recorder, device } = make();
    recorder.hold = true;
    const first = guest.read(0, 512);
    await turn();
    let quiet = false;
    const quiesced = device.quiesce().then(() => (quiet = true));
    const second = guest.read(1, 512);
    await turn();
    expect([recorder.held.length, quiet]).toEqual([1, false]);
    expect(() => device.save()).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
    recorder.held[0].finish();
    await quiesced;
    expect((await first).status).toBe(OK);
    await turn();
    expect(recorder.held).toHaveLength(1);
    device.save();
    recorder.hold = false;
    device.resume();
    expect((await second).status).toBe(OK);
  });

  it('lets another device go on with the requests that waited', async () => {
    const { guest, device, disk } = make();
    guest.mmio.write(virtio.MMIO_CONFIG + defs.CONFIG_WRITEBACK, 1, 0);
    await device.quiesce();
    void guest.write(3, pattern(512, 77)); // the first device never takes it
    const state = structuredClone(guest.mmio.save());
    const recorder = new RecordingBackend(new MemoryBackend(disk));
    const other = new VirtioBlk({ backend: recorder });
    const mmio = new MappedMmio({ device: other, memory: guest.memory, irq: new FakeIrqLine() });
    mmio.restore(state);
    await other.quiesce();
    expect(Buffer.compare(disk.subarray(3 * 512, 4 * 512), pattern(512, 77))).toBe(0);
    expect(other.readConfig(defs.CONFIG_WRITEBACK, 1)).toBe(0);
  });

  it.each([[{}], [undefined], [{ capacitySectors: SECTORS, writeback: 2 }], [{ capacitySectors: 1, writeback: 1 }]])(
    'refuses to restore %o',
    (state) => {
      expect(() => make().device.restore(state)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    },
  );
});
