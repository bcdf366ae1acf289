/** A ring of bytes with a fixed capacity. */
export class ByteFifo {
  readonly #ring: Uint8Array;
  #head = 0;
  #length = 0;

  constructor(capacity: number) {
    this.#ring = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  /** Returns false, and takes nothing, when the ring is full. */
  push(byte: number): boolean {
    if (this.#length === this.#ring.length) return false;
    this.#ring[(this.#head + this.#length++) % this.#ring.length] = byte;
    return true;
  }

  /** The oldest byte, left in place; 0 when there is none. */
  peek(): number {
    return this.#length === 0 ? 0 : this.#ring[this.#head];
  }

  /** The oldest byte; 0 when there is none. */
  shift(): number {
    if (this.#length === 0) return 0;
    const byte = this.#ring[this.#head];
    this.#head = (this.#head + 1) % this.#ring.length;
    this.#length--;
    return byte;
  }

  clear(): void {
    this.#head = 0;
    this.#length = 0;
  }

  toBytes(): Uint8Array {
    return Uint8Array.from({ length: this.#length }, (_, i) => this.#ring[(this.#head + i) % this.#ring.length]);
  }
}
