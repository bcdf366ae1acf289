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
    const vector = new Vector(this.#vm, IOAPIC_PINS + this.#vectors.length, this);
    this.#vectors.push(vector);
    return vector;
  }

  /** Closes the eventfds; the VM must be closed or about to be. */
  [Symbol.dispose](): void {
    for (const vector of this.#vectors) vector.close();
  }

  /** A vector's message changed. */
  update(): void {
    const routes = irqchipRoutes();
    for (const { gsi, message } of this.#vectors) {
      if (message) routes.push({ gsi, type: 'msi', address: message.address, data: message.data });
    }
    this.#vm.setGsiRouting(routes);
  }
}

class Vector implements MsiVector {
  readonly gsi: number;
  /** The last one. While there is none nobody of this process signals, so the route can stay until the next. */
  message: MsiMessage | undefined;
  readonly #vm: Vm;
  readonly #router: MsiRouter;
  #eventFd: EventFd | undefined;
  #hasIrqFd = false;
  #isMasked = true;
  /** Another process signals it: the irqfd is there only while there is a message. */
  #isShared = false;

  constructor(vm: Vm, gsi: number, router: MsiRouter) {
    this.#vm = vm;
    this.gsi = gsi;
    this.#router = router;
  }

  setMessage(message: MsiMessage | undefined): void {
    this.#isMasked = !message;
    if (message && (message.address !== this.message?.address || message.data !== this.message.data)) {
      this.message = message;
      this.#router.update();
    }
    this.#updateIrqFd();
  }

  signal(): void {
    this.#router.signals++;
    this.#eventFd?.signal();
  }

  eventFd(): number {
    this.#isShared = true;
    this.#updateIrqFd();
    return (this.#eventFd ??= new EventFd()).fd;
  }

  close(): void {
    this.#eventFd?.close();
  }

  #updateIrqFd(): void {
    const wanted = this.#isMasked ? this.#hasIrqFd && !this.#isShared : true;
    if (wanted === this.#hasIrqFd) return;
    this.#eventFd ??= new EventFd();
    const irqFd = { gsi: this.gsi, eventFd: this.#eventFd };
    if (wanted) this.#vm.addIrqFd(irqFd);
    else this.#vm.removeIrqFd(irqFd);
    this.#hasIrqFd = wanted;
  }
}
