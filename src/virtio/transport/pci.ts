import type { AccessSize, Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import type { IrqLine } from '../../irq/irq-line.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import { INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER, STATUS_DRIVER_OK, STATUS_NEEDS_RESET } from '../defs.js';
import type { QueueEvents, VirtioDevice, VirtioInterrupt } from '../device.js';
import { TransportCore, type TransportCoreState } from './core.js';
import * as defs from './pci-defs.js';

/** The structures in the transport's BAR, a page each: a guest, or a hypervisor, can map them apart. */
export const PCI_COMMON_OFFSET = 0x0000;
export const PCI_ISR_OFFSET = 0x1000;
export const PCI_DEVICE_OFFSET = 0x2000;
export const PCI_NOTIFY_OFFSET = 0x3000;
export const PCI_STRUCTURE_BYTES = 0x1000;
export const PCI_BAR_BYTES = 0x4000;
/** Every queue has its own address to kick, so that each can be an ioeventfd. */
export const PCI_NOTIFY_MULTIPLIER = 4;

/** The function's interrupts, as the transport needs them. */
export interface VirtioPciInterrupts {
  /** Asserted while the ISR register holds something and MSI-X is off. */
  readonly intx: IrqLine;
  readonly msix:
    | {
        readonly enabled: boolean;
        readonly vectorCount: number;
        signal(vector: number): void;
        /** An eventfd that sends the vector's message; undefined where the machine has none. */
        eventFd(vector: number): number | undefined;
      }
    | undefined;
}

export interface VirtioPciTransportConfig {
  device: VirtioDevice;
  memory: GuestMemory;
  interrupts: VirtioPciInterrupts;
  /** By queue, for an external device. */
  events?: readonly QueueEvents[];
  /** Called with the queue's index when a kick of it may go past {@link VirtioPciTransport}, and when no longer. */
  onNotifyAddress?: (queue: number, gpa: number | undefined) => void;
}

export interface VirtioPciTransportState {
  deviceFeatureSelect: number;
  driverFeatureSelect: number;
  queueSelect: number;
  isr: number;
  configVector: number;
  queueVectors: number[];
  core: TransportCoreState;
}

const ALL_ONES: Record<AccessSize, number> = { 1: 0xff, 2: 0xffff, 4: 0xffff_ffff };

/** The registers of virtio over PCI, as a BAR of {@link PCI_BAR_BYTES}: virtio 1.2, 4.1.4. */
export class VirtioPciTransport implements Snapshottable<VirtioPciTransportState> {
  readonly core: TransportCore;
  readonly #interrupts: VirtioPciInterrupts;
  readonly #onNotifyAddress: ((queue: number, gpa: number | undefined) => void) | undefined;
  readonly #notifyAddresses: (number | undefined)[];
  readonly #queueVectors: number[];
  #configVector = defs.VIRTIO_MSI_NO_VECTOR;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #queueSelect = 0;
  #isr = 0;
  #gpa: number | undefined;

  /** @throws VmmError code "INVALID_ARGUMENT" when the device offers a queue size that cannot be. */
  constructor(config: VirtioPciTransportConfig) {
    this.#interrupts = config.interrupts;
    this.#onNotifyAddress = config.onNotifyAddress;
    const interrupt: VirtioInterrupt = {
      queue: (index) => this.#interrupt(INTERRUPT_USED_BUFFER, this.#queueVectors[index]),
      config: () => {
        this.#interrupt(INTERRUPT_CONFIG_CHANGE, this.#configVector);
        this.#updateNotifyAddresses(); // the device may have failed, or recovered
      },
      callFd: (index) => {
        const { msix } = this.#interrupts;
        return msix?.enabled ? msix.eventFd(this.#queueVectors[index]) : undefined;
      },
    };
    this.core = new TransportCore(config.device, config.memory, interrupt, config.events);
    this.#queueVectors = Array<number>(this.core.queueCount).fill(defs.VIRTIO_MSI_NO_VECTOR);
    this.#notifyAddresses = Array<undefined>(this.core.queueCount).fill(undefined);
  }

  read(offset: number, size: AccessSize): number {
    if (offset < PCI_ISR_OFFSET) return this.#readCommon(offset, size);
    if (offset < PCI_DEVICE_OFFSET) return offset === PCI_ISR_OFFSET && size === 1 ? this.#takeIsr() : ALL_ONES[size];
    if (offset < PCI_NOTIFY_OFFSET) return this.core.device.readConfig(offset - PCI_DEVICE_OFFSET, size);
    return ALL_ONES[size];
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset < PCI_ISR_OFFSET) this.#writeCommon(offset, size, value);
    else if (offset < PCI_DEVICE_OFFSET) return;
    else if (offset < PCI_NOTIFY_OFFSET) this.core.device.writeConfig(offset - PCI_DEVICE_OFFSET, size, value);
    else if (offset % PCI_NOTIFY_MULTIPLIER === 0 && size > 1) {
      // By address and not by value, as an ioeventfd sees it. 4.1.5.2: two bytes, or four with notification data.
      this.core.onDriverNotify((offset - PCI_NOTIFY_OFFSET) / PCI_NOTIFY_MULTIPLIER);
    }
  }

  /** The guest mapped the BAR at this address, or nowhere. */
  moved(gpa: number | undefined): void {
    this.#gpa = gpa;
    this.#updateNotifyAddresses();
  }

  /** MSI-X was turned on or off: the interrupt pin and external devices follow. */
  onMsixSwitch(): void {
    this.updateIntx();
    this.core.updateCallFds();
  }

  updateIntx(): void {
    this.#interrupts.intx.set(this.#isr !== 0 && !this.#interrupts.msix?.enabled);
  }

  reset(): void {
    this.#deviceFeatureSelect = 0;
    this.#driverFeatureSelect = 0;
    this.#queueSelect = 0;
    this.#configVector = defs.VIRTIO_MSI_NO_VECTOR;
    this.#queueVectors.fill(defs.VIRTIO_MSI_NO_VECTOR);
    this.core.reset();
    this.#isr = 0;
    this.updateIntx();
    this.#updateNotifyAddresses();
  }

  save(): VirtioPciTransportState {
    return {
      deviceFeatureSelect: this.#deviceFeatureSelect,
      driverFeatureSelect: this.#driverFeatureSelect,
      queueSelect: this.#queueSelect,
      isr: this.#isr,
      configVector: this.#configVector,
      queueVectors: [...this.#queueVectors],
      core: this.core.save(),
    };
  }

  /**
   * Guest memory and MSI-X must have been restored before.
   *
   * @throws VmmError code "INVALID_ARGUMENT"; the device is reset then.
   */
  restore(state: VirtioPciTransportState): void {
    this.reset();
    const name = this.core.device.name;
    const saved = new SavedState(name, state);
    const deviceFeatureSelect = saved.integer('deviceFeatureSelect', 0xffff_ffff);
    const driverFeatureSelect = saved.integer('driverFeatureSelect', 0xffff_ffff);
    const queueSelect = saved.integer('queueSelect', 0xffff);
    const isr = saved.integer('isr', 3);
    const configVector = this.#existing(saved.integer('configVector', 0xffff));
    const list = new SavedState(`${name}: queueVectors`, saved.list('queueVectors', this.core.queueCount));
    const queueVectors = this.#queueVectors.map((_, i) => this.#existing(list.integer(String(i), 0xffff)));
    this.#deviceFeatureSelect = deviceFeatureSelect;
    this.#driverFeatureSelect = driverFeatureSelect;
    this.#queueSelect = queueSelect;
    this.#isr = isr;
    this.#configVector = configVector;
    queueVectors.forEach((vector, i) => (this.#queueVectors[i] = vector));
    try {
      this.core.restore(state.core);
    } catch (error) {
      this.reset();
      throw error;
    }
    this.updateIntx();
    this.#updateNotifyAddresses();
  }

  /** 4.1.3.1: each field is accessed in its own width, 64-bit fields in halves. Anything else meets no register. */
  #readCommon(offset: number, size: AccessSize): number {
    if (size !== commonFieldBytes(offset)) return ALL_ONES[size];
    const queue = this.core.queue(this.#queueSelect);
    switch (offset) {
      case defs.COMMON_DEVICE_FEATURE_SELECT:
        return this.#deviceFeatureSelect;
      case defs.COMMON_DEVICE_FEATURE:
        return this.core.deviceFeatures(this.#deviceFeatureSelect);
      case defs.COMMON_DRIVER_FEATURE_SELECT:
        return this.#driverFeatureSelect;
      case defs.COMMON_DRIVER_FEATURE:
        return this.core.driverFeatures(this.#driverFeatureSelect);
      case defs.COMMON_CONFIG_MSIX_VECTOR:
        return this.#configVector;
      case defs.COMMON_NUM_QUEUES:
        return this.core.queueCount;
      case defs.COMMON_DEVICE_STATUS:
        return this.core.status;
      case defs.COMMON_CONFIG_GENERATION:
        return this.core.configGeneration;
      case defs.COMMON_QUEUE_SELECT:
        return this.#queueSelect;
      case defs.COMMON_QUEUE_SIZE:
        return queue?.size ?? 0;
      case defs.COMMON_QUEUE_MSIX_VECTOR:
        return this.#queueVectors[this.#queueSelect] ?? 0;
      case defs.COMMON_QUEUE_ENABLE:
        return queue?.ready ? 1 : 0;
      case defs.COMMON_QUEUE_NOTIFY_OFF:
        return queue ? this.#queueSelect : 0;
      case defs.COMMON_QUEUE_DESC:
      case defs.COMMON_QUEUE_DESC + 4:
        return queue?.desc[half(offset)] ?? 0;
      case defs.COMMON_QUEUE_DRIVER:
      case defs.COMMON_QUEUE_DRIVER + 4:
        return queue?.avail[half(offset)] ?? 0;
      case defs.COMMON_QUEUE_DEVICE:
      case defs.COMMON_QUEUE_DEVICE + 4:
        return queue?.used[half(offset)] ?? 0;
      default:
        return 0; // queue_notify_data and queue_reset, whose features are not offered
    }
  }

  #writeCommon(offset: number, size: AccessSize, value: number): void {
    if (size !== commonFieldBytes(offset)) return;
    switch (offset) {
      case defs.COMMON_DEVICE_FEATURE_SELECT:
        this.#deviceFeatureSelect = value;
        return;
      case defs.COMMON_DRIVER_FEATURE_SELECT:
        this.#driverFeatureSelect = value;
        return;
      case defs.COMMON_DRIVER_FEATURE:
        return this.core.onDriverFeatures(this.#driverFeatureSelect, value);
      case defs.COMMON_CONFIG_MSIX_VECTOR:
        this.#configVector = this.#existing(value);
        return;
      case defs.COMMON_DEVICE_STATUS:
        if (value === 0) return this.reset();
        this.core.onDriverStatus(value);
        return this.#updateNotifyAddresses();
      case defs.COMMON_QUEUE_SELECT:
        this.#queueSelect = value;
        return;
      case defs.COMMON_QUEUE_SIZE:
        return this.core.changeableQueue(this.#queueSelect)?.onDriverSize(value);
      case defs.COMMON_QUEUE_MSIX_VECTOR:
        if (this.core.queue(this.#queueSelect)) this.#queueVectors[this.#queueSelect] = this.#existing(value);
        return this.core.updateCallFds();
      case defs.COMMON_QUEUE_ENABLE:
        // 4.1.4.3.2: drivers write 1 alone; a queue is disabled by the device's reset.
        if (value === 1) this.core.onDriverQueueReady(this.#queueSelect, true);
        return;
      case defs.COMMON_QUEUE_DESC:
      case defs.COMMON_QUEUE_DESC + 4:
        return this.core.changeableQueue(this.#queueSelect)?.onDriverAddress('desc', half(offset), value);
      case defs.COMMON_QUEUE_DRIVER:
      case defs.COMMON_QUEUE_DRIVER + 4:
        return this.core.changeableQueue(this.#queueSelect)?.onDriverAddress('avail', half(offset), value);
      case defs.COMMON_QUEUE_DEVICE:
      case defs.COMMON_QUEUE_DEVICE + 4:
        return this.core.changeableQueue(this.#queueSelect)?.onDriverAddress('used', half(offset), value);
    }
  }

  /** 4.1.5.1.2.1: a vector that cannot be had reads back as none. */
  #existing(vector: number): number {
    return vector < (this.#interrupts.msix?.vectorCount ?? 0) ? vector : defs.VIRTIO_MSI_NO_VECTOR;
  }

  #interrupt(cause: number, vector: number): void {
    const { msix } = this.#interrupts;
    // 4.1.4.5.1: the configuration bit is set for either kind of interrupt; that of the queues, for the pin alone.
    if (!msix?.enabled || cause === INTERRUPT_CONFIG_CHANGE) this.#isr |= cause;
    if (msix?.enabled) msix.signal(vector);
    this.updateIntx();
  }

  /** 4.1.4.5: reading acknowledges. */
  #takeIsr(): number {
    const isr = this.#isr;
    this.#isr = 0;
    this.updateIntx();
    return isr;
  }

  /**
   * A queue's kicks may bypass this class while the BAR is mapped and the queue is live, not before: to register an
   * ioeventfd costs milliseconds, and a guest's PCI code maps and unmaps BARs several times before a driver comes.
   */
  #updateNotifyAddresses(): void {
    const active = (this.core.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) === STATUS_DRIVER_OK;
    for (let queue = 0; queue < this.#notifyAddresses.length; queue++) {
      const gpa =
        this.#gpa !== undefined && active && this.core.queue(queue)?.ready
          ? this.#gpa + PCI_NOTIFY_OFFSET + queue * PCI_NOTIFY_MULTIPLIER
          : undefined;
      if (gpa === this.#notifyAddresses[queue]) continue;
      this.#notifyAddresses[queue] = gpa;
      this.#onNotifyAddress?.(queue, gpa);
    }
  }
}

/** 0 where no field starts. */
function commonFieldBytes(offset: number): number {
  if (offset >= defs.COMMON_BYTES) return 0;
  if (offset === defs.COMMON_DEVICE_STATUS || offset === defs.COMMON_CONFIG_GENERATION) return 1;
  const words = offset >= defs.COMMON_CONFIG_MSIX_VECTOR && offset < defs.COMMON_QUEUE_DESC;
  const size = words || offset >= defs.COMMON_QUEUE_NOTIFY_DATA ? 2 : 4;
  return offset % size === 0 ? size : 0;
}

const half = (offset: number) => (offset & 4 ? 1 : 0);
