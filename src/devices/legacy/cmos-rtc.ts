/**
 * The real-time clock with its battery-backed RAM: Motorola MC146818A data sheet. Index register at offset 0 (port
 * 0x70), data at offset 1 (port 0x71).
 *
 * There is no moment of update: register A never shows UIP, and all time registers come from one reading of the host's
 * clock for SNAPSHOT_MS after the first of them was read, so a guest that reads them one by one never mixes two seconds.
 * Alarm and periodic interrupts do not fire; their registers are stored.
 */
import type { Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { IsaDevice } from './isa-device.js';

const INDEX_OFFSET = 0;
const DATA_OFFSET = 1;
const INDEX_MASK = 0x7f; // bit 7 masks NMIs

const SECONDS = 0x00;
const MINUTES = 0x02;
const HOURS = 0x04;
const DAY_OF_WEEK = 0x06;
const DAY_OF_MONTH = 0x07;
const MONTH = 0x08;
const YEAR = 0x09;
const REGISTER_A = 0x0a;
const REGISTER_B = 0x0b;
const REGISTER_C = 0x0c;
const REGISTER_D = 0x0d;
const BASE_MEMORY = 0x15; // KiB below 640 KiB, 2 bytes
const EXTENDED_MEMORY = 0x17; // KiB above 1 MiB, 2 bytes
const EXTENDED_MEMORY_POST = 0x30; // the same, as the firmware found it
const CENTURY = 0x32;
const MEMORY_ABOVE_16M = 0x34; // in 64 KiB, 2 bytes
const MEMORY_ABOVE_4G = 0x5b; // in 64 KiB, 3 bytes

const A_UIP = 0x80;
const A_DIVIDER_32KHZ_RATE_1024HZ = 0x26;
const B_SET = 0x80; // the guest is setting the clock
const B_BINARY = 0x04; // else BCD
const B_24_HOURS = 0x02;
const D_VALID = 0x80;
const PM = 0x80; // in HOURS, when 12-hour format is chosen

const CMOS_BYTES = 128;
const SNAPSHOT_MS = 10;
const MAX_TIME_MS = 8.64e15; // what a Date can hold
const KIB = 2 ** 10;
const MIB = 2 ** 20;

export interface CmosRtcConfig {
  /** The time of day in ms since 1970, UTC. Default `Date.now`. */
  now?: () => number;
  /** Guest RAM in bytes, for firmware that asks the CMOS. */
  memoryBelow4GiB: number;
  memoryAbove4GiB?: number;
}

export interface CmosRtcState {
  index: number;
  /** What the guest's clock is ahead of the host's. */
  offsetMs: number;
  ram: Uint8Array;
  /** While the guest is setting the clock: the time it stands at. */
  heldMs: number | undefined;
}

export class CmosRtc extends IsaDevice implements Snapshottable<CmosRtcState> {
  readonly name = 'cmos-rtc';
  readonly #now: () => number;
  readonly #ram = new Uint8Array(CMOS_BYTES);
  #index = 0;
  #offsetMs = 0;
  #heldMs: number | undefined;
  #snapshot = new Date(0);
  #snapshotAtMs = -Infinity;

  constructor(config: CmosRtcConfig) {
    super();
    this.#now = config.now ?? Date.now;
    const below = config.memoryBelow4GiB;
    this.#ram[REGISTER_A] = A_DIVIDER_32KHZ_RATE_1024HZ;
    this.#ram[REGISTER_B] = B_24_HOURS;
    this.#ram[REGISTER_D] = D_VALID;
    this.#store(BASE_MEMORY, 2, Math.min(below, 640 * KIB) / KIB);
    this.#store(EXTENDED_MEMORY, 2, (below - MIB) / KIB);
    this.#store(EXTENDED_MEMORY_POST, 2, (below - MIB) / KIB);
    this.#store(MEMORY_ABOVE_16M, 2, (below - 16 * MIB) / (64 * KIB));
    this.#store(MEMORY_ABOVE_4G, 3, (config.memoryAbove4GiB ?? 0) / (64 * KIB));
  }

  protected readByte(offset: number): number {
    if (offset !== DATA_OFFSET) return 0xff; // the index cannot be read back
    return this.#readRegister(this.#index) & 0xff; // a century that the guest made up may have three digits
  }

  protected writeByte(offset: number, value: number): void {
    if (offset === INDEX_OFFSET) this.#index = value & INDEX_MASK;
    else if (offset === DATA_OFFSET) this.#writeRegister(this.#index, value);
  }

  /** The battery keeps clock and RAM; a reset clears the interrupt enables (data sheet, RESET). */
  reset(): void {
    this.#index = 0;
    this.#setHeld(undefined);
    this.#ram[REGISTER_B] &= B_BINARY | B_24_HOURS;
  }

  save(): CmosRtcState {
    return { index: this.#index, offsetMs: this.#offsetMs, ram: this.#ram.slice(), heldMs: this.#heldMs };
  }

  restore(state: CmosRtcState): void {
    const saved = new SavedState(this.name, state);
    const index = saved.integer('index', INDEX_MASK);
    const offsetMs = saved.number('offsetMs', MAX_TIME_MS);
    const ram = saved.bytes('ram', CMOS_BYTES, CMOS_BYTES);
    this.#heldMs = state.heldMs === undefined ? undefined : saved.number('heldMs', MAX_TIME_MS);
    this.#index = index;
    this.#offsetMs = offsetMs;
    this.#ram.set(ram);
    this.#snapshotAtMs = -Infinity;
  }

  #readRegister(index: number): number {
    switch (index) {
      case SECONDS:
        return this.#encode(this.#time().getUTCSeconds());
      case MINUTES:
        return this.#encode(this.#time().getUTCMinutes());
      case HOURS:
        return this.#encodeHours(this.#time().getUTCHours());
      case DAY_OF_WEEK:
        return this.#encode(this.#time().getUTCDay() + 1);
      case DAY_OF_MONTH:
        return this.#encode(this.#time().getUTCDate());
      case MONTH:
        return this.#encode(this.#time().getUTCMonth() + 1);
      case YEAR:
        return this.#encode(this.#time().getUTCFullYear() % 100);
      case CENTURY:
        return this.#encode(Math.trunc(this.#time().getUTCFullYear() / 100));
      case REGISTER_C:
        return 0; // no interrupt is ever pending
      default:
        return this.#ram[index];
    }
  }

  #writeRegister(index: number, value: number): void {
    switch (index) {
      case SECONDS:
        return this.#setTime((time) => time.setUTCSeconds(this.#decode(value)));
      case MINUTES:
        return this.#setTime((time) => time.setUTCMinutes(this.#decode(value)));
      case HOURS:
        return this.#setTime((time) => time.setUTCHours(this.#decodeHours(value)));
      case DAY_OF_WEEK:
        return; // follows from the date
      case DAY_OF_MONTH:
        return this.#setTime((time) => time.setUTCDate(this.#decode(value)));
      case MONTH:
        return this.#setTime((time) => {
          // The day is written apart from the month: keep 31 January from becoming 3 March on the way.
          const day = time.getUTCDate();
          const month = this.#decode(value) - 1;
          const days = new Date(Date.UTC(time.getUTCFullYear(), month + 1, 0)).getUTCDate();
          time.setUTCMonth(month, Math.min(day, days));
        });
      case YEAR:
        return this.#setTime((time) => {
          time.setUTCFullYear(Math.trunc(time.getUTCFullYear() / 100) * 100 + this.#decode(value));
        });
      case CENTURY:
        return this.#setTime((time) => {
          time.setUTCFullYear(this.#decode(value) * 100 + (time.getUTCFullYear() % 100));
        });
      case REGISTER_A:
        this.#ram[REGISTER_A] = value & ~A_UIP;
        return;
      case REGISTER_B: {
        const setting = (value & B_SET) !== 0;
        if (setting !== (this.#heldMs !== undefined)) this.#setHeld(setting ? this.#now() + this.#offsetMs : undefined);
        this.#ram[REGISTER_B] = value;
        return;
      }
      case REGISTER_C:
      case REGISTER_D:
        return; // read-only
      default:
        this.#ram[index] = value;
    }
  }

  #time(): Date {
    if (this.#heldMs !== undefined) return new Date(this.#heldMs);
    const now = this.#now();
    if (!(Math.abs(now - this.#snapshotAtMs) < SNAPSHOT_MS)) {
      this.#snapshotAtMs = now;
      this.#snapshot = new Date(now + this.#offsetMs);
    }
    return this.#snapshot;
  }

  #setTime(change: (time: Date) => void): void {
    const now = this.#now();
    const time = new Date(this.#heldMs ?? now + this.#offsetMs);
    change(time);
    // Out of Date's range: a guest that writes nonsense keeps the time it had.
    if (Number.isNaN(time.getTime())) return;
    if (this.#heldMs !== undefined) this.#heldMs = time.getTime();
    else this.#offsetMs = time.getTime() - now;
    this.#snapshotAtMs = -Infinity;
  }

  /** Stops the clock at a time, or (undefined) lets it go on from the time it was stopped at. */
  #setHeld(heldMs: number | undefined): void {
    if (this.#heldMs !== undefined) this.#offsetMs = this.#heldMs - this.#now();
    this.#heldMs = heldMs;
    this.#snapshotAtMs = -Infinity;
  }

  #encode(value: number): number {
    return this.#ram[REGISTER_B] & B_BINARY ? value : (Math.trunc(value / 10) << 4) | (value % 10);
  }

  #decode(value: number): number {
    return this.#ram[REGISTER_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 0x0f);
  }

  #encodeHours(hours: number): number {
    if (this.#ram[REGISTER_B] & B_24_HOURS) return this.#encode(hours);
    return this.#encode(hours % 12 || 12) | (hours >= 12 ? PM : 0);
  }

  #decodeHours(value: number): number {
    if (this.#ram[REGISTER_B] & B_24_HOURS) return this.#decode(value);
    return (this.#decode(value & ~PM) % 12) + (value & PM ? 12 : 0);
  }

  /** A little-endian number that stops at the largest its bytes can hold. */
  #store(index: number, bytes: number, value: number): void {
    const capped = Math.min(Math.max(Math.floor(value), 0), 2 ** (8 * bytes) - 1);
    for (let i = 0; i < bytes; i++) this.#ram[index + i] = (capped >>> (8 * i)) & 0xff;
  }
}
