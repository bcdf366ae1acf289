/**
 * Serves a queue in turns, so that a driver which refills as fast as the device empties cannot keep the event loop: work
 * that a turn leaves over waits for the next turn of the loop, whatever the driver does meanwhile.
 */
export class Turns {
  readonly #serve: () => boolean;
  #next: NodeJS.Immediate | undefined;

  /** @param serve Does one turn's work. Returns whether some was left over, as {@link VirtQueue.drain} does. */
  constructor(serve: () => boolean) {
    this.#serve = serve;
  }

  /** Takes a turn now, unless one is due anyway. */
  take(): void {
    if (this.#next || !this.#serve()) return;
    this.#next = setImmediate(() => {
      this.#next = undefined;
      this.take();
    });
  }

  /** Forgets the turn that is due. */
  cancel(): void {
    clearImmediate(this.#next);
    this.#next = undefined;
  }
}
