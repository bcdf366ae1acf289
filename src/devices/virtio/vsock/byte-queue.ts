/** Smaller blocks are not allocated: a guest that sends single bytes must not cost an object each. */
const MIN_BLOCK_BYTES = 4096;

/** Bytes in the order they came, in blocks that hold at most about twice as much memory as they have bytes. */
export class ByteQueue {
  readonly #blocks: { bytes: Uint8Array; used: number }[] = [];
  #length = 0;

  /** In bytes. */
  get length(): number {
    return this.#length;
  }

  /** @param fill Fills the place for the new bytes. */
  append(length: number, fill: (place: Uint8Array) => void): void {
    let block = this.#blocks.at(-1);
    if (!block || block.bytes.length - block.used < length) {
      block = { bytes: new Uint8Array(Math.max(length, MIN_BLOCK_BYTES)), used: 0 };
      this.#blocks.push(block);
    }
    fill(block.bytes.subarray(block.used, block.used + length));
    block.used += length;
    this.#length += length;
  }

  /** Takes the first block out. */
  shift(): Uint8Array | undefined {
    const block = this.#blocks.shift();
    if (!block) return undefined;
    this.#length -= block.used;
    return block.bytes.subarray(0, block.used);
  }

  clear(): void {
    this.#blocks.length = 0;
    this.#length = 0;
  }
}
