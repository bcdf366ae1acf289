/** Drives a virtio-blk device as a guest would, over MMIO: for tests and the programs that they run. */
import type { VirtioBlk } from '../../src/devices/virtio/blk/blk.js';
import {
  RANGE_BYTES,
  REQUEST_HEADER_BYTES,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../../src/devices/virtio/blk/defs.js';
import { type GuestMemory, heapGuestMemory } from '../../src/memory/guest-memory.js';
import { DriverArena, type DriverBuffer } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../src/virtio/transport/mmio.js';
import { MappedMmio } from './mapped-mmio.js';

const MAX_DATA_BYTES = 64 * 1024;
const SLOTS = 128;

export interface BlkAnswer {
  status: number;
  /** What the device wrote before the status. */
  data: Uint8Array;
}

/** Where one request lives in guest memory. */
interface Slot {
  header: number;
  data: number;
  status: number;
}

interface Pending {
  slot: Slot;
  readBytes: number;
  resolve: (answer: BlkAnswer) => void;
}

export interface BlkRequestOptions {
  queue?: number;
  /** Where to cut the data into descriptors. */
  cuts?: readonly number[];
}

export class BlkDriver {
  readonly memory: GuestMemory;
  readonly arena: DriverArena;
  readonly mmio: VirtioMmio;
  readonly driver: MmioDriver;
  interrupts = 0;
  /** Heads that the device gave back and that {@link request} did not make. */
  readonly others: number[] = [];
  readonly #slots: Slot[] = [];
  #pending: Map<number, Pending>[] = [];
  #collecting = false;

  /** @param features Wanted features, of which those offered are taken. */
  constructor(
    readonly device: VirtioBlk,
    features = ~0n,
    memory = heapGuestMemory({ gpa: 0, sizeBytes: 16 * 2 ** 20 }),
  ) {
    this.memory = memory;
    this.arena = new DriverArena(memory, 0x1000);
    this.mmio = new MappedMmio({ device, memory, irq: { set: (level) => void (level && this.#onInterrupt()) } });
    this.driver = new MmioDriver(this.mmio, this.arena);
    for (let i = 0; i < SLOTS; i++) {
      const header = this.arena.place(REQUEST_HEADER_BYTES);
      this.#slots.push({ header, data: this.arena.place(MAX_DATA_BYTES), status: this.arena.place(1) });
    }
    this.start(features);
  }

  /** Resets the device and takes it up again. What was pending is forgotten. */
  start(features = ~0n): void {
    this.driver.start(features);
    for (const pending of this.#pending) for (const { slot } of pending.values()) this.#slots.push(slot);
    this.#pending = this.driver.queues.map(() => new Map<number, Pending>());
  }

  async read(sector: number, bytes: number, options?: BlkRequestOptions): Promise<BlkAnswer> {
    return this.request(VIRTIO_BLK_T_IN, sector, { readBytes: bytes }, options);
  }

  async write(sector: number, data: Uint8Array, options?: BlkRequestOptions): Promise<number> {
    return (await this.request(VIRTIO_BLK_T_OUT, sector, { data }, options)).status;
  }

  async flush(options?: BlkRequestOptions): Promise<number> {
    return (await this.request(VIRTIO_BLK_T_FLUSH, 0, {}, options)).status;
  }

  async id(): Promise<string> {
    const { data } = await this.request(VIRTIO_BLK_T_GET_ID, 0, { readBytes: 20 });
    return Buffer.from(data).toString().replace(/\0.*/s, '');
  }

  async discard(sector: number | bigint, sectors: number, flags = 0): Promise<number> {
    return (await this.request(VIRTIO_BLK_T_DISCARD, 0, { data: range(sector, sectors, flags) })).status;
  }

  async writeZeroes(sector: number | bigint, sectors: number, flags = 0): Promise<number> {
    return (await this.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, { data: range(sector, sectors, flags) })).status;
  }

  /** Sends a request, and waits for its answer. */
  request(
    type: number,
    sector: number | bigint,
    { data = new Uint8Array(0), readBytes = 0 }: { data?: Uint8Array; readBytes?: number },
    { queue = 0, cuts = [] }: BlkRequestOptions = {},
  ): Promise<BlkAnswer> {
    const slot = this.#slots.pop();
    if (!slot) throw new Error(`more than ${SLOTS} requests at once`);
    const header = this.memory.dataView(slot.header, REQUEST_HEADER_BYTES);
    header.setUint32(0, type, true);
    header.setUint32(4, 0, true);
    header.setBigUint64(8, BigInt(sector), true);
    this.memory.write(slot.data, data);
    this.memory.write(slot.status, Uint8Array.of(0xff));
    const at = [0, ...cuts, data.length || readBytes];
    const buffers: DriverBuffer[] = at.slice(1).map((end, i) => ({
      gpa: slot.data + at[i],
      length: end - at[i],
      writable: readBytes > 0,
    }));
    return new Promise((resolve) => {
      const head = this.driver.queues[queue].add([
        { gpa: slot.header, length: REQUEST_HEADER_BYTES },
        ...buffers.filter(({ length }) => length > 0),
        { gpa: slot.status, length: 1, writable: true },
      ]);
      this.#pending[queue].set(head, { slot, readBytes, resolve });
      this.driver.kick(queue);
    });
  }

  #onInterrupt(): void {
    if (this.#collecting) return;
    this.#collecting = true;
    queueMicrotask(() => {
      this.#collecting = false;
      this.interrupts++;
      this.driver.acknowledge();
      this.driver.queues.forEach((queue, index) => {
        for (let used = queue.takeUsed(); used; used = queue.takeUsed()) this.#answer(index, used.head);
        queue.usedEvent = queue.usedIdx;
      });
    });
  }

  #answer(queue: number, head: number): void {
    const pending = this.#pending[queue].get(head);
    if (!pending) return void this.others.push(head);
    this.#pending[queue].delete(head);
    const { slot, readBytes, resolve } = pending;
    const [status] = this.memory.read(slot.status, 1);
    const data = this.memory.read(slot.data, readBytes);
    this.#slots.push(slot);
    resolve({ status, data });
  }
}

/** The payload of a discard or write-zeroes request. */
export function range(sector: number | bigint, sectors: number, flags = 0): Uint8Array {
  const view = new DataView(new ArrayBuffer(RANGE_BYTES));
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, sectors, true);
  view.setUint32(12, flags, true);
  return new Uint8Array(view.buffer);
}
