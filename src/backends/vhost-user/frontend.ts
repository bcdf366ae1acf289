import { VmmError } from '../../errors.js';
import type { GuestMemory } from '../../memory/guest-memory.js';
import { addon, native, type NativeEventFd, type NativeUnixSocket } from '../../native/addon.js';
import type { ExternalQueue } from '../../virtio/device.js';
import { closeFds, MessageSocket } from './message-socket.js';
import {
  BACKEND_REQUEST,
  F_PROTOCOL_FEATURES,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  MAX_CONFIG_BYTES,
  MAX_MEMORY_REGIONS,
  PROTOCOL_F,
  REQUEST,
  type InflightArea,
} from './protocol.js';
import { Requester } from './requester.js';

/** Where guest memory is in the address space of the addresses we send: nobody follows them, so any place will do. */
const USER_BASE = 1n << 46n;
const WANTED_PROTOCOL_FEATURES = Object.values(PROTOCOL_F).reduce((all, bit) => all | bit, 0n);
/** How often a stopping backend is looked at for requests that it still works on. */
const IDLE_POLL_MS = 2;

export interface FrontendConfig {
  /** Queues that the device has, as GET_QUEUE_NUM counts them. */
  queues: number;
  /** Bytes of the configuration space to fetch; 0: the backend has none for us. */
  configBytes: number;
  /** For each answer. */
  timeoutMs: number;
  /**
   * The backend is made with libvhost-user, which keeps a record of requests under way for whoever sets INFLIGHT_SHMFD, and
   * leaves it to each program to offer that. `qemu-storage-daemon` 7.2 does not.
   */
  hasInflight?: boolean;
}

export interface FrontendEvents {
  onConfigChange(): void;
  /** The connection is over, and nothing can be done with this object any more. Not called by `close`. */
  onEnd(error: VmmError): void;
}

/** A backend's memory of requests under way: it outlives the backend, and the next one takes them up. */
export interface Inflight extends InflightArea {
  /** Owned. */
  fd: number;
}

/** A queue that is to run, from the index of the available ring on. */
export interface RunningQueue {
  queue: ExternalQueue;
  base: number;
}

/** One connection to a vhost-user backend. */
export class VhostUserFrontend {
  /** The virtio features that it offers, without the protocol's own bit. */
  features = 0n;
  protocolFeatures = 0n;
  config: Uint8Array = new Uint8Array(0);
  readonly #settings: FrontendConfig;
  readonly #events: FrontendEvents;
  readonly #requester: Requester;
  #backendChannel: MessageSocket | undefined;
  #hasProtocolFeatures = false;
  #errors: NativeEventFd | undefined;
  #memory: GuestMemory | undefined;
  #running: (RunningQueue | undefined)[] = [];
  #closed = false;

  /**
   * Connects, and agrees on the protocol's features.
   *
   * @throws VmmError code "BACKEND_FAILED" when nobody listens there, or it breaks the protocol or has too few queues;
   *   "TIMEOUT".
   */
  static async connect(path: string, settings: FrontendConfig, events: FrontendEvents): Promise<VhostUserFrontend> {
    const frontend = new VhostUserFrontend(connected(path), settings, events);
    try {
      await frontend.#negotiate();
      return frontend;
    } catch (error) {
      frontend.close();
      throw error;
    }
  }

  private constructor(socket: NativeUnixSocket, settings: FrontendConfig, events: FrontendEvents) {
    this.#settings = settings;
    this.#events = events;
    this.#requester = new Requester(socket, settings.timeoutMs, (error) => this.#end(error));
  }

