import { MessageChannel } from 'node:worker_threads';

/**
 * Gives this thread's event loop a turn: timers, I/O, messages and immediates that are due run before it resolves.
 *
 * Not by setImmediate: while an immediate's callback runs, libuv says that immediates are due, so a run loop inside it
 * could not tell when a device has scheduled one. A message to oneself leaves no such mark.
 */
export class EventLoopTurns implements Disposable {
  readonly #channel = new MessageChannel();
  #resolve: (() => void) | undefined;

  constructor() {
    this.#channel.port1.on('message', () => this.#resolve?.());
  }

  next(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolve = resolve;
      this.#channel.port2.postMessage(undefined);
    });
  }

  [Symbol.dispose](): void {
    this.#channel.port1.close();
  }
}
