/**
 * The selector and data ports of QEMU's firmware configuration (docs/specs/fw_cfg), with the few numbers that programs
 * written for QEMU read there: how much memory and how many CPUs there are.
 */
import type { AccessSize, BusDevice } from '../../bus/device.js';

/** Selector (16 bits) and data (a byte at a time). */
export const FW_CFG_PORTS = 2;
const KEY = { SIGNATURE: 0, ID: 1, RAM_SIZE: 3, NB_CPUS: 5, MAX_CPUS: 15 } as const;
/** Revision 1: no DMA. */
const ID_TRADITIONAL = 1;

export interface FwCfgConfig {
  memoryBytes: number;
  cpus: number;
}

export class FwCfg implements BusDevice {
  readonly name = 'fw-cfg';
  readonly #items: ReadonlyMap<number, Uint8Array>;
  #item: Uint8Array | undefined;
  #at = 0;

  constructor({ memoryBytes, cpus }: FwCfgConfig) {
    this.#items = new Map([
      [KEY.SIGNATURE, new TextEncoder().encode('QEMU')],
      [KEY.ID, littleEndian(ID_TRADITIONAL, 4)],
      [KEY.RAM_SIZE, littleEndian(memoryBytes, 8)],
      [KEY.NB_CPUS, littleEndian(cpus, 2)],
      [KEY.MAX_CPUS, littleEndian(cpus, 2)],
    ]);
    this.reset();
  }

  /** The item's next bytes; zeroes behind its end, and for a key that is not there. */
  read(offset: number, size: AccessSize): number {
    if (offset !== 1 || size !== 1) return 2 ** (8 * size) - 1;
    return this.#item?.[this.#at++] ?? 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset !== 0 || size !== 2) return;
    this.#item = this.#items.get(value);
    this.#at = 0;
  }

  reset(): void {
    this.#item = this.#items.get(KEY.SIGNATURE);
    this.#at = 0;
  }
}

function littleEndian(value: number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) % 256);
}
