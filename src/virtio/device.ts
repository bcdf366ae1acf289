import type { AccessSize } from '../bus/device.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { VirtQueue } from './queue/queue.js';

/** How a transport reaches the driver. The machine implements it by an interrupt line, an irqfd or MSI-X. */
export interface VirtioInterrupt {
  /** Used-buffer notification of one queue. */
  queue(index: number): void;
  /** Configuration change notification. */
  config(): void;
  /** Registers read differently now, and no write of the driver has caused it. Before the interrupt that says so. */
  registersChanged?(): void;
  /** An eventfd that sends the queue's notification when another process signals it; undefined where there is none. */
  callFd?(index: number): number | undefined;
}

/**
 * The eventfds of one queue whose buffers another process handles. The machine implements it: by ioeventfd, so that kicks
 * cost no exit, and by a listener where the transport has nothing faster for interrupts.
 */
export interface QueueEvents {
  /** Signalled by the driver's kicks. Borrowed. */
  readonly kickFd: number;
  /** Does what a kick of the driver does. */
  kick(): void;
  /** Whoever signals it has `TransportCore.onCall` called. Borrowed. */
  readonly callFd: number;
}

/** A queue of an external device, by what another process needs to work on it. */
export interface ExternalQueue {
  readonly size: number;
  /** Guest-physical addresses, in guest memory and aligned. */
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  /** Signalled by the driver's kicks. Borrowed until the reset. */
  readonly kickFd: number;
  /** Interrupts the driver when it is signalled. Borrowed; after `callFdChanged` it is another one. */
  readonly callFd: number;
  kick(): void;
}

/** What a device works with from DRIVER_OK until its reset. */
export interface VirtioContext {
  readonly memory: GuestMemory;
  /** The features that device and driver agreed on. */
  readonly features: bigint;
  /** By queue index; undefined where the driver enabled none. */
  readonly queues: readonly (VirtQueue | undefined)[];
  /** Of an external device, by queue index: to be handed on. Its `queues` stay untouched. */
  readonly externalQueues: readonly (ExternalQueue | undefined)[];
  /** The configuration space reads differently now: raises the generation and interrupts the driver. */
  configChanged(): void;
  /** The driver broke the device type's rules: sets DEVICE_NEEDS_RESET, takes the queues away and counts. */
  fail(reason: string): void;
  /**
   * An external device that failed is back, and goes on with the queues where it was: takes DEVICE_NEEDS_RESET back, as
   * drivers that do not look at it (Linux has many) would wait for ever. Does nothing once the driver reset the device.
   */
  recovered(): void;
}

/**
 * A virtio device without its transport. One object lives through any number of resets.
 *
 * No method but the constructor may throw for anything a guest does. After `reset` the device writes nothing to guest
 * memory any more; chains of the old queues, completed late, are dropped by the queues themselves.
 */
export interface VirtioDevice {
  /** Short, stable name for statistics and error messages, such as `virtio-rng`. */
  readonly name: string;
  /** Device ID: virtio 1.2, 5. */
  readonly type: number;
  /**
   * The device's buffers are handled by another process: it gets `externalQueues`, its kicks and interrupts go by
   * eventfds where they can, and `features` includes those of transport and queues.
   */
  readonly external?: true;
  /** Feature bits of the device type that it offers; the transport adds VERSION_1 and those of the queues. */
  readonly features: bigint;
  /** The largest size of each queue, a power of two. */
  readonly queueSizes: readonly number[];
  /** What it did since it was made, as plain data. */
  readonly counters?: object;
  /**
   * Reads the configuration space: up to 256 bytes, all ones beyond its end. It changes with a reset, a write of the driver,
   * and where `configChanged` says so; reads change nothing, as a driver may get what they returned last.
   */
  readConfig(offset: number, size: AccessSize): number;
  writeConfig(offset: number, size: AccessSize, value: number): void;
  /** The driver is ready (DRIVER_OK). `queueNotify` follows for each queue, should buffers wait there already. */
  activate(context: VirtioContext): void;
  /** The driver made buffers available in the queue. Never called while the device is not active. */
  queueNotify(index: number): void;
  /** Of an external device: interrupts of the queue leave by another `callFd` from now on. */
  callFdChanged?(index: number): void;
  /**
   * The driver, or the machine, starts over. Also called when the device was never active.
   *
   * @returns A promise when another thread may still touch guest memory, as a read of a file into it does: it resolves
   *   when none does any more, and never rejects. Until then the driver reads the old status (virtio 1.2, 2.4.2), and no
   *   method but the readers of configuration space and `quiesce` is called.
   */
  reset(): void | Promise<void>;
  /**
   * Takes no more buffers until `resume`. The promise resolves when every buffer that was taken has been given back: from
   * then on the device can be saved, and guest memory can go. A device without it has no buffers between two calls.
   */
  quiesce?(): Promise<void>;
  resume?(): void;
  /** Plain data, or undefined: what `restore` needs besides the queues. Called with no buffers taken. */
  save(): unknown;
  /** Called on a device that was reset, before `activate`. @throws VmmError code "INVALID_ARGUMENT" */
  restore(state: unknown): void;
}

/** Reads a configuration structure that is kept as little-endian bytes; all ones beyond its end. */
export function readConfigBytes(config: Uint8Array, offset: number, size: AccessSize): number {
  let value = 0;
  for (let i = 0; i < size; i++) value |= (offset + i < config.length ? config[offset + i] : 0xff) << (8 * i);
  return value >>> 0;
}
