import type { IrqLine } from '../../irq/irq-line.js';
import type { ConfigSpace } from './config-space.js';
import { COMMAND, COMMAND_INTX_DISABLE, STATUS, STATUS_INTERRUPT } from './defs.js';

/** A function's interrupt pin: the line behind it, the status bit, and the guest's wish not to be interrupted. */
export class InterruptPin implements IrqLine {
  readonly #config: ConfigSpace;
  #line: IrqLine | undefined;
  #level = false;

  constructor(config: ConfigSpace) {
    this.#config = config;
    config.watch(COMMAND, 2, { afterWrite: () => this.#drive(), afterLoad: () => this.set(this.#level) });
  }

  connect(line: IrqLine | undefined): void {
    this.#line = line;
  }

  set(level: boolean): void {
    this.#level = level;
    // PCI 3.0, 6.2.3: the bit shows the function's state, whether or not the pin may.
    const status = this.#config.peek(STATUS, 1) & ~STATUS_INTERRUPT;
    this.#config.poke(STATUS, 1, status | (level ? STATUS_INTERRUPT : 0));
    this.#drive();
  }

  #drive(): void {
    this.#line?.set(this.#level && !(this.#config.command & COMMAND_INTX_DISABLE));
  }
}
