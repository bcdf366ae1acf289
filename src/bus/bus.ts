import { VmmError } from '../errors.js';
import type { AccessSize, BusDevice } from './device.js';

/** An x86 machine's two address spaces: 65,536 I/O ports, or memory-mapped I/O by 52-bit guest-physical address. */
export type BusSpace = 'port' | 'mmio';

const SPACE_BYTES: Record<BusSpace, number> = { port: 2 ** 16, mmio: 2 ** 52 };
const ALL_ONES: Record<AccessSize, number> = { 1: 0xff, 2: 0xffff, 4: 0xffff_ffff };

interface Range {
  readonly base: number;
  readonly end: number;
  /** The address whose offset is 0. */
  readonly origin: number;
  readonly device: BusDevice;
  accesses: number;
}

/** Stands for unmapped space: no access ends inside it, so the one comparison of the fast path rejects it too. */
const UNMAPPED: Range = {
  base: 0,
  end: 0,
  origin: 0,
  device: { name: 'unmapped', read: (_offset, size) => ALL_ONES[size], write() {}, reset() {} },
  accesses: 0,
};

/**
 * Routes accesses of one address space to the devices that registered there.
 *
 * Where no device is, reads return all ones and writes are ignored, as on a real bus. An access that is not wholly
 * inside one range is split into bytes, lowest address first, and each byte is routed on its own.
 *
 * Routing allocates nothing and never throws, whatever the address; an exception out of a device's handler is a bug of
 * that device and passes through.
 */
export class Bus {
  readonly space: BusSpace;
  /** Accesses (of a split one: bytes) that met no device. */
  unmappedAccesses = 0;

  /** In ascending order of base. Binary search reads the bases; most exits need no search. */
  #ranges: Range[] = [];
  #bases = new Float64Array(0);
  /** Port space: the slot of each port's range. An Int32Array starts as untouched zero pages, so it costs little memory. */
  readonly #slotOfPort: Int32Array | undefined;
  readonly #slots: Range[] = [UNMAPPED];
  readonly #freeSlots: number[] = [];
  /** A guest mostly stays with one device for a while. */
  #lastHit = UNMAPPED;
  readonly #accessesOfRemoved = new Map<string, number>();

  constructor(space: BusSpace) {
    this.space = space;
    this.#slotOfPort = space === 'port' ? new Int32Array(SPACE_BYTES.port) : undefined;
  }

