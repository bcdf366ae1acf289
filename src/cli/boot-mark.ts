import { Transform } from 'node:stream';

/** Bytes kept of what a guest printed before its mark: enough for a kernel's last words. */
const BOOT_LOG_BYTES = 64 * 1024;

/**
 * Parts a guest's console at a mark that its init prints when user space is up. What comes after it passes; what came
 * before, firmware and kernel, is kept aside.
 */
export class BootMark extends Transform {
  #found = false;
  #before = Buffer.alloc(0);
  readonly #mark: Buffer;
  readonly #onFound: () => void;
  readonly #onBoot: ((bytes: Buffer) => void) | undefined;

  /**
   * @param options.onFound User space is up. Called before what it prints passes.
   * @param options.onBoot Takes what is printed before, as it comes.
   */
  constructor(options: { mark: string; onFound: () => void; onBoot?: ((bytes: Buffer) => void) | undefined }) {
    super();
    this.#mark = Buffer.from(options.mark, 'latin1');
    this.#onFound = options.onFound;
    this.#onBoot = options.onBoot;
  }

  get found(): boolean {
    return this.#found;
  }

  /** The end of what was printed before the mark. */
  get bootLog(): string {
    return this.#before.toString('utf8');
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: (error: null, data?: Buffer) => void): void {
    if (this.#found) return done(null, chunk);
    const before = Buffer.concat([this.#before, chunk]);
    const at = before.indexOf(this.#mark);
    if (at < 0) {
      this.#onBoot?.(chunk);
      this.#before = before.subarray(-BOOT_LOG_BYTES);
      return done(null);
    }
    this.#found = true;
    const newlyBoot = at - this.#before.length;
    if (newlyBoot > 0) this.#onBoot?.(chunk.subarray(0, newlyBoot));
    this.#before = before.subarray(0, at);
    this.#onFound();
    done(null, before.subarray(at + this.#mark.length));
  }
}
