import type { AccessSize, BusDevice, Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import type { IrqLine } from '../../irq/irq-line.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import * as defs from '../defs.js';
import type { QueueEvents, VirtioDevice } from '../device.js';
import { TransportCore, type TransportCoreState } from './core.js';
import { RegisterMirror, type RegisterPage } from './register-page.js';

/** "VMEX", in the place where QEMU has "QEMU": says whose device it is, to people. */
const VENDOR_ID = 0x58454d56;
const ALL_ONES: Record<AccessSize, number> = { 1: 0xff, 2: 0xffff, 4: 0xffff_ffff };

/** How much of the bus a device takes: registers and up to 256 bytes of configuration come first, the rest is spare. */
export const VIRTIO_MMIO_BYTES = 0x1000;

export interface VirtioMmioConfig {
  device: VirtioDevice;
  memory: GuestMemory;
  /**
   * Asserted at every event, also while it is: 4.2.3.4 has it follow the status register as a level, but an input that
   * takes each assertion for an edge serves as well. What a level adds is another interrupt for a cause that an
   * acknowledgement left, and the line is asserted again then.
   */
  irq: IrqLine;
  /** By queue, for an external device. */
  events?: readonly QueueEvents[];
  /** Where the driver reads the registers, if not by {@link VirtioMmio.read}. */
  page?: RegisterPage;
  /**
   * Whether the driver has written INTERRUPT_USED_BUFFER to InterruptACK since the last call, where such writes go past
   * {@link VirtioMmio.write}. {@link VirtioMmio.settle} then follows each of them, in time.
   */
  takeAcknowledgement?: () => boolean;
}

export interface VirtioMmioState {
  deviceFeaturesSelect: number;
  driverFeaturesSelect: number;
  queueSelect: number;
  interruptStatus: number;
  core: TransportCoreState;
}

/** Virtio over MMIO, version 2: virtio 1.2, 4.2. One device, one interrupt line, {@link VIRTIO_MMIO_BYTES} of addresses. */
export class VirtioMmio implements BusDevice, Snapshottable<VirtioMmioState> {
  readonly name: string;
  readonly core: TransportCore;
  readonly #irq: IrqLine;
  readonly #mirror: RegisterMirror | undefined;
  readonly #takeAcknowledgement: () => boolean;
  #deviceFeaturesSelect = 0;
  #driverFeaturesSelect = 0;
  #queueSelect = 0;
  #interruptStatus = 0;

  /** @throws VmmError code "INVALID_ARGUMENT" when the device offers a queue size that cannot be. */
  constructor(config: VirtioMmioConfig) {
    this.name = config.device.name;
    this.#irq = config.irq;
    this.#takeAcknowledgement = config.takeAcknowledgement ?? (() => false);
    const interrupt = {
      queue: () => this.#raise(defs.INTERRUPT_USED_BUFFER),
      config: () => this.#raise(defs.INTERRUPT_CONFIG_CHANGE),
      registersChanged: () => this.#mirror?.updateAtOnce(),
    };
    this.core = new TransportCore(config.device, config.memory, interrupt, config.events);
    this.#mirror = config.page && new RegisterMirror(config.page, (offset) => this.#register(offset, 4));
  }

  read(offset: number, size: AccessSize): number {
    if (offset === defs.MMIO_INTERRUPT_STATUS) this.settle();
    return this.#register(offset, size);
  }

  #register(offset: number, size: AccessSize): number {
    if (offset >= defs.MMIO_CONFIG) return this.core.device.readConfig(offset - defs.MMIO_CONFIG, size);
    // 4.2.2.2: registers are read and written in aligned 32-bit units only.
    if (size !== 4 || offset % 4 !== 0) return ALL_ONES[size];
    switch (offset) {
      case defs.MMIO_MAGIC_VALUE:
        return defs.MMIO_MAGIC;
      case defs.MMIO_VERSION:
        return defs.MMIO_VERSION_MODERN;
      case defs.MMIO_DEVICE_ID:
        return this.core.device.type;
      case defs.MMIO_VENDOR_ID:
        return VENDOR_ID;
      case defs.MMIO_DEVICE_FEATURES:
        return this.core.deviceFeatures(this.#deviceFeaturesSelect);
      case defs.MMIO_QUEUE_SIZE_MAX:
        return this.core.queue(this.#queueSelect)?.maxSize ?? 0;
      case defs.MMIO_QUEUE_READY:
        return this.core.queue(this.#queueSelect)?.ready ? 1 : 0;
      case defs.MMIO_INTERRUPT_STATUS:
        return this.#interruptStatus;
      case defs.MMIO_STATUS:
        return this.core.status;
      case defs.MMIO_CONFIG_GENERATION:
        return this.core.configGeneration;
      default:
        // All ones is also what 4.2.2 asks of the length of a shared memory region that does not exist.
        return ALL_ONES[4];
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    this.#write(offset, size, value);
    this.#mirror?.update();
  }

  #write(offset: number, size: AccessSize, value: number): void {
    if (offset >= defs.MMIO_CONFIG) return this.core.device.writeConfig(offset - defs.MMIO_CONFIG, size, value);
    if (size !== 4 || offset % 4 !== 0) return;
    switch (offset) {
      case defs.MMIO_DEVICE_FEATURES_SEL:
        this.#deviceFeaturesSelect = value;
        return;
      case defs.MMIO_DRIVER_FEATURES_SEL:
        this.#driverFeaturesSelect = value;
        return;
      case defs.MMIO_DRIVER_FEATURES:
        return this.core.onDriverFeatures(this.#driverFeaturesSelect, value);
      case defs.MMIO_QUEUE_SEL:
        this.#queueSelect = value;
        return;
      case defs.MMIO_QUEUE_SIZE:
        return this.core.changeableQueue(this.#queueSelect)?.onDriverSize(value);
      case defs.MMIO_QUEUE_READY:
        return this.core.onDriverQueueReady(this.#queueSelect, (value & 1) !== 0);
      case defs.MMIO_QUEUE_NOTIFY:
        return this.core.onDriverNotify(value);
      case defs.MMIO_INTERRUPT_ACK:
        return this.#acknowledge(value);
      case defs.MMIO_STATUS:
        if ((value & 0xff) === 0) return this.reset();
        return this.core.onDriverStatus(value);
      case defs.MMIO_QUEUE_DESC_LOW:
      case defs.MMIO_QUEUE_DESC_HIGH:
        return this.#address('desc', offset, value);
      case defs.MMIO_QUEUE_DRIVER_LOW:
      case defs.MMIO_QUEUE_DRIVER_HIGH:
        return this.#address('avail', offset, value);
      case defs.MMIO_QUEUE_DEVICE_LOW:
      case defs.MMIO_QUEUE_DEVICE_HIGH:
        return this.#address('used', offset, value);
    }
  }

  reset(): void {
    this.#deviceFeaturesSelect = 0;
    this.#driverFeaturesSelect = 0;
    this.#queueSelect = 0;
    this.#interruptStatus = 0;
    this.core.reset();
    this.#irq.set(false);
    this.#mirror?.update();
  }

  /** Takes the acknowledgements that went past {@link write}. */
  settle(): void {
    if (this.#takeAcknowledgement()) this.#acknowledge(defs.INTERRUPT_USED_BUFFER);
  }

  save(): VirtioMmioState {
    this.settle();
    return {
      deviceFeaturesSelect: this.#deviceFeaturesSelect,
      driverFeaturesSelect: this.#driverFeaturesSelect,
      queueSelect: this.#queueSelect,
      interruptStatus: this.#interruptStatus,
      core: this.core.save(),
    };
  }

  /** Guest memory must have been restored before. */
  restore(state: VirtioMmioState): void {
    const saved = new SavedState(this.name, state);
    const deviceFeaturesSelect = saved.integer('deviceFeaturesSelect', 0xffff_ffff);
    const driverFeaturesSelect = saved.integer('driverFeaturesSelect', 0xffff_ffff);
    const queueSelect = saved.integer('queueSelect', 0xffff_ffff);
    const interruptStatus = saved.integer('interruptStatus', 3);
    this.reset();
    this.#deviceFeaturesSelect = deviceFeaturesSelect;
    this.#driverFeaturesSelect = driverFeaturesSelect;
    this.#queueSelect = queueSelect;
    this.#interruptStatus = interruptStatus;
    this.core.restore(state.core);
    this.#irq.set(this.#interruptStatus !== 0);
    this.#mirror?.update();
  }

  #address(part: 'desc' | 'avail' | 'used', offset: number, value: number): void {
    // The high half of each address is 4 bytes above the low one.
    this.core.changeableQueue(this.#queueSelect)?.onDriverAddress(part, offset & 4 ? 1 : 0, value);
  }

  #acknowledge(causes: number): void {
    this.#setInterruptStatus(this.#interruptStatus & ~causes);
    this.#irq.set(this.#interruptStatus !== 0);
  }

  #raise(cause: number): void {
    // What was acknowledged until now cannot be this event: taken later, it would clear what the driver has yet to read.
    // An acknowledgement from now on may be of an interrupt before, but the driver looks at its queues after it.
    this.settle();
    this.#setInterruptStatus(this.#interruptStatus | cause);
    this.#irq.set(true);
  }

  #setInterruptStatus(causes: number): void {
    this.#interruptStatus = causes;
    this.#mirror?.set(defs.MMIO_INTERRUPT_STATUS, causes);
  }
}
