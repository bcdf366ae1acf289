import { addon, native, type NativeEventFd } from '../native/addon.js';

/** An eventfd: what ioeventfd signals and irqfd listens to, without an exit. */
export class EventFd implements Disposable {
  readonly #native: NativeEventFd;

  /** @throws VmmError code "SYSCALL" when the process is out of file descriptors. */
  constructor() {
    this.#native = native(() => new (addon().EventFd)());
  }

  /**
   * The file descriptor; borrowed. Another process that gets it may change its flags and its count, and yet `signal` and
   * `read` never wait: from now on `signal` takes a microsecond more for that.
   */
  get fd(): number {
    return native(() => this.#native.share());
  }

  /** @internal The file descriptor, for a request to KVM. */
  get ownFd(): number {
    return native(() => this.#native.fd());
  }

  /** Adds one to the count: raises the interrupt of an irqfd. */
  signal(): void {
    native(() => this.#native.write());
  }

  /** Takes the count: how often it was signalled since the last read. */
  read(): bigint {
    return native(() => this.#native.read());
  }

  /** Calls `listener` on this thread's event loop while the count is not 0 (so read it there); undefined ends that. */
  onReadable(listener: (() => void) | undefined): void {
    native(() => this.#native.onReadable(listener));
  }

  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
