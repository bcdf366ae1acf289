import { readlinkSync } from 'node:fs';
import { VmmError } from '../../errors.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import { addon, native, type NativeEventFd } from '../../native/addon.js';
import { VirtQueue, type QueueFault } from '../../virtio/queue/queue.js';
import { QueueSetup } from '../../virtio/queue/state.js';
import { closeFds } from './message-socket.js';
import type { VringAddress } from './protocol.js';

/** One ring as a frontend has set it up, at the backend's end. */
export class Vring implements Disposable {
  readonly index: number;
  readonly maxSize: number;
  size = 0;
  /** Index in the available ring of the first chain to take. */
  base = 0;
  enabled = false;
  address: VringAddress | undefined;
  #kick: NativeEventFd | undefined;
  #call: NativeEventFd | undefined;
  #err: NativeEventFd | undefined;

  constructor(index: number, maxSize: number) {
    this.index = index;
    this.maxSize = maxSize;
  }

  /** A ring runs from the kick descriptor on, until its base is asked for. */
  get started(): boolean {
    return this.#kick !== undefined;
  }

  /** @param fd Taken over. */
  setKick(fd: number, onKick: () => void): void {
    this.stop();
    const kick = adopt(fd);
    this.#kick = kick;
    native(() =>
      kick.onReadable(() => {
        kick.read();
        onKick();
      }),
    );
  }

  stop(): void {
    this.#kick?.close();
    this.#kick = undefined;
  }

  /** @param fd Taken over; undefined: the driver looks by itself. */
  setCall(fd: number | undefined): void {
    this.#call?.close();
    this.#call = fd === undefined ? undefined : adopt(fd);
  }

  setErr(fd: number | undefined): void {
    this.#err?.close();
    this.#err = fd === undefined ? undefined : adopt(fd);
  }

  /** Interrupts the driver. */
  call(): void {
    if (this.#call) native(() => this.#call!.write());
  }

  /** Tells the frontend that the driver broke a rule. */
  reportError(): void {
    if (this.#err) native(() => this.#err!.write());
  }

  /**
   * The queue over the ring, from its base on.
   *
   * @throws VmmError code "BACKEND_FAILED" for a ring that cannot be.
   */
  open(
    memory: GuestMemory,
    gpaOf: (userAddress: bigint) => number | undefined,
    features: bigint,
    onFault: (fault: QueueFault) => void,
  ): VirtQueue {
    const setup = new QueueSetup(this.maxSize);
    setup.onDriverSize(this.size);
    for (const part of ['desc', 'avail', 'used'] as const) {
      const gpa = this.address && gpaOf(this.address[part]);
      if (gpa === undefined) throw broken(`ring ${this.index} is outside the guest's memory`);
      setup.onDriverAddress(part, 0, gpa % 2 ** 32);
      setup.onDriverAddress(part, 1, Math.floor(gpa / 2 ** 32));
    }
    const views = setup.onDriverReady(memory) && setup.views(memory);
    if (!views) throw broken(`ring ${this.index} of ${this.size} descriptors cannot be where it is said to be`);
    const interrupt = () => this.call();
    const queue = new VirtQueue({ memory, size: this.size, views, features, interrupt, onFault, inOrder: true });
    // The last backend's answers stay; whatever it took and did not answer is taken again.
    const nextUsed = new DataView(views.used.buffer, views.used.byteOffset, 4).getUint16(2, true);
    queue.restore({ nextAvail: this.base, nextUsed, signalledUsed: nextUsed });
    return queue;
  }

  [Symbol.dispose](): void {
    this.stop();
    this.setCall(undefined);
    this.setErr(undefined);
  }
}

/** @param fd Taken over. Any other file than an eventfd could block this thread, or make it spin. */
function adopt(fd: number): NativeEventFd {
  if (readlinkSync(`/proc/self/fd/${fd}`) !== 'anon_inode:[eventfd]') {
    closeFds([fd]);
    throw broken('a descriptor is no eventfd');
  }
  return native(() => new (addon().EventFd)(fd));
}

const broken = (message: string) => new VmmError('BACKEND_FAILED', message);
