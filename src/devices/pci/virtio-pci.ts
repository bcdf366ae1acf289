import type { AccessSize } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import type { MsiTarget } from '../../irq/msi.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import * as virtio from '../../virtio/defs.js';
import type { QueueEvents, VirtioDevice } from '../../virtio/device.js';
import type { TransportCore } from '../../virtio/transport/core.js';
import {
  PCI_BAR_BYTES,
  PCI_COMMON_OFFSET,
  PCI_DEVICE_OFFSET,
  PCI_ISR_OFFSET,
  PCI_NOTIFY_MULTIPLIER,
  PCI_NOTIFY_OFFSET,
  PCI_STRUCTURE_BYTES,
  VirtioPciTransport,
  type VirtioPciTransportState,
} from '../../virtio/transport/pci.js';
import * as cap from '../../virtio/transport/pci-defs.js';
import { type BarDescription, ConfigSpace, type ConfigSpaceState } from './config-space.js';
import { CAPABILITY_VENDOR } from './defs.js';
import type { PciFunction, PciSlot } from './function.js';
import { InterruptPin } from './intx.js';
import { Msix, msixLayout, type MsixState } from './msix.js';

export interface VirtioPciConfig {
  device: VirtioDevice;
  memory: GuestMemory;
  /** Gives one vector a queue, and one for configuration changes. Without it the function has its interrupt pin alone. */
  msi?: MsiTarget;
  /** By queue, for an external device. */
  events?: readonly QueueEvents[];
  /**
   * A kick of this queue is a write of any width to `gpa`, until further notice; undefined: no longer. For an ioeventfd,
   * whose listener is to call {@link VirtioPci.notify}. Never called twice with the same address.
   */
  onNotifyAddress?: (queue: number, gpa: number | undefined) => void;
}

export interface VirtioPciState {
  config: ConfigSpaceState;
  msix: MsixState | undefined;
  transport: VirtioPciTransportState;
}

/** Base class, subclass and interface by device type (PCI Code and ID Assignment Specification); others are "other". */
const CLASS_CODES: Readonly<Record<number, number>> = {
  [virtio.VIRTIO_ID_NET]: 0x020000, // Ethernet controller
  [virtio.VIRTIO_ID_BLOCK]: 0x018000, // mass storage, other
  [virtio.VIRTIO_ID_CONSOLE]: 0x078000, // simple communication, other
  [virtio.VIRTIO_ID_VSOCK]: 0x078000,
  [virtio.VIRTIO_ID_FS]: 0x018000,
};
const OTHER_CLASS = 0xff0000;

const REGISTERS_BAR = 0;
const MSIX_BAR = 1;
const NOTIFY_QUEUES_MAX = PCI_STRUCTURE_BYTES / PCI_NOTIFY_MULTIPLIER;

/**
 * A virtio device as a function on the PCI bus: virtio 1.2, 4.1, without the transitional interface.
 *
 * Both BARs are of the 32-bit kind: they are small, any guest can reach them, real-mode firmware and kernels without PAE
 * included, and reading the ISR register has a side effect, so that a 64-bit BAR could not go into a prefetchable window,
 * the only sort that bridges have above 4 GiB. MSI-X has the second one to itself, as its table may not share a page.
 *
 * Without bus mastering no message leaves; queues go on until the driver resets the device.
 */
export class VirtioPci implements PciFunction<VirtioPciState> {
  readonly name: string;
  readonly config: ConfigSpace;
  readonly #transport: VirtioPciTransport;
  readonly #msix: Msix | undefined;
  readonly #pin: InterruptPin;
  readonly #barBytes: readonly number[];
  /** Offset of the capability through which a guest reaches the BARs by configuration accesses. */
  readonly #window: number;

