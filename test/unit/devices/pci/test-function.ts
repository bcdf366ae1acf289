import type { AccessSize } from '../../../../src/bus/device.js';
import { ConfigSpace, type ConfigSpaceOptions } from '../../../../src/devices/pci/config-space.js';
import type { PciFunction, PciSlot } from '../../../../src/devices/pci/function.js';

/** A function whose BARs are plain bytes, all accesses noted. */
export class TestFunction implements PciFunction<{ config: { bytes: Uint8Array } }> {
  readonly config: ConfigSpace;
  slot: PciSlot | undefined;
  readonly moves: [bar: number, address: number | undefined][] = [];
  readonly written: [bar: number, offset: number, size: AccessSize, value: number][] = [];

  constructor(
    options: Partial<ConfigSpaceOptions> = {},
    readonly name = 'test-function',
  ) {
    this.config = new ConfigSpace({ vendorId: 0x1234, deviceId: 0x5678, classCode: 0xff0000, ...options });
  }

  attach(slot: PciSlot): void {
    this.slot = slot;
  }
  readBar(bar: number, offset: number, size: AccessSize): number {
    return (bar * 0x1000 + offset) % 2 ** (8 * size);
  }
  writeBar(bar: number, offset: number, size: AccessSize, value: number): void {
    this.written.push([bar, offset, size, value]);
  }
  onBarMoved(bar: number, address: number | undefined): void {
    this.moves.push([bar, address]);
  }
  reset(): void {
    this.config.reset();
  }
  save() {
    return { config: this.config.save() };
  }
  restore(state: { config: { bytes: Uint8Array } }): void {
    this.config.restore(state.config);
  }
}
