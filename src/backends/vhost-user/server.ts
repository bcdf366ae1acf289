import { EventEmitter } from 'node:events';
import { lstatSync, unlinkSync } from 'node:fs';
import { VmmError } from '../../errors.js';
import { addon, native, type NativeUnixSocket } from '../../native/addon.js';
import type { VirtioDevice } from '../../virtio/device.js';
import { VhostUserBackend } from './backend.js';
import { checkServable } from './session.js';

/** Of {@link VhostUserServer}: what it emits. */
export interface VhostUserServerEvents {
  connect: [];
  /** The frontend is gone, and why; the next one may come. */
  disconnect: [error: VmmError];
  /** The guest's driver broke a rule: the device does nothing until the driver resets it. */
  driverFailure: [reason: string];
}

/**
 * Serves one virtio device at a Unix socket, to one vhost-user frontend at a time: others wait until it is gone.
 * https://www.qemu.org/docs/master/interop/vhost-user.html
 */
export class VhostUserServer extends EventEmitter<VhostUserServerEvents> implements AsyncDisposable {
  readonly path: string;
  readonly device: VirtioDevice;
  /** How often the guest's driver broke a rule. */
  failures = 0;
  readonly #listener: NativeUnixSocket;
  #backend: VhostUserBackend | undefined;
  #onIdle: (() => void) | undefined;
  #closed = false;

  /**
   * Listens. A socket that nobody listens at any more is replaced.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for a path that cannot be, "BUSY" where somebody listens, "SYSCALL".
   */
  constructor(device: VirtioDevice, path: string) {
    super();
    checkServable(device);
    this.path = path;
    this.device = device;
    this.#listener = listen(path);
    this.#accept();
  }

  get connected(): boolean {
    return this.#backend !== undefined;
  }

  /** Ends the connection and listens no more. @returns When the device is reset. Idempotent. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      this.#listener.close();
      unlinkQuietly(this.path);
    }
    if (!this.#backend) return;
    const idle = new Promise<void>((resolve) => {
      const before = this.#onIdle;
      this.#onIdle = () => {
        before?.();
        resolve();
      };
    });
    this.#backend.close();
    await idle;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(): void {
    native(() =>
      this.#listener.onReadable(() => {
        const fd = this.#listener.accept();
        if (fd === undefined) return;
        const socket = native(() => new (addon().UnixSocket)('adopt', fd));
        // The next one waits in the kernel.
        native(() => this.#listener.onReadable(undefined));
        this.#backend = new VhostUserBackend(socket, this.device, {
          onEnd: (error) => this.#onEnd(error),
          onDriverFailure: (reason) => {
            this.failures++;
            this.emit('driverFailure', reason);
          },
        });
        this.emit('connect');
      }),
    );
  }

  #onEnd(error: VmmError): void {
    this.#backend = undefined;
    if (!this.#closed) this.#accept();
    this.#onIdle?.();
    this.emit('disconnect', error);
  }
}

function listen(path: string): NativeUnixSocket {
  const open = () => native(() => new (addon().UnixSocket)('listen', path));
  try {
    return open();
  } catch (error) {
    if ((error as VmmError).errno !== 'EADDRINUSE') throw error;
    if (!lstatSync(path).isSocket())
      throw new VmmError('BUSY', `${path} is there already, and no socket: give another`);
    if (isAlive(path)) throw new VmmError('BUSY', `another process listens at ${path}: end it, or give another path`);
    unlinkQuietly(path);
    return open();
  }
}

function isAlive(path: string): boolean {
  try {
    native(() => new (addon().UnixSocket)('connect', path)).close();
    return true;
  } catch (error) {
    return (error as VmmError).errno !== 'ECONNREFUSED';
  }
}

function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody else did.
  }
}
