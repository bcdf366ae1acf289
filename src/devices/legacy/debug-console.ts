/**
 * The debug console of Bochs and QEMU (`isa-debugcon`), customarily at port 0xe9: a byte written is a byte printed, and
 * a read returns the port's number, by which a guest knows that it is there.
 */
import { IsaDevice } from './isa-device.js';

const PRESENT = 0xe9;

export interface DebugConsoleConfig {
  /** Takes one byte now; returns false when there is no room, and the byte is lost. */
  output: { write(byte: number): boolean };
}

export class DebugConsole extends IsaDevice {
  readonly name = 'debug-console';
  /** Bytes that the output had no room for. */
  droppedOutputBytes = 0;
  readonly #output: DebugConsoleConfig['output'];

  constructor(config: DebugConsoleConfig) {
    super();
    this.#output = config.output;
  }

  protected readByte(): number {
    return PRESENT;
  }

  protected writeByte(_offset: number, value: number): void {
    if (!this.#output.write(value)) this.droppedOutputBytes++;
  }

  reset(): void {}
}
