import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import { VmmError } from '../errors.js';
import type { RemoteStream } from './remote-stream.js';
import type { StreamHub } from './stream-hub.js';
import { VSOCK_CONNECTED, VSOCK_REQUESTED, type VsockMethods, type VsockRequested } from './vsock-ports.js';

/**
 * The host's end of a guest's sockets (AF_VSOCK, in which the host has the CID 2).
 *
 * Streams have backpressure both ways; `end()` closes the host's direction alone, `destroy()` both. One that breaks ends
 * with a VmmError of code "CONNECTION_FAILED", its `errno` as a socket's would be.
 */
export class Vsock {
  readonly #worker: VsockMethods;
  readonly #connected = new Map<number, RemoteStream>();
  readonly #listeners = new Map<number, VsockListener>();

  constructor(worker: VsockMethods, streams: StreamHub) {
    this.#worker = worker;
    // A guest that resets a connection must not end a program that does not listen for errors.
    const ignore = () => {};
    streams.accept(VSOCK_CONNECTED, (stream, id) => this.#connected.set(id as number, stream.on('error', ignore)));
    streams.accept(VSOCK_REQUESTED, (stream, detail) => {
      const { port, guestPort } = detail as VsockRequested;
      stream.on('error', ignore);
      if (!this.#listeners.get(port)?.emit('connection', stream, guestPort)) stream.destroy();
    });
  }

  /**
   * Connects to a port of the guest.
   *
   * @throws VmmError code "CONNECTION_FAILED", with errno ECONNREFUSED where nothing listens or the guest's driver is not
   *   up, ETIMEDOUT where the guest does not answer; "INVALID_ARGUMENT" for what is no port, "BUSY" with too many connections.
   */
  async connect(port: number): Promise<Duplex> {
    const id = await this.#worker.connectVsock(port);
    const stream = this.#connected.get(id)!;
    this.#connected.delete(id);
    return stream;
  }

  /**
   * Accepts the guest's connections to a port of the host, from now on and across resets of the machine.
   *
   * @param onConnection A first listener for `connection`.
   * @throws VmmError code "BUSY" when the port has a listener; "INVALID_ARGUMENT" for what is no port.
   */
  async listen(port: number, onConnection?: (stream: Duplex, guestPort: number) => void): Promise<VsockListener> {
    if (this.#listeners.has(port)) {
      throw new VmmError('BUSY', `vsock port ${port} has a listener; close it first, or take another port`);
    }
    const listener = new VsockListener(port, async () => {
      if (this.#listeners.get(port) !== listener) return;
      this.#listeners.delete(port);
      try {
        await this.#worker.unlistenVsock(port);
      } catch {
        // The machine has ended, or is closed: nobody connects any more.
      }
    });
    if (onConnection) listener.on('connection', onConnection);
    this.#listeners.set(port, listener);
    try {
      await this.#worker.listenVsock(port);
    } catch (error) {
      this.#listeners.delete(port);
      throw error;
    }
    return listener;
  }
}

/** Accepts connections to one port of the host: event `connection`, with the stream and the guest's port. */
export class VsockListener
  extends EventEmitter<{ connection: [stream: Duplex, guestPort: number] }>
  implements AsyncDisposable
{
  readonly port: number;
  readonly #close: () => Promise<void>;

  /** @internal */
  constructor(port: number, close: () => Promise<void>) {
    super();
    this.port = port;
    this.#close = close;
  }

  /** Refuses connections from now on; those that exist go on. Idempotent. */
  close(): Promise<void> {
    return this.#close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
