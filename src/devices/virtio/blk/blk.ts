/** The block device: virtio 1.2, 5.2. Requests are in flight in parallel and work on guest memory in place. */
import type { BlockBackend } from './backend.js';
import type { AccessSize } from '../../../bus/device.js';
import { SavedState } from '../../../bus/saved-state.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_BLOCK } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { slicePieces } from '../../../virtio/queue/pieces.js';
import type { VirtQueue } from '../../../virtio/queue/queue.js';
import { Turns } from '../../../virtio/queue/turns.js';
import { RateLimiter, type RateLimit } from '../../rate-limiter.js';
import {
  MAX_DISCARD_RANGES,
  MAX_DISCARD_SECTORS,
  MAX_WRITE_ZEROES_RANGES,
  MAX_WRITE_ZEROES_SECTORS,
  QUEUE_SIZE,
  blkConfigSpace,
  blkFeatures,
} from './config.js';
import { type BlkCounters, type BlkError, newCounters } from './counters.js';
import * as defs from './defs.js';
import { type BlkRequest, capacityOf, isOnDisk, parseRequest, readRanges } from './request.js';

/** Requests of one queue that the backend has at a time; the others wait where they are, in guest memory. */
const MAX_IN_FLIGHT = 64;
/** Bytes that the backend gets at once: a request of gigabytes would keep one of the host's few I/O threads. */
const MAX_PART_BYTES = 2 * 1024 * 1024;
/** Reads up to this size are tried on the spot: a turn of the event loop takes no longer for a queue full of them. */
const MAX_NOW_BYTES = 64 * 1024;
const MAX_QUEUES = 64;

export interface VirtioBlkConfig {
  /** Stays the caller's: to be closed after `quiesce`. */
  backend: BlockBackend;
  /** Refuses writes though the backend would take them. */
  readOnly?: boolean;
  /** What the guest reads as the disk's serial number: up to 20 printable ASCII characters. Default: none. */
  serial?: string;
  /** Request queues, one a vCPU being the usual number. Default: 1. */
  queues?: number;
  /**
   * Of the queues that the transport will make: drivers take no heed of a queue's own size (2.7.5.3.1) when they choose how
   * many pieces a request has. Default: the size the device offers, 256.
   */
  leastQueueSize?: number;
  /** Default: no limit. */
  rateLimit?: RateLimit;
}

export interface VirtioBlkState {
  capacitySectors: number;
  /** 1 for writeback, 0 for writethrough: what the driver chose, by VIRTIO_BLK_F_CONFIG_WCE. */
  writeback: number;
}

export class VirtioBlk implements VirtioDevice {
  readonly name = 'virtio-blk';
  readonly type = VIRTIO_ID_BLOCK;
  readonly features: bigint;
  readonly queueSizes: readonly number[];
  readonly counters: BlkCounters = newCounters();
  /** What the backend's last failure was: for people. */
  lastBackendError: unknown;
  readonly #backend: BlockBackend;
  readonly #readOnly: boolean;
  readonly #capacitySectors: number;
  readonly #config: Uint8Array;
  readonly #id = new Uint8Array(defs.ID_BYTES);
  readonly #limiter: RateLimiter | undefined;
  readonly #turns: readonly Turns[];
  readonly #inFlight: number[];
  /** Queues that wait for a request to end, for the rate limit, or for `resume`. */
  readonly #stalled = new Set<number>();
  #context: VirtioContext | undefined;
  #quiesced = false;
  #onIdle: (() => void)[] = [];

