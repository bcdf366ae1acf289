import type { VmmError } from '../../errors.js';
import { addon, native } from '../../native/addon.js';
import type { VirtioDevice } from '../../virtio/device.js';
import { VhostUserBackend } from './backend.js';
import { closeFds } from './message-socket.js';
import { checkServable } from './session.js';

/**
 * Serves a virtio device to one frontend, a child process that inherits its end of the connection: no path in the file
 * system, and nobody else can connect.
 */
export class InheritedVhostUser {
  readonly device: VirtioDevice;
  /** The frontend's end, for its process to inherit. */
  readonly frontendFd: number;
  /** Resolves when the connection is over, with why, and nothing of the guest's memory is in use any more. */
  readonly ended: Promise<VmmError>;
  /** How often the guest's driver broke a rule, and the last one. */
  failures = 0;
  lastFailure: string | undefined;
  readonly #backend: VhostUserBackend;
  #isHandedOver = false;

  /** @throws VmmError code "INVALID_ARGUMENT" for a device that cannot be served, "SYSCALL". */
  constructor(device: VirtioDevice) {
    checkServable(device);
    this.device = device;
    const [ours, theirs] = native(() => addon().socketPair());
    this.frontendFd = theirs;
    const socket = native(() => new (addon().UnixSocket)('adopt', ours));
    let settle!: (error: VmmError) => void;
    this.ended = new Promise((resolve) => (settle = resolve));
    this.#backend = new VhostUserBackend(socket, device, {
      onEnd: settle,
      onDriverFailure: (reason) => {
        this.failures++;
        this.lastFailure = reason;
      },
    });
  }

  /** The frontend's process has been started, or will not be: its end is closed here. Idempotent. */
  handOver(): void {
    if (this.#isHandedOver) return;
    this.#isHandedOver = true;
    closeFds([this.frontendFd]);
  }

  /** Ends the connection. @returns When the device is reset. Idempotent. */
  async close(): Promise<void> {
    this.handOver();
    this.#backend.close();
    await this.ended;
  }
}