  /**
   * Gives the device the addresses [base, base + length). A device may have several ranges.
   *
   * @param offset What the device sees for `base`: for registers that are scattered over the space, such as the i8042's.
   * @throws VmmError code "BUS_RANGE" when the range is empty or leaves the address space.
   * @throws VmmError code "BUS_OVERLAP" when the range meets another.
   */
  register(device: BusDevice, base: number, length: number, offset = 0): void {
    const end = base + length;
    if (!(Number.isSafeInteger(base) && Number.isSafeInteger(length) && base >= 0 && length > 0 && this.#fits(end))) {
      throw new VmmError(
        'BUS_RANGE',
        `${device.name}: base ${hex(base)}, length ${length} is no range of the ${this.space} space (0 to ${hex(SPACE_BYTES[this.space] - 1)}); give a base and a length of at least 1 inside it`,
      );
    }
    const meets = this.#firstIn(base, end);
    if (meets) {
      throw new VmmError(
        'BUS_OVERLAP',
        `${device.name} at ${span({ base, end })} meets ${meets.device.name} at ${span(meets)} in the ${this.space} space; choose another base`,
      );
    }
    const range: Range = { base, end, origin: base - offset, device, accesses: 0 };
    this.#setRanges([...this.#ranges, range].sort((a, b) => a.base - b.base));
    if (this.#slotOfPort) {
      const slot = this.#freeSlots.pop() ?? this.#slots.length;
      this.#slots[slot] = range;
      this.#slotOfPort.fill(slot, base, end);
    }
  }

  /**
   * Takes the device's range that starts at `base` off the bus; without `base`, all its ranges.
   *
   * @returns Whether there was one.
   */
  unregister(device: BusDevice, base?: number): boolean {
    const gone = this.#ranges.filter((range) => range.device === device && (base === undefined || range.base === base));
    for (const range of gone) {
      this.#accessesOfRemoved.set(device.name, (this.#accessesOfRemoved.get(device.name) ?? 0) + range.accesses);
      if (this.#slotOfPort) {
        const slot = this.#slotOfPort[range.base];
        this.#slotOfPort.fill(0, range.base, range.end);
        this.#slots[slot] = UNMAPPED;
        this.#freeSlots.push(slot);
      }
    }
    this.#setRanges(this.#ranges.filter((range) => !gone.includes(range)));
    return gone.length > 0;
  }

  /** Whether {@link register} would accept this range: for ranges that a guest chooses, such as PCI BARs. */
  isFree(base: number, length: number): boolean {
    const valid = Number.isSafeInteger(base) && Number.isSafeInteger(length) && base >= 0 && length > 0;
    return valid && this.#fits(base + length) && this.#firstIn(base, base + length) === undefined;
  }

  /** Every device once, in ascending order of its first range. */
  devices(): BusDevice[] {
    return [...new Set(this.#ranges.map((range) => range.device))];
  }

  /** Accesses since the bus was made, by device name, without devices that had none; those of one name are added up. */
  accesses(): Record<string, number> {
    const counts = new Map(this.#accessesOfRemoved);
    for (const { device, accesses } of this.#ranges) {
      counts.set(device.name, (counts.get(device.name) ?? 0) + accesses);
    }
    return Object.fromEntries([...counts].filter(([, accesses]) => accesses > 0));
  }

  /** @returns Unsigned, below 2^(8·size). */
  read(address: number, size: AccessSize): number {
    const range = this.#find(address);
    if (address + size > range.end) return this.#readSplit(address, size);
    range.accesses++;
    return range.device.read(address - range.origin, size);
  }

  /** @param value Unsigned, below 2^(8·size). */
  write(address: number, size: AccessSize, value: number): void {
    const range = this.#find(address);
    if (address + size > range.end) return this.#writeSplit(address, size, value);
    range.accesses++;
    range.device.write(address - range.origin, size, value);
  }

  /**
   * Reads 1 to 8 bytes into `data` at `at`: for exits whose length is no {@link AccessSize}. 8 bytes are two reads of 4,
   * low half first; the odd lengths that a page crossing leaves over are read as 4, 2 and 1.
   */
  readWide(address: number, length: number, data: DataView, at: number): void {
    for (let done = 0; done < length;) {
      const size = chunk(length - done);
      const value = this.read(address + done, size);
      if (size === 4) data.setUint32(at + done, value, true);
      else if (size === 2) data.setUint16(at + done, value, true);
      else data.setUint8(at + done, value);
      done += size;
    }
  }

  /** Writes 1 to 8 bytes of `data` from `at` on, split as in {@link readWide}. */
  writeWide(address: number, length: number, data: DataView, at: number): void {
    for (let done = 0; done < length;) {
      const size = chunk(length - done);
      const from = at + done;
      const value =
        size === 4 ? data.getUint32(from, true) : size === 2 ? data.getUint16(from, true) : data.getUint8(from);
      this.write(address + done, size, value);
      done += size;
    }
  }

  #find(address: number): Range {
    const last = this.#lastHit;
    if (address >= last.base && address < last.end) return last;
    return this.#search(address);
  }

  #search(address: number): Range {
    const range = this.#slotOfPort
      ? this.#slots[this.#slotOfPort[address] ?? 0]
      : this.#ranges[this.#upperBound(address) - 1];
    if (range === undefined || !(address < range.end)) return UNMAPPED;
    this.#lastHit = range;
    return range;
  }

  #readSplit(address: number, size: AccessSize): number {
    if (size === 1 || !this.#firstIn(address, address + size)) {
      this.unmappedAccesses++;
      return ALL_ONES[size];
    }
    let value = 0;
    for (let i = 0; i < size; i++) value |= (this.read(address + i, 1) & 0xff) << (8 * i);
    return value >>> 0;
  }

  #writeSplit(address: number, size: AccessSize, value: number): void {
    if (size === 1 || !this.#firstIn(address, address + size)) {
      this.unmappedAccesses++;
      return;
    }
    for (let i = 0; i < size; i++) this.write(address + i, 1, (value >>> (8 * i)) & 0xff);
  }

  /** The lowest range that meets [start, end). */
  #firstIn(start: number, end: number): Range | undefined {
    const next = this.#upperBound(start);
    const before = this.#ranges[next - 1];
    if (before && start < before.end) return before;
    const after = this.#ranges[next];
    return after && after.base < end ? after : undefined;
  }

  /** How many ranges start at or below the address. */
  #upperBound(address: number): number {
    let low = 0;
    let high = this.#bases.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#bases[middle] <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #setRanges(ranges: Range[]): void {
    this.#ranges = ranges;
    this.#bases = Float64Array.from(ranges, (range) => range.base);
    this.#lastHit = UNMAPPED;
  }

  #fits(end: number): boolean {
    return end <= SPACE_BYTES[this.space];
  }
}

const chunk = (left: number): AccessSize => (left >= 4 ? 4 : left >= 2 ? 2 : 1);
const hex = (value: number) => (Number.isInteger(value) ? `0x${value.toString(16)}` : String(value));
const span = ({ base, end }: { base: number; end: number }) => `${hex(base)}..${hex(end - 1)}`;
