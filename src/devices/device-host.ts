import type { IrqLine } from '../irq/irq-line.js';

/** What a machine gives a device of its user's, as the second argument of the constructor. */
export interface DeviceHost {
  /** The interrupt line that the option `irq` names; without that option it leads nowhere. */
  readonly irq: IrqLine;
  /** Reports that what the device stands on broke down: `deviceError` at the machine. The guest goes on. */
  fail(error: Error): void;
}
