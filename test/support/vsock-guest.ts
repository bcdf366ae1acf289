import { VirtioVsock, type VirtioVsockConfig } from '../../src/devices/virtio/vsock/vsock.js';
import * as defs from '../../src/devices/virtio/vsock/defs.js';
import { type VsockHeader, decodeHeader, encodeHeader } from '../../src/devices/virtio/vsock/packet.js';
import { FakeIrqLine } from '../../src/irq/irq-line.js';
import { heapGuestMemory } from '../../src/memory/guest-memory.js';
import { MMIO_STATUS, STATUS_NEEDS_RESET } from '../../src/virtio/defs.js';
import { DriverArena } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../src/virtio/transport/mmio.js';
import { MappedMmio } from './mapped-mmio.js';

export const GUEST_CID = 7;
export const OP = {
  REQUEST: defs.VIRTIO_VSOCK_OP_REQUEST,
  RESPONSE: defs.VIRTIO_VSOCK_OP_RESPONSE,
  RST: defs.VIRTIO_VSOCK_OP_RST,
  SHUTDOWN: defs.VIRTIO_VSOCK_OP_SHUTDOWN,
  RW: defs.VIRTIO_VSOCK_OP_RW,
  CREDIT_UPDATE: defs.VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  CREDIT_REQUEST: defs.VIRTIO_VSOCK_OP_CREDIT_REQUEST,
} as const;

const HEADER = defs.VSOCK_HEADER_BYTES;
const { RECEIVE_QUEUE: RX, TRANSMIT_QUEUE: TX, EVENT_QUEUE } = defs;

export interface Packet extends VsockHeader {
  payload: Buffer;
}

export interface VsockGuestOptions extends Partial<VirtioVsockConfig> {
  /** Receive buffers the driver keeps available, and the bytes of each. Default: 16 of 4,140. */
  buffers?: number;
  bufferBytes?: number;
}

/** A guest's socket driver: a whole device on virtio-mmio. It says what it is told to, true or not. */
export class VsockGuest {
  readonly memory = heapGuestMemory({ gpa: 0, sizeBytes: 8 * 2 ** 20 });
  readonly irq = new FakeIrqLine();
  readonly device: VirtioVsock;
  readonly mmio: VirtioMmio;
  driver!: MmioDriver;
  readonly #bufferBytes: number;
  readonly #buffers: number;
  readonly #posted = new Map<number, number>();
  #freeBuffers: number[] = [];
  #transmitGpa = 0;

  constructor({ buffers = 16, bufferBytes = HEADER + 4096, ...config }: VsockGuestOptions = {}) {
    this.#buffers = buffers;
    this.#bufferBytes = bufferBytes;
    this.device = new VirtioVsock({ cid: GUEST_CID, ...config });
    this.mmio = new MappedMmio({ device: this.device, memory: this.memory, irq: this.irq });
    this.start();
  }

  /** Resets the device and starts over. */
  start(): void {
    const arena = new DriverArena(this.memory, 0x1000);
    this.driver = new MmioDriver(this.mmio, arena);
    this.driver.start(~0n, 256);
    this.#posted.clear();
    this.#freeBuffers = Array.from({ length: this.#buffers }, () => arena.place(this.#bufferBytes));
    this.#transmitGpa = arena.place(HEADER + 512 * 1024);
    this.refill();
  }

  get failed(): boolean {
    return (this.driver.get(MMIO_STATUS) & STATUS_NEEDS_RESET) !== 0;
  }

  /** Sends a packet; what is not given is right for a stream to the host. `length` in the header may be a lie. */
  send(fields: Partial<VsockHeader> & { op: number }, payload: Uint8Array | string = ''): void {
    const bytes = Buffer.from(payload);
    const header: VsockHeader = {
      srcCid: BigInt(GUEST_CID),
      dstCid: 2n,
      srcPort: 1000,
      dstPort: 50,
      length: bytes.length,
      type: 1,
      flags: 0,
      bufAlloc: 64 * 1024,
      fwdCnt: 0,
      ...fields,
    };
    const packet = Buffer.concat([new Uint8Array(HEADER), bytes]);
    encodeHeader(packet, header);
    this.sendRaw(packet);
  }

  sendRaw(bytes: Uint8Array): void {
    this.memory.write(this.#transmitGpa, bytes);
    this.driver.queues[TX].add([{ gpa: this.#transmitGpa, length: bytes.length }]);
    this.driver.kick(TX);
    // The device has taken it by now, unless it failed or is paused.
    this.driver.queues[TX].takeUsed();
  }

  /** What the device has sent since the last call; the buffers are used again. */
  packets(): Packet[] {
    const all: Packet[] = [];
    for (let more = true; more;) {
      const some = this.fetch();
      all.push(...some);
      more = some.length > 0;
      this.refill();
    }
    return all;
  }

  /** The same without giving buffers back, so that the device runs out of them. */
  fetch(): Packet[] {
    const queue = this.driver.queues[RX];
    const packets: Packet[] = [];
    for (let used; (used = queue.takeUsed());) {
      const gpa = this.#posted.get(used.head)!;
      this.#posted.delete(used.head);
      this.#freeBuffers.push(gpa);
      const bytes = Buffer.from(this.memory.read(gpa, used.writtenBytes));
      packets.push({ ...decodeHeader(bytes), payload: bytes.subarray(HEADER) });
    }
    queue.usedEvent = queue.usedIdx;
    return packets;
  }

  refill(): void {
    for (let gpa; (gpa = this.#freeBuffers.pop()) !== undefined;) {
      this.#posted.set(this.driver.queues[RX].add([{ gpa, length: this.#bufferBytes, writable: true }]), gpa);
    }
    this.driver.kick(RX);
  }

  /** Gives the event queue a buffer. @returns Reads the events that came, as bytes. */
  postEvent(): () => Buffer | undefined {
    const gpa = 7 * 2 ** 20;
    this.driver.queues[EVENT_QUEUE].add([{ gpa, length: 8, writable: true }]);
    this.driver.kick(EVENT_QUEUE);
    return () => {
      const used = this.driver.queues[EVENT_QUEUE].takeUsed();
      return used && Buffer.from(this.memory.read(gpa, used.writtenBytes));
    };
  }
}
