import type { AccessSize } from '../../bus/device.js';
import type { IrqLine } from '../../irq/irq-line.js';
import type { ConfigSpace } from './config-space.js';

/**
 * One function of a PCI device, as the bus sees it.
 *
 * Every call is synchronous and comes from inside a guest's access.
 */
export interface PciFunction<State = unknown> {
  /** Short, stable name for statistics and error messages, such as `virtio-rng`. */
  readonly name: string;
  readonly config: ConfigSpace;
  /** Called once, when the function is put on a bus. */
  attach(slot: PciSlot): void;
  /** @param offset Inside the BAR, as is offset + size - 1. @returns Unsigned, below 2^(8·size). */
  readBar(bar: number, offset: number, size: AccessSize): number;
  writeBar(bar: number, offset: number, size: AccessSize, value: number): void;
  /** The guest mapped, moved or unmapped a BAR. @param address Guest-physical, or a port; undefined: not decoded. */
  onBarMoved?(bar: number, address: number | undefined): void;
  /** Back to power-on, `config` included, in any state. */
  reset(): void;
  save(): State;
  /** Guest memory must have been restored before. @throws VmmError code "INVALID_ARGUMENT"; the function is reset then. */
  restore(state: State): void;
}

/** Where a function is, and what the bus gives it there. */
export interface PciSlot {
  readonly device: number;
  readonly function: number;
  /** The interrupt line behind its interrupt pin; undefined for a function without one. Shared: level-triggered. */
  readonly intx: IrqLine | undefined;
}
