import fc from 'fast-check';
import { execFileSync, spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { unpackPayload } from '../../../src/boot/decompress.js';
import { decompressLz4Legacy } from '../../../src/boot/lz4.js';

const withSize = (compressed: Uint8Array, sizeBytes: number) => {
  const payload = new Uint8Array(compressed.length + 4);
  payload.set(compressed);
  new DataView(payload.buffer).setUint32(compressed.length, sizeBytes, true);
  return payload;
};

describe('LZ4', () => {
  const frame = (...block: number[]) => Uint8Array.of(0x02, 0x21, 0x4c, 0x18, block.length, 0, 0, 0, ...block);
  const decompress = async (sizeBytes: number, ...block: number[]) => {
    const output = new Uint8Array(sizeBytes);
    await decompressLz4Legacy(frame(...block), output);
    return [...output];
  };

  it('repeats what a match overlaps', async () => {
    // Literals 1 2, a match of 4 + 3 bytes at distance 2, then the literal 9.
    expect(await decompress(10, 0x23, 1, 2, 2, 0, 0x10, 9)).toEqual([1, 2, 1, 2, 1, 2, 1, 2, 1, 9]);
  });

  it('adds up lengths of several bytes', async () => {
    // Literal 7, a match of 4 + 15 + 255 + 1 bytes at distance 1.
    expect(await decompress(276, 0x1f, 7, 1, 0, 255, 1)).toEqual(Array(276).fill(7));
  });

  it.each([
    ['a match before the start', [0x10, 1, 2, 0]],
    ['a distance of 0', [0x10, 1, 0, 0]],
    ['literals beyond the block', [0x40, 1, 2]],
    ['a length that ends early', [0xf0, 255, 255]],
    ['an offset that ends early', [0x10, 1, 1]],
    ['more output than there is room', [0x1f, 7, 1, 0, 255, 255]],
    ['less output than is wanted', [0x10, 1]],
  ])('refuses %s', async (_, block) => {
    await expect(decompress(100, ...block)).rejects.toThrowError(RangeError);
  });
});

const hasXz = spawnSync('xz', ['--version']).status === 0;
if (!hasXz) console.warn('SKIPPED: xz is not installed; apt-get install xz-utils to check unpacking xz payloads');

describe.skipIf(!hasXz)('xz (skipped where xz-utils is not installed)', () => {
  const compress = (data: Uint8Array, ...options: string[]) =>
    execFileSync('xz', ['--format=xz', ...options, '-c'], {
      input: data,
      maxBuffer: 2 ** 26,
      stdio: ['pipe', 'pipe', 'ignore'],
    });

  /** Bytes as in programs: runs, repeats from afar, and calls and jumps with targets near and odd. */
  const programLike = fc
    .array(
      fc.oneof(
        fc.uint8Array({ minLength: 1, maxLength: 40 }),
        fc
          .tuple(fc.nat(255), fc.integer({ min: 1, max: 5000 }))
          .map(([byte, count]) => new Uint8Array(count).fill(byte)),
        fc
          .array(fc.constantFrom(0xe8, 0xe9, 0x00, 0xff, 0x0f, 0x12), { minLength: 1, maxLength: 12 })
          .map((b) => Uint8Array.from(b)),
      ),
      { minLength: 1, maxLength: 60 },
    )
    .map((parts) => Uint8Array.from([...parts, ...parts.slice(0, 10)].flatMap((part) => [...part])));
  const options = fc.constantFrom(
    ['--check=crc32', '--x86', '--lzma2=dict=32MiB'], // as kernels are built
    ['--check=crc32', '--lzma2=lc=0,lp=4,pb=4'],
    ['--check=crc64', '--lzma2=lc=4,lp=0,pb=0,mode=fast'],
    ['--check=sha256', '--x86', '--lzma2=lc=1,lp=2,pb=1,nice=5'],
    ['--check=none', '-0'],
  );

  it('gives back what xz compressed', async () => {
    await fc.assert(
      fc.asyncProperty(programLike, options, async (data, how) => {
        expect(await unpackPayload(withSize(compress(data, ...how), data.length), 2 ** 20)).toEqual({ vmlinux: data });
      }),
      { numRuns: 60 },
    );
  });

  it('copies chunks that did not compress, and goes on after them', async () => {
    const noise = Uint8Array.from({ length: 300_000 }, (_, i) => (Math.imul(i ^ (i << 7), 0x9e3779b1) >>> 13) & 0xff);
    const data = Uint8Array.from([...new Uint8Array(100_000), ...noise, ...new Uint8Array(3_000_000), ...noise]);
    const result = await unpackPayload(withSize(compress(data, '--check=crc32'), data.length), 2 ** 23);
    expect(Buffer.compare((result as { vmlinux: Uint8Array }).vmlinux, data)).toBe(0);
  });

  const data = Uint8Array.from({ length: 20_000 }, (_, i) => (i * i) >> 5);
  const compressed = hasXz ? compress(data, '--check=crc32', '--x86', '--lzma2=') : new Uint8Array();

  it('notices every change of a byte up to the end of the checksum', async () => {
    const INDEX_AND_FOOTER_BYTES = 24; // not read
    await fc.assert(
      fc.asyncProperty(fc.nat(compressed.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
        const damaged = Uint8Array.from(compressed);
        damaged[at] ^= flip;
        const result = await unpackPayload(withSize(damaged, data.length), 2 ** 20);
        // Bytes 4 to 11 are the end of the magic, the flags and their checksum; padding is not looked at either.
        if (at >= 12 && at < compressed.length - INDEX_AND_FOOTER_BYTES - 8) expect(result).toHaveProperty('reason');
      }),
      { numRuns: 300 },
    );
  });

  it('tells truncated data and a wrong size', async () => {
    for (let length = 0; length < compressed.length - 40; length += 97) {
      expect(await unpackPayload(withSize(compressed.subarray(0, length), data.length), 2 ** 20)).toHaveProperty(
        'reason',
      );
    }
    for (const size of [0, 1, data.length - 1, data.length + 1]) {
      expect(await unpackPayload(withSize(compressed, size), 2 ** 20)).toHaveProperty('reason');
    }
  });

  it('names a filter that it cannot undo', async () => {
    const result = await unpackPayload(withSize(compress(data, '--delta', '--lzma2='), data.length), 2 ** 20);
    expect(result).toEqual({ reason: expect.stringMatching(/filter/) as string });
  });
});
