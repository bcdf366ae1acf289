/** The socket device: virtio 1.2, 5.10. Stream sockets between host and guest, without a network. */
import type { Duplex } from 'node:stream';
import type { AccessSize } from '../../../bus/device.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_VSOCK } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { Turns } from '../../../virtio/queue/turns.js';
import type { VsockAcceptor } from './backend.js';
import { BUFFER_BYTES, Connection, type ConnectionOwner, lost } from './connection.js';
import type { VsockCounters, VsockFault } from './counters.js';
import {
  CID_HOST,
  CONFIG_BYTES,
  EVENT_BYTES,
  EVENT_QUEUE,
  MAX_GUEST_CID,
  MAX_PORT,
  MIN_GUEST_CID,
  RECEIVE_QUEUE,
  TRANSMIT_QUEUE,
  VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_TYPE_STREAM,
  VSOCK_HEADER_BYTES,
} from './defs.js';
import { type VsockHeader, decodeHeader, encodeHeader } from './packet.js';
import { checkPort } from './port.js';

const QUEUE_SIZE = 256;
const EVENT_QUEUE_SIZE = 16;
/** Payload of one packet to the guest: larger buffers of its are not filled to the end. */
const MAX_PAYLOAD_BYTES = 64 * 1024;
/** Bytes before the event loop gets its turn; a packet without payload counts as its header. */
const MAX_BYTES_PER_TURN = 1024 * 1024;
/** A guest that connects for ever would fill the host's memory: 256 KiB may wait on each connection. */
const MAX_CONNECTIONS = 2048;
/** A guest that breaks rules and fetches no answers would fill it, too. */
const MAX_PENDING_RESETS = 4096;
const CONNECT_TIMEOUT_MS = 5_000;
/** Where the host's own ports start for connections that it makes; those below are for listeners. */
const FIRST_EPHEMERAL_PORT = 2 ** 30;

export interface VirtioVsockConfig {
  /** The guest's context ID, 3 to 4,294,967,294. */
  cid: number;
  /** Answers the guest's connections to the host; without it, and where it returns false, they are refused. */
  onRequest?: VsockAcceptor;
  /** The most connections at a time, of both sides together. Default: 2,048. */
  maxConnections?: number;
  /** How long the guest may take to answer when the host connects, in ms. Default: 5,000. */
  connectTimeoutMs?: number;
}

type Reset = Pick<VsockHeader, 'srcCid' | 'srcPort' | 'dstPort' | 'type'>;

