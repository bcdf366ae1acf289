import { SavedState } from '../../../bus/saved-state.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import type { VirtQueue } from '../../../virtio/queue/queue.js';
import { Turns } from '../../../virtio/queue/turns.js';

/** Where a port's output goes. */
export interface PortOutput {
  /**
   * Takes bytes, now, without blocking.
   *
   * @param bytes Borrowed guest memory; copy before returning.
   * @returns How many of them, from the first on. After fewer than all, {@link ConsolePort.resumeOutput} must follow
   *   when there is room again.
   */
  write(bytes: Uint8Array): number;
}

export interface ConsolePortConfig {
  output: PortOutput;
  /** Whether the guest makes a console of it (hvc) or a plain character device. Default: port 0 only. */
  console?: boolean;
  /** By which the guest finds it: /dev/virtio-ports/NAME in Linux. */
  name?: string;
  /** {@link ConsolePort.receive} took fewer bytes than it was given, and now it would take some. */
  onInputRoom?: () => void;
  /** A program in the guest opened or closed the port. */
  onGuestOpen?: (open: boolean) => void;
  /**
   * How long a console's output may be stuck before it is dropped, in ms; default 500. Linux spins until its console's
   * buffer comes back, holding locks: a reader that went away must not freeze the guest. Other ports wait for ever.
   */
  maxStallMs?: number;
}

export interface ConsolePortState {
  guestOpen: boolean;
  /** Bytes of the first chain in the transmit queue that the output has already. */
  sentBytes: number;
}

/** Bytes before the event loop gets its turn: a guest that never stops printing would hold it up. */
const MAX_BYTES_PER_TURN = 1024 * 1024;
const DEFAULT_MAX_STALL_MS = 500;

/** One port of a virtio console: a pair of queues, two streams of bytes. */
export class ConsolePort {
  readonly isConsole: boolean;
  readonly name: string | undefined;
  /** Bytes lost because the output had no room for too long, or for an emergency write. */
  droppedOutputBytes = 0;

  readonly #config: ConsolePortConfig;
  #receiveQueue: VirtQueue | undefined;
  #transmitQueue: VirtQueue | undefined;
  #guestOpen = false;
  #inputRefused = false;
  /** The chain that the output has no room for. */
  #stuck: DescriptorChain | undefined;
  #sentBytes = 0;
  #stallTimer: NodeJS.Timeout | undefined;
  #dropping = false;
  #fail: (reason: string) => void = () => {};
  readonly #turns = new Turns(() => this.#transmit());

  constructor(config: ConsolePortConfig, isConsole: boolean) {
    this.#config = config;
    this.isConsole = isConsole;
    this.name = config.name;
  }

  get guestOpen(): boolean {
    return this.#guestOpen;
  }

  /**
   * Input for the guest.
   *
   * @returns How many bytes the guest's buffers took: none while it has the port closed. When fewer than offered,
   *   `onInputRoom` tells when to offer the rest.
   */
  receive(bytes: Uint8Array): number {
    const queue = this.#guestOpen ? this.#receiveQueue : undefined;
    let taken = 0;
    while (queue && taken < bytes.length) {
      const chain = queue.pop();
      if (chain) {
        const written = chain.write(0, bytes.subarray(taken));
        taken += written;
        queue.push(chain, written);
        // Without progress there would be no end, if another processor adds such buffers as fast as we take them.
        if (written === 0) this.#fail('receive buffer without room');
      } else if (!queue.enableNotifications()) {
        break;
      }
    }
    queue?.signal();
    this.#inputRefused = taken < bytes.length;
    return taken;
  }

  /** The output has room again. */
  resumeOutput(): void {
    this.#dropping = false;
    this.#turns.take();
  }

  /** A byte by the emergency register, which works before the queues do. */
  emergencyWrite(byte: number): void {
    if (this.#config.output.write(Uint8Array.of(byte)) === 0) this.droppedOutputBytes++;
  }

  /** @param fail Fails the whole device. */
  activate(
    receiveQueue: VirtQueue | undefined,
    transmitQueue: VirtQueue | undefined,
    fail: (reason: string) => void,
  ): void {
    this.#fail = fail;
    this.#receiveQueue = receiveQueue;
    this.#transmitQueue = transmitQueue;
  }

  onReceiveNotify(): void {
    this.#offerRoom();
  }

  onTransmitNotify(): void {
    if (!this.#stuck) this.#turns.take();
  }

  setGuestOpen(open: boolean): void {
    if (open === this.#guestOpen) return;
    this.#guestOpen = open;
    this.#config.onGuestOpen?.(open);
    this.#offerRoom();
  }

  reset(): void {
    this.#receiveQueue = undefined;
    this.#transmitQueue = undefined;
    this.#stuck = undefined;
    this.#sentBytes = 0;
    this.#dropping = false;
    clearTimeout(this.#stallTimer);
    this.#stallTimer = undefined;
    this.#turns.cancel();
    this.setGuestOpen(false);
  }

  save(): ConsolePortState {
    return { guestOpen: this.#guestOpen, sentBytes: this.#sentBytes };
  }

  /** @throws VmmError code "INVALID_ARGUMENT" */
  restore(state: unknown): void {
    const saved = new SavedState('virtio-console port', state);
    const guestOpen = saved.boolean('guestOpen');
    this.#sentBytes = saved.integer('sentBytes', 2 ** 32);
    this.setGuestOpen(guestOpen);
  }

  #offerRoom(): void {
    if (!this.#inputRefused || !this.#guestOpen || !this.#receiveQueue) return;
    this.#inputRefused = false;
    this.#config.onInputRoom?.();
  }

  /** Sends what waits. @returns Whether more waits and could be sent, in another turn. */
  #transmit(): boolean {
    const queue = this.#transmitQueue;
    if (!queue) return false;
    if (this.#stuck) {
      if (!this.#send(queue, this.#stuck)) return false;
      queue.signal();
    }
    let left = MAX_BYTES_PER_TURN;
    const more = queue.drain((chain) => {
      left -= chain.readableBytes;
      return this.#send(queue, chain) && left > 0;
    });
    return more && !this.#stuck;
  }

  /** Sends what is left of a chain and gives it back. @returns false when the output has no room for the rest. */
  #send(queue: VirtQueue, chain: DescriptorChain): boolean {
    let start = 0;
    for (const piece of chain.readable) {
      const end = start + piece.length;
      if (this.#sentBytes < end) {
        const rest = piece.subarray(this.#sentBytes - start);
        const taken = this.#dropping ? 0 : this.#config.output.write(rest);
        this.#sentBytes += taken;
        if (this.#sentBytes < end) {
          if (!this.#dropping) return this.#wait(chain);
          this.droppedOutputBytes += end - this.#sentBytes;
          this.#sentBytes = end;
        }
      }
      start = end;
    }
    clearTimeout(this.#stallTimer);
    this.#stallTimer = undefined;
    this.#stuck = undefined;
    this.#sentBytes = 0;
    queue.push(chain, 0);
    return true;
  }

  #wait(chain: DescriptorChain): false {
    this.#stuck = chain;
    if (this.isConsole && !this.#stallTimer) {
      this.#stallTimer = setTimeout(() => {
        this.#stallTimer = undefined;
        this.#dropping = true;
        this.#turns.take();
      }, this.#config.maxStallMs ?? DEFAULT_MAX_STALL_MS);
      this.#stallTimer.unref();
    }
    return false;
  }
}
