/** HOSTILE cases 1 to 4 and 12 to 15 for the block device, and requests of random bytes. */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FileBackend } from '../../src/backends/local/file.js';
import { MemoryBackend } from '../../src/backends/local/memory.js';
import { VirtioBlk } from '../../src/devices/virtio/blk/blk.js';
import * as defs from '../../src/devices/virtio/blk/defs.js';
import { GuestMemory, WINDOW_STRIDE, heapGuestMemory } from '../../src/memory/guest-memory.js';
import { MMIO_STATUS, STATUS_NEEDS_RESET, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from '../../src/virtio/defs.js';
import type { DriverBuffer } from '../../src/virtio/driver.js';
import { BlkDriver, range } from '../support/blk-driver.js';
import { RecordingBackend } from '../support/block-backends.js';

const { VIRTIO_BLK_S_OK: OK, VIRTIO_BLK_S_IOERR: IOERR } = defs;
const SECTORS = 64;
const pattern = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8)) & 0xff);

let folder: string;
let path: string;
let backend: FileBackend;
let recorder: RecordingBackend;
let device: VirtioBlk;
let guest: BlkDriver;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vmexit-hostile-'));
  path = join(folder, 'disk.img');
  await writeFile(path, pattern(SECTORS * 512));
  await open({});
});

afterEach(async () => {
  await device.quiesce();
  await backend.close();
  await rm(folder, { recursive: true });
});

async function open(options: { readOnly?: boolean }): Promise<void> {
  await backend?.close();
  backend = await FileBackend.open({ path, ...options });
  recorder = new RecordingBackend(backend);
  device = new VirtioBlk({ backend: recorder });
  guest = new BlkDriver(device);
}

const hash = async () =>
  createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
const failed = () => (guest.driver.status & STATUS_NEEDS_RESET) !== 0;

/** Puts a request's header into guest memory. */
function header(type: number, sector: bigint | number = 0): DriverBuffer {
  const gpa = guest.arena.place(16);
  const view = guest.memory.dataView(gpa, 16);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return { gpa, length: 16 };
}
const room = (length: number): DriverBuffer => ({ gpa: guest.arena.place(length), length, writable: true });

async function expectAlive(): Promise<void> {
  expect((await guest.read(0, 512)).status).toBe(OK);
}

describe('a chain that is none', () => {
  const queue = () => guest.driver.queues[0];
  const R = VIRTQ_DESC_F_NEXT;
  const W = VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE;

  it.each<[string, () => void]>([
    [
      'loops',
      () => {
        queue().setDescriptor(0, 0x1000, 16, R, 1);
        queue().setDescriptor(1, 0x2000, 512, W, 1);
      },
    ],
    [
      'has a buffer that wraps 2^64',
      () => {
        queue().setDescriptor(0, header(defs.VIRTIO_BLK_T_IN).gpa, 16, R, 1);
        queue().setDescriptor(1, 0xffff_ffff_ffff_fe00n, 1024, W, 2);
        queue().setDescriptor(2, 0x1000, 1, VIRTQ_DESC_F_WRITE);
      },
    ],
    [
      'names a descriptor past the table',
      () => queue().setDescriptor(0, header(defs.VIRTIO_BLK_T_IN).gpa, 16, R, queue().size),
    ],
    [
      'has what the device reads behind what it writes',
      () => {
        queue().setDescriptor(0, 0x1000, 512, W, 1);
        queue().setDescriptor(1, header(defs.VIRTIO_BLK_T_IN).gpa, 16);
      },
    ],
    ['has no room for a status', () => queue().setDescriptor(0, header(defs.VIRTIO_BLK_T_FLUSH).gpa, 16)],
    ['has nothing in it', () => queue().setDescriptor(0, 0x1000, 0)],
  ])('and %s fails the device, moves nothing, and a reset brings it back', async (_what, build) => {
    build();
    queue().publish(0);
    guest.driver.kick(0);
    expect([failed(), guest.mmio.core.failures, recorder.log.length]).toEqual([true, 1, 0]);
    guest.start();
    await expectAlive();
  });

  it('and spans the hole between two regions fails the device with no byte moved', async () => {
    const memory = new GuestMemory();
    const low = new Uint8Array(16 * 2 ** 20);
    memory.addRegion({ gpa: 0, sizeBytes: low.length, windows: [low], windowStride: WINDOW_STRIDE });
    const high = new Uint8Array(4096).fill(0xcc);
    memory.addRegion({ gpa: low.length + 4096, sizeBytes: 4096, windows: [high], windowStride: WINDOW_STRIDE });
    guest = new BlkDriver(device, ~0n, memory);
    low.fill(0xcc, low.length - 512);
    guest.driver.queues[0].add([
      header(defs.VIRTIO_BLK_T_IN),
      { gpa: low.length - 512, length: 512 + 4096 + 512, writable: true },
      room(1),
    ]);
    guest.driver.kick(0);
    await turn();
    expect([failed(), recorder.log.length]).toEqual([true, 0]);
    expect(low.subarray(-512).every((byte) => byte === 0xcc) && high.every((byte) => byte === 0xcc)).toBe(true);
  });
});

