import { VmmError } from '../../errors.js';
import type { VirtioContext, VirtioDevice } from '../../virtio/device.js';
import type { VirtQueue } from '../../virtio/queue/queue.js';
import { ForeignMemory } from './foreign-memory.js';
import type { MemoryTableRegion } from './protocol.js';
import { Vring } from './vring.js';

/**
 * A frontend enables its rings, or stops them, one message after the other, and a device is activated with all of them at
 * once: this long the rest may take.
 */
const SETTLE_MS = 100;

/**
 * A frontend chooses its rings' sizes without knowing the device's: QEMU has up to 1,024 descriptors, and they cost nothing
 * here.
 */
const MAX_RING_SIZE = 1024;

interface Activation {
  context: VirtioContext;
  rings: readonly Vring[];
  /** How its rings were when it stopped: as they have to be for it to go on. */
  left: string;
  stopped: boolean;
}

export interface DeviceSessionEvents {
  onConfigChanged(): void;
  /** Asks for {@link DeviceSession.start}, in its turn. */
  onSettle(): void;
  /** The driver broke a rule: the device does nothing until the rings are set up anew. */
  onFailure(reason: string): void;
}

/**
 * A device of ours between one frontend's rings and memory: active while rings run. What changes a running ring stops the
 * device first; when a stopped one finds its rings as they were, as after a pause of the machine, it goes on, and else it
 * begins anew.
 *
 * Not for several callers at a time: each call waits for the one before.
 */
export class DeviceSession {
  readonly rings: readonly Vring[];
  readonly #device: VirtioDevice;
  readonly #events: DeviceSessionEvents;
  #features = 0n;
  #memory: ForeignMemory | undefined;
  #generation = 0;
  #active: Activation | undefined;
  #settling: NodeJS.Timeout | undefined;

  constructor(device: VirtioDevice, events: DeviceSessionEvents) {
    this.#device = device;
    this.#events = events;
    this.rings = device.queueSizes.map((_, index) => new Vring(index, MAX_RING_SIZE));
  }

  async setFeatures(features: bigint): Promise<void> {
    if (features === this.#features) return;
    await this.stop();
    this.#features = features;
  }

  /** @param fds Borrowed. @throws VmmError code "BACKEND_FAILED" */
  async setMemory(table: readonly MemoryTableRegion[], fds: readonly number[]): Promise<void> {
    if (this.#memory?.isSame(table, fds)) return;
    const memory = new ForeignMemory(table, fds);
    await this.stop();
    // Nothing may look at the old memory any more.
    await this.#deactivate();
    this.#memory?.[Symbol.dispose]();
    this.#memory = memory;
    this.#generation++;
    this.changed();
  }

  /** Has the device take no more buffers, and waits until it has given back those that it took. */
  async stop(): Promise<void> {
    const active = this.#active;
    if (!active || active.stopped) return;
    active.stopped = true;
    if (this.#device.quiesce) await this.#device.quiesce();
    else await this.#device.reset();
    for (const ring of active.rings) ring.base = active.context.queues[ring.index]!.save().nextAvail;
    active.left = this.#describe(active.rings);
    if (!this.#device.quiesce) this.#active = undefined;
  }

  /** A ring came, or was enabled: the device starts when no other is expected. */
  changed(): void {
    clearTimeout(this.#settling);
    const isComplete = this.rings.every((ring) => ring.enabled || !ring.started);
    if (isComplete) this.#events.onSettle();
    else this.changedMore();
  }

  /** More rings are likely to change with this one. */
  changedMore(): void {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#events.onSettle(), SETTLE_MS);
  }

  /** @throws VmmError code "BACKEND_FAILED" for rings that cannot be. */
  async start(): Promise<void> {
    const memory = this.#memory;
    const rings = this.rings.filter((ring) => ring.started && ring.enabled);
    if (!memory || (this.#active && !this.#active.stopped && this.#active.rings.length === rings.length)) return;
    await this.stop();
    if (rings.length === 0) return;
    if (this.#active?.left === this.#describe(rings)) {
      this.#active.stopped = false;
    } else {
      await this.#deactivate();
      this.#activate(memory, rings);
    }
    this.#device.resume?.();
    for (const { index } of rings) this.onKick(index);
  }

  onKick(index: number): void {
    const active = this.#active;
    if (!active || active.stopped) return;
    if (active.context.queues[index]?.closed === false) this.#device.queueNotify(index);
  }

  /** The frontend is gone. @returns When its memory is not touched any more. */
  async close(): Promise<void> {
    clearTimeout(this.#settling);
    await this.stop();
    await this.#deactivate();
    for (const ring of this.rings) ring[Symbol.dispose]();
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
  }

  #describe(rings: readonly Vring[]): string {
    return JSON.stringify([
      this.#generation,
      String(this.#features),
      ...rings.map(({ index, size, base, address }) => [index, size, base, Object.values(address ?? {}).map(String)]),
    ]);
  }

  async #deactivate(): Promise<void> {
    for (const queue of this.#active?.context.queues ?? []) queue?.close();
    this.#active = undefined;
    await this.#device.reset();
  }

  #activate(memory: ForeignMemory, rings: readonly Vring[]): void {
    const queues: (VirtQueue | undefined)[] = this.rings.map(() => undefined);
    const fail = (reason: string) => {
      this.#events.onFailure(reason);
      for (const queue of queues) queue?.close();
      for (const ring of rings) ring.reportError();
    };
    for (const ring of rings) {
      const gpaOf = (address: bigint) => memory.gpaOf(address);
      queues[ring.index] = ring.open(memory.memory, gpaOf, this.#features, (fault) =>
        fail(`queue ${ring.index}: ${fault}`),
      );
    }
    const context: VirtioContext = {
      memory: memory.memory,
      features: this.#features,
      queues,
      externalQueues: [],
      configChanged: () => this.#events.onConfigChanged(),
      fail,
      recovered: () => {},
    };
    this.#active = { context, rings, left: '', stopped: false };
    this.#device.activate(context);
    // The last backend may have ended between an answer and its interrupt.
    for (const ring of rings) if (ring.base !== 0) ring.call();
  }
}

/** @throws VmmError code "INVALID_ARGUMENT" for a device whose queues another process serves already. */
export function checkServable(device: VirtioDevice): void {
  if (!device.external) return;
  throw new VmmError('INVALID_ARGUMENT', `${device.name} is served by another process already: serve one of your own`);
}
