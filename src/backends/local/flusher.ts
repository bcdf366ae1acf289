/**
 * Makes the writes of one open file durable. One fdatasync at a time: of two at once only one would hear of an error.
 * Whoever asks while one runs shares the next, which begins later than any write they can mean.
 */
export class Flusher {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: Error | undefined;

  /** @param sync Makes durable what was written before it was called. */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** @returns Rejects for ever once a sync failed: the kernel reports lost writes once, and then forgets them. */
  flush(): Promise<void> {
    if (!this.#running && !this.#next) return this.#begin();
    return (this.#next ??= this.#running!.then(
      () => this.#begin(),
      () => this.#begin(),
    ));
  }

  #begin(): Promise<void> {
    this.#next = undefined;
    return (this.#running = this.#run());
  }

  async #run(): Promise<void> {
    try {
      if (this.#failure) throw this.#failure;
      await this.#sync();
    } catch (error) {
      this.#failure = error as Error;
      throw error;
    } finally {
      this.#running = undefined;
    }
  }
}
