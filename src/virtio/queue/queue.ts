/**
 * The device's side of a split virtqueue: virtio 1.2, 2.7.
 *
 * Memory order. The driver runs on other processors at the same moment. x86 keeps loads in order among each other and
 * stores in order among each other, and V8 does not move typed-array accesses across an Atomics operation; so:
 * - `avail.idx` is loaded with Atomics.load *before* the ring entry and the descriptors it announces (2.7.13.4);
 * - `used.idx` is stored with Atomics.store *after* the used element and the data in the buffers (2.7.14);
 * - the one order x86 does not keep, a store before a later load, is needed twice: between `used.idx` and the driver's
 *   wish for an interrupt (2.7.7), and between our wish for a notification and `avail.idx` (2.7.10). Atomics.store is
 *   sequentially consistent, a full barrier on x86, and comes first in both.
 * Atomics work on memory that is no SharedArrayBuffer. Typed arrays are little-endian as virtio is: this is for x86.
 */
import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import {
  DESCRIPTOR_BYTES,
  MAX_CHAIN_BYTES,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_F_NO_NOTIFY,
} from '../defs.js';
import { DescriptorChain } from './chain.js';
import { type Descriptor, readDescriptor } from './descriptor.js';
import type { QueuePart } from './state.js';

/** What a driver did to a queue that no driver may do. */
export type QueueFault =
  | 'avail index jumped' // by more than the queue size
  | 'head out of range'
  | 'next out of range'
  | 'chain too long' // longer than the queue size: a loop
  | 'chain too large' // more than 2^32 bytes
  | 'buffer outside memory'
  | 'readable after writable'
  | 'indirect not negotiated'
  | 'indirect inside indirect'
  | 'indirect with next'
  | 'bad indirect length' // 0 or no multiple of 16
  | 'too many in flight'; // more chains than there are descriptors

export interface VirtQueueConfig {
  memory: GuestMemory;
  size: number;
  /** The queue's parts in guest memory, aligned. Borrowed. */
  views: Record<QueuePart, Uint8Array>;
  /** The negotiated features. */
  features: bigint;
  /** Sends the driver a used-buffer notification. */
  interrupt: () => void;
  /** The driver broke the rules; the queue hands out nothing any more. */
  onFault: (fault: QueueFault) => void;
  /**
   * Chains are given back in the order in which they were taken, each when all before it are complete. The used ring then
   * tells what is done, should this process die: the next one begins with the first chain that is not. Default: false.
   */
  inOrder?: boolean;
}

/** A chain of a queue that gives back in order. */
interface Taken {
  chain: DescriptorChain;
  /** Undefined until it is completed. */
  writtenBytes: number | undefined;
}

export interface VirtQueueState {
  /** Index of the next chain to take. Chains that were taken and not completed are taken again. */
  nextAvail: number;
  nextUsed: number;
  /** `used.idx` when the driver was last considered for an interrupt. */
  signalledUsed: number;
}

/** Position of idx in both rings, and of the first entry of the available ring, in 16-bit units. */
const IDX = 1;
const AVAIL_RING = 2;
/** Position of the first element of the used ring, in 32-bit units. */
const USED_RING = 1;

export class VirtQueue {
  readonly size: number;
  readonly #memory: GuestMemory;
  readonly #desc: DataView;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedElements: Uint32Array;
  readonly #usedEventAt: number;
  readonly #availEventAt: number;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #interrupt: () => void;
  readonly #onFault: (fault: QueueFault) => void;

  #nextAvail = 0;
  #nextUsed = 0;
  #signalledUsed = 0;
  #inFlight = 0;
  #closed = false;
  /** What is in flight, in the order in which it was taken. */
  readonly #order: Taken[] | undefined;
  readonly #scratch: Descriptor = { gpa: 0, length: 0, flags: 0, next: 0 };

  constructor(config: VirtQueueConfig) {
    const { size, views } = config;
    this.size = size;
    this.#memory = config.memory;
    this.#desc = new DataView(views.desc.buffer, views.desc.byteOffset, views.desc.byteLength);
    this.#avail = new Uint16Array(views.avail.buffer, views.avail.byteOffset, views.avail.byteLength / 2);
    this.#used = new Uint16Array(views.used.buffer, views.used.byteOffset, views.used.byteLength / 2);
    this.#usedElements = new Uint32Array(views.used.buffer, views.used.byteOffset, USED_RING + 2 * size);
    this.#usedEventAt = AVAIL_RING + size;
    this.#availEventAt = 2 * (USED_RING + 2 * size);
    this.#indirect = (config.features & VIRTIO_F_INDIRECT_DESC) !== 0n;
    this.#eventIdx = (config.features & VIRTIO_F_EVENT_IDX) !== 0n;
    this.#interrupt = config.interrupt;
    this.#onFault = config.onFault;
    this.#order = config.inOrder ? [] : undefined;
  }

  /** Whether the queue was taken from the device, by a reset or a fault: it hands out and gives back nothing. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Chains taken and not yet completed. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Ends the queue: what is completed later is dropped. */
  close(): void {
    this.#closed = true;
  }

