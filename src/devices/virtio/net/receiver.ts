import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import type { RateLimiter } from '../../rate-limiter.js';
import type { NetBackend } from './backend.js';
import { DirectionCount, type ReceiveDrop } from './counters.js';
import { ETHERNET_HEADER_BYTES, HDR_NUM_BUFFERS, MAX_FRAME_BYTES, NET_HEADER_BYTES } from './defs.js';
import { headerFits, isUnsegmented, normaliseHeader } from './header.js';
import type { Direction } from './transmitter.js';

/** What waits for buffers of the driver: a backend that goes on sending while it is paused would fill the host's memory. */
const MAX_WAITING_FRAMES = 256;
const MAX_WAITING_BYTES = 1024 * 1024;

export interface ReceiveDirection extends Direction {
  /** VIRTIO_NET_F_MRG_RXBUF: a frame may fill several buffers. */
  mergeable: boolean;
  fail: (reason: string) => void;
}

interface WaitingFrame {
  header: Uint8Array;
  frame: readonly Uint8Array[];
  bytes: number;
}

/** Frames from the backend to the guest, each copied once: or twice, where it had to wait for a buffer. */
export class Receiver {
  readonly count = new DirectionCount<ReceiveDrop>();
  linkUp = true;
  readonly #backend: NetBackend;
  readonly #limiter: RateLimiter | undefined;
  readonly #header = new Uint8Array(NET_HEADER_BYTES);
  #direction: ReceiveDirection | undefined;
  #waiting: WaitingFrame[] = [];
  #waitingBytes = 0;
  #backendPaused = false;
  #paused = false;

  constructor(backend: NetBackend, limiter: RateLimiter | undefined) {
    this.#backend = backend;
    this.#limiter = limiter;
  }

  activate(direction: ReceiveDirection): void {
    this.#direction = direction;
  }

  reset(): void {
    this.#direction = undefined;
    this.#limiter?.cancel();
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#letBackendSend();
  }

  /** The driver has new buffers. */
  onNotify(): void {
    this.#deliverWaiting();
  }

  set paused(paused: boolean) {
    this.#paused = paused;
    if (!paused) this.#deliverWaiting();
    else this.#holdBackend();
  }

  receive(frame: readonly Uint8Array[], header: Uint8Array | undefined): void {
    const direction = this.#direction;
    const bytes = frame.reduce((sum, piece) => sum + piece.length, 0);
    const drop = direction ? this.#reasonToDrop(bytes, header, direction) : 'no driver';
    if (!direction || drop) {
      this.count.drop(drop ?? 'no driver');
      return;
    }
    if (this.#waiting.length === 0 && this.#deliver(frame, bytes, this.#header, direction)) return;
    this.#holdBackend();
    if (this.#waiting.length >= MAX_WAITING_FRAMES || this.#waitingBytes + bytes > MAX_WAITING_BYTES) {
      this.count.drop('no room');
      return;
    }
    const copy = frame.map((piece) => Uint8Array.from(piece));
    this.#waiting.push({ header: this.#header.slice(), frame: copy, bytes });
    this.#waitingBytes += bytes;
  }

  receiveEnd(): void {
    this.#direction?.queue.signal();
  }

  /** Leaves the header to pass on, as far as it is known, in #header. */
  #reasonToDrop(bytes: number, header: Uint8Array | undefined, direction: ReceiveDirection): ReceiveDrop | undefined {
    if (header?.length === NET_HEADER_BYTES) this.#header.set(header);
    else if (header) return 'bad header';
    else this.#header.fill(0);
    if (bytes < ETHERNET_HEADER_BYTES) return 'too short';
    if (bytes > MAX_FRAME_BYTES) return 'too long';
    if (!headerFits(this.#header, bytes, direction.offloads)) return 'bad header';
    if (!isUnsegmented(this.#header) && bytes > direction.maxPlainBytes) return 'too long';
    if (!this.linkUp) return 'link down';
    normaliseHeader(this.#header, direction.offloads.has('checksum'));
    return undefined;
  }

  #deliverWaiting(): void {
    const direction = this.#direction;
    if (this.#paused) return;
    if (!direction) return this.#letBackendSend();
    let delivered = 0;
    while (delivered < this.#waiting.length) {
      const { frame, bytes, header } = this.#waiting[delivered];
      if (!this.#deliver(frame, bytes, header, direction)) break;
      this.#waitingBytes -= bytes;
      delivered++;
    }
    this.#waiting.splice(0, delivered);
    direction.queue.signal();
    if (this.#waiting.length === 0) this.#letBackendSend();
  }

  #holdBackend(): void {
    if (this.#backendPaused) return;
    this.#backendPaused = true;
    this.#backend.pause();
  }

  #letBackendSend(): void {
    if (!this.#backendPaused || this.#paused) return;
    this.#backendPaused = false;
    this.#backend.resume();
  }

  /** @returns false when the frame must wait: for buffers, of which the driver will tell, or for the rate. */
  #deliver(frame: readonly Uint8Array[], bytes: number, header: Uint8Array, direction: ReceiveDirection): boolean {
    if (this.#paused) return false;
    const limiter = this.#limiter;
    if (limiter && limiter.delayMs > 0) {
      limiter.whenReady(() => this.#deliverWaiting());
      return false;
    }
    const chains = this.#takeBuffers(bytes, direction);
    if (typeof chains === 'string') return chains === 'dropped';
    header[HDR_NUM_BUFFERS] = chains.length;
    header[HDR_NUM_BUFFERS + 1] = chains.length >> 8;
    direction.queue.pushTogether(chains, scatter(chains, [header, ...frame]));
    limiter?.take(bytes);
    this.count.add(bytes);
    return true;
  }

  /** Chains with room for the header and the frame. */
  #takeBuffers(bytes: number, { queue, mergeable, fail }: ReceiveDirection): DescriptorChain[] | 'dropped' | 'later' {
    const chains: DescriptorChain[] = [];
    let room = 0;
    let outcome: 'dropped' | 'later' | undefined;
    while (room < NET_HEADER_BYTES + bytes && !outcome) {
      // Buffers of a byte each never make a frame: then more of them do not help.
      if (chains.length === (mergeable ? queue.size : 1)) {
        this.count.drop('buffers too small');
        outcome = 'dropped';
        break;
      }
      const chain = queue.pop();
      if (!chain) {
        if (!queue.enableNotifications()) outcome = 'later';
      } else if (chain.writableBytes < NET_HEADER_BYTES) {
        fail('a receive buffer has no room for the header');
        outcome = 'later';
      } else {
        chains.push(chain);
        room += chain.writableBytes;
      }
    }
    if (!outcome) return chains;
    for (const chain of chains.reverse()) queue.unpop(chain);
    return outcome;
  }
}

/** Writes the pieces one after the other into the chains. @returns The bytes written to each chain. */
function scatter(chains: readonly DescriptorChain[], pieces: readonly Uint8Array[]): number[] {
  let index = 0;
  let offset = 0;
  return chains.map((chain) => {
    let written = 0;
    while (index < pieces.length && written < chain.writableBytes) {
      const part = pieces[index].subarray(offset, offset + chain.writableBytes - written);
      chain.write(written, part);
      written += part.length;
      offset += part.length;
      if (offset < pieces[index].length) break;
      index++;
      offset = 0;
    }
    return written;
  });
}
