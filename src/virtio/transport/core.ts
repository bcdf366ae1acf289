import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import {
  STATUS_ACKNOWLEDGE,
  STATUS_DRIVER,
  STATUS_DRIVER_OK,
  STATUS_FAILED,
  STATUS_FEATURES_OK,
  STATUS_NEEDS_RESET,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from '../defs.js';
import type { ExternalQueue, QueueEvents, VirtioDevice, VirtioInterrupt } from '../device.js';
import { VirtQueue, type VirtQueueState } from '../queue/queue.js';
import { QueueSetup, type QueueSetupState } from '../queue/state.js';

export interface TransportCoreState {
  status: number;
  driverFeatures: [number, number];
  configGeneration: number;
  queues: { setup: QueueSetupState; position: VirtQueueState | undefined }[];
  device: unknown;
}

const DRIVER_STATUS = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED;

/**
 * What every transport does alike: device status, feature negotiation, queue setup, activation and failure (virtio 1.2,
 * 2.1 to 2.5 and 3.1). A transport maps its registers to this.
 */
export class TransportCore {
  readonly device: VirtioDevice;
  readonly #memory: GuestMemory;
  readonly #interrupt: VirtioInterrupt;
  readonly #offered: bigint;
  readonly #setups: readonly QueueSetup[];
  #queues: (VirtQueue | undefined)[] = [];
  readonly #events: readonly QueueEvents[];
  /** Of an external device, the eventfds that its interrupts were last told to leave by. */
  #callFds: (number | undefined)[] = [];
  #status = 0;
  #driverFeatures: [number, number] = [0, 0];
  #configGeneration = 0;
  /** The device's reset that is not over yet: the driver changes nothing until then. */
  #resetting: Promise<void> | undefined;
  #failures = 0;
  #lastFailure: string | undefined;

  /**
   * @param events By queue, for an external device.
   * @throws VmmError code "INVALID_ARGUMENT" when the device offers a queue size that cannot be, or is an external one
   *   without events.
   */
  constructor(
    device: VirtioDevice,
    memory: GuestMemory,
    interrupt: VirtioInterrupt,
    events: readonly QueueEvents[] = [],
  ) {
    if (device.external && events.length !== device.queueSizes.length) {
      throw new VmmError('INVALID_ARGUMENT', `${device.name} is served by another process; give events for its queues`);
    }
    this.device = device;
    this.#memory = memory;
    this.#interrupt = interrupt;
    this.#events = events;
    const ours = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    this.#offered = device.external ? device.features : device.features | ours;
    this.#setups = device.queueSizes.map((size) => new QueueSetup(size));
  }

  get status(): number {
    return this.#status;
  }

  /** How often the driver broke a rule and the device failed, since it was made; and the last rule. */
  get failures(): number {
    return this.#failures;
  }
  get lastFailure(): string | undefined {
    return this.#lastFailure;
  }

  /** Changes whenever the configuration space does; a byte. */
  get configGeneration(): number {
    return this.#configGeneration;
  }

  get queueCount(): number {
    return this.#setups.length;
  }

  /** Bits 32·select to 32·select + 31 of the offered features. */
  deviceFeatures(select: number): number {
    return select < 2 ? Number((this.#offered >> BigInt(32 * select)) & 0xffff_ffffn) : 0;
  }

  driverFeatures(select: number): number {
    return select < 2 ? this.#driverFeatures[select] : 0;
  }

  /** Features are settled once FEATURES_OK is: later writes are ignored. */
  onDriverFeatures(select: number, value: number): void {
    if (select < 2 && !this.#resetting && !(this.#status & STATUS_FEATURES_OK)) {
      this.#driverFeatures[select] = value >>> 0;
    }
  }

  /** The setup of a queue; undefined when there is no such queue. For reading: see {@link changeableQueue}. */
  queue(index: number): QueueSetup | undefined {
    return this.#setups[index];
  }

  /** The setup of a queue while the driver may change it: not while the device or the queue is live. */
  changeableQueue(index: number): QueueSetup | undefined {
    const setup = this.#setups[index];
    return setup && !setup.ready && !this.#resetting && !(this.#status & STATUS_DRIVER_OK) ? setup : undefined;
  }

  /** The driver enables a queue, or takes it from the device for good: until the next reset. */
  onDriverQueueReady(index: number, ready: boolean): void {
    if (ready) {
      this.changeableQueue(index)?.onDriverReady(this.#memory);
    } else if (this.#setups[index]) {
      this.#setups[index].ready = false;
      this.#queues[index]?.close();
    }
  }

  /** The driver kicks a queue, by a register or an ioeventfd. Ignored while the device is not active. */
  onDriverNotify(index: number): void {
    if (this.#isActive() && this.#queues[index]) this.device.queueNotify(index);
  }

  /** An external device interrupts by the eventfd that this process listens to. */
  onCall(index: number): void {
    if (this.#isActive()) this.#interrupt.queue(index);
  }

  /** The transport has other eventfds for interrupts now: {@link VirtioInterrupt.callFd}. */
  updateCallFds(): void {
    if (!this.device.external || !this.#isActive()) return;
    this.#callFds.forEach((last, index) => {
      const callFd = this.#callFd(index);
      if (last === undefined || last === callFd) return;
      this.#callFds[index] = callFd;
      this.device.callFdChanged?.(index);
    });
  }

  /**
   * Writes the status register. 0 resets. Bits add up, as the driver may not take any back; FEATURES_OK stays clear when
   * the features cannot be had together, and DRIVER_OK needs it.
   */
  onDriverStatus(value: number): void {
    if ((value & 0xff) === 0) return this.reset();
    if (this.#resetting) return;
    const added = value & DRIVER_STATUS & ~this.#status;
    this.#status |= added & (STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FAILED);
    if (added & STATUS_FEATURES_OK && this.#featuresAcceptable()) this.#status |= STATUS_FEATURES_OK;
    if (added & STATUS_DRIVER_OK && this.#status & STATUS_FEATURES_OK && !(this.#status & STATUS_NEEDS_RESET)) {
      this.#status |= STATUS_DRIVER_OK;
      this.#activate([]);
    }
  }

  /** Fails the device: virtio 1.2, 2.1.2. Only a reset brings it back. */
  fail(reason: string): void {
    if (this.#status & STATUS_NEEDS_RESET || this.#resetting) return;
    this.#failures++;
    this.#lastFailure = reason;
    this.#status |= STATUS_NEEDS_RESET;
    for (const queue of this.#queues) queue?.close();
    this.#interrupt.registersChanged?.();
    if (this.#status & STATUS_DRIVER_OK) this.#interrupt.config();
  }

  #recovered(): void {
    if (!(this.#status & STATUS_DRIVER_OK && this.#status & STATUS_NEEDS_RESET)) return;
    this.#status &= ~STATUS_NEEDS_RESET;
    this.#interrupt.registersChanged?.();
    this.#interrupt.config();
  }

  /** Ends what the device does. Status reads 0 when nothing of it is left: at once, or when the device says so. */
  reset(): void {
    if (this.#resetting) return;
    for (const queue of this.#queues) queue?.close();
    this.#queues = [];
    this.#callFds = [];
    for (const setup of this.#setups) setup.reset();
    const over = this.device.reset() ?? undefined;
    this.#resetting = over;
    if (over) void over.then(() => this.#toInitialState());
    else this.#toInitialState();
  }

  #toInitialState(): void {
    this.#resetting = undefined;
    this.#status = 0;
    this.#driverFeatures = [0, 0];
    this.#interrupt.registersChanged?.();
  }

  save(): TransportCoreState {
    return {
      status: this.#status,
      driverFeatures: [...this.#driverFeatures],
      configGeneration: this.#configGeneration,
      queues: this.#setups.map((setup, i) => ({ setup: setup.save(), position: this.#queues[i]?.save() })),
      device: this.device.save(),
    };
  }

  /**
   * Guest memory must have been restored before.
   *
   * @throws VmmError code "INVALID_ARGUMENT"; the device is reset then.
   * @throws VmmError code "BUSY" when the device still works for the driver it had; quiesce it first.
   */
  restore(state: TransportCoreState): void {
    this.reset();
    if (this.#resetting) {
      throw new VmmError('BUSY', `${this.device.name} has I/O in flight; await quiesce() before restoring its state`);
    }
    try {
      this.#restore(state);
    } catch (error) {
      this.reset();
      throw error;
    }
  }

  #restore(state: TransportCoreState): void {
    const saved = new SavedState(this.device.name, state);
    const status = saved.integer('status', 0xff) & (DRIVER_STATUS | STATUS_NEEDS_RESET);
    const features = new SavedState(`${this.device.name}: driverFeatures`, saved.list('driverFeatures', 2));
    const halves: [number, number] = [features.integer('0', 0xffff_ffff), features.integer('1', 0xffff_ffff)];
    const generation = saved.integer('configGeneration', 0xff);
    const positions = saved.list('queues', this.#setups.length).map((entry, i) => {
      const queue = entry as TransportCoreState['queues'][number];
      new SavedState(`${this.device.name}: queue ${i}`, queue);
      this.#setups[i].restore(queue.setup);
      if (queue.setup.ready) this.#setups[i].onDriverReady(this.#memory);
      return queue.position;
    });
    this.device.restore(state.device);
    this.#status = status;
    this.#driverFeatures = halves;
    this.#configGeneration = generation;
    if (this.#isActive()) this.#activate(positions);
  }

  #isActive(): boolean {
    return (this.#status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) === STATUS_DRIVER_OK;
  }

  #features(): bigint {
    return (BigInt(this.#driverFeatures[1]) << 32n) | BigInt(this.#driverFeatures[0]);
  }

  #featuresAcceptable(): boolean {
    const features = this.#features();
    return (features & ~this.#offered) === 0n && (features & VIRTIO_F_VERSION_1) !== 0n;
  }

  #activate(positions: readonly (VirtQueueState | undefined)[]): void {
    const features = this.#features();
    this.#queues = this.#setups.map((setup, index) => {
      const views = setup.ready ? setup.views(this.#memory) : undefined;
      if (!views) return undefined;
      const queue = new VirtQueue({
        memory: this.#memory,
        size: setup.size,
        views,
        features,
        interrupt: () => this.#interrupt.queue(index),
        onFault: (fault) => this.fail(`queue ${index}: ${fault}`),
      });
      const position = positions[index];
      if (position) queue.restore(position);
      return queue;
    });
    this.device.activate({
      memory: this.#memory,
      features,
      queues: this.#queues,
      externalQueues: this.device.external ? this.#setups.map((_, index) => this.#externalQueue(index)) : [],
      configChanged: () => {
        this.#configGeneration = (this.#configGeneration + 1) & 0xff;
        this.#interrupt.registersChanged?.();
        this.#interrupt.config();
      },
      fail: (reason) => this.fail(reason),
      recovered: () => this.#recovered(),
    });
    this.#queues.forEach((_queue, index) => this.onDriverNotify(index));
  }

  #externalQueue(index: number): ExternalQueue | undefined {
    const setup = this.#setups[index];
    if (!this.#queues[index]) return undefined;
    const callFds = this.#callFds;
    callFds[index] = this.#callFd(index);
    return {
      size: setup.size,
      desc: setup.gpa('desc'),
      avail: setup.gpa('avail'),
      used: setup.gpa('used'),
      kickFd: this.#events[index].kickFd,
      get callFd() {
        return callFds[index]!;
      },
      kick: () => this.#events[index].kick(),
    };
  }

  #callFd(index: number): number {
    return this.#interrupt.callFd?.(index) ?? this.#events[index].callFd;
  }
}
