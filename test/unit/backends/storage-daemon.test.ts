import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { findProgram } from '../../../src/backends/qemu/supervised.js';
import { imageFile, StorageDaemon, type StorageDaemonConfig } from '../../../src/backends/qemu/storage-daemon.js';
import { VhostUserDevice } from '../../../src/backends/vhost-user/device.js';
import {
  CONFIG_BYTES,
  CONFIG_CAPACITY,
  SECTOR_BYTES,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from '../../../src/devices/virtio/blk/defs.js';
import { STATUS_DRIVER_OK, STATUS_NEEDS_RESET, VIRTIO_ID_BLOCK } from '../../../src/virtio/defs.js';
import { ExternalGuest, until } from '../../support/external-guest.js';

const MIB = 2 ** 20;
const SIZE = 8 * MIB;
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const openFds = () => readdirSync('/proc/self/fd').length;
const isInstalled = (() => {
  try {
    return Boolean(findProgram('qemu-storage-daemon'));
  } catch {
    return false;
  }
})();

/** A guest with one disk. */
class DiskGuest extends ExternalGuest {
  readonly #header = this.arena.place(16);
  readonly #data = this.arena.place(MIB);
  readonly #status = this.arena.place(1);

  async read(sector: number, length: number, queue = 0): Promise<string> {
    await this.#request(VIRTIO_BLK_T_IN, sector, length, queue);
    return hex(this.memory.read(this.#data, length));
  }

  async write(sector: number, bytes: Uint8Array, queue = 0): Promise<void> {
    this.memory.write(this.#data, bytes);
    await this.#request(VIRTIO_BLK_T_OUT, sector, bytes.length, queue);
  }

  get capacityBytes(): number {
    return this.mmio.read(0x100 + CONFIG_CAPACITY, 4) * SECTOR_BYTES;
  }

  async #request(type: number, sector: number, length: number, queue: number): Promise<void> {
    const header = this.memory.dataView(this.#header, 16);
    header.setUint32(0, type, true);
    header.setBigUint64(8, BigInt(sector), true);
    this.memory.write(this.#status, Uint8Array.of(0xff));
    await this.submit(queue, [
      { gpa: this.#header, length: 16 },
      { gpa: this.#data, length, writable: type === VIRTIO_BLK_T_IN },
      { gpa: this.#status, length: 1, writable: true },
    ]);
    expect(this.memory.read(this.#status, 1)[0]).toBe(VIRTIO_BLK_S_OK);
  }
}

/** Room for one more request to a guest's disk. */
class Slot {
  readonly #guest: DiskGuest;
  readonly #header: number;
  readonly #data: number;

  constructor(guest: DiskGuest) {
    this.#guest = guest;
    this.#header = guest.arena.place(17);
    this.#data = guest.arena.place(32 * 1024);
  }

  async write(sector: number, bytes: Uint8Array, queue: number): Promise<void> {
    const { memory } = this.#guest;
    memory.write(this.#data, bytes);
    const header = memory.dataView(this.#header, 17);
    header.setUint32(0, VIRTIO_BLK_T_OUT, true);
    header.setBigUint64(8, BigInt(sector), true);
    header.setUint8(16, 0xff);
    await this.#guest.submit(queue, [
      { gpa: this.#header, length: 16 },
      { gpa: this.#data, length: bytes.length },
      { gpa: this.#header + 16, length: 1, writable: true },
    ]);
    expect(memory.read(this.#header + 16, 1)[0]).toBe(VIRTIO_BLK_S_OK);
  }
}

describe.skipIf(!isInstalled)('a disk served by qemu-storage-daemon (skipped where it is not installed)', () => {
  let folder: string;
  let content: Buffer;
  let fdsBefore: number;
  const failures: string[] = [];
  const cleanups: (() => unknown)[] = [];

  beforeEach(async () => {
    fdsBefore = openFds();
    failures.length = 0;
    folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
    content = randomBytes(SIZE);
    await writeFile(join(folder, 'base.raw'), content);
  });

  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    rmSync(folder, { recursive: true });
    await expect.poll(openFds).toBe(fdsBefore);
  });

  const path = (name: string) => join(folder, name);

  async function startDaemon(image = imageFile(path('base.raw'), 'raw'), config: Partial<StorageDaemonConfig> = {}) {
    const daemon = await StorageDaemon.start({ image, readOnly: false, queues: 2, ...config });
    cleanups.push(() => daemon.close());
    return daemon;
  }

  async function plug(daemon: StorageDaemon, timeoutMs = 5000): Promise<DiskGuest> {
    const device = await VhostUserDevice.connect({
      name: 'disk',
      type: VIRTIO_ID_BLOCK,
      path: daemon.socketPath,
      queueSizes: [128, 128],
      config: CONFIG_BYTES,
      hasInflight: true,
      timeoutMs,
      onFailure: (error) => failures.push(error.message),
    });
    const guest = new DiskGuest(device);
    cleanups.push(async () => {
      await guest.reset();
      device.close();
      guest.close();
    });
    guest.driver.start();
    return guest;
  }

  it('reads what is in the image, and writes what is read there, on every queue', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    expect(guest.capacityBytes).toBe(SIZE);
    for (const queue of [0, 1]) {
      const sector = 8 * (queue + 1);
      expect(await guest.read(sector, 4096, queue)).toBe(hex(content.subarray(sector * 512, sector * 512 + 4096)));
      const bytes = randomBytes(64 * 1024);
      await guest.write(1024 * (queue + 1), bytes, queue);
      bytes.copy(content, 1024 * 512 * (queue + 1));
    }
    await daemon.close();
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
  });

  it.each(['allowed', 'forbidden'])('reads and writes by io_uring, or without where it is not: %s', async (io) => {
    if (io === 'forbidden') {
      const library = path('no-io-uring.so');
      const source = 'int io_uring_queue_init(void) { return -1; /* EPERM */ }';
      execFileSync('gcc', ['-shared', '-fPIC', '-o', library, '-xc', '-'], { input: source });
      vi.stubEnv('LD_PRELOAD', library);
    }
    const daemon = await startDaemon().finally(() => vi.unstubAllEnvs());
    const guest = await plug(daemon);
    const files = readdirSync(`/proc/${daemon.pid}/fd`).map((fd) => readlinkSync(`/proc/${daemon.pid}/fd/${fd}`));
    expect(files.includes('anon_inode:[io_uring]')).toBe(io === 'allowed');
    const bytes = randomBytes(4096);
    await guest.write(8, bytes);
    expect(await guest.read(8, 4096)).toBe(hex(bytes));
    expect(await guest.read(0, 4096)).toBe(hex(content.subarray(0, 4096)));
  });

  it('starts over when the driver does', async () => {
    const guest = await plug(await startDaemon());
    for (let i = 0; i < 3; i++) {
      expect(await guest.read(i, 512)).toBe(hex(content.subarray(i * 512, (i + 1) * 512)));
      await guest.reset();
      guest.driver.start();
    }
    expect(failures).toEqual([]);
  });

  it('keeps its queues where they are while it is quiesced', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await guest.read(0, 512);
    await guest.device.quiesce!();
    let isRead = false;
    const read = guest.read(1, 512).then(() => (isRead = true));
    // The daemon reads the disk for somebody else meanwhile.
    const nbd = await daemon.exportNbd({ path: path('nbd') });
    qemuImg('convert', '-O', 'raw', nbd.url, path('copy.raw'));
    await nbd.close();
    expect(isRead).toBe(false);
    guest.device.resume!();
    await read;
  });

  it('writes to an overlay, not to its backing file', async () => {
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', path('base.raw'), '-F', 'raw', path('top.qcow2')]);
    const daemon = await startDaemon(imageFile(path('top.qcow2'), 'qcow2'));
    const guest = await plug(daemon);
    const bytes = randomBytes(4096);
    await guest.write(0, bytes);
    expect(await guest.read(0, 4096)).toBe(hex(bytes));
    expect(await guest.read(8, 512)).toBe(hex(content.subarray(4096, 4608)));
    await daemon.close();
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
  });

  it('takes a snapshot, and commits it, under a running guest', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await daemon.snapshot({ path: path('snapshot.qcow2') });
    const bytes = randomBytes(4096);
    await guest.write(16, bytes);
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
    expect(JSON.parse(qemuImg('info', '-U', '--output=json', path('snapshot.qcow2')))).toMatchObject({
      'backing-filename': path('base.raw'),
      'backing-filename-format': 'raw',
    });
    await daemon.restart();
    expect(await guest.read(16, 4096)).toBe(hex(bytes));
    await daemon.commit();
    await daemon.resize(SIZE);
    await guest.write(24, bytes);
    expect(await guest.read(16, 4096)).toBe(hex(bytes));
    await daemon.close();
    bytes.copy(content, 16 * 512);
    bytes.copy(content, 24 * 512);
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
  });

  it('commits an overlay that it was started with', async () => {
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', path('base.raw'), '-F', 'raw', path('top.qcow2')]);
    const daemon = await startDaemon(imageFile(path('top.qcow2'), 'qcow2'));
    const guest = await plug(daemon);
    const bytes = randomBytes(512);
    await guest.write(3, bytes);
    await daemon.commit();
    expect(daemon.image).toEqual(imageFile(path('base.raw'), 'raw'));
    await expect(daemon.commit()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await daemon.restart();
    expect(await guest.read(3, 512)).toBe(hex(bytes));
  });

  it('moves a running disk to another image, or leaves a copy there', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await daemon.mirror({ path: path('copy.raw'), format: 'raw', stay: true });
    expect((await readFile(path('copy.raw'))).equals(content)).toBe(true);
    await daemon.mirror({ path: path('moved.qcow2') });
    const bytes = randomBytes(512);
    await guest.write(5, bytes);
    expect(await guest.read(5, 512)).toBe(hex(bytes));
    await daemon.close();
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
    bytes.copy(content, 5 * 512);
    await writeFile(path('expected.raw'), content);
    qemuImg('compare', '-F', 'raw', '-f', 'qcow2', path('moved.qcow2'), path('expected.raw'));
  });

  it('aborts a mirror and stays where it was', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await expect(daemon.mirror({ path: path('copy'), signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ABORTED',
    });
    expect(await guest.read(0, 512)).toBe(hex(content.subarray(0, 512)));
  });

  it('tells a running guest of a new size', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await guest.read(0, 512);
    const before = guest.configChanges;
    await daemon.resize(2 * SIZE);
    await until(() => guest.capacityBytes === 2 * SIZE);
    expect(guest.configChanges).toBeGreaterThan(before);
    await guest.status(STATUS_DRIVER_OK, true);
    await guest.status(STATUS_NEEDS_RESET, false);
    await guest.write((2 * SIZE) / 512 - 1, randomBytes(512));
    await expect(daemon.resize(1000)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('exports a running disk by NBD', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    const bytes = randomBytes(512);
    await guest.write(0, bytes);
    const nbd = await daemon.exportNbd({ path: path('nbd') });
    qemuImg('convert', '-O', 'raw', nbd.url, path('copy.raw'));
    await nbd.close();
    await nbd.close();
    bytes.copy(content, 0);
    expect((await readFile(path('copy.raw'))).equals(content)).toBe(true);
    expect(() => qemuImg('info', nbd.url)).toThrow();
  });

  it('refuses to write to a read-only disk', async () => {
    const daemon = await startDaemon(undefined, { readOnly: true });
    const guest = await plug(daemon);
    expect(await guest.read(0, 512)).toBe(hex(content.subarray(0, 512)));
    await expect(guest.write(0, new Uint8Array(512))).rejects.toThrow();
    expect((await readFile(path('base.raw'))).equals(content)).toBe(true);
  });

  it('says what QEMU says of an image that it cannot open', async () => {
    await expect(startDaemon(imageFile(path('none.raw'), 'raw'))).rejects.toMatchObject({
      code: 'QEMU_FAILED',
      message: expect.stringContaining('none.raw') as string,
    });
  });

  it('fails the disk when the process dies, says so, and goes on with the next process', async () => {
    const daemon = await startDaemon();
    const guest = await plug(daemon);
    await guest.read(0, 512);
    const died = new Promise<Error>((resolve) => daemon.once('died', resolve));
    process.kill(daemon.pid!, 'SIGKILL');
    expect(await died).toMatchObject({ code: 'QEMU_FAILED', message: expect.stringContaining('SIGKILL') as string });
    await guest.status(STATUS_NEEDS_RESET, true);
    expect(failures).toEqual([expect.stringContaining('connection')]);
    const read = guest.read(7, 512);
    await daemon.restart();
    expect(await read).toBe(hex(content.subarray(7 * 512, 8 * 512)));
    await guest.status(STATUS_NEEDS_RESET, false);
  });

  it.each(['raw', 'qcow2', 'raw, then qcow2'])(
    'of a %s image loses no write when the process is killed with many under way: the next one has or does them',
    async (format) => {
      if (format === 'qcow2') qemuImg('create', '-q', '-f', 'qcow2', path('disk.qcow2'), String(SIZE));
      const daemon = await startDaemon(format === 'qcow2' ? imageFile(path('disk.qcow2')) : undefined);
      const guest = await plug(daemon);
      if (format === 'raw, then qcow2') await daemon.snapshot({ path: path('snapshot.qcow2') });
      await guest.read(0, 512);
      const SLOTS = 32;
      const KILLS = 6;
      const slots = Array.from({ length: SLOTS }, () => new Slot(guest));
      let undone = 0;
      const written: Buffer[] = [];
      for (let round = 0; round < KILLS; round++) {
        const failed = failures.length;
        const blocks = slots.map(() => randomBytes(32 * 1024));
        written.push(...blocks);
        // In the first round it gets to none of them, however fast it is.
        if (round === 0) process.kill(daemon.pid!, 'SIGSTOP');
        // Each to a place of its own: one that was answered is not written again.
        const writes = slots.map((slot, i) => slot.write((round * SLOTS + i) * 64, blocks[i], i % 2));
        let answered = 0;
        for (const write of writes) void write.then(() => answered++);
        // Then anywhere between none and all of them.
        for (let turn = 1; turn < round; turn++) await setImmediate();
        process.kill(daemon.pid!, 'SIGKILL');
        await until(() => failures.length > failed);
        undone += SLOTS - answered;
        await daemon.restart();
        await Promise.all(writes);
        await guest.status(STATUS_NEEDS_RESET, false);
      }
      expect(undone).toBeGreaterThan(0);
      expect(guest.driver.status).toBe(0x0f);
      const lost: number[] = [];
      for (const [i, block] of written.entries())
        if ((await guest.read(i * 64, 32 * 1024)) !== hex(block)) lost.push(i);
      expect(lost).toEqual([]);
    },
    300_000,
  );

  it('leaves neither process nor folder behind', async () => {
    const daemon = await startDaemon();
    const { pid, socketPath } = daemon;
    await daemon.close();
    expect(existsSync(`/proc/${pid}`)).toBe(false);
    expect(existsSync(join(socketPath, '..'))).toBe(false);
    await expect(daemon.resize(SIZE)).rejects.toMatchObject({ code: 'CLOSED' });
  });
});

const qemuImg = (...args: string[]) => execFileSync('qemu-img', args, { encoding: 'utf8', stdio: 'pipe' });
