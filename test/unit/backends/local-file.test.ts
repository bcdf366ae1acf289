import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FileBackend } from '../../../src/backends/local/file.js';

const KIB = 1024;
let folder: string;
let path: string;
const backends: FileBackend[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vmexit-disk-'));
  path = join(folder, 'disk.img');
});

afterEach(async () => {
  await Promise.all(backends.splice(0).map((backend) => backend.close()));
  await rm(folder, { recursive: true });
});

async function disk(content: Uint8Array | number, readOnly = false): Promise<FileBackend> {
  await writeFile(path, typeof content === 'number' ? pattern(content) : content);
  return reopen(readOnly);
}

async function reopen(readOnly = false): Promise<FileBackend> {
  const backend = await FileBackend.open({ path, readOnly });
  backends.push(backend);
  return backend;
}

const pattern = (length: number, seed = 1) =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);
const allocatedBytes = async () => (await stat(path)).blocks * 512;

describe('reading and writing', () => {
  it('does what an array would, whatever the order and the pieces', async () => {
    const size = 64 * KIB;
    const model = pattern(size);
    const backend = await disk(size);
    const range = fc.tuple(fc.nat(size - 1), fc.integer({ min: 1, max: 9000 })).map(([at, length]) => ({
      at,
      length: Math.min(length, size - at),
    }));
    const cuts = fc.array(fc.nat(9000), { maxLength: 6 });
    const step = fc.record({
      op: fc.constantFrom('read', 'write', 'zero', 'unmap', 'discard', 'flush'),
      range,
      cuts,
      seed: fc.nat(255),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
        for (const { op, range, cuts, seed } of steps) {
          const { at, length } = range;
          if (op === 'read') {
            const bytes = new Uint8Array(length);
            // Whether the file system can read at once is its own affair.
            if (seed % 2 === 0 || !backend.readvNow(pieces(bytes, cuts), at))
              await backend.readv(pieces(bytes, cuts), at);
            expect(Buffer.compare(bytes, model.subarray(at, at + length))).toBe(0);
          } else if (op === 'write') {
            const bytes = pattern(length, seed);
            model.set(bytes, at);
            await backend.writev(pieces(bytes, cuts), at);
          } else if (op === 'flush') {
            await backend.flush();
          } else {
            // A discarded range reads as zeroes on a file that can have holes.
            model.fill(0, at, at + length);
            if (op === 'discard') await backend.discard(at, length);
            else await backend.writeZeroes(at, length, op === 'unmap');
          }
        }
        expect(Buffer.compare(await readFile(path), model)).toBe(0);
      }),
      { numRuns: 40 },
    );
  });

  it('reads zeroes behind the end of a file that ends inside a sector, and lets the sector be written', async () => {
    const backend = await disk(1000);
    expect(backend.sizeBytes).toBe(1000);
    const sectors = new Uint8Array(1024).fill(0xee);
    await backend.readv([sectors.subarray(0, 700), sectors.subarray(700)], 0);
    expect(sectors.subarray(0, 1000)).toEqual(pattern(1000));
    expect(sectors.subarray(1000)).toEqual(new Uint8Array(24));
    await backend.writev([pattern(512, 9)], 512);
    expect((await stat(path)).size).toBe(1024);
    await backend.readv([sectors], 0);
    expect(sectors.subarray(512)).toEqual(pattern(512, 9));
  });

  it('fails a read where someone made the file shorter, and does not invent data', async () => {
    const backend = await disk(64 * KIB);
    await truncate(path, 10_000);
    await expect(backend.readv([new Uint8Array(4096)], 8192)).rejects.toThrow(/shorter/);
    expect(backend.readvNow([new Uint8Array(4096)], 8192)).toBe(false);
  });

  it('reads at once all of a request or tells that it did not', async () => {
    const backend = await disk(1000);
    expect(backend.readvNow([new Uint8Array(512)], 512)).toBe(false);
    expect(backend.readvNow(Array<Uint8Array>(5000).fill(new Uint8Array(0)), 0)).toBe(false);
    await backend.close();
    expect(backend.readvNow([new Uint8Array(512)], 0)).toBe(false);
  });

  it('moves many operations at once', async () => {
    const backend = await disk(1024 * KIB);
    await Promise.all(
      Array.from({ length: 256 }, (_, i) => backend.writev([pattern(4096, i)], ((i * 37) % 256) * 4096)),
    );
    const content = await readFile(path);
    for (let i = 0; i < 256; i++) {
      const at = ((i * 37) % 256) * 4096;
      expect(Buffer.compare(content.subarray(at, at + 4096), pattern(4096, i))).toBe(0);
    }
  });
});

