/** Backends that a test looks into, holds up, or cuts the power of. */
import type { BlockBackend } from '../../src/devices/virtio/blk/backend.js';

interface Held {
  operation: string;
  /** Ends the operation: as it would have, or with an error. */
  finish(error?: Error): void;
}

/** Passes everything on to another backend, and writes down what begins and ends. */
export class RecordingBackend implements BlockBackend {
  readonly log: string[] = [];
  /** Set: operations wait, after they took effect on a read's buffers or before they begin, until the test ends them. */
  hold = false;
  readonly held: Held[] = [];
  readonly sizeBytes;
  readonly readOnly;
  readonly geometry;
  /** None, so that every read is written down, but a test may give one. */
  readvNow?: NonNullable<BlockBackend['readvNow']>;
  #count = 0;

  constructor(readonly inner: BlockBackend) {
    ({ sizeBytes: this.sizeBytes, readOnly: this.readOnly, geometry: this.geometry } = inner);
  }

  readv(buffers: readonly Uint8Array[], position: number): Promise<void> {
    return this.#record(`read ${position}+${bytesOf(buffers)}`, () => this.inner.readv(buffers, position));
  }
  writev(buffers: readonly Uint8Array[], position: number): Promise<void> {
    return this.#record(`write ${position}+${bytesOf(buffers)}`, () => this.inner.writev(buffers, position));
  }
  flush(): Promise<void> {
    return this.#record('flush', () => this.inner.flush());
  }
  discard(position: number, lengthBytes: number): Promise<void> {
    return this.#record(`discard ${position}+${lengthBytes}`, () => this.inner.discard(position, lengthBytes));
  }
  writeZeroes(position: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    const what = `${mayUnmap ? 'unmap' : 'zero'} ${position}+${lengthBytes}`;
    return this.#record(what, () => this.inner.writeZeroes(position, lengthBytes, mayUnmap));
  }
  close(): Promise<void> {
    return this.inner.close();
  }

  async #record(what: string, operate: () => Promise<void>): Promise<void> {
    const operation = `${++this.#count} ${what}`;
    this.log.push(`> ${operation}`);
    if (this.hold) {
      await new Promise<void>((resolve, reject) => {
        this.held.push({ operation, finish: (error) => (error ? reject(error) : resolve()) });
      });
    }
    await operate();
    this.log.push(`< ${operation}`);
  }
}

const bytesOf = (buffers: readonly Uint8Array[]) => buffers.reduce((sum, buffer) => sum + buffer.length, 0);

/** A disk with a volatile cache, in memory: `durable` is what a power cut would leave of it at this moment. */
export class VolatileBackend implements BlockBackend {
  readonly readOnly = false;
  readonly geometry = { logicalBlockBytes: 512, physicalBlockBytes: 512, optimalIoBytes: 0 };
  readonly durable: Uint8Array;
  readonly #cache: Uint8Array;
  #flushes = 0;
  #newestDurable = 0;

  /** @param delayMs How long the next operation takes. */
  constructor(
    readonly sizeBytes: number,
    readonly delayMs: () => number,
  ) {
    this.durable = new Uint8Array(sizeBytes);
    this.#cache = new Uint8Array(sizeBytes);
  }

  async readv(buffers: readonly Uint8Array[], position: number): Promise<void> {
    await this.#delay();
    for (const buffer of buffers) {
      buffer.set(this.#cache.subarray(position, position + buffer.length));
      position += buffer.length;
    }
  }
  async writev(buffers: readonly Uint8Array[], position: number): Promise<void> {
    await this.#delay();
    for (const buffer of buffers) {
      this.#cache.set(buffer, position);
      position += buffer.length;
    }
  }
  async flush(): Promise<void> {
    // As fdatasync: what was written when it began is what it guarantees.
    const snapshot = this.#cache.slice();
    const flush = ++this.#flushes;
    await this.#delay();
    if (flush < this.#newestDurable) return;
    this.#newestDurable = flush;
    this.durable.set(snapshot);
  }
  async discard(): Promise<void> {
    await this.#delay();
  }
  async writeZeroes(position: number, lengthBytes: number): Promise<void> {
    await this.#delay();
    this.#cache.fill(0, position, position + lengthBytes);
  }
  close(): Promise<void> {
    return Promise.resolve();
  }

  #delay(): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, this.delayMs()));
  }
}
