/**
 * The test device that programs written to test KVM expect of QEMU (`pc-testdev`): ports that remember, a port that drops
 * a page mapping, interrupt lines at the guest's hand, and memory that every access to is an exit.
 */
import type { AccessSize, BusDevice } from '../../bus/device.js';
import type { IrqLine } from '../../irq/irq-line.js';
import { IsaDevice } from './isa-device.js';

/** Of {@link TestPorts}: data, and the page to drop in its second half. */
export const TEST_PORTS = 8;
const DROP_PAGE = 4;
const PAGE_BYTES = 4096;
/** Of {@link TestMemory}. */
export const TEST_MEMORY_BYTES = 0x10000;

export interface TestPortsConfig {
  /**
   * The guest wants the page that starts at `gpa` mapped anew: its contents stay, and the next access faults. The address
   * is any below 4 GiB.
   */
  onDropPage: (gpa: number) => void;
}

/** Eight ports that read back what was written. A write of 4 bytes to the fifth drops the page with that address, too. */
export class TestPorts extends IsaDevice {
  readonly name = 'test-ports';
  readonly #data = new Uint8Array(TEST_PORTS);
  readonly #onDropPage: (gpa: number) => void;

  constructor({ onDropPage }: TestPortsConfig) {
    super();
    this.#onDropPage = onDropPage;
  }

  override write(offset: number, size: AccessSize, value: number): void {
    super.write(offset, size, value);
    if (offset === DROP_PAGE && size === 4) this.#onDropPage(value - (value % PAGE_BYTES));
  }

  protected readByte(offset: number): number {
    return this.#data[offset];
  }

  protected writeByte(offset: number, value: number): void {
    this.#data[offset] = value;
  }

  reset(): void {
    this.#data.fill(0);
  }
}

/** Port n drives interrupt line n: up for any value but 0. Writes of more than a byte are ignored. */
export class TestIrqs implements BusDevice {
  readonly name = 'test-irqs';
  readonly #lines: readonly IrqLine[];

  constructor(lines: readonly IrqLine[]) {
    this.#lines = lines;
  }

  read(_offset: number, size: AccessSize): number {
    return 2 ** (8 * size) - 1;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 1) this.#lines[offset]?.set(value !== 0);
  }

  reset(): void {
    for (const line of this.#lines) line.set(false);
  }
}

/** Memory behind exits: what a test of KVM's instruction emulator reads and writes. */
export class TestMemory implements BusDevice {
  readonly name = 'test-memory';
  readonly #bytes = new Uint8Array(TEST_MEMORY_BYTES);

  read(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + this.#bytes[offset + i];
    return value;
  }

  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) this.#bytes[offset + i] = value >>> (8 * i);
  }

  reset(): void {
    this.#bytes.fill(0);
  }
}
