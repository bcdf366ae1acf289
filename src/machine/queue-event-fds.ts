import { EventFd } from '../kvm/event-fd.js';
import type { QueueEvents } from '../virtio/device.js';

/** The eventfds of a queue whose buffers another process handles. */
export class QueueEventFds implements QueueEvents, Disposable {
  /** What an ioeventfd signals. Nobody here listens to it. */
  readonly kickEvent = new EventFd();
  readonly #call = new EventFd();

  /** @param onCall The other process interrupts, and this process has to see to it. */
  constructor(onCall: () => void) {
    this.#call.onReadable(() => {
      this.#call.read();
      onCall();
    });
  }

  get kickFd(): number {
    return this.kickEvent.fd;
  }

  kick(): void {
    this.kickEvent.signal();
  }

  get callFd(): number {
    return this.#call.fd;
  }

  [Symbol.dispose](): void {
    this.kickEvent.close();
    this.#call.close();
  }
}
