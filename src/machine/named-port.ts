import type { ConsolePort, ConsolePortConfig } from '../devices/virtio/console/port.js';
import type { RemoteStream } from './remote-stream.js';

/** What is copied out of guest memory at once: a guest can offer a buffer as large as its memory. */
const MAX_WRITE_BYTES = 64 * 1024;

/** A named port of a virtio console, between the guest and the program's stream. It outlives resets of the machine. */
export class NamedPort {
  readonly name: string;
  readonly config: ConsolePortConfig;
  readonly #stream: RemoteStream;
  #port: ConsolePort | undefined;
  /** What the guest has not taken. */
  #input: Uint8Array | undefined;

  constructor(name: string, stream: RemoteStream) {
    this.name = name;
    this.#stream = stream;
    this.config = {
      name,
      console: false,
      output: { write: (bytes) => this.#write(bytes) },
      onInputRoom: () => this.#feed(),
    };
    stream.on('data', (bytes: Buffer) => {
      this.#input = bytes;
      this.#feed();
    });
    stream.on('drain', () => this.#port?.resumeOutput());
    stream.on('error', () => {}); // the program's own: it knows
    // Nobody will read any more: a guest that prints must not wait for ever.
    stream.on('close', () => this.#port?.resumeOutput());
  }

  /** Connects it to the console of this power cycle; to none between two. */
  attach(port: ConsolePort | undefined): void {
    this.#port = port;
    this.#feed();
  }

  #feed(): void {
    if (!this.#input || !this.#port) {
      if (this.#input) this.#stream.pause();
      return;
    }
    const taken = this.#port.receive(this.#input);
    this.#input = taken < this.#input.length ? this.#input.subarray(taken) : undefined;
    if (this.#input) this.#stream.pause();
    else this.#stream.resume();
  }

  #write(bytes: Uint8Array): number {
    let taken = 0;
    while (taken < bytes.length && !this.#stream.writableNeedDrain) {
      if (!this.#stream.writable) return bytes.length;
      const piece = Buffer.from(bytes.subarray(taken, taken + MAX_WRITE_BYTES));
      this.#stream.write(piece);
      taken += piece.length;
    }
    return taken;
  }
}
