import { MMIO_CONFIG } from '../defs.js';

/** Registers and the first 256 bytes of configuration space: nothing behind them reads otherwise than all ones. */
const MIRRORED_BYTES = MMIO_CONFIG + 256;

/**
 * Memory that the driver reads in place of the registers, without an exit, and cannot write: its writes arrive as they
 * would without.
 */
export interface RegisterPage {
  /** All of the device's addresses; all ones in the beginning. The driver may read them at any moment. */
  readonly words: Uint32Array;
  /** Has the driver wait with its reads while `change` runs. Takes milliseconds. */
  exclusively(change: () => void): void;
}

/**
 * Keeps a {@link RegisterPage} as the registers read. That needs each of them to be a function of the device's state, and
 * so they are: virtio 1.2, 4.2.2 has no register whose read changes anything.
 */
export class RegisterMirror {
  readonly #page: RegisterPage;
  readonly #read: (offset: number) => number;

  /** @param read The register at a multiple of 4. */
  constructor(page: RegisterPage, read: (offset: number) => number) {
    this.#page = page;
    this.#read = read;
    this.update();
  }

  /** One register alone has changed. */
  set(offset: number, value: number): void {
    this.#page.words[offset / 4] = value;
  }

  /** A write of the driver may have changed anything. It waits for the write, so it sees all of that at once. */
  update(): void {
    // Backwards: a generation that is new belongs to a configuration that is.
    for (let offset = MIRRORED_BYTES - 4; offset >= 0; offset -= 4) this.set(offset, this.#read(offset));
  }

  /**
   * The device changed by itself. A driver compares ConfigGeneration before and after it reads configuration space (virtio
   * 1.2, 2.5.1), which tells it nothing of a change that is half done: of one word it sees the old or the new, of several it
   * must not see some.
   */
  updateAtOnce(): void {
    let changed = 0;
    for (let offset = MMIO_CONFIG; offset < MIRRORED_BYTES; offset += 4) {
      if (this.#page.words[offset / 4] !== this.#read(offset)) changed++;
    }
    if (changed > 1) this.#page.exclusively(() => this.update());
    else this.update();
  }
}
