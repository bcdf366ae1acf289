import { SavedState } from '../../bus/saved-state.js';
import type { AccessSize } from '../../bus/device.js';
import { VmmError } from '../../errors.js';
import { usedRingBytes, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from '../../virtio/defs.js';
import { readConfigBytes, type ExternalQueue, type VirtioContext, type VirtioDevice } from '../../virtio/device.js';
import { addon, native } from '../../native/addon.js';
import { closeFds } from './message-socket.js';
import { usedIndex, VhostUserFrontend, type Inflight, type RunningQueue } from './frontend.js';

const DEFAULT_TIMEOUT_MS = 5_000;
/** After a failure the next connection is tried at once, then less and less often. */
const FIRST_RETRY_MS = 50;
const LAST_RETRY_MS = 5_000;
/** A connection that lasted this long was a good one: the next failure's retries begin anew. */
const GOOD_CONNECTION_MS = 10_000;

/** Feature bits of the transport and the queues (virtio 1.2, 6) that ours can do; the rest belongs to device types. */
const GENERIC_FEATURES = ((1n << 40n) - 1n) & ~((1n << 24n) - 1n);
const OUR_GENERIC_FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
/** VIRTIO_F_NOTIFICATION_DATA and what follows it up to bit 49. */
const LATER_GENERIC_FEATURES = ((1n << 50n) - 1n) & ~((1n << 40n) - 1n);

export interface VhostUserDeviceConfig {
  /** Short and stable, such as `vhost-user-blk`. */
  name: string;
  /** Device ID: virtio 1.2, 5. */
  type: number;
  /** Path of the Unix socket at which the backend listens. */
  path: string;
  /** The largest size of each queue. */
  queueSizes: readonly number[];
  /** How many GET_QUEUE_NUM calls them. Default: each one; of a network card it counts pairs. */
  countedQueues?: number;
  /** The configuration space, or how many bytes of it to fetch from the backend. */
  config: Uint8Array | number;
  /** Features that the backend offers and the driver is not to see. */
  hiddenFeatures?: bigint;
  /** Features that the driver sees and the backend, which may know nothing of them, does not. */
  ownFeatures?: bigint;
  /**
   * The backend answers each queue's requests in the order in which they came: what a dead one left unanswered is known
   * without an inflight area, and done again.
   */
  inOrder?: boolean;
  /** The backend keeps an inflight area, although it does not offer to: {@link FrontendConfig.hasInflight}. */
  hasInflight?: boolean;
  /** How long the backend may take for an answer. Default: 5,000. */
  timeoutMs?: number;
  /** The backend is gone or unusable, and the device failed. */
  onFailure?: (error: VmmError) => void;
  /** A backend is there again, and the device works. */
  onRecovery?: () => void;
}

interface Activation {
  context: VirtioContext;
  inflight: Inflight | undefined;
  /** Nothing is sent for it any more: a stop is under way, or the queues stand still. */
  stopped: boolean;
}

/**
 * A virtio device of any type that a vhost-user backend implements in another process. Kicks and interrupts go between
 * the driver and that process; what passes here is setting up, the configuration space, and failure.
 *
 * When the connection breaks the device fails, and connects again until it is closed. A new backend takes the queues over
 * where the last one left them: requests that it had not answered are done again.
 */
export class VhostUserDevice implements VirtioDevice {
  readonly external = true;
  readonly name: string;
  readonly type: number;
  readonly features: bigint;
  readonly queueSizes: readonly number[];
  /** Times that the backend was lost. */
  failures = 0;
  readonly #config: VhostUserDeviceConfig;
  #space: Uint8Array;
  #frontend: VhostUserFrontend | undefined;
  #active: Activation | undefined;
  /** By queue, where a stopped device goes on. */
  #bases: (number | undefined)[] = [];
  /** The last setting up of the queues; what stops them waits for it. */
  #starting: Promise<unknown> = Promise.resolve();
  #retry: NodeJS.Timeout | undefined;
  #retryMs = FIRST_RETRY_MS;
  #connectedAt = 0;
  /** Notifications since the last question for the configuration space. */
  #configChanges = 0;
  #closed = false;

  /** @throws VmmError code "BACKEND_FAILED" or "TIMEOUT": no backend that could serve this device is there. */
  static async connect(config: VhostUserDeviceConfig): Promise<VhostUserDevice> {
    let device: VhostUserDevice | undefined;
    const frontend = await connectTo(config, () => device);
    try {
      device = new VhostUserDevice(config, frontend);
      return device;
    } catch (error) {
      frontend.close();
      throw error;
    }
  }

  private constructor(config: VhostUserDeviceConfig, frontend: VhostUserFrontend) {
    this.name = config.name;
    this.type = config.type;
    this.queueSizes = config.queueSizes;
    this.#config = config;
    const foreign = (GENERIC_FEATURES | LATER_GENERIC_FEATURES) & ~OUR_GENERIC_FEATURES;
    this.features = (frontend.features & ~foreign & ~(config.hiddenFeatures ?? 0n)) | (config.ownFeatures ?? 0n);
    if (!(this.features & VIRTIO_F_VERSION_1)) {
      throw new VmmError('BACKEND_FAILED', `the backend at ${config.path} knows only virtio before version 1`);
    }
    this.#space = typeof config.config === 'number' ? frontend.config : config.config;
    this.#frontend = frontend;
    this.#connectedAt = performance.now();
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#space, offset, size);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    // A space that is ours has nothing to write; past the end there is nothing either.
    if (typeof this.#config.config !== 'number' || offset + size > this.#space.length) return;
    const bytes = Uint8Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 0xff);
    this.#space.set(bytes, offset);
    this.#do((frontend) => frontend.setConfig(offset, bytes));
  }

  activate(context: VirtioContext): void {
    this.#active = { context, inflight: undefined, stopped: false };
    if (this.#frontend) this.#start();
    else context.fail('its backend is gone');
  }

  queueNotify(index: number): void {
    this.#active?.context.externalQueues[index]?.kick();
  }

  callFdChanged(index: number): void {
    const queue = this.#active?.context.externalQueues[index];
    // When the queues are started later, they are told the eventfd of then.
    if (queue && !this.#active!.stopped) this.#do((frontend) => frontend.setCall(index, queue));
  }

  reset(): void | Promise<void> {
    const active = this.#active;
    this.#bases = [];
    if (!active) return;
    return this.quiesce().then(() => {
      if (active.inflight) closeFds([active.inflight.fd]);
      this.#active = undefined;
      this.#bases = [];
    });
  }

  async quiesce(): Promise<void> {
    const active = this.#active;
    if (!active || active.stopped) return this.#starting.then(() => {});
    active.stopped = true;
    await this.#starting;
    const frontend = this.#frontend;
    if (!frontend) return;
    this.#starting = frontend.stop().then(
      (bases) => void (this.#bases = bases),
      () => {}, // the connection is over, and #onEnd knows why
    );
    await this.#starting;
  }

  resume(): void {
    const active = this.#active;
    if (!active?.stopped) return;
    active.stopped = false;
    if (this.#frontend) this.#start();
  }

  save(): unknown {
    return { bases: [...this.#bases], config: this.#space.slice() };
  }

  restore(state: unknown): void {
    const saved = new SavedState(this.name, state);
    const list = saved.list('bases', this.queueSizes.length);
    const bases = new SavedState(`${this.name}: bases`, list);
    this.#bases = list.map((base, i) => (base === undefined ? undefined : bases.integer(String(i), 0xffff)));
  }

  /** Ends the connection. The device must be reset, and its reset over. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#frontend?.close();
    this.#frontend = undefined;
  }

  /** Runs the queues of the present activation. */
  #start(isRecovery = false): void {
    const active = this.#active!;
    const { memory, features, externalQueues } = active.context;
    const frontend = this.#frontend!;
    const queues = externalQueues.map((queue, index): RunningQueue | undefined => {
      if (!queue) return undefined;
      // What was answered is done. With an inflight area the backend finds out the rest by itself.
      return { queue, base: isRecovery ? usedIndex(memory, queue) : (this.#bases[index] ?? 0) };
    });
    if (
      isRecovery &&
      !this.#config.inOrder &&
      !active.inflight &&
      queues.some((running) => running && !isClear(active.context, running.queue))
    ) {
      // To do some of them again, or none, would be a guess; the driver's reset forgets them.
      active.stopped = true;
      const what = `${this.name}: its backend ended with requests unanswered, and keeps no record of them`;
      this.#config.onFailure?.(new VmmError('BACKEND_FAILED', `${what}; the guest has to reset the device`));
      return;
    }
    const toBackend = features & ~(this.#config.ownFeatures ?? 0n);
    const started = frontend.start(memory, toBackend, queues, active.inflight).then(
      (inflight) => {
        active.inflight = inflight;
        if (isRecovery) this.#recovered(active.context);
      },
      (error: VmmError) => this.#lose(frontend, error),
    );
    this.#starting = this.#starting.then(() => started);
  }

  #recovered(context: VirtioContext): void {
    context.recovered();
    // The last backend may have ended between an answer and its interrupt.
    for (const queue of context.externalQueues) if (queue) native(() => addon().signalEventFd(queue.callFd));
    this.#config.onRecovery?.();
  }

  /** Has the backend told something; a failure ends the connection, and is handled there. */
  #do(what: (frontend: VhostUserFrontend) => Promise<unknown>): void {
    if (this.#frontend) what(this.#frontend).catch(() => {});
  }

  async #updateConfig(frontend: VhostUserFrontend): Promise<void> {
    try {
      await frontend.fetchConfig();
    } finally {
      const isStale = this.#configChanges > 1;
      this.#configChanges = 0;
      if (isStale) this.onConfigChange();
    }
    if (Buffer.from(frontend.config).equals(this.#space)) return;
    this.#space = frontend.config;
    this.#active?.context.configChanged();
  }

  /** @internal */
  onConfigChange(): void {
    if (typeof this.#config.config !== 'number') return;
    // However often it is told, one question is under way, and one waits.
    this.#configChanges++;
    if (this.#configChanges === 1) this.#do((frontend) => this.#updateConfig(frontend));
  }

  /** @internal The connection is over. */
  onEnd(error: VmmError): void {
    if (this.#frontend) this.#lose(this.#frontend, error);
  }

  #lose(frontend: VhostUserFrontend, error: VmmError): void {
    if (this.#closed || this.#frontend !== frontend) return;
    frontend.close();
    this.#frontend = undefined;
    this.#configChanges = 0;
    this.failures++;
    this.#active?.context.fail(`its backend failed: ${error.message}`);
    this.#config.onFailure?.(
      new VmmError(error.code, `${this.name}: its backend failed: ${error.message}`, { cause: error }),
    );
    if (performance.now() - this.#connectedAt > GOOD_CONNECTION_MS) this.#retryMs = FIRST_RETRY_MS;
    this.#retryLater();
  }

  #retryLater(): void {
    if (this.#closed) return;
    this.#retry = setTimeout(() => void this.#reconnect(), this.#retryMs);
    this.#retryMs = Math.min(2 * this.#retryMs, LAST_RETRY_MS);
  }

  async #reconnect(): Promise<void> {
    let frontend: VhostUserFrontend;
    try {
      frontend = await connectTo(this.#config, () => this);
    } catch {
      return this.#retryLater();
    }
    const isUsable = (this.features & ~(this.#config.ownFeatures ?? 0n) & ~frontend.features) === 0n;
    if (this.#closed || !isUsable) {
      frontend.close();
      return this.#retryLater();
    }
    await this.#starting;
    this.#frontend = frontend;
    this.#connectedAt = performance.now();
    if (typeof this.#config.config === 'number' && !Buffer.from(frontend.config).equals(this.#space)) {
      this.#space = frontend.config;
      this.#active?.context.configChanged();
    }
    if (this.#active && !this.#active.stopped) this.#start(true);
    else this.#config.onRecovery?.();
  }
}

function connectTo(
  config: VhostUserDeviceConfig,
  device: () => VhostUserDevice | undefined,
): Promise<VhostUserFrontend> {
  const { path, queueSizes, timeoutMs = DEFAULT_TIMEOUT_MS, hasInflight = false } = config;
  const configBytes = typeof config.config === 'number' ? config.config : 0;
  return VhostUserFrontend.connect(
    path,
    { queues: config.countedQueues ?? queueSizes.length, configBytes, timeoutMs, hasInflight },
    { onConfigChange: () => device()?.onConfigChange(), onEnd: (error) => device()?.onEnd(error) },
  );
}

/** Whether the last backend had answered all that it took from a queue: what waits there still is new to the next one. */
function isClear({ memory, features }: VirtioContext, { size, avail, used }: ExternalQueue): boolean {
  // virtio 1.2, 2.7.10: a device that asks for notifications says in avail_event up to where it has looked.
  const taken =
    features & VIRTIO_F_EVENT_IDX
      ? memory.dataView(used + usedRingBytes(size) - 2, 2).getUint16(0, true)
      : memory.dataView(avail + 2, 2).getUint16(0, true);
  return taken === memory.dataView(used + 2, 2).getUint16(0, true);
}