  /** @throws VmmError code "INVALID_ARGUMENT" when the device offers queues that cannot be. */
  constructor(options: VirtioPciConfig) {
    const { device, msi } = options;
    const queues = device.queueSizes.length;
    if (queues > NOTIFY_QUEUES_MAX) {
      throw new VmmError('INVALID_ARGUMENT', `${device.name} has ${queues} queues; PCI takes ${NOTIFY_QUEUES_MAX}`);
    }
    const vectors = msi ? Array.from({ length: queues + 1 }, () => msi.vector()) : [];
    const bars: BarDescription[] = [{ kind: 'memory32', sizeBytes: PCI_BAR_BYTES }];
    if (msi) bars.push({ kind: 'memory32', sizeBytes: msixLayout(vectors.length).barBytes });
    this.name = device.name;
    this.#barBytes = bars.map(({ sizeBytes }) => sizeBytes);
    this.config = new ConfigSpace({
      vendorId: cap.PCI_VENDOR_VIRTIO,
      deviceId: cap.PCI_DEVICE_MODERN + device.type,
      revision: cap.PCI_REVISION_MODERN,
      classCode: CLASS_CODES[device.type] ?? OTHER_CLASS,
      subsystemVendorId: cap.PCI_VENDOR_VIRTIO,
      subsystemId: cap.PCI_SUBSYSTEM_MODERN,
      interruptPin: 1,
      bars,
    });
    this.#pin = new InterruptPin(this.config);
    if (msi) this.#msix = new Msix(this.config, MSIX_BAR, vectors, () => this.#transport.onMsixSwitch());
    this.#transport = new VirtioPciTransport({
      ...options,
      interrupts: { intx: this.#pin, msix: this.#msix },
    });
    this.#addStructure(cap.PCI_CAP_COMMON, PCI_COMMON_OFFSET, cap.COMMON_BYTES);
    this.#addStructure(cap.PCI_CAP_ISR, PCI_ISR_OFFSET, 1);
    this.#addStructure(cap.PCI_CAP_DEVICE, PCI_DEVICE_OFFSET, PCI_STRUCTURE_BYTES);
    this.#addStructure(cap.PCI_CAP_NOTIFY, PCI_NOTIFY_OFFSET, queues * PCI_NOTIFY_MULTIPLIER, PCI_NOTIFY_MULTIPLIER);
    this.#window = this.#addWindow();
  }

  /** Status, negotiated features and failures of the device. */
  get core(): TransportCore {
    return this.#transport.core;
  }

  /** A kick that came past the BAR, by an ioeventfd. */
  notify(queue: number): void {
    this.#transport.core.onDriverNotify(queue);
  }

  attach(slot: PciSlot): void {
    this.#pin.connect(slot.intx);
  }

  readBar(bar: number, offset: number, size: AccessSize): number {
    return bar === REGISTERS_BAR ? this.#transport.read(offset, size) : this.#msix!.read(offset, size);
  }

  writeBar(bar: number, offset: number, size: AccessSize, value: number): void {
    if (bar === REGISTERS_BAR) this.#transport.write(offset, size, value);
    else this.#msix!.write(offset, size, value);
  }

  onBarMoved(bar: number, address: number | undefined): void {
    if (bar === REGISTERS_BAR) this.#transport.moved(address);
  }

  reset(): void {
    this.#transport.reset();
    this.#msix?.reset();
    this.config.reset();
  }

  save(): VirtioPciState {
    return { config: this.config.save(), msix: this.#msix?.save(), transport: this.#transport.save() };
  }

  restore(state: VirtioPciState): void {
    this.reset();
    try {
      new SavedState(this.name, state);
      this.config.restore(state.config);
      this.#msix?.restore(state.msix!);
      this.#transport.restore(state.transport);
    } catch (error) {
      this.reset();
      throw error;
    }
  }

  /** struct virtio_pci_cap, from its third byte on, with what may follow. */
  #addStructure(type: number, offset: number, length: number, extra?: number): void {
    const view = new DataView(new ArrayBuffer(cap.CAP_BYTES + (extra === undefined ? 0 : 4)));
    view.setUint8(2, view.byteLength);
    view.setUint8(cap.CAP_CFG_TYPE, type);
    view.setUint8(cap.CAP_BAR, REGISTERS_BAR);
    view.setUint32(cap.CAP_OFFSET, offset, true);
    view.setUint32(cap.CAP_LENGTH, length, true);
    if (extra !== undefined) view.setUint32(cap.CAP_BYTES, extra, true);
    this.config.addCapability(CAPABILITY_VENDOR, new Uint8Array(view.buffer, 2));
  }

  /** 4.1.4.9: bar, offset and length are the guest's to write, and an access to the data is one to the BAR. */
  #addWindow(): number {
    const body = new Uint8Array(cap.CAP_BYTES + 4);
    const writable = new Uint8Array(body.length);
    body[2] = body.length;
    body[cap.CAP_CFG_TYPE] = cap.PCI_CAP_PCI;
    writable[cap.CAP_BAR] = 0xff;
    writable.fill(0xff, cap.CAP_OFFSET);
    const at = this.config.addCapability(CAPABILITY_VENDOR, body.subarray(2), writable.subarray(2));
    this.config.watch(at + cap.CAP_PCI_DATA, 4, {
      beforeRead: () => {
        const target = this.#windowTarget();
        if (!target) return;
        const value = this.readBar(target.bar, target.offset, target.size);
        this.config.poke(at + cap.CAP_PCI_DATA, target.size, value);
      },
      afterWrite: () => {
        const target = this.#windowTarget();
        if (!target) return;
        const value = this.config.peek(at + cap.CAP_PCI_DATA, target.size);
        this.writeBar(target.bar, target.offset, target.size, value);
      },
    });
    return at;
  }

  /** Where the window leads; undefined where no access can go: no such BAR, beyond its end, misaligned. */
  #windowTarget(): { bar: number; offset: number; size: AccessSize } | undefined {
    const bar = this.config.peek(this.#window + cap.CAP_BAR, 1);
    const offset = this.config.peek(this.#window + cap.CAP_OFFSET, 4);
    const size = this.config.peek(this.#window + cap.CAP_LENGTH, 4);
    if (size !== 1 && size !== 2 && size !== 4) return undefined;
    const inside = bar < this.#barBytes.length && offset + size <= this.#barBytes[bar];
    return inside && offset % size === 0 ? { bar, offset, size } : undefined;
  }
}
