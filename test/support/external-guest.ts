/** Plays a guest with a device whose queues another process works on: guest memory is a memfd, kicks are eventfds. */
import { GuestRam } from '../../src/kvm/ram.js';
import { QueueEventFds } from '../../src/machine/queue-event-fds.js';
import { GuestMemory } from '../../src/memory/guest-memory.js';
import type { VirtioDevice } from '../../src/virtio/device.js';
import { DriverArena, type DriverBuffer, type UsedElement } from '../../src/virtio/driver.js';
import { MmioDriver } from '../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../src/virtio/transport/mmio.js';
import { INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER } from '../../src/virtio/defs.js';
import { MappedMmio } from './mapped-mmio.js';

const ANSWER_TIMEOUT_MS = 60_000;

export class ExternalGuest {
  readonly ram: GuestRam;
  readonly memory = new GuestMemory();
  readonly arena: DriverArena;
  readonly mmio: VirtioMmio;
  readonly driver: MmioDriver;
  /** Interrupts for a change of configuration space or status. */
  configChanges = 0;
  usedInterrupts = 0;
  readonly #events: QueueEventFds[];
  readonly #waiting = new Map<string, (used: UsedElement) => void>();

  constructor(
    readonly device: VirtioDevice,
    sizeBytes = 16 * 2 ** 20,
  ) {
    this.ram = GuestRam.create(0, sizeBytes);
    this.memory.addRegion(this.ram);
    this.arena = new DriverArena(this.memory, 0x1000);
    this.#events = device.queueSizes.map((_, queue) => new QueueEventFds(() => this.mmio.core.onCall(queue)));
    const irq = { set: (level: boolean) => void (level && this.#onInterrupt()) };
    this.mmio = new MappedMmio({ device, memory: this.memory, irq, events: this.#events });
    this.driver = new MmioDriver(this.mmio, this.arena);
  }

  /** Makes buffers available and kicks. Resolves when the device gives them back. */
  async submit(queue: number, buffers: readonly DriverBuffer[]): Promise<UsedElement> {
    const ring = this.driver.queues[queue];
    const head = ring.add(buffers);
    const given = new Promise<UsedElement>((resolve) => this.#waiting.set(`${queue}:${head}`, resolve));
    this.#events[queue].kick();
    let timer: NodeJS.Timeout;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`queue ${queue}: no answer`)), ANSWER_TIMEOUT_MS);
    });
    return Promise.race([given, late]).finally(() => clearTimeout(timer));
  }

  /** Waits until the driver sees that status bits are set, or all clear. */
  async status(bits: number, set: boolean): Promise<void> {
    await until(() => (this.driver.status & bits) === (set ? bits : 0));
  }

  /** Resets the device, and waits until the reset is over. */
  async reset(): Promise<void> {
    this.driver.addStatus(0);
    this.mmio.core.reset();
    await this.status(0xff, false);
    this.#waiting.clear();
  }

  close(): void {
    for (const events of this.#events) events[Symbol.dispose]();
    this.ram.close();
  }

  #onInterrupt(): void {
    const causes = this.driver.acknowledge();
    if (causes & INTERRUPT_CONFIG_CHANGE) this.configChanges++;
    if (causes & INTERRUPT_USED_BUFFER) this.usedInterrupts++;
    this.driver.queues.forEach((ring, queue) => {
      // Whoever gives back from here on interrupts again; what was given back before is taken below.
      ring.usedEvent = ring.usedIdx;
      for (let used = ring.takeUsed(); used; used = ring.takeUsed()) {
        const key = `${queue}:${used.head}`;
        const resolve = this.#waiting.get(key);
        if (!resolve) throw new Error(`queue ${queue}: chain ${used.head} was given back, and was not out`);
        this.#waiting.delete(key);
        resolve(used);
      }
    });
  }
}

export async function until(condition: () => boolean, timeoutMs = 60_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`${condition.toString()}: not after ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
