import { VmmError } from '../../errors.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import { SavedState } from '../../bus/saved-state.js';
import {
  AVAIL_RING_ALIGN,
  DESCRIPTOR_BYTES,
  DESCRIPTOR_TABLE_ALIGN,
  MAX_QUEUE_SIZE,
  USED_RING_ALIGN,
  availRingBytes,
  usedRingBytes,
} from '../defs.js';

/** The three parts of a queue whose place the driver chooses: the descriptor table, the available and the used ring. */
export type QueuePart = 'desc' | 'avail' | 'used';

export interface QueueSetupState {
  size: number;
  ready: boolean;
  /** Low and high halves of the addresses, as the driver wrote them. */
  desc: [number, number];
  avail: [number, number];
  used: [number, number];
}

/**
 * What the driver tells of one queue before it uses it: size and addresses. The driver's writes are never refused with
 * an exception: nonsense is kept out by {@link onDriverReady}.
 */
export class QueueSetup {
  /** The largest size the device offers. */
  readonly maxSize: number;
  size: number;
  ready = false;
  readonly desc: [number, number] = [0, 0];
  readonly avail: [number, number] = [0, 0];
  readonly used: [number, number] = [0, 0];

  /** @throws VmmError code "INVALID_ARGUMENT" when the device's size is no power of two up to 32,768. */
  constructor(maxSize: number) {
    if (!isQueueSize(maxSize)) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `a queue of ${maxSize} descriptors cannot be offered; give a power of two up to ${MAX_QUEUE_SIZE}`,
      );
    }
    this.maxSize = maxSize;
    this.size = maxSize;
  }

  /** The driver chooses a size; one that cannot be is kept until the queue is enabled, and refused there. */
  onDriverSize(size: number): void {
    this.size = size & 0xffff;
  }

  /** The driver writes half an address. */
  onDriverAddress(part: QueuePart, half: 0 | 1, value: number): void {
    this[part][half] = value >>> 0;
  }

  /**
   * The driver enables the queue. Refused, which it sees by reading "not ready", when the size is 0, no power of two or
   * over the maximum, or when a part is misaligned, not in one region of RAM, or meets another.
   */
  onDriverReady(memory: GuestMemory): boolean {
    this.ready = this.size <= this.maxSize && isQueueSize(this.size) && this.views(memory) !== undefined;
    return this.ready;
  }

  /** The parts in guest memory, or undefined where their addresses are no good. */
  views(memory: GuestMemory): Record<QueuePart, Uint8Array> | undefined {
    const parts: [QueuePart, number, number][] = [
      ['desc', DESCRIPTOR_BYTES * this.size, DESCRIPTOR_TABLE_ALIGN],
      ['avail', availRingBytes(this.size), AVAIL_RING_ALIGN],
      ['used', usedRingBytes(this.size), USED_RING_ALIGN],
    ];
    const views: Partial<Record<QueuePart, Uint8Array>> = {};
    for (const [part, bytes, align] of parts) {
      const gpa = this.gpa(part);
      const view = memory.tryView(gpa, bytes);
      // The host's alignment too: typed arrays need it, and a region could begin anywhere.
      if (!view || gpa % align !== 0 || view.byteOffset % align !== 0) return undefined;
      for (const [other, otherBytes] of parts) {
        const otherGpa = this.gpa(other);
        if (other !== part && gpa < otherGpa + otherBytes && otherGpa < gpa + bytes) return undefined;
      }
      views[part] = view;
    }
    return views as Record<QueuePart, Uint8Array>;
  }

  /** An address over 2^53 loses its last bits here, and is outside any memory with or without them. */
  gpa(part: QueuePart): number {
    return this[part][1] * 2 ** 32 + this[part][0];
  }

  reset(): void {
    this.size = this.maxSize;
    this.ready = false;
    for (const part of ['desc', 'avail', 'used'] as const) this[part].fill(0);
  }

  save(): QueueSetupState {
    return {
      size: this.size,
      ready: this.ready,
      desc: [...this.desc],
      avail: [...this.avail],
      used: [...this.used],
    };
  }

  /** `ready` has to be earned anew, by {@link onDriverReady}. @throws VmmError code "INVALID_ARGUMENT" */
  restore(state: QueueSetupState): void {
    const saved = new SavedState('virtqueue', state);
    const size = saved.integer('size', 0xffff);
    const halves = (['desc', 'avail', 'used'] as const).map((part) => {
      const list = new SavedState(`virtqueue ${part}`, saved.list(part, 2));
      return [part, list.integer('0', 0xffff_ffff), list.integer('1', 0xffff_ffff)] as const;
    });
    this.size = size;
    this.ready = false;
    for (const [part, low, high] of halves) [this[part][0], this[part][1]] = [low, high];
  }
}

const isQueueSize = (size: number) => size >= 1 && size <= MAX_QUEUE_SIZE && Number.isInteger(Math.log2(size));
