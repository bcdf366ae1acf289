import { EventFd } from '../kvm/event-fd.js';

/**
 * Gives this thread's event loop a turn: timers, I/O, messages and immediates that are due run before it resolves.
 *
 * Not by setImmediate: while an immediate's callback runs, libuv says that immediates are due, so a run loop inside it
 * could not tell when a device has scheduled one. Nor by a message port: it delivers up to 1,000 messages to itself
 * before it lets the loop turn. An eventfd that this thread polls itself has neither flaw.
 */
export class EventLoopTurns implements Disposable {
  readonly #eventFd = new EventFd();
  #resolve: (() => void) | undefined;

  constructor() {
    this.#eventFd.onReadable(() => {
      this.#eventFd.read();
      this.#resolve?.();
    });
  }

  next(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolve = resolve;
      this.#eventFd.signal();
    });
  }

  [Symbol.dispose](): void {
    this.#eventFd.close();
  }
}
