import type { AccessSize } from '../../bus/device.js';
import { ConfigSpace, type ConfigSpaceState } from './config-space.js';
import type { PciFunction } from './function.js';

/**
 * What a guest sees of the host bridge: nothing to program. The IDs are those of QEMU's generic PCI Express host bridge,
 * which no guest has a driver or a quirk for.
 */
export class HostBridge implements PciFunction<ConfigSpaceState> {
  readonly name = 'pci-host-bridge';
  readonly config = new ConfigSpace({ vendorId: 0x1b36, deviceId: 0x0008, classCode: 0x060000 });

  attach(): void {}

  readBar(_bar: number, _offset: number, size: AccessSize): number {
    return 2 ** (8 * size) - 1;
  }

  writeBar(): void {}

  reset(): void {
    this.config.reset();
  }

  save(): ConfigSpaceState {
    return this.config.save();
  }

  restore(state: ConfigSpaceState): void {
    this.config.restore(state);
  }
}
