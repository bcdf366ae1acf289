/**
 * The traditional memory balloon: virtio 1.2, 5.5. The guest gives pages up, by itself (free page reporting) or because
 * the host wants them (the target); their memory goes back to the host, and reads as zeroes when the guest uses it again.
 */
import type { AccessSize } from '../../../bus/device.js';
import { SavedState } from '../../../bus/saved-state.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_BALLOON } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import type { VirtQueue } from '../../../virtio/queue/queue.js';
import { Turns } from '../../../virtio/queue/turns.js';
import {
  CONFIG_ACTUAL,
  CONFIG_BYTES,
  CONFIG_NUM_PAGES,
  F_DEFLATE_ON_OOM,
  F_PAGE_REPORTING,
  F_STATS_VQ,
  PAGE_BYTES,
  PFN_BYTES,
} from './defs.js';
import { pageRuns } from './page-runs.js';
import { parseStats, type GuestMemoryStats } from './stats.js';

const QUEUE_SIZE = 128;
/** Inflate, deflate, statistics, reporting. */
const QUEUES = 4;
const INFLATE = 0;
const DEFLATE = 1;
const STATS = 2;
const REPORTING = 3;
/** Of one buffer; the rest is ignored. Linux sends 256. Each page can be a system call of microseconds. */
const MAX_PAGES_PER_BUFFER = 1024;
/** Ranges given back before the event loop gets its turn. */
const MAX_RANGES_PER_TURN = 1024;

export interface VirtioBalloonConfig {
  /**
   * Gives the memory behind whole pages back to the host: they read as zeroes from then on.
   *
   * @returns Whether that range is RAM, on page boundaries.
   */
  discard: (gpa: number, lengthBytes: number) => boolean;
}

/** What the host knows of a balloon; all in bytes. */
export interface BalloonCounters {
  /** What the host wants from the guest, and what the guest says the balloon holds. */
  targetBytes: number;
  actualBytes: number;
  /** Given back since the device was made: by the balloon's inflation, and by free page reporting. */
  inflatedBytes: number;
  reportedBytes: number;
  /** Pages or ranges that the guest named and that are no RAM. */
  refused: number;
}

