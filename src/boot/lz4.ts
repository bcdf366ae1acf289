/** The legacy frame format, the only one kernels use: magic, then blocks, each a size and its bytes. */
export const LZ4_LEGACY_MAGIC = 0x184c2102;

/**
 * Undoes LZ4's legacy frame format (lz4_Frame_format.md, "Legacy frame"), yielding to the event loop between blocks.
 *
 * @param output Receives the data; must be filled exactly.
 * @throws RangeError when the input is damaged or does not fill the output.
 */
export async function decompressLz4Legacy(input: Uint8Array, output: Uint8Array): Promise<void> {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  let at = 4;
  let written = 0;
  while (written < output.length) {
    if (at + 4 > input.length) throw new RangeError('LZ4 data end early');
    const blockBytes = view.getUint32(at, true);
    at += 4;
    if (blockBytes === LZ4_LEGACY_MAGIC) continue; // frames may be concatenated
    if (blockBytes === 0 || at + blockBytes > input.length) throw new RangeError('LZ4 block of a wrong size');
    written = decompressBlock(input, at, at + blockBytes, output, written);
    at += blockBytes;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** One block (lz4_Block_format.md) of input[at, end) to output from `to`; returns where the output ends. */
function decompressBlock(input: Uint8Array, at: number, end: number, output: Uint8Array, to: number): number {
  const blockStart = to;
  while (at < end) {
    const token = input[at++];
    let literals = token >>> 4;
    if (literals === 15) {
      let more;
      do {
        if (at >= end) throw new RangeError('LZ4 length ends early');
        more = input[at++];
        literals += more;
      } while (more === 255);
    }
    if (literals > end - at || literals > output.length - to) throw new RangeError('LZ4 literals run over');
    if (literals <= 32) {
      for (let i = 0; i < literals; i++) output[to++] = input[at++];
    } else {
      output.set(input.subarray(at, at + literals), to);
      at += literals;
      to += literals;
    }
    if (at === end) return to; // the last sequence has no match

    if (end - at < 2) throw new RangeError('LZ4 offset ends early');
    const distance = input[at] | (input[at + 1] << 8);
    at += 2;
    let length = (token & 15) + 4;
    if (length === 19) {
      let more;
      do {
        if (at >= end) throw new RangeError('LZ4 length ends early');
        more = input[at++];
        length += more;
      } while (more === 255);
    }
    if (distance === 0 || distance > to - blockStart) throw new RangeError('LZ4 match before the block');
    if (length > output.length - to) throw new RangeError('LZ4 match runs over');
    if (distance >= length && length > 32) {
      output.copyWithin(to, to - distance, to - distance + length);
      to += length;
    } else {
      // Byte by byte: a match may overlap what it writes.
      for (let from = to - distance; length > 0; length--) output[to++] = output[from++];
    }
  }
  return to;
}
