import type { MsiMessage, MsiTarget, MsiVector } from '../irq/msi.js';
import { EventFd } from './event-fd.js';
import type { GsiRoute, Vm } from './vm.js';

/** Inputs of the in-kernel IOAPIC; GSIs beyond them are free for messages. */
const IOAPIC_PINS = 24;
const PIC_PINS = 8;

/** The routes that KVM_CREATE_IRQCHIP makes: KVM_SET_GSI_ROUTING replaces them, so they are part of every table. */
function irqchipRoutes(): GsiRoute[] {
  const routes: GsiRoute[] = [];
  for (let gsi = 0; gsi < 2 * PIC_PINS; gsi++) {
    routes.push({ gsi, type: 'irqchip', chip: gsi < PIC_PINS ? 'pic-master' : 'pic-slave', pin: gsi % PIC_PINS });
  }
  for (let gsi = 0; gsi < IOAPIC_PINS; gsi++) routes.push({ gsi, type: 'irqchip', chip: 'ioapic', pin: gsi });
  return routes;
}

/** Message-signalled interrupts by irqfd: each vector is a GSI with a route of its own and an eventfd. */
export class MsiRouter implements MsiTarget, Disposable {
  /** Interrupts sent so far. */
  signals = 0;
  readonly #vm: Vm;
  readonly #vectors: Vector[] = [];

  /** The VM needs its irqchip already. */
  constructor(vm: Vm) {
    this.#vm = vm;
  }

  vector(): MsiVector {
    const vector = new Vector(IOAPIC_PINS + this.#vectors.length, () => this.#update(vector), this);
    this.#vectors.push(vector);
    return vector;
  }

  /** Closes the eventfds; the VM must be closed or about to be. */
  [Symbol.dispose](): void {
    for (const vector of this.#vectors) vector.close();
  }

  #update(changed: Vector): void {
    const routes = irqchipRoutes();
    for (const { gsi, message } of this.#vectors) {
      if (message) routes.push({ gsi, type: 'msi', address: message.address, data: message.data });
    }
    this.#vm.setGsiRouting(routes);
    if (changed.eventFd) return;
    changed.eventFd = new EventFd();
    this.#vm.addIrqFd({ gsi: changed.gsi, eventFd: changed.eventFd });
  }
}

class Vector implements MsiVector {
  message: MsiMessage | undefined;
  /** From the first message on. */
  eventFd: EventFd | undefined;
  readonly gsi: number;
  readonly #update: () => void;
  readonly #router: MsiRouter;

  constructor(gsi: number, update: () => void, router: MsiRouter) {
    this.gsi = gsi;
    this.#update = update;
    this.#router = router;
  }

  setMessage(message: MsiMessage | undefined): void {
    // While there is none nobody signals, so the old route can stay until the next message.
    if (!message) return;
    if (message.address === this.message?.address && message.data === this.message.data) return;
    this.message = message;
    this.#update();
  }

  signal(): void {
    this.#router.signals++;
    this.eventFd?.signal();
  }

  close(): void {
    this.eventFd?.close();
  }
}
