import type { AccessSize, Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import type { MsiMessage, MsiVector } from '../../irq/msi.js';
import type { ConfigSpace } from './config-space.js';
import * as defs from './defs.js';

export interface MsixState {
  table: Uint8Array;
  /** One byte a vector: 1 for pending. */
  pending: Uint8Array;
}

/** Where the pending bits are in a BAR that has the table at 0, and the size of that BAR. */
export function msixLayout(vectors: number): { pbaOffset: number; barBytes: number } {
  const tableBytes = vectors * defs.MSIX_ENTRY_BYTES;
  const pbaBytes = Math.ceil(vectors / 64) * 8;
  return { pbaOffset: tableBytes, barBytes: Math.max(4096, 2 ** Math.ceil(Math.log2(tableBytes + pbaBytes))) };
}

/**
 * MSI-X (PCI 3.0, 6.8.2): capability, table and pending bits; the table starts its BAR, the pending bits follow.
 *
 * A vector is delivered while MSI-X is on, the function may master the bus (a message is a memory write) and neither the
 * function nor the vector is masked. Otherwise it becomes pending, and is delivered once it can be.
 */
export class Msix implements Snapshottable<MsixState> {
  readonly #config: ConfigSpace;
  readonly #vectors: readonly MsiVector[];
  readonly #table: Uint8Array;
  readonly #view: DataView;
  readonly #pending: Uint8Array;
  /** What each vector was told last. */
  readonly #messages: (MsiMessage | undefined)[];
  readonly #pbaOffset: number;
  readonly #control: number;
  readonly #onSwitch: () => void;
  #enabled = false;

  /**
   * @param bar The register whose BAR is {@link read} and {@link write}; {@link msixLayout} says how large it is.
   * @param onSwitch The guest turned MSI-X on or off.
   * @throws VmmError code "INVALID_ARGUMENT" for a number of vectors that cannot be.
   */
  constructor(config: ConfigSpace, bar: number, vectors: readonly MsiVector[], onSwitch: () => void = () => {}) {
    if (vectors.length < 1 || vectors.length > defs.MSIX_MAX_VECTORS) {
      throw new VmmError('INVALID_ARGUMENT', `MSI-X has 1 to ${defs.MSIX_MAX_VECTORS} vectors, not ${vectors.length}`);
    }
    this.#config = config;
    this.#vectors = vectors;
    this.#table = new Uint8Array(vectors.length * defs.MSIX_ENTRY_BYTES);
    this.#view = new DataView(this.#table.buffer);
    this.#pending = new Uint8Array(vectors.length);
    this.#messages = vectors.map(() => undefined);
    this.#pbaOffset = msixLayout(vectors.length).pbaOffset;
    this.#onSwitch = onSwitch;
    this.#maskAll();

    const body = new DataView(new ArrayBuffer(10));
    body.setUint16(0, vectors.length - 1, true);
    body.setUint32(2, bar, true);
    body.setUint32(6, this.#pbaOffset | bar, true);
    const writable = new DataView(new ArrayBuffer(10));
    writable.setUint16(0, defs.MSIX_CONTROL_ENABLE | defs.MSIX_CONTROL_FUNCTION_MASK, true);
    const bytes = ({ buffer }: DataView) => new Uint8Array(buffer as ArrayBuffer);
    this.#control = config.addCapability(defs.CAPABILITY_MSIX, bytes(body), bytes(writable)) + 2;
    const update = () => this.#update();
    config.watch(this.#control, 2, { afterWrite: update, afterLoad: update });
    config.watch(defs.COMMAND, 2, { afterWrite: update });
  }

  /** Whether the guest uses MSI-X: the function's interrupt pin is to be silent then. */
  get enabled(): boolean {
    return this.#enabled;
  }

  get vectorCount(): number {
    return this.#vectors.length;
  }

  /** Sends a vector's message, or remembers that it is due. Ignored for a vector that does not exist. */
  signal(vector: number): void {
    if (!this.#enabled || !this.#vectors[vector]) return;
    if (this.#messages[vector]) this.#vectors[vector].signal();
    else this.#pending[vector] = 1;
  }

  /** An eventfd by which another process sends a vector's message; undefined where the machine, or the vector, has none. */
  eventFd(vector: number): number | undefined {
    return this.#vectors[vector]?.eventFd?.();
  }

  read(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.#readByte(offset + i) << (8 * i);
    return value >>> 0;
  }

  /** 6.8.2: software writes aligned dwords (a qword is two of them); the pending bits are read-only. */
  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 4 || offset % 4 !== 0 || offset >= this.#table.length) return;
    this.#view.setUint32(offset, value & writableBits(offset), true);
    this.#updateVector(Math.floor(offset / defs.MSIX_ENTRY_BYTES));
  }

  /** Beside `config.reset()`, in any order. */
  reset(): void {
    this.#maskAll();
    this.#pending.fill(0);
    this.#update();
  }

  save(): MsixState {
    return { table: this.#table.slice(), pending: this.#pending.slice() };
  }

  /** After `config.restore()`. @throws VmmError code "INVALID_ARGUMENT" when the state has another number of vectors. */
  restore(state: MsixState): void {
    const saved = new SavedState('MSI-X', state);
    const table = saved.bytes('table', this.#table.length, this.#table.length);
    const pending = saved.bytes('pending', this.#pending.length, this.#pending.length);
    this.#pending.set(pending.map((byte) => byte & 1));
    const view = new DataView(table.buffer);
    for (let at = 0; at < table.length; at += 4) {
      this.#view.setUint32(at, view.getUint32(at, true) & writableBits(at), true);
    }
    this.#update();
  }

  #maskAll(): void {
    this.#table.fill(0);
    for (let at = 12; at < this.#table.length; at += defs.MSIX_ENTRY_BYTES) this.#table[at] = defs.MSIX_ENTRY_MASKED;
  }

  #readByte(offset: number): number {
    if (offset < this.#table.length) return this.#table[offset];
    const first = (offset - this.#pbaOffset) * 8;
    let byte = 0;
    for (let bit = 0; bit < 8; bit++) byte |= (this.#pending[first + bit] ?? 0) << bit;
    return byte;
  }

  #update(): void {
    const enabled = (this.#config.peek(this.#control, 2) & defs.MSIX_CONTROL_ENABLE) !== 0;
    const switched = enabled !== this.#enabled;
    this.#enabled = enabled;
    if (!enabled) this.#pending.fill(0);
    for (let vector = 0; vector < this.#vectors.length; vector++) this.#updateVector(vector);
    if (switched) this.#onSwitch();
  }

  #updateVector(vector: number): void {
    const entry = vector * defs.MSIX_ENTRY_BYTES;
    const functionMasked = this.#config.peek(this.#control, 2) & defs.MSIX_CONTROL_FUNCTION_MASK;
    const deliverable =
      this.#enabled &&
      !functionMasked &&
      (this.#config.command & defs.COMMAND_BUS_MASTER) !== 0 &&
      !(this.#table[entry + 12] & defs.MSIX_ENTRY_MASKED);
    const message = deliverable
      ? { address: this.#view.getBigUint64(entry, true), data: this.#view.getUint32(entry + 8, true) }
      : undefined;
    const last = this.#messages[vector];
    if (message?.address !== last?.address || message?.data !== last?.data) {
      this.#messages[vector] = message;
      this.#vectors[vector].setMessage(message);
    }
    if (message && this.#pending[vector]) {
      this.#pending[vector] = 0;
      this.#vectors[vector].signal();
    }
  }
}

/** Of a dword of the table: messages go to aligned addresses; of the vector control, only the mask is defined. */
function writableBits(offset: number): number {
  const field = offset % defs.MSIX_ENTRY_BYTES;
  return field === 0 ? ~0x3 : field === 12 ? defs.MSIX_ENTRY_MASKED : ~0;
}