  /**
   * Takes the next chain. Undefined when there is none, or when the driver broke a rule: then the device fails, and not
   * a byte was moved.
   */
  pop(): DescriptorChain | undefined {
    if (this.#closed || this.#pending() === 0) return undefined;
    const head = this.#avail[AVAIL_RING + (this.#nextAvail & (this.size - 1))];
    if (head >= this.size) return this.#fault('head out of range');
    // A driver could announce one chain again and again, faster than the device completes it: the host's memory.
    if (this.#inFlight >= this.size) return this.#fault('too many in flight');
    const chain = this.#collect(head);
    if (!chain) return undefined;
    this.#nextAvail = (this.#nextAvail + 1) & 0xffff;
    this.#inFlight++;
    this.#order?.push({ chain, writtenBytes: undefined });
    return chain;
  }

  /**
   * Takes a {@link pop} back: the chain, of which nothing was used yet, will be the next one again. Only for the chain
   * taken last, or for several from the last on, in a queue whose chains complete in order.
   *
   * @throws VmmError code "INVALID_STATE" when the chain was given back before.
   */
  unpop(chain: DescriptorChain): void {
    if (chain.completed) throw new VmmError('INVALID_STATE', 'this chain was given back before; it cannot be returned');
    chain.completed = true;
    if (this.#closed) return;
    this.#inFlight--;
    this.#order?.pop();
    this.#nextAvail = (this.#nextAvail - 1) & 0xffff;
  }

  /**
   * Gives a chain back to the driver, without an interrupt: see {@link signal}. Does nothing after a reset.
   *
   * @param writtenBytes How many of its writable bytes, from the first on, the device wrote.
   * @throws VmmError code "INVALID_STATE" when the chain was given back before.
   * @throws VmmError code "INVALID_ARGUMENT" when it has fewer writable bytes.
   */
  push(chain: DescriptorChain, writtenBytes: number): void {
    this.#complete(chain, writtenBytes);
    if (this.#closed) return;
    if (this.#order) return this.#publishInOrder(this.#order, [chain], [writtenBytes]);
    this.#putUsed(chain.head, writtenBytes, 0);
    this.#publishUsed(1);
  }

  /**
   * Gives several chains back in one step: the driver sees all of them or none. A network driver counts on it where one
   * frame fills many buffers (virtio 1.2, 5.1.6.4).
   *
   * @param writtenBytes Of the chain at the same index, as in {@link push}.
   * @throws VmmError as {@link push} does.
   */
  pushTogether(chains: readonly DescriptorChain[], writtenBytes: readonly number[]): void {
    chains.forEach((chain, i) => this.#complete(chain, writtenBytes[i]));
    if (this.#closed) return;
    if (this.#order) return this.#publishInOrder(this.#order, chains, writtenBytes);
    chains.forEach((chain, i) => this.#putUsed(chain.head, writtenBytes[i], i));
    this.#publishUsed(chains.length);
  }

  #complete(chain: DescriptorChain, writtenBytes: number): void {
    if (chain.completed)
      throw new VmmError('INVALID_STATE', 'this chain was given back before; complete each one once');
    if (!(writtenBytes >= 0 && writtenBytes <= chain.writableBytes)) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `${writtenBytes} bytes written to a chain with ${chain.writableBytes} writable ones`,
      );
    }
    chain.completed = true;
  }

  #publishInOrder(order: Taken[], chains: readonly DescriptorChain[], writtenBytes: readonly number[]): void {
    for (const taken of order) {
      const index = chains.indexOf(taken.chain);
      if (index >= 0) taken.writtenBytes = writtenBytes[index];
    }
    const waiting = order.findIndex((taken) => taken.writtenBytes === undefined);
    const done = order.splice(0, waiting < 0 ? order.length : waiting);
    done.forEach(({ chain, writtenBytes: bytes }, i) => this.#putUsed(chain.head, bytes!, i));
    this.#publishUsed(done.length);
  }

  /** Fills a used element that the driver does not see yet, `ahead` elements after those it does. */
  #putUsed(head: number, writtenBytes: number, ahead: number): void {
    const element = USED_RING + 2 * ((this.#nextUsed + ahead) & (this.size - 1));
    this.#usedElements[element] = head;
    this.#usedElements[element + 1] = writtenBytes;
  }

  #publishUsed(count: number): void {
    this.#inFlight -= count;
    this.#nextUsed = (this.#nextUsed + count) & 0xffff;
    Atomics.store(this.#used, IDX, this.#nextUsed);
  }

  /** Interrupts the driver if chains were given back since the last call and it wants to know: virtio 1.2, 2.7.7. */
  signal(): void {
    if (this.#closed || this.#nextUsed === this.#signalledUsed) return;
    const before = this.#signalledUsed;
    this.#signalledUsed = this.#nextUsed;
    if (this.#eventIdx) {
      const usedEvent = Atomics.load(this.#avail, this.#usedEventAt);
      // Whether used_event is one of the indices that were passed since the last time, all modulo 2^16.
      if (((this.#nextUsed - usedEvent - 1) & 0xffff) >= ((this.#nextUsed - before) & 0xffff)) return;
    } else if (Atomics.load(this.#avail, 0) & VIRTQ_AVAIL_F_NO_INTERRUPT) {
      return;
    }
    this.#interrupt();
  }

  /**
   * Handles the chains that wait, asks the driver for a notification of the next one, and signals.
   *
   * Stops after as many chains as the queue has descriptors: a driver that refills as fast as the device empties would
   * keep the event loop for itself.
   *
   * @param handle Takes one chain, and completes it with {@link push}, now or later. Returning false means "enough for
   *   this turn".
   * @returns true when it stopped early for either reason: call again later, say from a setImmediate. No notification
   *   comes before that.
   */
  drain(handle: (chain: DescriptorChain) => boolean | void): boolean {
    let left = this.size;
    this.#askForNotifications(false);
    while (left > 0) {
      const chain = this.pop();
      if (chain) left = handle(chain) === false ? 0 : left - 1;
      else if (this.enableNotifications()) this.#askForNotifications(false);
      else break;
    }
    this.signal();
    return left === 0 && !this.#closed;
  }

  /**
   * Asks the driver to notify when it makes the next chain available: virtio 1.2, 2.7.10.
   *
   * @returns true when one is there already: no notification will come for it.
   */
  enableNotifications(): boolean {
    if (this.#closed) return false;
    this.#askForNotifications(true);
    return this.#pending() !== 0;
  }

  save(): VirtQueueState {
    return {
      nextAvail: (this.#nextAvail - this.#inFlight) & 0xffff,
      nextUsed: this.#nextUsed,
      signalledUsed: this.#signalledUsed,
    };
  }

  /** @throws VmmError code "INVALID_ARGUMENT" */
  restore(state: VirtQueueState): void {
    const saved = new SavedState('virtqueue', state);
    const nextAvail = saved.integer('nextAvail', 0xffff);
    const nextUsed = saved.integer('nextUsed', 0xffff);
    this.#signalledUsed = saved.integer('signalledUsed', 0xffff);
    this.#nextAvail = nextAvail;
    this.#nextUsed = nextUsed;
    this.#inFlight = 0;
    this.#order?.splice(0);
  }

  /** How many chains wait. */
  #pending(): number {
    const pending = (Atomics.load(this.#avail, IDX) - this.#nextAvail) & 0xffff;
    if (pending <= this.size) return pending;
    this.#fault('avail index jumped');
    return 0;
  }

  #askForNotifications(wanted: boolean): void {
    if (this.#eventIdx) {
      // An index that stays behind asks for nothing: only wanting needs a store.
      if (wanted) Atomics.store(this.#used, this.#availEventAt, this.#nextAvail);
    } else {
      Atomics.store(this.#used, 0, wanted ? 0 : VIRTQ_USED_F_NO_NOTIFY);
    }
  }

  #collect(head: number): DescriptorChain | undefined {
    const readable: Uint8Array[] = [];
    const writable: Uint8Array[] = [];
    let readableBytes = 0;
    let writableBytes = 0;
    let table = this.#desc;
    let tableSize = this.size;
    let inIndirect = false;
    let index = head;
    const descriptor = this.#scratch;
    // The cap on descriptors ends a chain that loops.
    for (let visited = 0; visited < this.size;) {
      readDescriptor(table, index, descriptor);
      const { gpa, length, flags } = descriptor;

      if (flags & VIRTQ_DESC_F_INDIRECT) {
        if (!this.#indirect) return this.#fault('indirect not negotiated');
        if (inIndirect) return this.#fault('indirect inside indirect');
        if (flags & VIRTQ_DESC_F_NEXT) return this.#fault('indirect with next');
        if (length === 0 || length % DESCRIPTOR_BYTES !== 0) return this.#fault('bad indirect length');
        const view = this.#memory.tryView(gpa, length);
        if (!view) return this.#fault('buffer outside memory');
        table = new DataView(view.buffer, view.byteOffset, length);
        tableSize = length / DESCRIPTOR_BYTES;
        inIndirect = true;
        index = 0;
        continue; // it describes no buffer itself, and comes at most once
      }

      visited++;
      const view = this.#memory.tryView(gpa, length);
      if (!view) return this.#fault('buffer outside memory');
      if (flags & VIRTQ_DESC_F_WRITE) {
        writable.push(view);
        writableBytes += length;
      } else {
        if (writable.length > 0) return this.#fault('readable after writable');
        readable.push(view);
        readableBytes += length;
      }
      if (readableBytes + writableBytes > MAX_CHAIN_BYTES) return this.#fault('chain too large');

      if (!(flags & VIRTQ_DESC_F_NEXT)) {
        return new DescriptorChain(this, head, readable, writable, readableBytes, writableBytes);
      }
      index = descriptor.next;
      if (index >= tableSize) return this.#fault('next out of range');
    }
    return this.#fault('chain too long');
  }

  #fault(fault: QueueFault): undefined {
    this.#closed = true;
    this.#onFault(fault);
    return undefined;
  }
}