  /**
   * Sets the device up and runs its queues.
   *
   * @param memory Its regions have to be files.
   * @param features As negotiated with the driver.
   * @param inflight Of an earlier backend, to go on with; borrowed.
   * @returns Where the backend keeps its requests under way; undefined where it cannot. Owned by the caller.
   * @throws VmmError code "BACKEND_FAILED", "TIMEOUT".
   */
  async start(
    memory: GuestMemory,
    features: bigint,
    queues: readonly (RunningQueue | undefined)[],
    inflight?: Inflight,
  ): Promise<Inflight | undefined> {
    const { regions } = memory;
    const fds = regions.map(({ fd }) => fd).filter((fd) => fd !== undefined);
    if (fds.length < regions.length || regions.length > MAX_MEMORY_REGIONS) {
      throw new VmmError('BACKEND_FAILED', 'this guest memory cannot be shared with another process');
    }
    const errorFd = this.#errorFd();
    this.#memory = memory;
    this.#running = [...queues];
    const told = [
      this.#requester.tell(REQUEST.setFeatures, features | (this.#hasProtocolFeatures ? F_PROTOCOL_FEATURES : 0n)),
      this.#requester.tell(
        REQUEST.setMemTable,
        regions.map(({ gpa, sizeBytes }) => ({
          gpa: BigInt(gpa),
          sizeBytes: BigInt(sizeBytes),
          userAddress: USER_BASE + BigInt(gpa),
          mmapOffset: 0n,
        })),
        fds,
      ),
    ];
    const area = this.#inflight(queues, inflight, told);
    // All is sent at once; the first failure ends the connection, and with it the rest.
    const [own] = await Promise.all([area, ...told]);
    try {
      await Promise.all(queues.map((running, index) => this.#startQueue(index, running, errorFd)));
    } catch (error) {
      if (own && own !== inflight) closeFds([own.fd]);
      throw error;
    }
    return own;
  }

  /**
   * Stops the queues, and waits until the backend works on none of their requests any more.
   *
   * @returns By queue, the index of the available ring to go on from.
   * @throws VmmError code "BACKEND_FAILED", "TIMEOUT".
   */
  async stop(): Promise<(number | undefined)[]> {
    const deadline = performance.now() + this.#settings.timeoutMs;
    const bases = await Promise.all(
      this.#running.map(async (running, index) => {
        if (!running) return undefined;
        const { value } = await this.#requester.ask(REQUEST.getVringBase, { index, num: 0 });
        return value.num & 0xffff;
      }),
    );
    // A backend answers before the requests that it had taken are done, and those still write to guest memory.
    while (bases.some((base, index) => base !== undefined && this.#usedIndex(index) !== base)) {
      if (performance.now() > deadline) {
        const what = `it left requests undone for ${this.#settings.timeoutMs} ms when stopped`;
        throw this.#end(new VmmError('TIMEOUT', what));
      }
      await new Promise((resolve) => setTimeout(resolve, IDLE_POLL_MS));
    }
    this.#running = [];
    return bases;
  }

  /** The used ring's index: what a driver has been told is done. */
  #usedIndex(index: number): number {
    return usedIndex(this.#memory!, this.#running[index]!.queue);
  }

  /** The queue interrupts by another eventfd from now on. */
  async setCall(index: number, queue: ExternalQueue): Promise<void> {
    await this.#requester.tell(REQUEST.setVringCall, BigInt(index), [queue.callFd]);
  }

  async setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    if (!this.#can(PROTOCOL_F.CONFIG)) return;
    await this.#requester.tell(REQUEST.setConfig, { offset, bytes });
  }

