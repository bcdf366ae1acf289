import type { NetBackend } from '../../src/devices/virtio/net/backend.js';
import { VirtioNet, type VirtioNetConfig } from '../../src/devices/virtio/net/net.js';
import { heapGuestMemory } from '../../src/memory/guest-memory.js';
import { DriverArena } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import { MappedMmio } from './mapped-mmio.js';

const [RX, TX] = [0, 1];
const HEADER_BYTES = 12;
const QUEUE_SIZE = 256;
const RECEIVE_BUFFER_BYTES = 2048;
const SEND_SLOTS = 64;
const SLOT_BYTES = 66 * 1024;

export interface ReceivedFrame {
  header: Buffer;
  frame: Buffer;
}

/** A guest's network driver: a whole device on virtio-mmio, its buffers refilled at every interrupt. */
export class NetGuest {
  readonly memory = heapGuestMemory({ gpa: 0, sizeBytes: 8 * 2 ** 20 });
  readonly device: VirtioNet;
  /** Called for each frame; without it they are kept. */
  onFrame: ((received: ReceivedFrame) => void) | undefined;
  readonly #received: ReceivedFrame[] = [];
  readonly #driver: MmioDriver;
  readonly #receiveBuffers = new Map<number, number>();
  readonly #freeSlots: number[] = [];
  readonly #busySlots = new Map<number, number>();
  readonly #parts: Buffer[] = [];
  #partsMissing = 0;
  #collecting = false;

  constructor(backend: NetBackend, config: Omit<VirtioNetConfig, 'backend'> = {}, features = ~0n) {
    this.device = new VirtioNet({ backend, ...config });
    const irq = { set: (level: boolean) => level && this.#onInterrupt() };
    const arena = new DriverArena(this.memory, 0x1000);
    this.#driver = new MmioDriver(new MappedMmio({ device: this.device, memory: this.memory, irq }), arena);
    this.#driver.start(features, QUEUE_SIZE);
    for (let i = 0; i < QUEUE_SIZE; i++) this.#giveBuffer(arena.place(RECEIVE_BUFFER_BYTES));
    for (let i = 0; i < SEND_SLOTS; i++) this.#freeSlots.push(arena.place(SLOT_BYTES));
    this.#driver.kick(RX);
  }

  get mac(): string {
    return this.device.mac;
  }

  /** Sends a frame. @returns false when the guest has no buffer for it: the device still has them all. */
  send(frame: Uint8Array, header: Uint8Array = new Uint8Array(HEADER_BYTES)): boolean {
    if (this.#freeSlots.length === 0) this.#collect();
    const gpa = this.#freeSlots.pop();
    if (gpa === undefined) return false;
    this.memory.write(gpa, header);
    this.memory.write(gpa + HEADER_BYTES, frame);
    this.#busySlots.set(this.#driver.queues[TX].add([{ gpa, length: HEADER_BYTES + frame.length }]), gpa);
    this.#driver.kick(TX);
    return true;
  }

  /** The next frame that fits, past those that do not. Rejects after `timeoutMs`. */
  async next(fits: (received: ReceivedFrame) => boolean, timeoutMs = 60_000): Promise<ReceivedFrame> {
    for (const endMs = performance.now() + timeoutMs; performance.now() < endMs;) {
      for (let received; (received = this.#received.shift());) if (fits(received)) return received;
      await new Promise((done) => setTimeout(done, 2));
    }
    throw new Error(`no such frame came; counters: ${JSON.stringify(this.device.counters)}`);
  }

  #onInterrupt(): void {
    if (this.#collecting) return;
    this.#collecting = true;
    setImmediate(() => {
      this.#collecting = false;
      this.#collect();
    });
  }

  #collect(): void {
    const [receive, transmit] = this.#driver.queues;
    this.#driver.acknowledge();
    let seen;
    do {
      seen = receive.usedIdx + transmit.usedIdx;
      for (let used; (used = transmit.takeUsed());) {
        this.#freeSlots.push(this.#busySlots.get(used.head)!);
        this.#busySlots.delete(used.head);
      }
      for (let used; (used = receive.takeUsed());) {
        const gpa = this.#receiveBuffers.get(used.head)!;
        this.#onPart(Buffer.from(this.memory.read(gpa, used.writtenBytes)));
        this.#giveBuffer(gpa);
      }
      // With EVENT_IDX no interrupt comes until what was seen last is passed.
      receive.usedEvent = receive.usedIdx;
      transmit.usedEvent = transmit.usedIdx;
    } while (seen !== receive.usedIdx + transmit.usedIdx);
    this.#driver.kick(RX);
  }

  #onPart(part: Buffer): void {
    if (this.#partsMissing === 0) this.#partsMissing = part.readUInt16LE(10);
    this.#parts.push(part);
    if (--this.#partsMissing > 0) return;
    const bytes = Buffer.concat(this.#parts.splice(0));
    const received = { header: bytes.subarray(0, HEADER_BYTES), frame: bytes.subarray(HEADER_BYTES) };
    if (this.onFrame) this.onFrame(received);
    else this.#received.push(received);
  }

  #giveBuffer(gpa: number): void {
    const head = this.#driver.queues[RX].add([{ gpa, length: RECEIVE_BUFFER_BYTES, writable: true }]);
    this.#receiveBuffers.set(head, gpa);
  }
}