describe('storage', () => {
  it('is given back by discard and by write-zeroes that may, and kept by write-zeroes that may not', async () => {
    const size = 1024 * KIB;
    const backend = await disk(size);
    await backend.flush();
    const full = await allocatedBytes();
    expect(full).toBeGreaterThanOrEqual(size);
    await backend.writeZeroes(0, 256 * KIB, false);
    await backend.flush();
    expect(await allocatedBytes()).toBe(full);
    await backend.writeZeroes(0, 256 * KIB, true);
    await backend.discard(512 * KIB, 256 * KIB);
    await backend.flush();
    expect(await allocatedBytes()).toBe(full - 512 * KIB);
    expect((await stat(path)).size).toBe(size);
  });

  it.each(['/dev/shm'])('has zeroes written where the file system cannot make them (%s)', async (shm) => {
    const place = await mkdtemp(join(shm, 'vmexit-disk-'));
    try {
      path = join(place, 'disk.img');
      const size = 4096 * KIB + 100;
      const backend = await disk(size);
      await backend.writeZeroes(512, 3 * 1024 * KIB + 512, false);
      const model = pattern(size).fill(0, 512, 3 * 1024 * KIB + 1024);
      expect(Buffer.compare(await readFile(path), model)).toBe(0);
    } finally {
      await rm(place, { recursive: true });
    }
  });
});

describe('opening', () => {
  it('refuses what another has open, unless both only read', async () => {
    const writer = await disk(4096);
    await expect(reopen()).rejects.toMatchObject({ code: 'BUSY' });
    await expect(reopen(true)).rejects.toMatchObject({ code: 'BUSY' });
    await writer.close();
    await reopen(true);
    await reopen(true);
    await expect(reopen()).rejects.toMatchObject({ code: 'BUSY' });
  });

  it('refuses what another process has locked, until that one is gone', async () => {
    const first = await disk(4096);
    expect(() => execFileSync('flock', ['--nonblock', path, 'true'])).toThrow();
    await first.close();
    const other = spawn('flock', ['--no-fork', path, 'sh', '-c', 'echo locked; exec sleep 30']);
    await once(other.stdout, 'data');
    await expect(reopen()).rejects.toMatchObject({ code: 'BUSY' });
    other.kill('SIGKILL');
    await once(other, 'exit');
    await reopen();
  });

  it('says what is wrong with a path', async () => {
    await expect(FileBackend.open({ path })).rejects.toMatchObject({ code: 'SYSCALL', errno: 'ENOENT' });
    await expect(FileBackend.open({ path: folder, readOnly: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    execFileSync('mkfifo', [path]);
    await expect(FileBackend.open({ path, readOnly: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('read-only refuses every way to change the file', async () => {
    const backend = await disk(8192, true);
    for (const attempt of [
      backend.writev([pattern(512, 3)], 0),
      backend.discard(0, 4096),
      backend.writeZeroes(0, 4096, true),
    ]) {
      await expect(attempt).rejects.toMatchObject({ code: 'INVALID_STATE' });
    }
    await backend.flush();
    expect(await readFile(path)).toEqual(Buffer.from(pattern(8192)));
  });

  it('tells the block size of the file system', async () => {
    const { geometry } = await disk(8192);
    expect(geometry).toEqual({
      logicalBlockBytes: 512,
      physicalBlockBytes: (await stat(path)).blksize,
      optimalIoBytes: 0,
    });
  });
});

const loopDevice = () => {
  const { status, stdout } = spawnSync('losetup', ['--find', '--show', '--sector-size', '4096', path], {
    encoding: 'utf8',
  });
  return status === 0 ? stdout.trim() : undefined;
};

describe('a block device', () => {
  it('has its own size and block size, and can be read, written, zeroed and discarded', async (context) => {
    const image = pattern(1024 * KIB);
    await writeFile(path, image);
    const device = loopDevice();
    if (device === undefined) return context.skip('this host has no loop devices for us');
    try {
      const backend = await FileBackend.open({ path: device });
      expect([backend.sizeBytes, backend.geometry.logicalBlockBytes]).toEqual([1024 * KIB, 4096]);
      await backend.writev([pattern(8192, 9)], 4096);
      await backend.writeZeroes(64 * KIB, 64 * KIB, true);
      await backend.writeZeroes(256 * KIB, 64 * KIB, false);
      await backend.discard(512 * KIB, 64 * KIB);
      await backend.flush();
      const read = new Uint8Array(8192);
      await backend.readv([read], 4096);
      expect(read).toEqual(pattern(8192, 9));
      await expect(FileBackend.open({ path: device })).rejects.toMatchObject({ code: 'BUSY' });
      await backend.close();
      image.set(pattern(8192, 9), 4096);
      for (const at of [64, 256, 512]) image.fill(0, at * KIB, (at + 64) * KIB);
      expect(Buffer.compare(await readFile(path), image)).toBe(0);
    } finally {
      execFileSync('losetup', ['--detach', device]);
    }
  });
});

describe('close', () => {
  it('waits for what is under way, and refuses what comes later', async () => {
    const backend = await disk(1024 * KIB);
    const writes = Array.from({ length: 64 }, (_, i) => backend.writev([pattern(16384, i)], i * 16384));
    let written = 0;
    for (const write of writes) void write.then(() => written++);
    await Promise.all([backend.close(), backend.close()]);
    expect(written).toBe(64);
    await expect(backend.readv([new Uint8Array(1)], 0)).rejects.toMatchObject({ code: 'CLOSED' });
    await expect(backend.flush()).rejects.toMatchObject({ code: 'CLOSED' });
  });
});

/** Cuts an array into consecutive pieces, some of them empty. */
function pieces(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const at = [0, ...cuts.map((cut) => Math.min(cut, bytes.length)).sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
}
