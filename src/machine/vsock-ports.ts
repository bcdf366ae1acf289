import { joinStreams } from '../backends/local/join-streams.js';
import type { VsockAcceptor } from '../devices/virtio/vsock/backend.js';
import { checkPort } from '../devices/virtio/vsock/port.js';
import type { VirtioVsock } from '../devices/virtio/vsock/vsock.js';
import type { StreamHub } from './stream-hub.js';

/** Names of the streams to the program's thread: one that it wanted, by its id, and one that the guest wanted. */
export const VSOCK_CONNECTED = 'vsock-connected';
export const VSOCK_REQUESTED = 'vsock-requested';

/** What is told of a stream that the guest wanted. */
export interface VsockRequested {
  port: number;
  guestPort: number;
}

/** What the program's thread asks for. */
export interface VsockMethods {
  /** @returns An id; the stream of that name has been opened before. */
  connectVsock(port: number): Promise<number>;
  listenVsock(port: number): void | Promise<unknown>;
  unlistenVsock(port: number): void | Promise<unknown>;
}

/** The worker's half of `vm.vsock`. Outlives the device, which a reset of the machine replaces. */
export class VsockPorts {
  /** The device of the present power cycle. */
  device: VirtioVsock | undefined;
  readonly #streams: StreamHub;
  readonly #listening = new Set<number>();
  #lastId = 0;

  constructor(streams: StreamHub) {
    this.#streams = streams;
  }

  /** Takes the guest's connections to ports that the program listens on. */
  readonly accept: VsockAcceptor = (request) => {
    const { port, guestPort } = request;
    if (!this.#listening.has(port)) return false;
    const detail: VsockRequested = { port, guestPort };
    joinStreams(request.accept(), this.#streams.open(VSOCK_REQUESTED, detail));
    return true;
  };

  /** @throws VmmError as the device's `connect` does. */
  async connect(port: number): Promise<number> {
    const { stream } = await this.device!.connect(port);
    const id = ++this.#lastId;
    joinStreams(stream, this.#streams.open(VSOCK_CONNECTED, id));
    return id;
  }

  /** @throws VmmError code "INVALID_ARGUMENT" for what is no port. */
  listen(port: number): void {
    checkPort(port);
    this.#listening.add(port);
  }

  unlisten(port: number): void {
    this.#listening.delete(port);
  }
}
