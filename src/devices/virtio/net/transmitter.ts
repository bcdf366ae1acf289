import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import type { VirtQueue } from '../../../virtio/queue/queue.js';
import { Turns } from '../../../virtio/queue/turns.js';
import type { RateLimiter } from '../../rate-limiter.js';
import type { NetBackend, NetOffload } from './backend.js';
import { DirectionCount, type TransmitDrop } from './counters.js';
import { ETHERNET_HEADER_BYTES, MAX_FRAME_BYTES, NET_HEADER_BYTES } from './defs.js';
import { headerFits, isUnsegmented, normaliseHeader } from './header.js';

/** Bytes before the event loop gets its turn. */
const MAX_BYTES_PER_TURN = 1024 * 1024;

/** What driver and device agreed on for one direction. */
export interface Direction {
  queue: VirtQueue;
  offloads: ReadonlySet<NetOffload>;
  /** The largest frame that needs no segmentation. */
  maxPlainBytes: number;
}

/** Frames from the guest to the backend. A frame leaves the queue only when the backend has taken it. */
export class Transmitter {
  readonly count = new DirectionCount<TransmitDrop>();
  linkUp = true;
  readonly #backend: NetBackend;
  readonly #limiter: RateLimiter | undefined;
  readonly #turns = new Turns(() => this.#serve());
  readonly #header = new Uint8Array(NET_HEADER_BYTES);
  #direction: Direction | undefined;
  /** The backend has no room, or the rate is used up: {@link unblock} follows. */
  #blocked = false;
  #paused = false;

  constructor(backend: NetBackend, limiter: RateLimiter | undefined) {
    this.#backend = backend;
    this.#limiter = limiter;
  }

  activate(direction: Direction): void {
    this.#direction = direction;
  }

  reset(): void {
    this.#direction = undefined;
    this.#turns.cancel();
    this.#limiter?.cancel();
    this.#blocked = false;
  }

  onNotify(): void {
    this.#turns.take();
  }

  unblock(): void {
    this.#blocked = false;
    this.#turns.take();
  }

  set paused(paused: boolean) {
    this.#paused = paused;
    if (!paused) this.#turns.take();
  }

  #serve(): boolean {
    const direction = this.#direction;
    if (!direction || this.#blocked || this.#paused) return false;
    let left = MAX_BYTES_PER_TURN;
    const more = direction.queue.drain((chain) => {
      if (!this.#transmit(chain, direction)) {
        this.#blocked = true;
        direction.queue.unpop(chain);
        return false;
      }
      direction.queue.push(chain, 0);
      left -= chain.readableBytes;
      return left > 0;
    });
    this.#backend.flush();
    return more && !this.#blocked;
  }

  /** @returns false when the frame must wait. */
  #transmit(chain: DescriptorChain, direction: Direction): boolean {
    const header = this.#header;
    const bytes = chain.readableBytes - NET_HEADER_BYTES;
    const drop = this.#reasonToDrop(chain, bytes, direction);
    if (drop) {
      this.count.drop(drop);
      return true;
    }
    const limiter = this.#limiter;
    if (limiter && limiter.delayMs > 0) {
      limiter.whenReady(() => this.unblock());
      return false;
    }
    const result = this.#backend.send(afterHeader(chain.readable), header);
    if (result === 'busy') return false;
    limiter?.take(bytes);
    if (result === 'sent') this.count.add(bytes);
    else this.count.drop('refused');
    return true;
  }

  #reasonToDrop(chain: DescriptorChain, bytes: number, direction: Direction): TransmitDrop | undefined {
    const header = this.#header;
    if (bytes < 0) return 'bad header';
    if (bytes < ETHERNET_HEADER_BYTES) return 'too short';
    if (bytes > MAX_FRAME_BYTES) return 'too long';
    chain.read(0, header);
    if (!headerFits(header, bytes, direction.offloads)) return 'bad header';
    if (!isUnsegmented(header) && bytes > direction.maxPlainBytes) return 'too long';
    if (!this.linkUp) return 'link down';
    normaliseHeader(header, false);
    return undefined;
  }
}

/** The pieces without the first 12 bytes, however these are cut up. */
function afterHeader(pieces: readonly Uint8Array[]): Uint8Array[] {
  const frame: Uint8Array[] = [];
  let skip = NET_HEADER_BYTES;
  for (const piece of pieces) {
    if (piece.length > skip) frame.push(skip === 0 ? piece : piece.subarray(skip));
    skip = Math.max(0, skip - piece.length);
  }
  return frame;
}