export class VirtioVsock implements VirtioDevice {
  readonly name = 'virtio-vsock';
  readonly type = VIRTIO_ID_VSOCK;
  readonly features = VIRTIO_VSOCK_F_STREAM;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE];

  readonly #guestCid: bigint;
  readonly #config: Uint8Array;
  readonly #onRequest: VsockAcceptor;
  readonly #maxConnections: number;
  readonly #connectTimeoutMs: number;
  #context: VirtioContext | undefined;
  #paused = false;
  #transportReset = false;

  /** By the ports of both sides. */
  readonly #connections = new Map<string, Connection>();
  /** Those that hold memory: connected, or with a stream that is not destroyed. */
  readonly #alive = new Set<Connection>();
  /** Those that have something to send, in the order of their turns. */
  readonly #ready = new Set<Connection>();
  #resets: Reset[] = [];
  #nextPort = FIRST_EPHEMERAL_PORT;

  readonly #transmitTurns = new Turns(() => this.#serveTransmit());
  readonly #receiveTurns = new Turns(() => this.#serveReceive());
  readonly #header = new Uint8Array(VSOCK_HEADER_BYTES);
  /** A queue is being served: what becomes ready meanwhile is sent by, or after, that. */
  #serving = false;

  #opened = 0;
  #bytesFromGuest = 0;
  #bytesToGuest = 0;
  #droppedResets = 0;
  readonly #faults = new Map<VsockFault, number>();

  readonly #owner: ConnectionOwner = {
    ready: (connection) => {
      this.#ready.add(connection);
      this.#send();
    },
    opened: () => void this.#opened++,
    left: (connection, reset) => {
      this.#connections.delete(keyOf(connection.port, connection.guestPort));
      this.#ready.delete(connection);
      if (connection.stream.destroyed) this.#alive.delete(connection);
      if (!reset) return;
      const { port: srcPort, guestPort: dstPort } = connection;
      this.#reset({ srcCid: CID_HOST, srcPort, dstPort, type: VIRTIO_VSOCK_TYPE_STREAM });
    },
    released: (connection) => {
      if (connection.state === 'over') this.#alive.delete(connection);
    },
  };

  /** @throws VmmError code "INVALID_ARGUMENT" for a CID that no guest can have. */
  constructor(config: VirtioVsockConfig) {
    const { cid } = config;
    if (!(Number.isInteger(cid) && cid >= MIN_GUEST_CID && cid <= MAX_GUEST_CID)) {
      throw new VmmError('INVALID_ARGUMENT', `no guest can have the CID ${cid}; give ${MIN_GUEST_CID} or more`);
    }
    this.#guestCid = BigInt(cid);
    this.#config = new Uint8Array(CONFIG_BYTES);
    new DataView(this.#config.buffer).setBigUint64(0, this.#guestCid, true);
    this.#onRequest = config.onRequest ?? (() => false);
    this.#maxConnections = config.maxConnections ?? MAX_CONNECTIONS;
    this.#connectTimeoutMs = config.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
  }

  get counters(): VsockCounters {
    return {
      connections: this.#alive.size,
      opened: this.#opened,
      bytesFromGuest: this.#bytesFromGuest,
      bytesToGuest: this.#bytesToGuest,
      faults: Object.fromEntries(this.#faults),
      droppedResets: this.#droppedResets,
    };
  }

  /**
   * Connects to a port of the guest.
   *
   * @returns A stream with backpressure both ways. `end()` closes the host's direction alone; `destroy()` closes both.
   *   A connection that breaks ends it with a VmmError of code "CONNECTION_FAILED".
   * @throws VmmError code "CONNECTION_FAILED" with errno ECONNREFUSED where nothing listens, or the guest has no driver;
   *   ETIMEDOUT where it does not answer. "BUSY" with too many connections, "INVALID_ARGUMENT" for what is no port.
   */
  async connect(port: number): Promise<{ stream: Duplex; hostPort: number }> {
    checkPort(port);
    if (this.#context?.queues[RECEIVE_QUEUE]?.closed !== false) {
      throw lost('ECONNREFUSED', 'the guest has no vsock driver, or not yet: load it, and try again');
    }
    if (this.#alive.size >= this.#maxConnections) {
      throw new VmmError('BUSY', `the guest has ${this.#alive.size} vsock connections, and more cannot be; close some`);
    }
    const hostPort = this.#freePort(port);
    let connection!: Connection;
    let timer: NodeJS.Timeout | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        connection = new Connection(hostPort, port, this.#owner, (error) => (error ? reject(error) : resolve()));
        timer = setTimeout(() => {
          const error = lost('ETIMEDOUT', `the guest did not answer on vsock port ${port}`);
          connection.fail(error, true);
        }, this.#connectTimeoutMs);
        this.#add(connection);
        this.#owner.ready(connection);
      });
    } finally {
      clearTimeout(timer);
    }
    return { stream: connection.stream, hostPort };
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#config, offset, size);
  }

  writeConfig(): void {}

  activate(context: VirtioContext): void {
    this.#context = context;
  }

  queueNotify(index: number): void {
    if (index === TRANSMIT_QUEUE) this.#transmitTurns.take();
    else if (index === RECEIVE_QUEUE) this.#send();
    else this.#sendEvent();
  }

  reset(): void {
    this.#context = undefined;
    this.#transmitTurns.cancel();
    this.#receiveTurns.cancel();
    // A connection that ended before is not lost: its last bytes may still be read.
    for (const connection of [...this.#connections.values()]) {
      connection.fail(lost('ECONNRESET', "the guest's vsock driver started over"), false);
    }
    this.#resets = [];
    this.#ready.clear();
    this.#transportReset = false;
  }

  /** Stops both directions; bytes wait where they are. */
  quiesce(): Promise<void> {
    this.#paused = true;
    return Promise.resolve();
  }

  resume(): void {
    this.#paused = false;
    this.#transmitTurns.take();
    this.#send();
  }

  /** Connections cannot be carried along: the guest is told, once it runs again (5.10.6.7). */
  save(): undefined {
    return undefined;
  }

  restore(): void {
    this.#transportReset = true;
  }

  #add(connection: Connection): void {
    this.#connections.set(keyOf(connection.port, connection.guestPort), connection);
    this.#alive.add(connection);
  }

  #freePort(guestPort: number): number {
    // The cap on connections is far below the number of ports: one is free.
    do this.#nextPort = this.#nextPort >= MAX_PORT ? FIRST_EPHEMERAL_PORT : this.#nextPort + 1;
    while (this.#connections.has(keyOf(this.#nextPort, guestPort)));
    return this.#nextPort;
  }

  #serveTransmit(): boolean {
    const queue = this.#context?.queues[TRANSMIT_QUEUE];
    if (!queue || this.#paused) return false;
    let left = MAX_BYTES_PER_TURN;
    this.#serving = true;
    const more = queue.drain((chain) => {
      left -= Math.max(chain.readableBytes, VSOCK_HEADER_BYTES);
      this.#receive(chain);
      queue.push(chain, 0);
      return left > 0;
    });
    this.#serving = false;
    this.#send();
    return more;
  }

  #receive(chain: DescriptorChain): void {
    if (chain.read(0, this.#header) < VSOCK_HEADER_BYTES) return this.#count('short packet');
    const header = decodeHeader(this.#header);
    const connection = this.#connections.get(keyOf(header.dstPort, header.srcPort));
    const fault = this.#check(header, chain) ?? this.#dispatch(header, connection, chain);
    if (!fault) return;
    this.#count(fault);
    // What is not the guest's own, or no stream, has nothing to do with a connection that is both.
    if (connection && connection.state !== 'over' && fault !== 'forged cid' && fault !== 'unknown type') {
      connection.fail(lost('ECONNRESET', `the guest broke the protocol: ${fault}`), true);
    } else if (header.op !== VIRTIO_VSOCK_OP_RST) {
      this.#reset({
        srcCid: header.dstCid,
        srcPort: header.dstPort,
        dstPort: header.srcPort,
        type: header.type,
      });
    }
  }

  #check({ srcCid, dstCid, type, length, op }: VsockHeader, chain: DescriptorChain): VsockFault | undefined {
    if (srcCid !== this.#guestCid || dstCid !== CID_HOST) return 'forged cid';
    if (type !== VIRTIO_VSOCK_TYPE_STREAM) return 'unknown type';
    if (length !== chain.readableBytes - VSOCK_HEADER_BYTES) return 'wrong length';
    if (length > 0 && op !== VIRTIO_VSOCK_OP_RW) return 'wrong length';
    return undefined;
  }

  #dispatch(header: VsockHeader, connection: Connection | undefined, chain: DescriptorChain): VsockFault | undefined {
    if (connection) {
      if (header.op === VIRTIO_VSOCK_OP_RW) this.#bytesFromGuest += header.length;
      return connection.receive(header, (target) => chain.read(VSOCK_HEADER_BYTES, target));
    }
    if (header.op === VIRTIO_VSOCK_OP_REQUEST) return this.#offer(header);
    // A reset that crossed ours is how connections end.
    return header.op === VIRTIO_VSOCK_OP_RST ? undefined : 'no connection';
  }

  /** The guest wants to connect. */
  #offer(header: VsockHeader): VsockFault | undefined {
    if (this.#alive.size >= this.#maxConnections) return 'too many connections';
    const { dstPort: port, srcPort: guestPort } = header;
    const connection = new Connection(port, guestPort, this.#owner);
    this.#add(connection);
    connection.setCredit(header);
    const refuse = () => {
      if (connection.state !== 'offered') return;
      this.#count('refused');
      connection.fail(lost('ECONNREFUSED', `nothing on the host accepts vsock port ${port}`), true);
    };
    const taken = this.#onRequest({ port, guestPort, accept: () => connection.accept(), reject: refuse });
    if (!taken) refuse();
    return undefined;
  }

  #count(fault: VsockFault): void {
    this.#faults.set(fault, (this.#faults.get(fault) ?? 0) + 1);
  }

  #reset(reset: Reset): void {
    if (!this.#context) return;
    if (this.#resets.length >= MAX_PENDING_RESETS) {
      this.#droppedResets++;
      return;
    }
    this.#resets.push(reset);
    this.#send();
  }

  #send(): void {
    if (!this.#serving) this.#receiveTurns.take();
  }

  #serveReceive(): boolean {
    const queue = this.#context?.queues[RECEIVE_QUEUE];
    if (!queue || this.#paused) return false;
    let left = MAX_BYTES_PER_TURN;
    this.#serving = true;
    while (left > 0 && (this.#resets.length > 0 || this.#ready.size > 0)) {
      const chain = queue.pop();
      if (!chain) {
        if (queue.enableNotifications()) continue;
        break;
      }
      if (chain.writableBytes <= VSOCK_HEADER_BYTES) {
        this.#context?.fail('a receive buffer has no room for a header and a byte');
        break;
      }
      const bytes = this.#fill(chain);
      if (bytes > 0) queue.push(chain, bytes);
      else queue.unpop(chain);
      left -= bytes;
    }
    queue.signal();
    this.#serving = false;
    return left <= 0;
  }

  /** Writes the next packet. @returns Its bytes; 0 when there is none. */
  #fill(chain: DescriptorChain): number {
    const reset = this.#resets.shift();
    if (reset) return this.#writeHeader(chain, { ...NOTHING, ...reset, op: VIRTIO_VSOCK_OP_RST });
    for (const connection of this.#ready) {
      this.#ready.delete(connection);
      const room = Math.min(chain.writableBytes - VSOCK_HEADER_BYTES, MAX_PAYLOAD_BYTES);
      const packet = connection.take(room);
      if (!packet) continue;
      const { op, flags, length, pieces, sent } = packet;
      const fwdCnt = connection.fwdCnt;
      const { port: srcPort, guestPort: dstPort } = connection;
      let at = this.#writeHeader(chain, { ...NOTHING, srcPort, dstPort, op, flags, length, fwdCnt });
      for (const piece of pieces) at += chain.write(at, piece);
      this.#bytesToGuest += length;
      // Behind those that are ready, too: each gets its turn.
      if (connection.sendable) this.#ready.add(connection);
      sent();
      return at;
    }
    return 0;
  }

  #writeHeader(chain: DescriptorChain, fields: Omit<VsockHeader, 'dstCid'>): number {
    encodeHeader(this.#header, { ...fields, dstCid: this.#guestCid });
    return chain.write(0, this.#header);
  }

  #sendEvent(): void {
    const queue = this.#context?.queues[EVENT_QUEUE];
    if (!queue || !this.#transportReset || this.#paused) return;
    const chain = queue.pop();
    if (!chain) {
      if (queue.enableNotifications()) this.#sendEvent();
      return;
    }
    const event = new Uint8Array(EVENT_BYTES);
    new DataView(event.buffer).setUint32(0, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, true);
    this.#transportReset = false;
    queue.push(chain, chain.write(0, event));
    queue.signal();
  }
}

/** What most packets to the guest have in common. */
const NOTHING = {
  srcCid: CID_HOST,
  type: VIRTIO_VSOCK_TYPE_STREAM,
  flags: 0,
  length: 0,
  bufAlloc: BUFFER_BYTES,
  fwdCnt: 0,
};

const keyOf = (port: number, guestPort: number) => `${port}:${guestPort}`;
