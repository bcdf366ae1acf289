/**
 * A port that ends the machine: QEMU's `isa-debug-exit`. QEMU, given the value v, exits with status (v << 1) | 1, so
 * that a guest can never claim its success; the machine passes v itself on.
 */
import type { AccessSize, BusDevice } from '../../bus/device.js';

export interface DebugExitConfig {
  /** The guest wrote `value`, in an access of any width. Called from inside its port write. */
  onExit: (value: number) => void;
}

export class DebugExit implements BusDevice {
  readonly name = 'debug-exit';
  readonly #onExit: (value: number) => void;

  constructor(config: DebugExitConfig) {
    this.#onExit = config.onExit;
  }

  read(): number {
    return 0;
  }

  write(_offset: number, _size: AccessSize, value: number): void {
    this.#onExit(value);
  }

  reset(): void {}
}
