import { VmmError } from '../../errors.js';
import * as defs from '../defs.js';
import { type DriverArena, DriverQueue } from '../driver.js';
import type { RegisterWindow } from './mmio-driver.js';
import * as pci from './pci-defs.js';

// PCI 3.0, 6.1 and 6.8.2: what a driver needs of the header and of MSI-X
const COMMAND = 0x04;
const COMMAND_MEMORY_AND_BUS_MASTER = 0x06;
const BASE_ADDRESS_REGISTERS = 0x10;
const CAPABILITIES_POINTER = 0x34;
const CAPABILITY_VENDOR = 0x09;
const CAPABILITY_MSIX = 0x11;
const MSIX_CONTROL_ENABLE = 0x8000;
const MSIX_ENTRY_BYTES = 16;

/** A driver for virtio over PCI, modern interface: finds the structures, and initialises the device queue by queue. */
export class PciDriver {
  readonly queues: DriverQueue[] = [];
  readonly #config: RegisterWindow;
  readonly #memory: RegisterWindow;
  readonly #arena: DriverArena;
  /** Guest-physical addresses. */
  #common = 0;
  #notify = 0;
  #notifyMultiplier = 0;
  #isr = 0;
  #device = 0;
  #msix: { control: number; table: number } | undefined;

  /**
   * Turns the BARs on, which must have addresses.
   *
   * @param config The function's configuration space.
   * @param memory Memory-mapped I/O by guest-physical address.
   * @param arena Where the queues go.
   * @throws VmmError code "INVALID_STATE" when a structure is missing.
   */
  constructor(config: RegisterWindow, memory: RegisterWindow, arena: DriverArena) {
    this.#config = config;
    this.#memory = memory;
    this.#arena = arena;
    config.write(COMMAND, 2, config.read(COMMAND, 2) | COMMAND_MEMORY_AND_BUS_MASTER);
    for (const at of this.#capabilities()) {
      if (config.read(at, 1) === CAPABILITY_VENDOR) this.#take(at);
      else if (config.read(at, 1) === CAPABILITY_MSIX) {
        const table = config.read(at + 4, 4);
        this.#msix = { control: at + 2, table: this.#bar(table & 7) + ((table & ~7) >>> 0) };
      }
    }
    if (!this.#common || !this.#notify || !this.#isr) throw notUp('a structure is missing');
  }

  /** @param register Offset in the common configuration structure, which also tells the width. */
  get(register: number, size: 1 | 2 | 4): number {
    return this.#memory.read(this.#common + register, size);
  }
  set(register: number, size: 1 | 2 | 4, value: number): void {
    this.#memory.write(this.#common + register, size, value);
  }

  /** The device configuration structure. */
  readConfig(offset: number, size: 1 | 2 | 4): number {
    return this.#memory.read(this.#device + offset, size);
  }

  deviceFeatures(): bigint {
    const [low, high] = [0, 1].map((select) => {
      this.set(pci.COMMON_DEVICE_FEATURE_SELECT, 4, select);
      return BigInt(this.get(pci.COMMON_DEVICE_FEATURE, 4));
    });
    return (high << 32n) | low;
  }

  /**
   * Resets the device and takes it up to DRIVER_OK. With MSI-X on, queue n gets vector n + 1 and configuration changes
   * vector 0.
   *
   * @param features Wanted features, of which those offered are taken; VERSION_1 always. Default: all.
   * @param maxQueueSize Queues get the device's largest size, at most this.
   * @throws VmmError code "INVALID_STATE" when the device does not come up.
   */
  start(features = ~0n, maxQueueSize = defs.MAX_QUEUE_SIZE): void {
    this.negotiate(features);
    if (this.#msixOn()) this.set(pci.COMMON_CONFIG_MSIX_VECTOR, 2, 0);
    const count = this.get(pci.COMMON_NUM_QUEUES, 2);
    for (let index = 0; index < count; index++) {
      this.set(pci.COMMON_QUEUE_SELECT, 2, index);
      const queue = new DriverQueue(this.#arena, Math.min(this.get(pci.COMMON_QUEUE_SIZE, 2), maxQueueSize));
      this.setQueue(index, queue);
      if (this.#msixOn()) this.set(pci.COMMON_QUEUE_MSIX_VECTOR, 2, index + 1);
      this.set(pci.COMMON_QUEUE_ENABLE, 2, 1);
      if (this.get(pci.COMMON_QUEUE_ENABLE, 2) !== 1) throw notUp(`queue ${index} is not enabled`);
      this.queues[index] = queue;
    }
    this.addStatus(defs.STATUS_DRIVER_OK);
  }

  /** The steps up to FEATURES_OK. */
  negotiate(features = ~0n): void {
    this.set(pci.COMMON_DEVICE_STATUS, 1, 0);
    if (this.status !== 0) throw notUp('it does not reset');
    this.queues.length = 0;
    this.addStatus(defs.STATUS_ACKNOWLEDGE);
    this.addStatus(defs.STATUS_DRIVER);
    const accepted = this.deviceFeatures() & (features | defs.VIRTIO_F_VERSION_1);
    this.setFeatures(accepted);
    this.addStatus(defs.STATUS_FEATURES_OK);
    if (!(this.status & defs.STATUS_FEATURES_OK)) throw notUp(`features 0x${accepted.toString(16)} were refused`);
  }

  setFeatures(features: bigint): void {
    for (const select of [0, 1]) {
      this.set(pci.COMMON_DRIVER_FEATURE_SELECT, 4, select);
      this.set(pci.COMMON_DRIVER_FEATURE, 4, Number((features >> BigInt(32 * select)) & 0xffff_ffffn));
    }
  }

  /** Tells size and addresses of a queue, without enabling it; leaves it selected. */
  setQueue(index: number, queue: { size: number; desc: number; avail: number; used: number }): void {
    this.set(pci.COMMON_QUEUE_SELECT, 2, index);
    this.set(pci.COMMON_QUEUE_SIZE, 2, queue.size);
    const parts = [
      [pci.COMMON_QUEUE_DESC, queue.desc],
      [pci.COMMON_QUEUE_DRIVER, queue.avail],
      [pci.COMMON_QUEUE_DEVICE, queue.used],
    ];
    for (const [register, gpa] of parts) {
      this.set(register, 4, gpa % 2 ** 32);
      this.set(register + 4, 4, Math.floor(gpa / 2 ** 32));
    }
  }

  get status(): number {
    return this.get(pci.COMMON_DEVICE_STATUS, 1);
  }

  addStatus(bits: number): void {
    this.set(pci.COMMON_DEVICE_STATUS, 1, this.status | bits);
  }

  /** Where a kick of the queue is written to. */
  notifyAddress(queue: number): number {
    this.set(pci.COMMON_QUEUE_SELECT, 2, queue);
    return this.#notify + this.get(pci.COMMON_QUEUE_NOTIFY_OFF, 2) * this.#notifyMultiplier;
  }

  kick(queue: number): void {
    this.#memory.write(this.notifyAddress(queue), 2, queue);
  }

  /** Fetches what the device raised its interrupt pin for, which acknowledges it. */
  acknowledge(): number {
    return this.#memory.read(this.#isr, 1);
  }

  /**
   * Turns MSI-X on and gives each vector a message; before {@link start}.
   *
   * @throws VmmError code "INVALID_STATE" when the device has no MSI-X.
   */
  useMsix(messages: readonly { address: bigint; data: number }[]): void {
    if (!this.#msix) throw notUp('it has no MSI-X');
    const { table } = this.#msix;
    messages.forEach(({ address, data }, vector) => {
      const entry = table + vector * MSIX_ENTRY_BYTES;
      this.#memory.write(entry, 4, Number(address & 0xffff_ffffn));
      this.#memory.write(entry + 4, 4, Number(address >> 32n));
      this.#memory.write(entry + 8, 4, data);
    });
    this.#config.write(this.#msix.control, 2, MSIX_CONTROL_ENABLE);
    messages.forEach((_, vector) => this.maskVector(vector, false));
  }

  maskVector(vector: number, masked: boolean): void {
    if (this.#msix) this.#memory.write(this.#msix.table + vector * MSIX_ENTRY_BYTES + 12, 4, masked ? 1 : 0);
  }

  #msixOn(): boolean {
    return this.#msix !== undefined && (this.#config.read(this.#msix.control, 2) & MSIX_CONTROL_ENABLE) !== 0;
  }

  /** Offsets of the capabilities. */
  *#capabilities(): Generator<number> {
    for (let at = this.#config.read(CAPABILITIES_POINTER, 1); at !== 0; at = this.#config.read(at + 1, 1)) yield at;
  }

  #take(at: number): void {
    const structure = this.#bar(this.#config.read(at + pci.CAP_BAR, 1)) + this.#config.read(at + pci.CAP_OFFSET, 4);
    switch (this.#config.read(at + pci.CAP_CFG_TYPE, 1)) {
      case pci.PCI_CAP_COMMON:
        this.#common = structure;
        return;
      case pci.PCI_CAP_NOTIFY:
        this.#notify = structure;
        this.#notifyMultiplier = this.#config.read(at + pci.CAP_NOTIFY_MULTIPLIER, 4);
        return;
      case pci.PCI_CAP_ISR:
        this.#isr = structure;
        return;
      case pci.PCI_CAP_DEVICE:
        this.#device = structure;
    }
  }

  /** The address of a 32-bit memory BAR. */
  #bar(index: number): number {
    return (this.#config.read(BASE_ADDRESS_REGISTERS + 4 * index, 4) & ~0xf) >>> 0;
  }
}

const notUp = (why: string) => new VmmError('INVALID_STATE', `the virtio device does not come up: ${why}`);
