/** The queue that a chain came from, as the chain sees it. */
export interface ChainOwner {
  /** The device was reset or failed: guest memory belongs to the driver again. */
  readonly closed: boolean;
}

/**
 * A buffer that the driver made available: a list of pieces of guest memory, those the device reads before those it
 * writes (virtio 1.2, 2.7.4.2). All pieces were inside guest RAM when the chain was taken off the queue.
 */
export class DescriptorChain {
  readonly #owner: ChainOwner;
  /** Set when the chain was given back to the driver. */
  completed = false;

  /**
   * @param head Index of the chain's first descriptor: its name in the used ring.
   * @param readable Borrowed guest memory. The driver may change it meanwhile: read each byte once.
   * @param writable Borrowed guest memory. Do not write once the queue is closed or the chain completed.
   */
  constructor(
    owner: ChainOwner,
    readonly head: number,
    readonly readable: readonly Uint8Array[],
    readonly writable: readonly Uint8Array[],
    readonly readableBytes: number,
    readonly writableBytes: number,
  ) {
    this.#owner = owner;
  }

  /** Whether the driver still waits for this chain: false after completion and after a reset. */
  get live(): boolean {
    return !this.completed && !this.#owner.closed;
  }

  /** Copies readable bytes from `offset` on into `target`, until either ends. @returns How many. */
  read(offset: number, target: Uint8Array): number {
    let done = 0;
    for (const piece of this.readable) {
      if (done === target.length) break;
      if (offset >= piece.length) {
        offset -= piece.length;
        continue;
      }
      const part = piece.subarray(offset, offset + target.length - done);
      target.set(part, done);
      done += part.length;
      offset = 0;
    }
    return done;
  }

  /** Copies `source` into the writable bytes from `offset` on, until either ends. @returns How many; 0 unless {@link live}. */
  write(offset: number, source: Uint8Array): number {
    if (!this.live) return 0;
    let done = 0;
    for (const piece of this.writable) {
      if (done === source.length) break;
      if (offset >= piece.length) {
        offset -= piece.length;
        continue;
      }
      const part = source.subarray(done, done + piece.length - offset);
      piece.set(part, offset);
      done += part.length;
      offset = 0;
    }
    return done;
  }
}