export class VirtioBalloon implements VirtioDevice {
  readonly name = 'virtio-balloon';
  readonly type = VIRTIO_ID_BALLOON;
  readonly features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING;
  readonly queueSizes = Array.from({ length: QUEUES }, () => QUEUE_SIZE);
  readonly #discard: VirtioBalloonConfig['discard'];
  #context: VirtioContext | undefined;
  #targetPages = 0;
  #actualPages = 0;
  #inflatedBytes = 0;
  #reportedBytes = 0;
  #refused = 0;
  /** The guest's buffer for statistics: it is filled, and kept until new ones are wanted (5.5.6.3). */
  #statsBuffer: DescriptorChain | undefined;
  #statsRequest:
    { promise: Promise<GuestMemoryStats | undefined>; settle: (stats?: GuestMemoryStats) => void } | undefined;
  readonly #turns = [
    new Turns(() => this.#inflate()),
    new Turns(() => this.#deflate()),
    new Turns(() => this.#takeStats()),
    new Turns(() => this.#takeReports()),
  ];

  constructor({ discard }: VirtioBalloonConfig) {
    this.#discard = discard;
  }

  get counters(): BalloonCounters {
    return {
      targetBytes: this.#targetPages * PAGE_BYTES,
      actualBytes: this.#actualPages * PAGE_BYTES,
      inflatedBytes: this.#inflatedBytes,
      reportedBytes: this.#reportedBytes,
      refused: this.#refused,
    };
  }

  /**
   * Asks the guest to keep the balloon at this size; it gets there in its own time, or not at all.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for what is no size below 16 TiB.
   */
  setTarget(bytes: number): void {
    const pages = Math.floor(bytes / PAGE_BYTES);
    if (!(bytes >= 0 && pages <= 0xffff_ffff)) {
      throw new VmmError('INVALID_ARGUMENT', `a balloon's target is a number of bytes from 0 on, not ${bytes}`);
    }
    this.#targetPages = pages;
    this.#context?.configChanged();
  }

  /** Asks the guest for fresh statistics. @returns Them; undefined when it has no driver for them, or is reset first. */
  refreshStats(): Promise<GuestMemoryStats | undefined> {
    if (this.#statsRequest) return this.#statsRequest.promise;
    const queue = this.#queue(STATS);
    if (!queue) return Promise.resolve(undefined);
    let settle!: (stats?: GuestMemoryStats) => void;
    const promise = new Promise<GuestMemoryStats | undefined>((resolve) => (settle = resolve));
    this.#statsRequest = { promise, settle };
    const buffer = this.#statsBuffer;
    this.#statsBuffer = undefined;
    if (buffer) {
      queue.push(buffer, 0);
      queue.signal();
    }
    return promise;
  }

  readConfig(offset: number, size: AccessSize): number {
    const config = new DataView(new ArrayBuffer(CONFIG_BYTES));
    config.setUint32(CONFIG_NUM_PAGES, this.#targetPages, true);
    config.setUint32(CONFIG_ACTUAL, this.#actualPages, true);
    return readConfigBytes(new Uint8Array(config.buffer), offset, size);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    if (offset === CONFIG_ACTUAL && size === 4) this.#actualPages = value;
  }

  activate(context: VirtioContext): void {
    this.#context = context;
  }

  queueNotify(index: number): void {
    const role = this.#roles()[index];
    if (role !== undefined) this.#turns[role].take();
  }

  reset(): void {
    this.#context = undefined;
    this.#statsBuffer = undefined;
    this.#actualPages = 0;
    for (const turns of this.#turns) turns.cancel();
    this.#answerStats(undefined);
  }

  save(): { targetPages: number; actualPages: number } {
    return { targetPages: this.#targetPages, actualPages: this.#actualPages };
  }

  /** The statistics' buffer was in flight: the queue hands it out again. */
  restore(state: unknown): void {
    const saved = new SavedState(this.name, state);
    const targetPages = saved.integer('targetPages', 0xffff_ffff);
    this.#actualPages = saved.integer('actualPages', 0xffff_ffff);
    this.#targetPages = targetPages;
  }

  /**
   * What each queue is for, by its index. Drivers number those queues that the negotiated features bring, without gaps:
   * Linux does, and so does QEMU. 5.5.2 would leave gaps where a feature is missing.
   */
  #roles(): readonly number[] {
    const features = this.#context?.features ?? 0n;
    return [
      INFLATE,
      DEFLATE,
      ...(features & F_STATS_VQ ? [STATS] : []),
      ...(features & F_PAGE_REPORTING ? [REPORTING] : []),
    ];
  }

  #queue(role: number): VirtQueue | undefined {
    return this.#context?.queues[this.#roles().indexOf(role)];
  }

  #inflate(): boolean {
    let left = MAX_RANGES_PER_TURN;
    return this.#drain(INFLATE, (chain) => {
      const pages = new Uint32Array(Math.min(Math.floor(chain.readableBytes / PFN_BYTES), MAX_PAGES_PER_BUFFER));
      chain.read(0, new Uint8Array(pages.buffer));
      for (const { first, count } of pageRuns(pages)) {
        this.#inflatedBytes += this.#giveBack(first * PAGE_BYTES, count * PAGE_BYTES);
        left--;
      }
      return left > 0;
    });
  }

  /** Nothing to do: pages that the guest uses again come back by themselves, one by one. */
  #deflate(): boolean {
    return this.#drain(DEFLATE, () => true);
  }

  /** 5.5.6.7: pages that are free in the guest, as buffers. The guest takes them into use again without a word. */
  #takeReports(): boolean {
    let left = MAX_RANGES_PER_TURN;
    return this.#drain(REPORTING, (chain) => {
      for (const piece of chain.writable) {
        const gpa = this.#context?.memory.gpaOf(piece);
        if (gpa !== undefined) this.#reportedBytes += this.#giveBack(gpa, piece.length);
        left--;
      }
      return left > 0;
    });
  }

  #takeStats(): boolean {
    const queue = this.#queue(STATS);
    if (!queue) return false;
    return queue.drain((chain) => {
      // One buffer goes to and fro; a driver that brings another gets the one before back.
      if (this.#statsBuffer) queue.push(this.#statsBuffer, 0);
      this.#statsBuffer = chain;
      this.#answerStats(parseStats(chain));
    });
  }

  #answerStats(stats: GuestMemoryStats | undefined): void {
    const request = this.#statsRequest;
    this.#statsRequest = undefined;
    request?.settle(stats);
  }

  #drain(role: number, handle: (chain: DescriptorChain) => boolean): boolean {
    const queue = this.#queue(role);
    if (!queue) return false;
    return queue.drain((chain) => {
      const goOn = handle(chain);
      queue.push(chain, 0);
      return goOn;
    });
  }

  /** @returns The bytes that went back. */
  #giveBack(gpa: number, lengthBytes: number): number {
    if (this.#discard(gpa, lengthBytes)) return lengthBytes;
    this.#refused++;
    return 0;
  }
}
