import { Duplex } from 'node:stream';

export interface ConsoleStreamConfig {
  /** Takes input for the guest; `taken` is called when the guest has it all. */
  write: (bytes: Uint8Array, taken: () => void) => void;
  /** This much output was consumed, or given up. */
  onConsumed: (length: number) => void;
  /** Output to keep for a reader that may yet come, in bytes. */
  keepBytes: number;
}

/**
 * A guest's console as a stream. A reader that is slow slows the guest's console down; while there has never been a
 * reader the guest is not held up, and the oldest output is dropped.
 */
export class ConsoleStream extends Duplex {
  /** Output dropped because nobody read it, in bytes. */
  droppedBytes = 0;
  readonly #config: ConsoleStreamConfig;
  readonly #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #wanted = false;
  #finished = false;
  #pendingWrite: (() => void) | undefined;

  constructor(config: ConsoleStreamConfig) {
    super({ allowHalfOpen: true, autoDestroy: false });
    this.#config = config;
  }

  /** Output of the guest. */
  deliver(bytes: Uint8Array): void {
    if (this.destroyed) {
      this.#giveUp(bytes.length);
      return;
    }
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length;
    if (this.#wanted) this._read();
    if (this.readableFlowing !== null || this.listenerCount('readable') > 0) return;
    while (this.#queuedBytes > this.#config.keepBytes) this.#giveUp(this.#dequeue().length);
  }

  /** The guest has ended: no more output, and input goes nowhere. */
  finish(): void {
    this.#finished = true;
    this.#pendingWrite?.();
    if (this.#wanted) this._read();
  }

  override _read(): void {
    this.#wanted = true;
    while (this.#wanted && this.#queue.length > 0) {
      const bytes = this.#dequeue();
      this.#wanted = this.push(bytes);
      this.#config.onConsumed(bytes.length);
    }
    if (this.#finished && this.#queue.length === 0 && !this.readableEnded) {
      this.#wanted = false;
      this.push(null);
    }
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: () => void): void {
    if (this.#finished || chunk.length === 0) return callback();
    this.#pendingWrite = () => {
      this.#pendingWrite = undefined;
      callback();
    };
    // A copy: the caller's buffer may be part of a pool, and the guest takes its time.
    this.#config.write(Uint8Array.from(chunk), () => this.#pendingWrite?.());
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.#pendingWrite?.();
    while (this.#queue.length > 0) this.#giveUp(this.#dequeue().length);
    callback(error);
  }

  #dequeue(): Uint8Array {
    const bytes = this.#queue.shift()!;
    this.#queuedBytes -= bytes.length;
    return bytes;
  }

  #giveUp(length: number): void {
    this.droppedBytes += length;
    this.#config.onConsumed(length);
  }
}