  /** Fetches the configuration space. @throws VmmError code "BACKEND_FAILED", "TIMEOUT". */
  async fetchConfig(): Promise<void> {
    const { configBytes } = this.#settings;
    if (configBytes === 0) return;
    if (!this.#can(PROTOCOL_F.CONFIG)) throw new VmmError('BACKEND_FAILED', 'it has no configuration space for us');
    const query = { offset: 0, bytes: new Uint8Array(Math.min(configBytes, MAX_CONFIG_BYTES)) };
    const { value } = await this.#requester.ask(REQUEST.getConfig, query);
    if (value.offset === 0 && value.bytes.length === query.bytes.length) this.config = value.bytes;
    else throw this.#broken(`it answered with ${value.bytes.length} bytes of configuration, not ${query.bytes.length}`);
  }

  /** Ends the connection. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#requester.close();
    this.#backendChannel?.close();
    this.#errors?.close();
  }

  async #negotiate(): Promise<void> {
    const requester = this.#requester;
    const [{ value: offered }] = await Promise.all([
      requester.ask(REQUEST.getFeatures, undefined),
      requester.tell(REQUEST.setOwner, undefined),
    ]);
    this.features = offered & ~F_PROTOCOL_FEATURES;
    this.#hasProtocolFeatures = (offered & F_PROTOCOL_FEATURES) !== 0n;
    // Without MQ there are as many as the device type has.
    let queueLimit = BigInt(this.#settings.queues);
    if (this.#hasProtocolFeatures) {
      const { value } = await requester.ask(REQUEST.getProtocolFeatures, undefined);
      this.protocolFeatures = value & WANTED_PROTOCOL_FEATURES;
      if (this.#settings.hasInflight) this.protocolFeatures |= PROTOCOL_F.INFLIGHT_SHMFD;
      await requester.tell(REQUEST.setProtocolFeatures, this.protocolFeatures);
      requester.acknowledged = this.#can(PROTOCOL_F.REPLY_ACK);
      if (this.#can(PROTOCOL_F.MQ)) queueLimit = (await requester.ask(REQUEST.getQueueNum, undefined)).value;
      if (this.#can(PROTOCOL_F.BACKEND_REQ)) await this.#openBackendChannel();
    }
    if (queueLimit < this.#settings.queues) {
      throw new VmmError('BACKEND_FAILED', `it has ${queueLimit} queues; this device needs ${this.#settings.queues}`);
    }
    await this.fetchConfig();
  }

  #can(feature: bigint): boolean {
    return (this.protocolFeatures & feature) !== 0n;
  }

  /** @param told Requests sent before: joined by those of this one. */
  async #inflight(
    queues: readonly (RunningQueue | undefined)[],
    inflight: Inflight | undefined,
    told: Promise<void>[],
  ): Promise<Inflight | undefined> {
    if (!this.#can(PROTOCOL_F.INFLIGHT_SHMFD)) return undefined;
    const wanted = {
      queues: queues.length,
      queueSize: Math.max(...queues.map((running) => running?.queue.size ?? 0)),
    };
    let area = inflight;
    if (!area) {
      // The largest queue's size, for all of them: there is one field for it.
      const empty = { sizeBytes: 0n, mmapOffset: 0n, ...wanted };
      const { value, fds } = await this.#requester.ask(REQUEST.getInflightFd, empty);
      area = { ...value, ...wanted, fd: fds[0] };
    }
    try {
      await Promise.all(told);
      await this.#requester.tell(REQUEST.setInflightFd, area, [area.fd]);
      return area;
    } catch (error) {
      if (area !== inflight) closeFds([area.fd]);
      throw error;
    }
  }

  async #startQueue(index: number, running: RunningQueue | undefined, errorFd: number): Promise<void> {
    if (!running) return;
    const { queue, base } = running;
    const requester = this.#requester;
    const address = (gpa: number) => USER_BASE + BigInt(gpa);
    const { desc, avail, used } = queue;
    const vring = { index, desc: address(desc), avail: address(avail), used: address(used) };
    await Promise.all([
      requester.tell(REQUEST.setVringNum, { index, num: queue.size }),
      requester.tell(REQUEST.setVringBase, { index, num: base }),
      requester.tell(REQUEST.setVringAddr, vring),
      requester.tell(REQUEST.setVringErr, BigInt(index), [errorFd]),
      requester.tell(REQUEST.setVringCall, BigInt(index), [queue.callFd]),
      requester.tell(REQUEST.setVringKick, BigInt(index), [queue.kickFd]),
      this.#hasProtocolFeatures && requester.tell(REQUEST.setVringEnable, { index, num: 1 }),
    ]);
    // For what the driver made available before there was anybody to kick.
    queue.kick();
  }

  /** The eventfd that the backend signals when a queue is broken beyond repair. */
  #errorFd(): number {
    // Nobody would close it.
    if (this.#closed) throw new VmmError('BACKEND_FAILED', 'the connection was closed');
    if (!this.#errors) {
      const errors = native(() => new (addon().EventFd)());
      errors.onReadable(() => {
        errors.read();
        this.#broken('it gave a queue up, whose driver broke the rules');
      });
      this.#errors = errors;
    }
    return this.#errors.share();
  }

  async #openBackendChannel(): Promise<void> {
    const [socket, theirs] = native(() => addon().socketPair()).map((fd) =>
      native(() => new (addon().UnixSocket)('adopt', fd)),
    );
    this.#backendChannel = new MessageSocket(
      socket,
      ({ request, flags }) => {
        const known = request === BACKEND_REQUEST.configChange.id;
        if (flags & FLAG_NEED_REPLY) {
          const refusal = Uint8Array.of(known ? 0 : 1, 0, 0, 0, 0, 0, 0, 0);
          this.#backendChannel!.send({ request, flags: FLAG_REPLY }, refusal);
        }
        if (known) this.#events.onConfigChange();
      },
      // The main connection's end says more; a backend may also do without this one.
      () => {},
    );
    try {
      await this.#requester.tell(REQUEST.setBackendReqFd, undefined, [theirs.fd()]);
    } finally {
      theirs.close();
    }
  }

  #broken(what: string): VmmError {
    return this.#end(new VmmError('BACKEND_FAILED', what));
  }

  #end(error: VmmError): VmmError {
    if (!this.#closed) {
      this.close();
      this.#events.onEnd(error);
    }
    return error;
  }
}

/** `used.idx`: virtio 1.2, 2.7.8. */
export function usedIndex(memory: GuestMemory, { used }: ExternalQueue): number {
  return memory.dataView(used + 2, 2).getUint16(0, true);
}

function connected(path: string): NativeUnixSocket {
  try {
    return native(() => new (addon().UnixSocket)('connect', path));
  } catch (cause) {
    throw new VmmError('BACKEND_FAILED', `nobody serves a device at ${path}: ${(cause as Error).message}`, { cause });
  }
}
