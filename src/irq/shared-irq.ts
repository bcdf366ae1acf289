import type { IrqLine } from './irq-line.js';

/** A level-triggered line that several devices share: asserted while any of them asserts its input. */
export class SharedIrq {
  readonly #line: IrqLine;
  #asserted = 0;

  constructor(line: IrqLine) {
    this.#line = line;
  }

  /** One more device's end of the line, deasserted. */
  input(): IrqLine {
    let current = false;
    return {
      set: (level) => {
        if (level === current) return;
        current = level;
        this.#asserted += level ? 1 : -1;
        this.#line.set(this.#asserted > 0);
      },
    };
  }
}
