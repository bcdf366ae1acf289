/**
 * The 9P transport: a file server behind one queue. The specification reserves the device ID; the rest is
 * <linux/virtio_9p.h>: the mount tag in configuration space, and chains that hold one request and room for its reply.
 */
import type { AccessSize } from '../../../bus/device.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_9P } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { Turns } from '../../../virtio/queue/turns.js';
import type { VirtQueue } from '../../../virtio/queue/queue.js';
import type { FileServer } from './backend.js';

/** The mount tag is in configuration space: le16 length, then the tag without a NUL. */
export const VIRTIO_9P_MOUNT_TAG = 1n << 0n;
/** What Linux's driver counts on: 128 descriptors carry 500 KiB, a page each. */
const QUEUE_SIZE = 128;
/** Requests under way; others wait where they are. The threads that serve them serve the whole process. */
const MAX_IN_FLIGHT = 32;
const HEADER_BYTES = 7; // size[4] type[1] tag[2]
const MIN_REPLY_BYTES = 11; // Rlerror

export interface Virtio9pConfig {
  /** Stays the caller's: to be closed after `quiesce`. */
  server: FileServer;
  /** By what name the guest mounts it: 1 to 31 characters of `A-Z a-z 0-9 _ . -`. */
  tag: string;
}

export class Virtio9p implements VirtioDevice {
  readonly name = 'virtio-9p';
  readonly type = VIRTIO_ID_9P;
  readonly features = VIRTIO_9P_MOUNT_TAG;
  readonly queueSizes = [QUEUE_SIZE];
  /** Requests served since the device was made. */
  requests = 0;
  readonly #server: FileServer;
  readonly #config: Uint8Array;
  readonly #turns = new Turns(() => this.#drain());
  #context: VirtioContext | undefined;
  #inFlight = 0;
  #quiesced = false;
  #onIdle: (() => void)[] = [];

  /** @throws VmmError code "INVALID_ARGUMENT" when the tag is none. */
  constructor({ server, tag }: Virtio9pConfig) {
    if (!/^[\w.-]{1,31}$/.test(tag)) {
      throw new VmmError('INVALID_ARGUMENT', `the mount tag "${tag}" is not 1 to 31 letters, digits, "_", "." or "-"`);
    }
    this.#server = server;
    this.#config = Uint8Array.of(tag.length, 0, ...new TextEncoder().encode(tag));
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#config, offset, size);
  }

  writeConfig(): void {}

  activate(context: VirtioContext): void {
    this.#context = context;
  }

  queueNotify(): void {
    this.#turns.take();
  }

  reset(): void | Promise<void> {
    this.#context = undefined;
    this.#turns.cancel();
    this.#server.reset();
    // A read that another thread has begun goes on writing to guest memory.
    if (this.#inFlight > 0) return this.#idle();
  }

  quiesce(): Promise<void> {
    this.#quiesced = true;
    return this.#idle();
  }

  resume(): void {
    this.#quiesced = false;
    this.#turns.take();
  }

  /** @throws VmmError code "INVALID_STATE" when requests are in flight; await `quiesce` first. */
  save(): unknown {
    if (this.#inFlight > 0) {
      throw new VmmError('INVALID_STATE', `${this.#inFlight} requests are in flight; await quiesce() before saving`);
    }
    return this.#server.save();
  }

  restore(state: unknown): void {
    this.#server.restore(state);
  }

  #idle(): Promise<void> {
    if (this.#inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onIdle.push(resolve));
  }

  get #isFull(): boolean {
    return this.#quiesced || this.#inFlight >= MAX_IN_FLIGHT;
  }

  #drain(): boolean {
    const queue = this.#context?.queues[0];
    if (!queue || this.#isFull) return false;
    return queue.drain((chain) => {
      void this.#serve(queue, chain);
      return !this.#isFull;
    });
  }

  async #serve(queue: VirtQueue, chain: DescriptorChain): Promise<void> {
    if (chain.readableBytes < HEADER_BYTES || chain.writableBytes < MIN_REPLY_BYTES) {
      this.#context?.fail('a 9P request without a header, or without room for its reply');
      return;
    }
    this.requests++;
    this.#inFlight++;
    const { head, dataBytes } = await this.#server.serve(chain.readable, chain.writable);
    const wasFull = this.#isFull;
    this.#inFlight--;
    chain.write(0, head);
    queue.push(chain, head.length + dataBytes);
    queue.signal();
    if (this.#inFlight === 0) {
      for (const resolve of this.#onIdle.splice(0)) resolve();
    }
    if (wasFull) this.#turns.take();
  }
}
