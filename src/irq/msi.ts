/** What a message-signalled interrupt is on the bus: a 32-bit write to an address that means an interrupt controller. */
export interface MsiMessage {
  readonly address: bigint;
  readonly data: number;
}

/**
 * One interrupt that a device sends by message, in the machine's hands.
 *
 * Under KVM a vector is a GSI: {@link setMessage} makes or changes its MSI route (KVM_SET_GSI_ROUTING, milliseconds, so
 * it is called only when something changed), {@link signal} writes the eventfd of its irqfd. Without irqfds, `signal` is
 * KVM_SIGNAL_MSI with the message.
 */
export interface MsiVector {
  /**
   * The message that the guest wants sent from now on; undefined while it wants none (masked, or MSI-X is off). `signal`
   * is not called then: what is due meanwhile waits in the device's pending bits.
   *
   * A vector that somebody else signals too, by its {@link eventFd}, has its irqfd taken away on undefined and put back on
   * the next message: the eventfd keeps what came in between, and KVM looks there.
   */
  setMessage(message: MsiMessage | undefined): void;
  /** Sends the message. */
  signal(): void;
  /** An eventfd that sends the message when another process, such as a vhost-user backend, signals it. Borrowed. */
  eventFd?(): number;
}

/** Gives devices their message-signalled interrupts. */
export interface MsiTarget {
  /** A new vector, for as long as the machine lives. */
  vector(): MsiVector;
}

/** An {@link MsiTarget} that only remembers, for unit tests and for machines without interrupt controller. */
export class FakeMsiTarget implements MsiTarget {
  readonly vectors: FakeMsiVector[] = [];

  vector(): FakeMsiVector {
    const vector = new FakeMsiVector();
    this.vectors.push(vector);
    return vector;
  }
}

export class FakeMsiVector implements MsiVector {
  message: MsiMessage | undefined;
  /** Calls of setMessage. */
  changes = 0;
  /** What was sent; `undefined` would be a signal without a message, which no device may send. */
  readonly sent: (MsiMessage | undefined)[] = [];

  setMessage(message: MsiMessage | undefined): void {
    this.message = message;
    this.changes++;
  }

  signal(): void {
    this.sent.push(this.message);
  }
}