describe('a request past the end of the disk', () => {
  it.each([
    ['by one', BigInt(SECTORS), 512],
    ['with its last sector', BigInt(SECTORS - 1), 1024],
    ['so that sector × 512 wraps 2^64 to 0', 1n << 55n, 512],
    ['so that the sum wraps 2^64', 0xffff_ffff_ffff_ffffn, 1024],
    ['over 2^53', (1n << 53n) + 1n, 512],
  ])('%s is IOERR and leaves file and guest memory alone', async (_how, sector, bytes) => {
    const before = await hash();
    const read = await guest.request(defs.VIRTIO_BLK_T_IN, sector, { readBytes: bytes });
    const write = await guest.request(defs.VIRTIO_BLK_T_OUT, sector, { data: new Uint8Array(bytes).fill(0xdd) });
    expect([read.status, write.status]).toEqual([IOERR, IOERR]);
    expect(await guest.discard(sector, bytes / 512)).toBe(IOERR);
    expect(await guest.writeZeroes(sector, bytes / 512)).toBe(IOERR);
    expect([await hash(), recorder.log, device.counters.errors.outOfRange]).toEqual([before, [], 4]);
    await expectAlive();
  });
});

describe('a read-only disk', () => {
  const attempts = () => [
    guest.write(0, new Uint8Array(512).fill(0xdd)),
    guest.discard(0, 8),
    guest.writeZeroes(0, 8),
    guest.writeZeroes(0, 8, defs.RANGE_FLAG_UNMAP),
  ];

  it.each([
    ['the file was opened so', true],
    ['the device was made so', false],
  ])('says IOERR to every change and leaves the file alone: %s', async (_how, fileReadOnly) => {
    const before = await hash();
    if (fileReadOnly) await open({ readOnly: true });
    else guest = new BlkDriver((device = new VirtioBlk({ backend: recorder, readOnly: true })));
    expect(await Promise.all(attempts())).toEqual([IOERR, IOERR, IOERR, IOERR]);
    expect([await hash(), recorder.log, device.counters.errors.readOnly]).toEqual([before, [], 4]);
    expect((await guest.read(1, 512)).data).toEqual(pattern(SECTORS * 512).subarray(512, 1024));
  });
});

