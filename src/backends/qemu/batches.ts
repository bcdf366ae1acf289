/** How long bytes may wait for more to come. Too short to be noticed at a keyboard. */
const WAIT_MS = 1;
const ENOUGH_BYTES = 4096;

/**
 * Gathers what QEMU's serial port writes byte by byte, each a packet of its own, into fewer and larger pieces: what
 * waits for a reader would else take a hundred times its size.
 */
export class Batches {
  #pieces: Buffer[] = [];
  #bytes = 0;
  #timer: NodeJS.Timeout | undefined;
  readonly #deliver: (bytes: Buffer) => void;

  constructor(deliver: (bytes: Buffer) => void) {
    this.#deliver = deliver;
  }

  add(piece: Buffer): void {
    this.#pieces.push(piece);
    this.#bytes += piece.length;
    if (this.#bytes >= ENOUGH_BYTES) this.flush();
    else this.#timer ??= setTimeout(() => this.flush(), WAIT_MS);
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#bytes === 0) return;
    const bytes = Buffer.concat(this.#pieces);
    this.#pieces = [];
    this.#bytes = 0;
    this.#deliver(bytes);
  }
}
