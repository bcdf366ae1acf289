/** An interrupt input of the interrupt controller, as a device sees it. */
export interface IrqLine {
  /** Drives the line: true asserts, false deasserts. Setting the level it already has costs nothing. */
  set(level: boolean): void;
}

/** An {@link IrqLine} that only remembers: for unit tests and for devices whose interrupt is not wired. */
export class FakeIrqLine implements IrqLine {
  level = false;
  /** Rising edges seen. */
  edges = 0;

  set(level: boolean): void {
    if (level && !this.level) this.edges++;
    this.level = level;
  }
}