describe('a malformed request', () => {
  const out = (length: number): DriverBuffer => ({ gpa: guest.arena.place(length), length });
  it.each<[string, () => DriverBuffer[]]>([
    ['a one-byte header', () => [{ ...header(defs.VIRTIO_BLK_T_OUT), length: 1 }, room(1)]],
    ['no header', () => [room(513)]],
    ['a header of 15 bytes', () => [{ ...header(defs.VIRTIO_BLK_T_IN), length: 15 }, room(513)]],
    ['a read of part of a sector', () => [header(defs.VIRTIO_BLK_T_IN), room(511), room(1)]],
    ['a write of part of a sector', () => [header(defs.VIRTIO_BLK_T_OUT), out(700), room(1)]],
    ['a read with data to write', () => [header(defs.VIRTIO_BLK_T_IN), out(512), room(513)]],
    ['a write with room to read into', () => [header(defs.VIRTIO_BLK_T_OUT), out(512), room(513)]],
  ])('%s is IOERR and moves nothing', async (_what, build) => {
    const buffers = build();
    const last = buffers.at(-1)!;
    const before = await hash();
    guest.driver.queues[0].add(buffers);
    guest.driver.kick(0);
    await turn();
    const written = guest.memory.read(last.gpa, last.length);
    expect(written.at(-1)).toBe(IOERR);
    expect(written.subarray(0, -1).every((byte) => byte === 0)).toBe(true);
    expect([await hash(), recorder.log, device.counters.errors.malformed]).toEqual([before, [], 1]);
    await expectAlive();
  });

  it('of random pieces and bytes never throws, never leaves the disk, and never stops the next driver', async () => {
    const size = 16 * 512;
    const word = fc.oneof(fc.nat(20), fc.nat(0xffffffff));
    const buffer = fc.record({
      bytes: fc.oneof(
        fc.uint8Array({ maxLength: 40 }),
        fc.tuple(fc.nat(14), fc.nat(20), fc.oneof(fc.constant(0), word)).map(([type, low, high]) => {
          return new Uint8Array(Uint32Array.of(type, 0, low, high).buffer);
        }),
        word.map((sectors) => range(1, sectors)),
      ),
      length: fc.oneof(fc.constant(undefined), fc.constantFrom(0, 1, 16, 512, 1024, 9000)),
      writable: fc.boolean(),
    });
    const chains = fc.array(fc.array(buffer, { minLength: 1, maxLength: 5 }), { minLength: 1, maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(chains, async (list) => {
        const disk = new Uint8Array(size + 1024).fill(0xcc);
        const memoryDisk = new MemoryBackend(disk.subarray(512, 512 + size));
        const target = new VirtioBlk({ backend: memoryDisk, queues: 1 });
        const attacker = new BlkDriver(target, ~0n, heapGuestMemory({ gpa: 0, sizeBytes: 10 * 2 ** 20 }));
        for (const chain of list) {
          attacker.driver.queues[0].add(
            chain.map(({ bytes, length, writable }) => ({
              gpa: attacker.arena.place(Buffer.concat([bytes, new Uint8Array(9000)])),
              length: length ?? bytes.length,
              writable,
            })),
          );
          attacker.driver.kick(0);
        }
        await target.quiesce();
        target.resume();
        expect([...disk.subarray(0, 512), ...disk.subarray(-512)].every((byte) => byte === 0xcc)).toBe(true);
        attacker.start();
        expect((await attacker.read(0, 512)).status).toBe(OK);
      }),
      { numRuns: 60 },
    );
  });
});

describe('a reset with requests in flight', () => {
  /** What the backend was asked for, and what it is done with. */
  const begun = () => recorder.log.filter((entry) => entry.startsWith('>'));
  const ended = () => recorder.log.filter((entry) => entry.startsWith('<'));

  it('is over only when they are, and drops what they complete', async () => {
    recorder.hold = true;
    const { driver, memory } = guest;
    for (let i = 0; i < 4; i++) void guest.read(i, 4096);
    await turn();
    expect(recorder.held).toHaveLength(4);
    driver.set(MMIO_STATUS, 0);
    expect(driver.status).not.toBe(0);
    for (const held of recorder.held.slice(0, 3)) held.finish();
    await expect.poll(ended).toHaveLength(3);
    await turn();
    expect(driver.status).not.toBe(0);
    recorder.held[3].finish(new Error('at last'));
    await turn();
    expect(driver.status).toBe(0);
    // From here on memory is the driver's alone.
    const before = createHash('sha256').update(memory.view(0, memory.sizeBytes)).digest('hex');
    for (let i = 0; i < 10; i++) await turn();
    expect(createHash('sha256').update(memory.view(0, memory.sizeBytes)).digest('hex')).toBe(before);
    expect([guest.interrupts, driver.queues.length]).toEqual([0, 1]);
    recorder.hold = false;
    guest.start();
    await expectAlive();
  });

  it('writes nothing to guest memory any more once status reads 0, with real reads of a file by other threads', async () => {
    const big = join(folder, 'big.img');
    const bytes = 32 * 2 ** 20;
    await writeFile(big, new Uint8Array(bytes).fill(0x5a));
    const file = await FileBackend.open({ path: big, readOnly: true });
    recorder = new RecordingBackend(file);
    const target = new VirtioBlk({ backend: recorder });
    const attacker = new BlkDriver(target, ~0n, heapGuestMemory({ gpa: 0, sizeBytes: 128 * 2 ** 20 }));
    const dataGpa = attacker.arena.place(bytes);
    const data = attacker.memory.view(dataGpa, bytes);
    guest = attacker; // `header` and `room` are for it
    /** How far the reads have come, to a page: quickly, for another thread may be at it. */
    const pagesRead = () => {
      let pages = 0;
      for (let at = 0; at < bytes; at += 4096) if (data[at] === 0x5a) pages++;
      return pages;
    };
    // A read of 16 parts, of which each begins when the one before has ended. The reset comes in one of the first eight.
    for (let round = 0; round < 40; round++) {
      data.fill(0);
      recorder.log.length = 0;
      attacker.driver.queues[0].add([
        header(defs.VIRTIO_BLK_T_IN),
        { gpa: dataGpa, length: bytes, writable: true },
        room(1),
      ]);
      attacker.driver.kick(0);
      while (begun().length <= round % 8) await turn();
      attacker.driver.set(MMIO_STATUS, 0);
      while (attacker.driver.status !== 0) await turn();
      const [used, pages] = [attacker.driver.queues[0].usedIdx, pagesRead()];
      expect(ended()).toHaveLength(begun().length);
      expect(pages).toBeGreaterThan(0);
      expect(pages).toBeLessThan(bytes / 4096);
      for (let i = 0; i < 10; i++) await turn();
      expect([pagesRead(), attacker.driver.queues[0].usedIdx]).toEqual([pages, used]);
      attacker.start();
    }
    await file.close();
  });
});
