/** Ethernet frames on a byte stream: each after its length, 4 bytes in network order, as passt and QEMU do. */
import { MAX_FRAME_BYTES } from './frames.js';

const LENGTH_BYTES = 4;

/** Finds the frames in the chunks of a stream, without copying them together. */
export class FrameSplitter {
  readonly #onFrame: (pieces: readonly Uint8Array[]) => boolean;
  #lengthBytes = 0;
  /** Of the frame: being read while #lengthBytes < 4, then what is missing of it. */
  #missing = 0;
  #pieces: Uint8Array[] = [];

  /** @param onFrame Borrows the pieces. Returns false for "enough now": {@link push} then returns the rest. */
  constructor(onFrame: (pieces: readonly Uint8Array[]) => boolean) {
    this.#onFrame = onFrame;
  }

  /**
   * Takes the next chunk of the stream.
   *
   * @returns What was left when the receiver had enough; undefined when all was used.
   * @throws RangeError when a length is beyond any frame's: the stream has lost its step.
   */
  push(chunk: Uint8Array): Uint8Array | undefined {
    let at = 0;
    while (at < chunk.length) {
      if (this.#lengthBytes < LENGTH_BYTES) {
        this.#missing = this.#missing * 256 + chunk[at++];
        if (++this.#lengthBytes < LENGTH_BYTES) continue;
        if (this.#missing > MAX_FRAME_BYTES) throw new RangeError(`a frame of ${this.#missing} bytes`);
      } else {
        const piece = chunk.subarray(at, at + this.#missing);
        this.#pieces.push(piece);
        this.#missing -= piece.length;
        at += piece.length;
      }
      if (this.#missing > 0) continue;
      const pieces = this.#pieces;
      this.#pieces = [];
      this.#lengthBytes = 0;
      if (!this.#onFrame(pieces) && at < chunk.length) return chunk.subarray(at);
    }
    return undefined;
  }
}

/** Collects frames with their lengths, to write many at once. */
export class FrameBatch {
  #buffer: Buffer;
  #used = 0;

  /** @param capacity Bytes, at least for one frame of the largest size. */
  constructor(capacity: number) {
    this.#buffer = Buffer.allocUnsafeSlow(capacity);
  }

  /** Whether there is nothing in it. */
  get empty(): boolean {
    return this.#used === 0;
  }

  /** Copies a frame to the end. @returns false when it does not fit any more. */
  add(pieces: readonly Uint8Array[]): boolean {
    const bytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
    if (this.#used + LENGTH_BYTES + bytes > this.#buffer.length) return false;
    this.#used = this.#buffer.writeUInt32BE(bytes, this.#used);
    for (const piece of pieces) {
      this.#buffer.set(piece, this.#used);
      this.#used += piece.length;
    }
    return true;
  }

  /** What was collected. Borrowed until the next {@link add} after {@link reuse}. */
  get bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#used);
  }

  /** Starts over, in the same memory or, while that is still in use, in new memory. */
  reuse(inUse: boolean): void {
    if (inUse) this.#buffer = Buffer.allocUnsafeSlow(this.#buffer.length);
    this.#used = 0;
  }
}
