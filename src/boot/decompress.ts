import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { Decompress as ZstdDecompress } from 'fzstd';
import { decompressLz4Legacy, LZ4_LEGACY_MAGIC } from './lz4.js';
import { decompressXz, XZ_MAGIC } from './xz.js';

const GZIP_MAGIC = 0x8b1f;
const ZSTD_MAGIC = 0xfd2fb528;
/** Input for one turn of the event loop. */
const CHUNK_BYTES = 2 ** 14;

/** The result of {@link unpackPayload}: the file that was inside, or why it could not be had. */
export type Unpacked = { vmlinux: Uint8Array } | { reason: string };

/**
 * Undoes the compression of a bzImage's payload without blocking the event loop for long.
 *
 * A payload ends with its uncompressed size (boot.rst, payload_length), little-endian: exactly that much is unpacked.
 *
 * @param maxBytes The most the result may have: a few bytes can claim, or unpack to, gigabytes.
 */
export async function unpackPayload(payload: Uint8Array, maxBytes: number): Promise<Unpacked> {
  if (payload.length < 10) return { reason: 'its payload is empty' };
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const size = view.getUint32(payload.length - 4, true);
  if (size > maxBytes) return { reason: `its payload claims to unpack to ${size} bytes` };
  try {
    if (view.getUint16(0, true) === GZIP_MAGIC) return { vmlinux: await unpackGzip(payload, size) };
    const output = new Uint8Array(size);
    const input = payload.subarray(0, -4);
    switch (view.getUint32(0, true)) {
      case LZ4_LEGACY_MAGIC:
        await decompressLz4Legacy(input, output);
        return { vmlinux: output };
      case ZSTD_MAGIC:
        await unpackZstd(input, output);
        return { vmlinux: output };
      case XZ_MAGIC:
        await decompressXz(input, output);
        return { vmlinux: output };
      default:
        return {
          reason: 'its payload is compressed in a format that vmexit cannot undo (it can: gzip, lz4, xz, zstd)',
        };
    }
  } catch (error) {
    return { reason: `its payload is damaged: ${(error as Error).message}` };
  }
}

async function unpackGzip(payload: Uint8Array, size: number): Promise<Uint8Array> {
  // gzip's own trailer is the size field here, so nothing is cut off.
  const output: Uint8Array = await promisify(gunzip)(payload, { maxOutputLength: Math.max(size, 1) });
  if (output.length !== size) throw new RangeError(`${output.length} bytes instead of ${size}`);
  return output;
}

async function unpackZstd(input: Uint8Array, output: Uint8Array): Promise<void> {
  let written = 0;
  const stream = new ZstdDecompress((chunk) => {
    if (chunk.length > output.length - written) throw new RangeError('more data than the payload tells');
    output.set(chunk, written);
    written += chunk.length;
  });
  for (let at = 0; at < input.length; at += CHUNK_BYTES) {
    const end = Math.min(at + CHUNK_BYTES, input.length);
    stream.push(input.subarray(at, end), end === input.length);
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (written !== output.length) throw new RangeError(`${written} bytes instead of ${output.length}`);
}
