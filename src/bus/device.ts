/** Width of one access that reaches a device, in bytes. The bus splits 8-byte accesses into two of 4, low half first. */
export type AccessSize = 1 | 2 | 4;

/**
 * A device on a {@link Bus}: registers at offsets from wherever the machine put it.
 *
 * Offsets and sizes are within the registered range (the bus checks); values are unsigned and below 2^(8·size).
 * A handler is synchronous and must not throw for anything a guest does: an unknown register reads as all ones and
 * ignores writes, as hardware would. To do work later a handler uses timers, I/O or setImmediate.
 */
export interface BusDevice {
  /** Short, stable name for statistics and error messages, such as `uart16550`. */
  readonly name: string;
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
  /** Puts every register back to its power-on value; called on machine reset, in any state. */
  reset(): void;
}

/** A device whose state can be carried to another process: `save` returns plain structured-cloneable data. */
export interface Snapshottable<State> {
  save(): State;
  /** @throws VmmError code "INVALID_ARGUMENT" when the state is not one `save` could have returned. */
  restore(state: State): void;
}
