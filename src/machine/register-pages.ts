import { KVM_CAP } from '../kvm/abi.js';
import type { GuestRam } from '../kvm/ram.js';
import type { Vm } from '../kvm/vm.js';
import { VIRTIO_MMIO_BYTES } from '../virtio/transport/mmio.js';
import type { RegisterPage } from '../virtio/transport/register-page.js';
import { VIRTIO_MMIO } from './layout.js';

/**
 * The registers of virtio devices on MMIO as memory that the guest can read and not write: one slot for all of them, so that
 * a read costs no exit. A write exits, or signals an ioeventfd, as if there were no memory.
 */
export class RegisterPages {
  readonly #vm: Vm;
  readonly #ram: GuestRam;

  /** @returns undefined where KVM has no KVM_CAP_READONLY_MEM. */
  static add(vm: Vm): RegisterPages | undefined {
    return vm.checkExtension(KVM_CAP.READONLY_MEM) ? new RegisterPages(vm) : undefined;
  }

  private constructor(vm: Vm) {
    this.#vm = vm;
    const size = VIRTIO_MMIO.GSIS.length * VIRTIO_MMIO_BYTES;
    this.#ram = vm.addMemory({ gpa: VIRTIO_MMIO.BASE_GPA, size, readOnly: true, cpuOnly: true });
    // As the bus reads where no device is.
    this.#ram.bytes.fill(0xff);
  }

  page(index: number): RegisterPage {
    const { buffer, byteOffset } = this.#ram.bytes;
    return {
      words: new Uint32Array(buffer, byteOffset + index * VIRTIO_MMIO_BYTES, VIRTIO_MMIO_BYTES / 4),
      exclusively: (change) => this.#vm.withoutMemory(this.#ram, change),
    };
  }
}
