/** The network device: virtio 1.2, 5.1. One pair of queues, offloads as far as its backend carries them. */
import type { AccessSize } from '../../../bus/device.js';
import { SavedState } from '../../../bus/saved-state.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_NET } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import { type RateLimit, RateLimiter } from '../../rate-limiter.js';
import type { NetBackend } from './backend.js';
import type { NetCounters } from './counters.js';
import {
  CONFIG_BYTES,
  CONFIG_MAC,
  CONFIG_MAX_QUEUE_PAIRS,
  CONFIG_MTU,
  CONFIG_STATUS,
  ETHERNET_HEADER_BYTES,
  MAX_FRAME_BYTES,
  MAX_MTU,
  MIN_MTU,
  RECEIVE_QUEUE,
  TRANSMIT_QUEUE,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_S_LINK_UP,
  VLAN_TAGS_BYTES,
} from './defs.js';
import { agreedOffloads, offloadFeatures } from './features.js';
import { formatMac, parseMac, randomMac } from './mac.js';
import { Receiver } from './receiver.js';
import { Transmitter } from './transmitter.js';

const QUEUE_SIZE = 256;

export interface VirtioNetConfig {
  /** Carries the frames; the device connects to it, and its maker closes it. */
  backend: NetBackend;
  /** Such as `52:54:00:12:34:56`. Default: the backend's, else one made up. */
  mac?: string;
  /** The largest packet in bytes, without the Ethernet header, 68 to 65,535. Default: the backend's, else the driver's. */
  mtu?: number;
  /** Of the frames that the guest sends, and of those it gets; an operation is a frame. */
  transmitLimit?: RateLimit;
  receiveLimit?: RateLimit;
  /** The backend broke down, and the guest's link with it. */
  onBackendFailure?: (error: VmmError) => void;
}

export interface VirtioNetState {
  mac: Uint8Array;
  linkUp: boolean;
}

export class VirtioNet implements VirtioDevice {
  readonly name = 'virtio-net';
  readonly type = VIRTIO_ID_NET;
  readonly features: bigint;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];

  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #backend: NetBackend;
  readonly #transmitter: Transmitter;
  readonly #receiver: Receiver;
  readonly #maxPlainBytes: number;
  #linkUp = true;
  #context: VirtioContext | undefined;

  /** @throws VmmError code "INVALID_ARGUMENT" for an address, MTU or limit that cannot be. */
  constructor(config: VirtioNetConfig) {
    const { backend } = config;
    const mtu = config.mtu ?? backend.mtu;
    if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= MIN_MTU && mtu <= MAX_MTU)) {
      throw new VmmError('INVALID_ARGUMENT', `an MTU of ${mtu} bytes cannot be; give ${MIN_MTU} to ${MAX_MTU}`);
    }
    const mac = config.mac === undefined ? (backend.mac ?? randomMac()) : parseMac(config.mac);
    const limiter = (limit: RateLimit | undefined) => limit && new RateLimiter(limit);
    this.#backend = backend;
    this.#transmitter = new Transmitter(backend, limiter(config.transmitLimit));
    this.#receiver = new Receiver(backend, limiter(config.receiveLimit));
    this.features =
      VIRTIO_NET_F_MAC |
      VIRTIO_NET_F_STATUS |
      VIRTIO_NET_F_MRG_RXBUF |
      (mtu === undefined ? 0n : VIRTIO_NET_F_MTU) |
      offloadFeatures(backend);
    this.#maxPlainBytes = mtu === undefined ? MAX_FRAME_BYTES : mtu + ETHERNET_HEADER_BYTES + VLAN_TAGS_BYTES;
    this.#config.set(mac, CONFIG_MAC);
    this.#setConfig(CONFIG_MAX_QUEUE_PAIRS, 1);
    this.#setConfig(CONFIG_MTU, mtu ?? 0);
    this.#setConfig(CONFIG_STATUS, VIRTIO_NET_S_LINK_UP);
    backend.connect({
      receive: (frame, header) => this.#receiver.receive(frame, header),
      receiveEnd: () => this.#receiver.receiveEnd(),
      drained: () => this.#transmitter.unblock(),
      failed: (error) => {
        this.setLink(false);
        config.onBackendFailure?.(error);
      },
    });
  }

  /** The guest's address, as `52:54:00:12:34:56`. */
  get mac(): string {
    return formatMac(this.#config.subarray(CONFIG_MAC, CONFIG_MAC + 6));
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  get counters(): NetCounters {
    return { transmitted: this.#transmitter.count.counters, received: this.#receiver.count.counters };
  }

  /** Plugs the cable in, or pulls it: then frames are dropped both ways. */
  setLink(up: boolean): void {
    if (up === this.#linkUp) return;
    this.#applyLink(up);
    this.#context?.configChanged();
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#config, offset, size);
  }

  /** A version 1 driver writes nothing here. */
  writeConfig(): void {}

  activate(context: VirtioContext): void {
    this.#context = context;
    const { features } = context;
    const maxPlainBytes = features & VIRTIO_NET_F_MTU ? this.#maxPlainBytes : MAX_FRAME_BYTES;
    const receive = agreedOffloads(features, 'receive');
    this.#backend.setReceiveOffloads([...receive]);
    const [receiveQueue, transmitQueue] = [context.queues[RECEIVE_QUEUE], context.queues[TRANSMIT_QUEUE]];
    if (receiveQueue) {
      this.#receiver.activate({
        queue: receiveQueue,
        offloads: receive,
        maxPlainBytes,
        mergeable: (features & VIRTIO_NET_F_MRG_RXBUF) !== 0n,
        fail: (reason) => context.fail(reason),
      });
    }
    if (transmitQueue) {
      const offloads = agreedOffloads(features, 'transmit');
      this.#transmitter.activate({ queue: transmitQueue, offloads, maxPlainBytes });
    }
  }

  queueNotify(index: number): void {
    if (index === RECEIVE_QUEUE) this.#receiver.onNotify();
    else this.#transmitter.onNotify();
  }

  reset(): void {
    this.#context = undefined;
    this.#transmitter.reset();
    this.#receiver.reset();
  }

  /** Stops both directions; frames for the guest wait in the backend. */
  quiesce(): Promise<void> {
    this.#transmitter.paused = true;
    this.#receiver.paused = true;
    return Promise.resolve();
  }

  resume(): void {
    this.#transmitter.paused = false;
    this.#receiver.paused = false;
  }

  /** Frames that wait for a buffer are not part of the state: a network may lose them. */
  save(): VirtioNetState {
    return { mac: this.#config.slice(CONFIG_MAC, CONFIG_MAC + 6), linkUp: this.#linkUp };
  }

  restore(state: unknown): void {
    const saved = new SavedState(this.name, state);
    const mac = saved.bytes('mac', 6, 6);
    const linkUp = saved.boolean('linkUp');
    this.#config.set(mac, CONFIG_MAC);
    this.#applyLink(linkUp);
  }

  #applyLink(up: boolean): void {
    this.#linkUp = up;
    this.#transmitter.linkUp = up;
    this.#receiver.linkUp = up;
    this.#setConfig(CONFIG_STATUS, up ? VIRTIO_NET_S_LINK_UP : 0);
  }

  #setConfig(offset: number, value: number): void {
    this.#config[offset] = value;
    this.#config[offset + 1] = value >> 8;
  }
}
