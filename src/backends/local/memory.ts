import { setImmediate } from 'node:timers/promises';
import type { BlockBackend } from '../../devices/virtio/blk/backend.js';
import { VmmError } from '../../errors.js';

export interface MemoryBackendOptions {
  /** Default: false. */
  readOnly?: boolean;
}

/** A disk in memory: for tests, and for disks that may be forgotten. */
export class MemoryBackend implements BlockBackend {
  readonly readOnly: boolean;
  readonly geometry = { logicalBlockBytes: 512, physicalBlockBytes: 512, optimalIoBytes: 0 };
  #bytes: Uint8Array | undefined;
  readonly sizeBytes: number;

  /** @param bytes The disk's content, used in place. */
  constructor(bytes: Uint8Array, options: MemoryBackendOptions = {}) {
    this.#bytes = bytes;
    this.sizeBytes = bytes.length;
    this.readOnly = options.readOnly ?? false;
  }

  async readv(buffers: readonly Uint8Array[], position: number): Promise<void> {
    for (const buffer of buffers) {
      const part = this.#open.subarray(position, position + buffer.length);
      buffer.set(part);
      buffer.fill(0, part.length);
      position += buffer.length;
    }
    await turn();
  }

  async writev(buffers: readonly Uint8Array[], position: number): Promise<void> {
    const bytes = this.#writable;
    for (const buffer of buffers) {
      bytes.set(buffer.subarray(0, Math.max(0, bytes.length - position)), Math.min(position, bytes.length));
      position += buffer.length;
    }
    await turn();
  }

  async flush(): Promise<void> {
    void this.#open;
    await turn();
  }

  async discard(position: number, lengthBytes: number): Promise<void> {
    this.#writable.fill(0, position, position + lengthBytes);
    await turn();
  }

  async writeZeroes(position: number, lengthBytes: number): Promise<void> {
    await this.discard(position, lengthBytes);
  }

  close(): Promise<void> {
    this.#bytes = undefined;
    return Promise.resolve();
  }

  get #open(): Uint8Array {
    if (!this.#bytes) throw new VmmError('CLOSED', 'this memory disk is closed; make a new one');
    return this.#bytes;
  }

  get #writable(): Uint8Array {
    if (this.readOnly) throw new VmmError('INVALID_STATE', 'this memory disk is read-only');
    return this.#open;
  }
}

/** The copying was done at once; a promise that were too would let a busy guest keep the event loop. */
const turn = () => setImmediate();
