/** A network in Node: frames of the guest as a stream of objects. */
import { Duplex } from 'node:stream';
import type { NetBackend, NetClient, NetOffload, SendResult } from '../../devices/virtio/net/backend.js';
import { VmmError } from '../../errors.js';
import { VNET_HEADER_BYTES } from './frames.js';

const FRAMES_BUFFERED = 256;

export interface PortNetworkOptions {
  /** The largest packet in bytes, without the Ethernet header. Default: the driver's, 1500. */
  mtu?: number;
  /**
   * Work that the program at the other end takes on: then each chunk begins with a `struct virtio_net_hdr` of 12 bytes,
   * both ways. Two such ports may be piped together when both guests agree to the same. Default: none.
   */
  offloads?: readonly NetOffload[];
}

/**
 * Frames as the chunks of a Duplex: read what the guest sends, write what it shall get. Each chunk is a Uint8Array, one
 * Ethernet frame without its FCS. Backpressure works both ways: who does not read stops the guest from sending, and a
 * write completes when the guest has taken the frame.
 */
export class PortNetwork implements NetBackend {
  readonly name = 'port';
  readonly mtu: number | undefined;
  readonly offloads: readonly NetOffload[];
  readonly stream: Duplex;
  #client: NetClient | undefined;
  #paused = false;
  #busy = false;
  #closed = false;
  /** What the guest has not taken: the end of a write. */
  #unreceived: Uint8Array[] = [];
  #writeDone: ((error?: Error | null) => void) | undefined;

  constructor(options: PortNetworkOptions = {}) {
    this.mtu = options.mtu;
    this.offloads = options.offloads ?? [];
    this.stream = new Duplex({
      objectMode: true,
      highWaterMark: FRAMES_BUFFERED,
      read: () => this.#onRead(),
      write: (chunk: unknown, _encoding, done) => this.#onWrite([chunk], done),
      writev: (chunks, done) =>
        this.#onWrite(
          chunks.map(({ chunk }) => chunk as unknown),
          done,
        ),
      destroy: (error, done) => {
        this.#unreceived = [];
        if (!this.#closed) this.#client?.failed(new VmmError('CLOSED', 'the stream of a network port was destroyed'));
        done(error);
      },
    });
  }

  connect(client: NetClient): void {
    this.#client = client;
  }

  setReceiveOffloads(): void {}

  send(frame: readonly Uint8Array[], header: Uint8Array): SendResult {
    if (this.stream.destroyed) return 'refused';
    if (this.#busy) return 'busy';
    this.#busy = !this.stream.push(Buffer.concat(this.offloads.length > 0 ? [header, ...frame] : frame));
    return 'sent';
  }

  /** Streams work in microtasks, which a thread that runs a guest only gets to when its event loop turns. */
  flush(): void {
    setImmediate(() => {});
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#deliver();
  }

  close(): Promise<void> {
    this.#closed = true;
    this.stream.destroy();
    return Promise.resolve();
  }

  #onRead(): void {
    if (!this.#busy) return;
    this.#busy = false;
    this.#client?.drained();
  }

  #onWrite(chunks: readonly unknown[], done: (error?: Error | null) => void): void {
    const wrong = chunks.find((chunk) => !(chunk instanceof Uint8Array));
    if (wrong !== undefined) {
      done(new VmmError('INVALID_ARGUMENT', `a network port takes frames as Uint8Array, not ${typeof wrong}`));
      return;
    }
    this.#unreceived = chunks as Uint8Array[];
    this.#writeDone = done;
    this.#deliver();
  }

  #deliver(): void {
    if (!this.#writeDone) return;
    let next = 0;
    while (next < this.#unreceived.length && !this.#paused) {
      const chunk = this.#unreceived[next++];
      if (this.offloads.length === 0) this.#client?.receive([chunk]);
      else this.#client?.receive([chunk.subarray(VNET_HEADER_BYTES)], chunk.subarray(0, VNET_HEADER_BYTES));
    }
    this.#unreceived = this.#unreceived.slice(next);
    this.#client?.receiveEnd();
    if (this.#unreceived.length > 0) return;
    const done = this.#writeDone;
    this.#writeDone = undefined;
    done();
  }
}
