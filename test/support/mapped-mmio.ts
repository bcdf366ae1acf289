import type { AccessSize } from '../../src/bus/device.js';
import { MMIO_CONFIG, MMIO_INTERRUPT_ACK, STATUS_DRIVER_OK } from '../../src/virtio/defs.js';
import { VIRTIO_MMIO_BYTES, VirtioMmio, type VirtioMmioConfig } from '../../src/virtio/transport/mmio.js';

/**
 * Virtio over MMIO as a guest under KVM has it: registers are read from a page, and an acknowledgement of used buffers is
 * only counted. What a read of the register would return must stand in the page.
 */
export class MappedMmio extends VirtioMmio {
  /** All of the page. */
  readonly words: Uint32Array;
  /** How often the guest was kept from reading. */
  readonly exclusions: () => number;
  readonly #acknowledge: () => void;

  constructor(config: Omit<VirtioMmioConfig, 'page' | 'takeAcknowledgement'>) {
    const words = new Uint32Array(VIRTIO_MMIO_BYTES / 4).fill(0xffff_ffff);
    let exclusions = 0;
    let acknowledged = false;
    const page = {
      words,
      exclusively: (change: () => void) => {
        exclusions++;
        change();
      },
    };
    const takeAcknowledgement = () => {
      const taken = acknowledged;
      acknowledged = false;
      return taken;
    };
    super({ ...config, page, takeAcknowledgement });
    this.words = words;
    this.exclusions = () => exclusions;
    this.#acknowledge = () => (acknowledged = true);
  }

  override read(offset: number, size: AccessSize): number {
    const asked = super.read(offset, size);
    if (size !== 4 || offset % 4 !== 0) return asked;
    // Before DRIVER_OK nobody is told of a change, and the next write brings it.
    if (offset >= MMIO_CONFIG && !(this.core.status & STATUS_DRIVER_OK)) return asked;
    const found = this.words[offset / 4];
    if (found !== asked) throw new Error(`register 0x${offset.toString(16)}: the page has ${found}, not ${asked}`);
    return found;
  }

  override write(offset: number, size: AccessSize, value: number): void {
    if (offset !== MMIO_INTERRUPT_ACK || size !== 4 || value !== 1) return super.write(offset, size, value);
    this.#acknowledge();
    this.settle();
  }

  /** What the driver acknowledges while this side is at something else. */
  acknowledgeUnseen(): void {
    this.#acknowledge();
  }
}
