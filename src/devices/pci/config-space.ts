import type { AccessSize, Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import * as defs from './defs.js';

/** What a base address register asks for. */
export interface BarDescription {
  /** `memory64` takes the next register too. */
  readonly kind: 'memory32' | 'memory64' | 'io';
  /** A power of two: at least 16 for memory, 4 for I/O; an I/O BAR of over 256 breaks the specification, as AC97 does. */
  readonly sizeBytes: number;
  /** Reads have no side effects: a guest may place it in a prefetchable window. Memory only. */
  readonly prefetchable?: boolean;
}

export interface ConfigSpaceOptions {
  vendorId: number;
  deviceId: number;
  /** 24 bits: base class, subclass, interface. */
  classCode: number;
  revision?: number;
  subsystemVendorId?: number;
  subsystemId?: number;
  /** 1 to 4 for INTA# to INTD#; 0, the default, for a function without an interrupt pin. */
  interruptPin?: number;
  /** By register; undefined where there is none, and behind each `memory64`. */
  bars?: readonly (BarDescription | undefined)[];
}

export interface ConfigSpaceState {
  bytes: Uint8Array;
}

/** Calls around accesses that meet some bytes of the configuration space. */
export interface ConfigWatcher {
  /**
   * The bytes are about to be read: bring them up to date with {@link ConfigSpace.poke}.
   *
   * @param offset Of the read, and its size: it may reach beyond the watched bytes.
   */
  beforeRead?(offset: number, size: AccessSize): void;
  /**
   * A guest wrote: read-only bits are as they were, the others as it wants them.
   *
   * @param offset Of the write, and its size: they may reach beyond the watched bytes.
   * @param value As it was written.
   */
  afterWrite?(offset: number, size: AccessSize, value: number): void;
  /** A reset or a restore replaced every byte. */
  afterLoad?(): void;
}

interface Watch extends ConfigWatcher {
  readonly start: number;
  readonly end: number;
}

/**
 * The configuration space of one PCI function: a type 0 header and what capabilities it is given.
 *
 * It is 4 KiB of bytes and as many masks that say which bits a guest may write; that is also how BARs are sized (PCI 3.0,
 * 6.2.5.1): the low bits of an address are not writable. Where the BARs lead is the bus's business.
 */
export class ConfigSpace implements Snapshottable<ConfigSpaceState> {
  readonly bars: readonly (BarDescription | undefined)[];
  readonly #bytes = new Uint8Array(defs.FUNCTION_CONFIG_BYTES);
  readonly #view = new DataView(this.#bytes.buffer);
  readonly #powerOn = new Uint8Array(defs.FUNCTION_CONFIG_BYTES);
  readonly #writable = new Uint8Array(defs.FUNCTION_CONFIG_BYTES);
  readonly #watches: Watch[] = [];
  #capabilitiesEnd = defs.HEADER_BYTES;
  #lastCapability = defs.CAPABILITIES_POINTER;

  /** @throws VmmError code "INVALID_ARGUMENT" when the BARs cannot be had like that. */
  constructor(options: ConfigSpaceOptions) {
    this.bars = options.bars ?? [];
    this.#fix(defs.VENDOR_ID, 2, options.vendorId);
    this.#fix(defs.DEVICE_ID, 2, options.deviceId);
    this.#fix(defs.REVISION_ID, 1, options.revision ?? 0);
    this.#fix(defs.CLASS_CODE, 3, options.classCode);
    this.#fix(defs.SUBSYSTEM_VENDOR_ID, 2, options.subsystemVendorId ?? 0);
    this.#fix(defs.SUBSYSTEM_ID, 2, options.subsystemId ?? 0);
    this.#fix(defs.INTERRUPT_PIN, 1, options.interruptPin ?? 0);
    this.#allow(defs.INTERRUPT_LINE, 1, 0xff);
    let command = defs.COMMAND_BUS_MASTER | defs.COMMAND_PARITY | defs.COMMAND_SERR | defs.COMMAND_INTX_DISABLE;
    this.bars.forEach((bar, index) => {
      if (!bar) return;
      this.#addBar(bar, index);
      command |= bar.kind === 'io' ? defs.COMMAND_IO : defs.COMMAND_MEMORY;
    });
    this.#allow(defs.COMMAND, 2, command);
  }

  /** @returns All ones beyond the end. */
  read(offset: number, size: AccessSize): number {
    for (const watch of this.#watchesOf(offset, size)) watch.beforeRead?.(offset, size);
    let value = 0;
    for (let i = 0; i < size; i++) value |= (this.#bytes[offset + i] ?? 0xff) << (8 * i);
    return value >>> 0;
  }

  /** A guest's write: read-only bits keep their value. */
  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i] ?? 0;
      this.#bytes[offset + i] = (this.#bytes[offset + i] & ~mask) | ((value >>> (8 * i)) & mask);
    }
    for (const watch of this.#watchesOf(offset, size)) watch.afterWrite?.(offset, size, value);
  }

  /** Registers `watcher` for accesses that meet [offset, offset + length). */
  watch(offset: number, length: number, watcher: ConfigWatcher): void {
    this.#watches.push({ start: offset, end: offset + length, ...watcher });
  }

  /**
   * Appends a capability (PCI 3.0, 6.7) to the list, 4-byte aligned.
   *
   * @param body What follows its ID and next pointer.
   * @param writable The bits of `body` that a guest may write; none by default.
   * @returns The offset of its ID.
   * @throws VmmError code "INVALID_ARGUMENT" when the 192 bytes for capabilities are used up.
   */
  addCapability(id: number, body: Uint8Array, writable = new Uint8Array(body.length)): number {
    const offset = Math.ceil(this.#capabilitiesEnd / 4) * 4;
    const end = offset + 2 + body.length;
    if (end > defs.CONVENTIONAL_BYTES) {
      throw new VmmError('INVALID_ARGUMENT', `no room for a capability of ${body.length + 2} bytes; use fewer`);
    }
    this.#fix(offset, 1, id);
    body.forEach((byte, i) => this.#fix(offset + 2 + i, 1, byte));
    writable.forEach((mask, i) => this.#allow(offset + 2 + i, 1, mask));
    this.#fix(this.#lastCapability, 1, offset);
    this.#fix(defs.STATUS, 1, defs.STATUS_CAPABILITIES);
    this.#lastCapability = offset + 1;
    this.#capabilitiesEnd = end;
    return offset;
  }

  /** The device's own access to a little-endian field, whatever a guest may write. */
  peek(offset: number, size: AccessSize): number {
    if (size === 1) return this.#view.getUint8(offset);
    return size === 2 ? this.#view.getUint16(offset, true) : this.#view.getUint32(offset, true);
  }
  poke(offset: number, size: AccessSize, value: number): void {
    if (size === 1) this.#view.setUint8(offset, value);
    else if (size === 2) this.#view.setUint16(offset, value, true);
    else this.#view.setUint32(offset, value, true);
  }

  get command(): number {
    return this.peek(defs.COMMAND, 2);
  }

  /** Where the guest wants a BAR, when it wants it decoded at all. Over 2^53 the last bits are lost. */
  barAddress(index: number): number | undefined {
    const bar = this.bars[index];
    if (!bar || !(this.command & (bar.kind === 'io' ? defs.COMMAND_IO : defs.COMMAND_MEMORY))) return undefined;
    const at = defs.BASE_ADDRESS_REGISTERS + 4 * index;
    const low = this.peek(at, 4);
    if (bar.kind === 'io') return (low & ~0x3) >>> 0;
    return (bar.kind === 'memory64' ? this.peek(at + 4, 4) * 2 ** 32 : 0) + ((low & ~0xf) >>> 0);
  }

  /** Says in function 0 that the device has other functions. */
  setMultiFunction(): void {
    this.#fix(defs.HEADER_TYPE, 1, defs.HEADER_TYPE_MULTI_FUNCTION);
  }

  /** Back to power-on values. */
  reset(): void {
    this.#bytes.set(this.#powerOn);
    for (const watch of this.#watches) watch.afterLoad?.();
  }

  save(): ConfigSpaceState {
    return { bytes: this.#bytes.slice() };
  }

  /**
   * Takes over what a guest can have written.
   *
   * @throws VmmError code "INVALID_ARGUMENT" when the state is of a function with other IDs, BARs or capabilities.
   */
  restore(state: ConfigSpaceState): void {
    const length = defs.FUNCTION_CONFIG_BYTES;
    const saved = new SavedState('PCI function', state).bytes('bytes', length, length);
    for (let at = 0; at < length; at++) {
      const own = at === defs.STATUS ? this.#writable[at] | defs.STATUS_INTERRUPT : this.#writable[at];
      if ((saved[at] ^ this.#powerOn[at]) & ~own) {
        throw new VmmError('INVALID_ARGUMENT', `the saved state is of another PCI function: byte ${at} differs`);
      }
    }
    for (let at = 0; at < length; at++) {
      this.#bytes[at] = (this.#powerOn[at] & ~this.#writable[at]) | (saved[at] & this.#writable[at]);
    }
    for (const watch of this.#watches) watch.afterLoad?.();
  }

  #watchesOf(offset: number, size: number): Watch[] {
    return this.#watches.filter(({ start, end }) => offset < end && start < offset + size);
  }

  #addBar(bar: BarDescription, index: number): void {
    const { kind, sizeBytes } = bar;
    const [min, max] = { io: [4, 2 ** 15], memory32: [16, 2 ** 31], memory64: [16, 2 ** 51] }[kind];
    const fits = index < defs.BASE_ADDRESS_REGISTER_COUNT - (kind === 'memory64' ? 1 : 0);
    const upperIsFree = kind !== 'memory64' || this.bars[index + 1] === undefined;
    if (!(fits && upperIsFree && sizeBytes >= min && sizeBytes <= max && Number.isInteger(Math.log2(sizeBytes)))) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `BAR ${index} cannot be ${kind} of ${sizeBytes} bytes; give a power of two from ${min} to ${max}, six registers in all and two for memory64`,
      );
    }
    const at = defs.BASE_ADDRESS_REGISTERS + 4 * index;
    const prefetchable = bar.prefetchable ? defs.BAR_PREFETCHABLE : 0;
    this.#fix(at, 1, kind === 'io' ? defs.BAR_IO : prefetchable | (kind === 'memory64' ? defs.BAR_MEMORY_64 : 0));
    this.#allow(at, 4, sizeBytes >= 2 ** 32 ? 0 : -sizeBytes);
    if (kind === 'memory64') this.#allow(at + 4, 4, sizeBytes > 2 ** 32 ? -(sizeBytes / 2 ** 32) : -1);
  }

  /** Sets the power-on and the present value of a field. */
  #fix(offset: number, size: 1 | 2 | 3, value: number): void {
    for (let i = 0; i < size; i++) {
      this.#powerOn[offset + i] = value >>> (8 * i);
      this.#bytes[offset + i] = value >>> (8 * i);
    }
  }

  #allow(offset: number, size: 1 | 2 | 4, mask: number): void {
    for (let i = 0; i < size; i++) this.#writable[offset + i] = mask >>> (8 * i);
  }
}
