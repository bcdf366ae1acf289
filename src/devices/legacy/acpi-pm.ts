/**
 * Power-off and reboot for a hardware-reduced ACPI machine: ACPI 6.5, 4.8.3.7 (sleep control and status registers) and
 * 4.8.3.6 (reset register). Three registers of a byte at consecutive offsets; the machine may give each its own range.
 */
import { IsaDevice } from './isa-device.js';

export const ACPI_SLEEP_CONTROL_OFFSET = 0;
export const ACPI_SLEEP_STATUS_OFFSET = 1;
export const ACPI_RESET_OFFSET = 2;

const SLEEP_TYPE_SHIFT = 2;
const SLEEP_TYPE_MASK = 0x07;
const SLEEP_ENABLE = 0x20;

export interface AcpiPmConfig {
  /** SLP_TYP of S5, as the DSDT's \_S5 package says it. */
  sleepTypeS5: number;
  /** RESET_VALUE, as the FADT says it. */
  resetValue: number;
  /** Both are called from inside the guest's port write. */
  onShutdown: () => void;
  onReset: () => void;
}

export class AcpiPm extends IsaDevice {
  readonly name = 'acpi-pm';
  readonly #config: AcpiPmConfig;

  constructor(config: AcpiPmConfig) {
    super();
    this.#config = config;
  }

  /** Sleep control is write-only in effect, and WAK_STS in sleep status stays 0: there is no state to wake from. */
  protected readByte(): number {
    return 0;
  }

  protected writeByte(offset: number, value: number): void {
    if (offset === ACPI_SLEEP_CONTROL_OFFSET) {
      const type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
      if (value & SLEEP_ENABLE && type === this.#config.sleepTypeS5) this.#config.onShutdown();
    } else if (offset === ACPI_RESET_OFFSET && value === this.#config.resetValue) {
      this.#config.onReset();
    }
  }

  reset(): void {}
}
