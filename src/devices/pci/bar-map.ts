import type { Bus } from '../../bus/bus.js';
import type { AccessSize, BusDevice } from '../../bus/device.js';
import { BASE_ADDRESS_REGISTERS, BASE_ADDRESS_REGISTER_COUNT, COMMAND } from './defs.js';
import type { PciFunction } from './function.js';

/** A stretch of ports or guest-physical addresses. */
export interface AddressWindow {
  readonly base: number;
  readonly sizeBytes: number;
}

export interface BarMapConfig {
  ports: Bus;
  mmio: Bus;
  /** Where BARs may be; what the DSDT says of the root bus. No RAM inside, and little besides. */
  memoryWindows: readonly AddressWindow[];
  portWindows: readonly AddressWindow[];
}

interface Mapping {
  readonly pciFunction: PciFunction;
  readonly bar: number;
  readonly bus: Bus;
  readonly windows: readonly AddressWindow[];
  readonly sizeBytes: number;
  readonly device: BusDevice;
  /** Where the guest wants it, and whether it is there. */
  wanted: number | undefined;
  mapped: boolean;
}

/**
 * Keeps the machine's buses in step with the BARs and command registers of all functions.
 *
 * A guest may program any address. One outside the windows or where another device is stays unmapped, and is tried again
 * whenever a BAR moves away: RAM and the machine's own devices cannot be shadowed.
 */
export class BarMap {
  readonly #config: BarMapConfig;
  readonly #mappings: Mapping[] = [];
  #refused = 0;

  constructor(config: BarMapConfig) {
    this.#config = config;
  }

  /** How often a guest wanted a BAR where it cannot be. */
  get refused(): number {
    return this.#refused;
  }

  add(pciFunction: PciFunction): void {
    const { config, name } = pciFunction;
    config.bars.forEach((description, bar) => {
      if (!description) return;
      const io = description.kind === 'io';
      const device: BusDevice = {
        name,
        read: (offset: number, size: AccessSize) => pciFunction.readBar(bar, offset, size),
        write: (offset: number, size: AccessSize, value: number) => pciFunction.writeBar(bar, offset, size, value),
        reset() {}, // the function is reset as a whole
      };
      this.#mappings.push({
        pciFunction,
        bar,
        bus: io ? this.#config.ports : this.#config.mmio,
        windows: io ? this.#config.portWindows : this.#config.memoryWindows,
        sizeBytes: description.sizeBytes,
        device,
        wanted: undefined,
        mapped: false,
      });
    });
    const update = () => this.#update();
    config.watch(COMMAND, 2, { afterWrite: update, afterLoad: update });
    config.watch(BASE_ADDRESS_REGISTERS, 4 * BASE_ADDRESS_REGISTER_COUNT, { afterWrite: update });
  }

  #update(): void {
    const moved: Mapping[] = [];
    for (const mapping of this.#mappings) {
      const wanted = mapping.pciFunction.config.barAddress(mapping.bar);
      if (wanted === mapping.wanted) continue;
      mapping.wanted = wanted;
      moved.push(mapping);
      if (mapping.mapped) this.#unmap(mapping);
    }
    if (moved.length === 0) return;
    // Every one that waits, not only those that moved: a place may have become free.
    for (const mapping of this.#mappings) {
      if (mapping.wanted === undefined || mapping.mapped || this.#map(mapping, mapping.wanted)) continue;
      if (moved.includes(mapping)) this.#refused++;
    }
  }

  #unmap(mapping: Mapping): void {
    mapping.bus.unregister(mapping.device);
    mapping.mapped = false;
    mapping.pciFunction.onBarMoved?.(mapping.bar, undefined);
  }

  /** @returns Whether the BAR can be there. */
  #map(mapping: Mapping, address: number): boolean {
    const { bus, windows, sizeBytes } = mapping;
    const end = address + sizeBytes;
    const allowed = windows.some((window) => address >= window.base && end <= window.base + window.sizeBytes);
    if (!allowed || !bus.isFree(address, sizeBytes)) return false;
    bus.register(mapping.device, address, sizeBytes);
    mapping.mapped = true;
    mapping.pciFunction.onBarMoved?.(mapping.bar, address);
    return true;
  }
}
