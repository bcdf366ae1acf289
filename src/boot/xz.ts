import { crc32 } from './crc32.js';
import { Lzma2Decoder } from './lzma2.js';
import { undoX86Filter } from './x86-filter.js';

/** The first four of six magic bytes, as a little-endian number. */
export const XZ_MAGIC = 0x587a37fd;

const STREAM_HEADER_BYTES = 12;
const CHECK_CRC32 = 1;
/** Bytes of the check that follows a block, by type (xz file format 1.0.4, 2.1.1.2). */
const CHECK_BYTES = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
const FILTER_LZMA2 = 0x21;
const FILTER_X86 = 0x04;

/**
 * Undoes an .xz stream of one block, LZMA2 with or without the x86 branch filter: what a kernel's build makes
 * (xz file format 1.0.4). The index behind the block is not read; a CRC-32 is verified, another check is not.
 *
 * @param output Receives the data; must be filled exactly.
 * @throws RangeError when the input is damaged, uses another filter or does not fill the output.
 */
export async function decompressXz(input: Uint8Array, output: Uint8Array): Promise<void> {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  if (input.length < STREAM_HEADER_BYTES + 8) throw new RangeError('xz data end early');
  const checkType = input[7];
  if (input[6] !== 0 || checkType >= CHECK_BYTES.length) throw new RangeError('xz stream flags are unknown');

  const block = STREAM_HEADER_BYTES;
  const headerBytes = (input[block] + 1) * 4;
  if (input[block] === 0 || block + headerBytes > input.length) throw new RangeError('xz block header is damaged');
  const header = input.subarray(block, block + headerBytes - 4);
  if (crc32(header) !== view.getUint32(block + headerBytes - 4, true))
    throw new RangeError('xz block header is damaged');
  const hasX86Filter = readFilters(header);

  const decoder = new Lzma2Decoder(input, block + headerBytes, output);
  while (decoder.decodeChunk()) await new Promise((resolve) => setImmediate(resolve));
  if (decoder.written !== output.length) {
    throw new RangeError(`xz data have ${decoder.written} bytes instead of ${output.length}`);
  }
  if (hasX86Filter) undoX86Filter(output);

  const check = block + Math.ceil((decoder.position - block) / 4) * 4; // a block is padded to a multiple of four
  if (check + CHECK_BYTES[checkType] > input.length) throw new RangeError('xz data end early');
  if (checkType === CHECK_CRC32 && crc32(output) !== view.getUint32(check, true)) {
    throw new RangeError('xz data do not match their checksum');
  }
}

/** Reads a block header's filter list (3.1.5). Returns whether the x86 filter comes before LZMA2. */
function readFilters(header: Uint8Array): boolean {
  const flags = header[1];
  let at = 2;
  // Variable-length integers (1.2); the sizes here are not needed.
  const skipInteger = () => {
    while (at < header.length && header[at++] & 0x80);
  };
  if (flags & 0x40) skipInteger(); // compressed size
  if (flags & 0x80) skipInteger(); // uncompressed size
  const count = (flags & 3) + 1;
  let hasX86Filter = false;
  for (let index = 0; index < count; index++) {
    const id = header[at];
    const propertyBytes = header[at + 1];
    const isLast = index === count - 1;
    if (isLast && id === FILTER_LZMA2 && propertyBytes === 1) return hasX86Filter;
    if (isLast || id !== FILTER_X86 || propertyBytes !== 0 || hasX86Filter) break;
    hasX86Filter = true;
    at += 2;
  }
  throw new RangeError('xz data use a filter other than LZMA2 and x86');
}
