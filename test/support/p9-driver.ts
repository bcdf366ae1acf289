import type { Virtio9p } from '../../src/devices/virtio/9p/9p.js';
import { type GuestMemory, heapGuestMemory } from '../../src/memory/guest-memory.js';
import { DriverArena } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import { MappedMmio } from './mapped-mmio.js';

const SLOT_BYTES = 160 * 1024;
/** For an indirect table of some pages each way. */
const TABLE_BYTES = 4096;

/** A guest's 9P transport driver, over MMIO: one request a chain, cut into pages as Linux's is. */
export class P9Driver {
  readonly memory: GuestMemory = heapGuestMemory({ gpa: 0, sizeBytes: 16 * 2 ** 20 });
  readonly arena = new DriverArena(this.memory, 0x1000);
  readonly driver: MmioDriver;
  readonly #free: { table: number; gpa: number }[] = [];
  readonly #waiting = new Map<number, (writtenBytes: number) => void>();

  /** @param slots Requests that it can have under way. */
  constructor(
    readonly device: Virtio9p,
    slots = 20,
  ) {
    const irq = { set: (level: boolean) => void (level && setImmediate(() => this.#collect())) };
    this.driver = new MmioDriver(new MappedMmio({ device, memory: this.memory, irq }), this.arena);
    for (let i = 0; i < slots; i++) {
      this.#free.push({ table: this.arena.place(TABLE_BYTES), gpa: this.arena.place(2 * SLOT_BYTES, 4096) });
    }
    this.driver.start();
  }

  /** A {@link P9Transport}. */
  readonly send = async (request: Buffer, room: number): Promise<Buffer> => {
    const slot = this.#free.pop();
    if (!slot) throw new Error(`too many requests at once`);
    const { table, gpa } = slot;
    const reply = gpa + SLOT_BYTES;
    this.memory.write(gpa, request);
    const writtenBytes = await new Promise<number>((resolve) => {
      const buffers = [...pages(gpa, request.length), ...pages(reply, room, true)];
      const head = this.driver.queues[0].addIndirect(table, buffers);
      this.#waiting.set(head, resolve);
      this.driver.kick(0);
    });
    this.#free.push(slot);
    return Buffer.from(this.memory.read(reply, writtenBytes));
  };

  #collect(): void {
    this.driver.acknowledge();
    const [queue] = this.driver.queues;
    for (let used; queue && (used = queue.takeUsed()); queue.usedEvent = queue.usedIdx) {
      this.#waiting.get(used.head)?.(used.writtenBytes);
      this.#waiting.delete(used.head);
    }
  }
}

/** The header apart, then a page a descriptor. */
function pages(gpa: number, length: number, writable = false) {
  const buffers = [{ gpa, length: Math.min(11, length), writable }];
  for (let at = 11; at < length; at += 4096) {
    buffers.push({ gpa: gpa + at, length: Math.min(4096, length - at), writable });
  }
  return buffers;
}
