/**
 * The driver's side of a split virtqueue, for whoever plays the guest: tests, benchmarks, programs that drive a device
 * without one. It keeps the rules through `add` and `takeUsed`, and breaks any of them through the setters.
 */
import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import {
  DESCRIPTOR_BYTES,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  availRingBytes,
  usedRingBytes,
} from './defs.js';

/** Hands out guest memory from the bottom up; nothing is given back. */
export class DriverArena {
  readonly memory: GuestMemory;
  #next: number;

  constructor(memory: GuestMemory, gpa: number) {
    this.memory = memory;
    this.#next = gpa;
  }

  /** Reserves bytes, and fills them when given some. @throws VmmError code "GPA_OUT_OF_RANGE" when memory is used up. */
  place(content: number | Uint8Array | string, align = 16): number {
    const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content;
    const gpa = Math.ceil(this.#next / align) * align;
    if (typeof bytes === 'number') this.memory.view(gpa, bytes);
    else this.memory.write(gpa, bytes);
    this.#next = gpa + (typeof bytes === 'number' ? bytes : bytes.length);
    return gpa;
  }
}

export interface DriverBuffer {
  gpa: number;
  length: number;
  /** The device writes it. Default: the device reads it. */
  writable?: boolean;
}

export interface UsedElement {
  head: number;
  writtenBytes: number;
}

export class DriverQueue {
  readonly size: number;
  /** Guest-physical addresses of the three parts. */
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  readonly #desc: DataView;
  readonly #avail: DataView;
  readonly #used: DataView;
  readonly #memory: GuestMemory;
  readonly #free: number[];
  readonly #chains = new Map<number, number[]>();
  #nextUsed = 0;

  /** Lays the queue out in the arena. @throws VmmError code "GPA_OUT_OF_RANGE" when memory is used up. */
  constructor(arena: DriverArena, size: number) {
    this.size = size;
    this.#memory = arena.memory;
    this.desc = arena.place(DESCRIPTOR_BYTES * size);
    this.avail = arena.place(availRingBytes(size));
    this.used = arena.place(usedRingBytes(size));
    this.#desc = arena.memory.dataView(this.desc, DESCRIPTOR_BYTES * size);
    this.#avail = arena.memory.dataView(this.avail, availRingBytes(size));
    this.#used = arena.memory.dataView(this.used, usedRingBytes(size));
    for (const part of [this.#desc, this.#avail, this.#used]) {
      new Uint8Array(part.buffer, part.byteOffset, part.byteLength).fill(0);
    }
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  get availIdx(): number {
    return this.#avail.getUint16(2, true);
  }
  set availIdx(value: number) {
    this.#avail.setUint16(2, value, true);
  }

  /** Without EVENT_IDX: asks the device not to interrupt. */
  set noInterrupt(value: boolean) {
    this.#avail.setUint16(0, value ? VIRTQ_AVAIL_F_NO_INTERRUPT : 0, true);
  }

  /** With EVENT_IDX: the used index whose passing is worth an interrupt. */
  set usedEvent(value: number) {
    this.#avail.setUint16(4 + 2 * this.size, value, true);
  }

  get usedFlags(): number {
    return this.#used.getUint16(0, true);
  }
  get usedIdx(): number {
    return this.#used.getUint16(2, true);
  }
  /** With EVENT_IDX: the available index whose passing is worth a notification. */
  get availEvent(): number {
    return this.#used.getUint16(4 + 8 * this.size, true);
  }

  /** Writes one entry of the descriptor table as it is told to. */
  setDescriptor(index: number, gpa: bigint | number, length: number, flags = 0, next = 0): void {
    writeDescriptor(this.#desc, index, gpa, length, flags, next);
  }

  /** Writes the head that position `at` (modulo the size) of the available ring holds. */
  setAvail(at: number, head: number): void {
    this.#avail.setUint16(4 + 2 * (at & (this.size - 1)), head, true);
  }

  /** Makes a head available, whatever it leads to. */
  publish(head: number): void {
    this.setAvail(this.availIdx, head);
    this.availIdx = (this.availIdx + 1) & 0xffff;
  }

  /**
   * Makes a chain of buffers available. @returns Its head.
   *
   * @throws VmmError code "BUSY" when there are too few free descriptors.
   */
  add(buffers: readonly DriverBuffer[]): number {
    const indices = this.#take(buffers.length);
    buffers.forEach(({ gpa, length, writable }, i) => {
      const next = indices[i + 1];
      this.setDescriptor(indices[i], gpa, length, flagsOf(writable, next !== undefined), next ?? 0);
    });
    return this.#publishChain(indices);
  }

  /** Makes a chain available whose descriptors are in an indirect table at `tableGpa`. @throws VmmError code "BUSY" */
  addIndirect(tableGpa: number, buffers: readonly DriverBuffer[]): number {
    const bytes = DESCRIPTOR_BYTES * buffers.length;
    const table = this.#memory.dataView(tableGpa, bytes);
    buffers.forEach(({ gpa, length, writable }, i) => {
      const more = i + 1 < buffers.length;
      writeDescriptor(table, i, gpa, length, flagsOf(writable, more), more ? i + 1 : 0);
    });
    const indices = this.#take(1);
    this.setDescriptor(indices[0], tableGpa, bytes, VIRTQ_DESC_F_INDIRECT);
    return this.#publishChain(indices);
  }

  /** The next chain the device gave back; its descriptors are free again. */
  takeUsed(): UsedElement | undefined {
    if (this.usedIdx === this.#nextUsed) return undefined;
    const at = 4 + 8 * (this.#nextUsed & (this.size - 1));
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
    const head = this.#used.getUint32(at, true);
    this.#free.push(...(this.#chains.get(head) ?? []));
    this.#chains.delete(head);
    return { head, writtenBytes: this.#used.getUint32(at + 4, true) };
  }

  #take(count: number): number[] {
    if (this.#free.length < count) {
      throw new VmmError('BUSY', `${count} descriptors wanted, ${this.#free.length} free; call takeUsed() first`);
    }
    return Array.from({ length: count }, () => this.#free.pop()!);
  }

  #publishChain(indices: number[]): number {
    this.#chains.set(indices[0], indices);
    this.publish(indices[0]);
    return indices[0];
  }
}

const flagsOf = (writable: boolean | undefined, more: boolean) =>
  (writable ? VIRTQ_DESC_F_WRITE : 0) | (more ? VIRTQ_DESC_F_NEXT : 0);

function writeDescriptor(
  table: DataView,
  index: number,
  gpa: bigint | number,
  length: number,
  flags: number,
  next: number,
): void {
  const at = DESCRIPTOR_BYTES * index;
  table.setBigUint64(at, BigInt(gpa), true);
  table.setUint32(at + 8, length, true);
  table.setUint16(at + 12, flags, true);
  table.setUint16(at + 14, next, true);
}
