/**
 * The port by which a kernel reports its panic: QEMU's docs/specs/pvpanic, ISA variant, customarily at port 0x505. A read
 * tells which events can be reported, a write reports some.
 */
import { IsaDevice } from './isa-device.js';

const PANICKED = 0x01; // the guest panicked and does nothing more
const CRASH_LOADED = 0x02; // the guest panicked and now runs its crash kernel
const SUPPORTED = PANICKED | CRASH_LOADED;

export interface PvpanicConfig {
  /** Both are called from inside the guest's port write. */
  onPanic: () => void;
  onCrashLoaded?: () => void;
}

export class Pvpanic extends IsaDevice {
  readonly name = 'pvpanic';
  readonly #config: PvpanicConfig;

  constructor(config: PvpanicConfig) {
    super();
    this.#config = config;
  }

  protected readByte(): number {
    return SUPPORTED;
  }

  protected writeByte(_offset: number, value: number): void {
    if (value & PANICKED) this.#config.onPanic();
    else if (value & CRASH_LOADED) this.#config.onCrashLoaded?.();
  }

  reset(): void {}
}
