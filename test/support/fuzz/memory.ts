import { GuestMemory, WINDOW_STRIDE } from '../../../src/memory/guest-memory.js';

const KIB = 1024;
const GUARD_BYTES = 32 * KIB;
const GUARD = 0xa5;

/** Two stretches of RAM with a hole between, where a buffer may start, end or lie. */
export const RAM = [
  { gpa: 0, sizeBytes: 512 * KIB },
  { gpa: 768 * KIB, sizeBytes: 256 * KIB },
] as const;
export const RAM_END = RAM[1].gpa + RAM[1].sizeBytes;

/** Guest memory that counts how often anybody looks into it. */
export class CountedMemory extends GuestMemory {
  static views = 0;

  override tryView(gpa: number, length: number): Uint8Array | undefined {
    CountedMemory.views++;
    return super.tryView(gpa, length);
  }
}

/** Guest memory between guards: all of one ArrayBuffer, so that a device's arithmetic could reach beyond. */
export class GuardedMemory {
  readonly memory = new CountedMemory();
  readonly #all: Uint8Array;
  readonly #guards: Uint8Array[] = [];
  readonly #ram: Uint8Array[] = [];
  static readonly #clean = new Uint8Array(GUARD_BYTES).fill(GUARD);

  constructor() {
    const bytes = RAM.reduce((sum, { sizeBytes }) => sum + sizeBytes + GUARD_BYTES, GUARD_BYTES);
    this.#all = new Uint8Array(bytes);
    let at = 0;
    const take = (length: number) => this.#all.subarray(at, (at += length));
    this.#guards.push(take(GUARD_BYTES).fill(GUARD));
    for (const { gpa, sizeBytes } of RAM) {
      const window = take(sizeBytes);
      this.#ram.push(window);
      this.#guards.push(take(GUARD_BYTES).fill(GUARD));
      this.memory.addRegion({ gpa, sizeBytes, windows: [window], windowStride: WINDOW_STRIDE });
    }
  }

  clear(): void {
    for (const part of this.#ram) part.fill(0);
  }

  copy(): Uint8Array {
    return this.#all.slice();
  }

  /** Whether not one byte of RAM or guards is another than in the copy. */
  equals(copy: Uint8Array): boolean {
    return Buffer.compare(this.#all, copy) === 0;
  }

  get guardsIntact(): boolean {
    return this.#guards.every((guard) => Buffer.compare(guard, GuardedMemory.#clean) === 0);
  }
}
