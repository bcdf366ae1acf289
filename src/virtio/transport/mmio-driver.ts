import { VmmError } from '../../errors.js';
import type { AccessSize } from '../../bus/device.js';
import * as defs from '../defs.js';
import { type DriverArena, DriverQueue } from '../driver.js';

/** What a driver reaches a device through: a {@link BusDevice}, or a bus with the base address added. */
export interface RegisterWindow {
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

/** A driver for virtio over MMIO: initialises a device as virtio 1.2, 3.1.1 says, queue by queue, for tests and tools. */
export class MmioDriver {
  readonly queues: DriverQueue[] = [];
  readonly #window: RegisterWindow;
  readonly #arena: DriverArena;

  /** @param arena Where the queues go. */
  constructor(window: RegisterWindow, arena: DriverArena) {
    this.#window = window;
    this.#arena = arena;
  }

  get(register: number): number {
    return this.#window.read(register, 4);
  }

  set(register: number, value: number): void {
    this.#window.write(register, 4, value);
  }

  deviceFeatures(): bigint {
    const [low, high] = [0, 1].map((select) => {
      this.set(defs.MMIO_DEVICE_FEATURES_SEL, select);
      return BigInt(this.get(defs.MMIO_DEVICE_FEATURES));
    });
    return (high << 32n) | low;
  }

  /**
   * Resets the device and takes it up to DRIVER_OK.
   *
   * @param features Wanted features, of which those offered are taken; VERSION_1 always. Default: all.
   * @param maxQueueSize Queues get the device's largest size, at most this.
   * @throws VmmError code "INVALID_STATE" when the device does not come up.
   */
  start(features = ~0n, maxQueueSize = defs.MAX_QUEUE_SIZE): void {
    this.negotiate(features);
    for (let index = 0; this.queueSizeMax(index) > 0; index++) {
      const queue = new DriverQueue(this.#arena, Math.min(this.queueSizeMax(index), maxQueueSize));
      this.setQueue(index, queue);
      this.set(defs.MMIO_QUEUE_READY, 1);
      if (this.get(defs.MMIO_QUEUE_READY) !== 1) throw notUp(`queue ${index} is not ready`);
      this.queues[index] = queue;
    }
    this.addStatus(defs.STATUS_DRIVER_OK);
  }

  /** The steps up to FEATURES_OK. */
  negotiate(features = ~0n): void {
    this.set(defs.MMIO_STATUS, 0);
    this.queues.length = 0;
    if (this.get(defs.MMIO_MAGIC_VALUE) !== defs.MMIO_MAGIC) throw notUp('there is no virtio device');
    this.addStatus(defs.STATUS_ACKNOWLEDGE);
    this.addStatus(defs.STATUS_DRIVER);
    const accepted = this.deviceFeatures() & (features | defs.VIRTIO_F_VERSION_1);
    this.setFeatures(accepted);
    this.addStatus(defs.STATUS_FEATURES_OK);
    if (!(this.status & defs.STATUS_FEATURES_OK)) throw notUp(`features 0x${accepted.toString(16)} were refused`);
  }

  setFeatures(features: bigint): void {
    for (const select of [0, 1]) {
      this.set(defs.MMIO_DRIVER_FEATURES_SEL, select);
      this.set(defs.MMIO_DRIVER_FEATURES, Number((features >> BigInt(32 * select)) & 0xffff_ffffn));
    }
  }

  queueSizeMax(index: number): number {
    this.set(defs.MMIO_QUEUE_SEL, index);
    return this.get(defs.MMIO_QUEUE_SIZE_MAX);
  }

  /** Tells size and addresses of a queue, without enabling it; leaves it selected. */
  setQueue(index: number, queue: { size: number; desc: number; avail: number; used: number }): void {
    this.set(defs.MMIO_QUEUE_SEL, index);
    this.set(defs.MMIO_QUEUE_SIZE, queue.size);
    const parts = [
      [defs.MMIO_QUEUE_DESC_LOW, queue.desc],
      [defs.MMIO_QUEUE_DRIVER_LOW, queue.avail],
      [defs.MMIO_QUEUE_DEVICE_LOW, queue.used],
    ];
    for (const [register, gpa] of parts) {
      this.set(register, gpa % 2 ** 32);
      this.set(register + 4, Math.floor(gpa / 2 ** 32));
    }
  }

  get status(): number {
    return this.get(defs.MMIO_STATUS);
  }

  addStatus(bits: number): void {
    this.set(defs.MMIO_STATUS, this.status | bits);
  }

  kick(queue: number): void {
    this.set(defs.MMIO_QUEUE_NOTIFY, queue);
  }

  /** Fetches and acknowledges what the device interrupted for. */
  acknowledge(): number {
    const causes = this.get(defs.MMIO_INTERRUPT_STATUS);
    this.set(defs.MMIO_INTERRUPT_ACK, causes);
    return causes;
  }
}

const notUp = (why: string) => new VmmError('INVALID_STATE', `the virtio device does not come up: ${why}`);