  /** @throws VmmError code "INVALID_ARGUMENT" when the serial number, the number of queues or a rate is no good. */
  constructor(config: VirtioBlkConfig) {
    const { backend, serial = '', queues = 1, leastQueueSize = QUEUE_SIZE } = config;
    if (!/^[\x20-\x7e]{0,20}$/.test(serial)) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `the serial number "${serial}" is not up to 20 printable ASCII characters`,
      );
    }
    if (!(Number.isInteger(queues) && queues >= 1 && queues <= MAX_QUEUES)) {
      throw new VmmError('INVALID_ARGUMENT', `a disk cannot have ${queues} queues; give 1 to ${MAX_QUEUES}`);
    }
    this.#backend = backend;
    this.#readOnly = backend.readOnly || config.readOnly === true;
    this.#capacitySectors = capacityOf(backend.sizeBytes);
    this.features = blkFeatures(this.#readOnly, queues);
    this.#config = blkConfigSpace(this.#capacitySectors, backend.geometry, queues, leastQueueSize);
    new TextEncoder().encodeInto(serial, this.#id);
    this.#limiter = config.rateLimit && new RateLimiter(config.rateLimit);
    this.queueSizes = Array.from({ length: queues }, () => QUEUE_SIZE);
    this.#turns = this.queueSizes.map((_, index) => new Turns(() => this.#serve(index)));
    this.#inFlight = this.queueSizes.map(() => 0);
  }

  /** Requests that the backend works on. */
  get inFlight(): number {
    return this.#inFlight.reduce((sum, count) => sum + count, 0);
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#config, offset, size);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    if (offset !== defs.CONFIG_WRITEBACK || size !== 1 || !this.#negotiated(defs.VIRTIO_BLK_F_CONFIG_WCE)) return;
    this.#config[defs.CONFIG_WRITEBACK] = value & 1;
  }

  activate(context: VirtioContext): void {
    this.#context = context;
  }

  queueNotify(index: number): void {
    this.#turns[index].take();
  }

  reset(): void | Promise<void> {
    this.#context = undefined;
    this.#config[defs.CONFIG_WRITEBACK] = 1;
    this.#limiter?.cancel();
    this.#stalled.clear();
    for (const turns of this.#turns) turns.cancel();
    // A read that another thread has begun goes on writing to guest memory.
    if (this.inFlight > 0) return this.#idle();
  }

  quiesce(): Promise<void> {
    this.#quiesced = true;
    this.#limiter?.cancel();
    return this.#idle();
  }

  resume(): void {
    this.#quiesced = false;
    this.#wake();
  }

  /** @throws VmmError code "INVALID_STATE" when requests are in flight; await `quiesce` first. */
  save(): VirtioBlkState {
    if (this.inFlight > 0) {
      throw new VmmError(
        'INVALID_STATE',
        `${this.inFlight} disk requests are in flight; await quiesce() before saving`,
      );
    }
    return { capacitySectors: this.#capacitySectors, writeback: this.#config[defs.CONFIG_WRITEBACK] };
  }

  restore(state: unknown): void {
    const saved = new SavedState(this.name, state);
    const capacitySectors = saved.integer('capacitySectors', Number.MAX_SAFE_INTEGER);
    const writeback = saved.integer('writeback', 1);
    if (capacitySectors !== this.#capacitySectors) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `the saved disk has ${capacitySectors} sectors and this one ${this.#capacitySectors}; give the disk it was saved with`,
      );
    }
    this.#config[defs.CONFIG_WRITEBACK] = writeback;
  }

  #idle(): Promise<void> {
    if (this.inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onIdle.push(resolve));
  }

  #negotiated(feature: bigint): boolean {
    return ((this.#context?.features ?? 0n) & feature) !== 0n;
  }

  #serve(index: number): boolean {
    const queue = this.#context?.queues[index];
    if (!queue || !this.#mayTake(index)) return false;
    return queue.drain((chain) => {
      this.#start(index, queue, chain);
      return this.#mayTake(index);
    });
  }

  /** Whether the queue's next request can start; if not, it is remembered to be served later. */
  #mayTake(index: number): boolean {
    const throttled = this.#isThrottled();
    if (!throttled && !this.#quiesced && this.#inFlight[index] < MAX_IN_FLIGHT) return true;
    if (throttled && !this.#quiesced) {
      if (!this.#stalled.has(index)) this.counters.throttled++;
      this.#limiter!.whenReady(() => this.#wake());
    }
    this.#stalled.add(index);
    return false;
  }

  #isThrottled(): boolean {
    return this.#limiter !== undefined && this.#limiter.delayMs > 0;
  }

  /** Serves the queues that wait, in the order in which they began to. */
  #wake(): void {
    if (this.#quiesced) return;
    for (const index of [...this.#stalled]) {
      // Who still waits keeps its place, so that a queue which has just been served comes last.
      if (this.#isThrottled()) return this.#limiter!.whenReady(() => this.#wake());
      this.#stalled.delete(index);
      this.#turns[index].take();
    }
  }

  #start(index: number, queue: VirtQueue, chain: DescriptorChain): void {
    if (chain.writableBytes < defs.STATUS_BYTES) {
      this.counters.errors.malformed++;
      this.#context?.fail('a disk request without room for its status');
      return;
    }
    const work = this.#execute(chain);
    if (typeof work === 'number') return this.#finish(queue, chain, work);
    this.#inFlight[index]++;
    void work
      .then(
        () => defs.VIRTIO_BLK_S_OK,
        (error: unknown) => {
          this.lastBackendError = error;
          return this.#refuse('backend');
        },
      )
      .then((status) => {
        this.#inFlight[index]--;
        this.#finish(queue, chain, status);
        if (this.inFlight === 0) {
          for (const resolve of this.#onIdle.splice(0)) resolve();
        }
        this.#wake();
      });
  }

  /** Answers a request, unless the driver has gone. */
  #finish(queue: VirtQueue, chain: DescriptorChain, status: number): void {
    chain.write(chain.writableBytes - defs.STATUS_BYTES, Uint8Array.of(status));
    // The status is the last byte: a shorter length would leave it out.
    queue.push(chain, chain.writableBytes);
    queue.signal();
  }

  #refuse(error: BlkError): number {
    this.counters.errors[error]++;
    return error === 'unsupported' ? defs.VIRTIO_BLK_S_UNSUPP : defs.VIRTIO_BLK_S_IOERR;
  }

  /** Begins a request. @returns Its status, or a promise that rejects when the backend fails. */
  #execute(chain: DescriptorChain): number | Promise<void> {
    const request = parseRequest(chain);
    if (!request) return this.#refuse('malformed');
    switch (request.type) {
      case defs.VIRTIO_BLK_T_IN:
        return this.#transfer(chain, request, false);
      case defs.VIRTIO_BLK_T_OUT:
        return this.#readOnly ? this.#refuse('readOnly') : this.#transfer(chain, request, true);
      case defs.VIRTIO_BLK_T_FLUSH:
        this.counters.flushes++;
        this.#limiter?.take(0);
        return this.#backend.flush();
      case defs.VIRTIO_BLK_T_GET_ID:
        chain.write(0, this.#id.subarray(0, chain.writableBytes - defs.STATUS_BYTES));
        return defs.VIRTIO_BLK_S_OK;
      case defs.VIRTIO_BLK_T_DISCARD:
        return this.#clear(chain, request, defs.VIRTIO_BLK_F_DISCARD, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS);
      case defs.VIRTIO_BLK_T_WRITE_ZEROES:
        return this.#clear(
          chain,
          request,
          defs.VIRTIO_BLK_F_WRITE_ZEROES,
          MAX_WRITE_ZEROES_RANGES,
          MAX_WRITE_ZEROES_SECTORS,
        );
      default:
        return this.#refuse('unsupported');
    }
  }

  #transfer(chain: DescriptorChain, request: BlkRequest, isWrite: boolean): number | Promise<void> {
    const { sector, data, dataOffset, dataBytes } = request;
    // Data where none belongs: beside a read's header, or beside a write's status.
    const stray = isWrite ? chain.writableBytes - defs.STATUS_BYTES : chain.readableBytes - defs.REQUEST_HEADER_BYTES;
    if (dataBytes % defs.SECTOR_BYTES !== 0 || stray !== 0) return this.#refuse('malformed');
    if (!isOnDisk(sector, dataBytes / defs.SECTOR_BYTES, this.#capacitySectors)) return this.#refuse('outOfRange');
    this.counters[isWrite ? 'writes' : 'reads']++;
    this.counters[isWrite ? 'bytesWritten' : 'bytesRead'] += dataBytes;
    this.#limiter?.take(dataBytes);
    const position = sector * defs.SECTOR_BYTES;
    if (!isWrite && dataBytes <= MAX_NOW_BYTES) {
      const pieces = slicePieces(data, dataOffset, dataBytes);
      if (this.#backend.readvNow?.(pieces, position)) return defs.VIRTIO_BLK_S_OK;
    }
    return this.#move(chain, isWrite, data, dataOffset, dataBytes, position);
  }

  /** Moves a request's data part by part, and stops between two when the driver has gone. */
  async #move(
    chain: DescriptorChain,
    isWrite: boolean,
    data: readonly Uint8Array[],
    dataOffset: number,
    dataBytes: number,
    position: number,
  ): Promise<void> {
    const isStable = isWrite && this.#isWritethrough();
    for (let done = 0; done < dataBytes && chain.live; done += MAX_PART_BYTES) {
      const part = slicePieces(data, dataOffset + done, Math.min(MAX_PART_BYTES, dataBytes - done));
      if (isWrite) await this.#backend.writev(part, position + done);
      else await this.#backend.readv(part, position + done);
    }
    if (isStable) await this.#backend.flush();
  }

  /** A discard or write-zeroes request. Nothing is done unless all of its ranges are good. */
  #clear(
    chain: DescriptorChain,
    request: BlkRequest,
    feature: bigint,
    maxRanges: number,
    maxSectors: number,
  ): number | Promise<void> {
    if (this.#readOnly) return this.#refuse('readOnly');
    if (!this.#negotiated(feature)) return this.#refuse('unsupported');
    const count = request.dataBytes / defs.RANGE_BYTES;
    if (!(Number.isInteger(count) && count >= 1 && count <= maxRanges)) return this.#refuse('malformed');
    const ranges = readRanges(chain, count);
    const isDiscard = feature === defs.VIRTIO_BLK_F_DISCARD;
    // 5.2.6.2: unknown flags, and "unmap" where it means nothing.
    const flags = isDiscard ? 0 : defs.RANGE_FLAG_UNMAP;
    if (ranges.some((range) => (range.flags & ~flags) !== 0)) return this.#refuse('unsupported');
    if (ranges.some(({ sectors }) => sectors > maxSectors)) return this.#refuse('malformed');
    if (ranges.some(({ sector, sectors }) => !isOnDisk(sector, sectors, this.#capacitySectors))) {
      return this.#refuse('outOfRange');
    }
    this.counters[isDiscard ? 'discards' : 'writeZeroes']++;
    this.#limiter?.take(0);
    return this.#clearRanges(chain, isDiscard, ranges);
  }

  async #clearRanges(chain: DescriptorChain, isDiscard: boolean, ranges: ReturnType<typeof readRanges>): Promise<void> {
    const isStable = this.#isWritethrough();
    for (const { sector, sectors, flags } of ranges) {
      if (!chain.live) return;
      const [position, lengthBytes] = [sector * defs.SECTOR_BYTES, sectors * defs.SECTOR_BYTES];
      if (isDiscard) await this.#backend.discard(position, lengthBytes);
      else await this.#backend.writeZeroes(position, lengthBytes, (flags & defs.RANGE_FLAG_UNMAP) !== 0);
    }
    if (isStable) await this.#backend.flush();
  }

  /** Whether a write has to be durable before it is answered: 5.2.6.2, of a volatile write. */
  #isWritethrough(): boolean {
    if (this.#negotiated(defs.VIRTIO_BLK_F_CONFIG_WCE)) return this.#config[defs.CONFIG_WRITEBACK] === 0;
    return !this.#negotiated(defs.VIRTIO_BLK_F_FLUSH);
  }
}
