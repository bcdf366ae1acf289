/**
 * A 16550A UART: National Semiconductor PC16550D data sheet, "Universal Asynchronous Receiver/Transmitter with FIFOs",
 * section 8 (registers).
 *
 * Where it differs from the chip:
 * - The line is infinitely fast: a byte leaves as it is written, and a character timeout is up as soon as bytes wait
 *   below the trigger level. The divisor and the frame format are stored and change nothing.
 * - The modem at the other end is always there (CTS, DSR and DCD up, RI down) and honours RTS: input waits in the host
 *   until the guest raises RTS, or enables the receive interrupt and goes without. Linux empties the receiver while it
 *   probes and opens the port, so what is sent earlier would be lost.
 * - OUT2 does not gate the interrupt: that gate is part of the PC's board, not of the chip.
 */
import type { Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import type { IrqLine } from '../../irq/irq-line.js';
import { ByteFifo } from './byte-fifo.js';
import { IsaDevice } from './isa-device.js';

/** Registers by offset; the first two are the divisor's while LCR_DLAB is set. */
const RBR_THR_DLL = 0;
const IER_DLM = 1;
const IIR_FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCR = 7;

const IER_RDI = 0x01; // received data
const IER_THRI = 0x02; // transmitter holding register empty
const IER_RLSI = 0x04; // receiver line status
const IER_MSI = 0x08; // modem status
const IER_MASK = 0x0f;

const IIR_NONE = 0x01;
const IIR_MSI = 0x00;
const IIR_THRI = 0x02;
const IIR_RDI = 0x04;
const IIR_RLSI = 0x06;
const IIR_TIMEOUT = 0x0c;
const IIR_FIFOS_ENABLED = 0xc0;

const FCR_ENABLE = 0x01;
const FCR_CLEAR_RX = 0x02;
const FCR_CLEAR_TX = 0x04;
const TRIGGER_LEVELS = [1, 4, 8, 14]; // by FCR bits 7:6

const LCR_DLAB = 0x80;

const MCR_DTR = 0x01;
const MCR_RTS = 0x02;
const MCR_OUT1 = 0x04;
const MCR_OUT2 = 0x08;
const MCR_LOOP = 0x10;
const MCR_MASK = 0x1f;

const LSR_DR = 0x01; // data ready
const LSR_OE = 0x02; // overrun
const LSR_THRE = 0x20; // transmitter holding register empty
const LSR_TEMT = 0x40; // transmitter empty

const MSR_DELTA_SHIFT = 4; // a line's change bit is this far below its level bit
const MSR_TERI = 0x04; // RI went down; it has no bit for going up
const MSR_CTS = 0x10;
const MSR_DSR = 0x20;
const MSR_RI = 0x40;
const MSR_DCD = 0x80;
const MODEM_PRESENT = MSR_CTS | MSR_DSR | MSR_DCD;

const FIFO_BYTES = 16;
const DIVISOR_9600 = 12;

/** Where the guest's output goes. */
export interface UartOutput {
  /**
   * Takes one byte, now, without blocking.
   *
   * @returns false when there is no room: the byte stays in the UART, which shows its transmitter as busy until
   *   {@link Uart16550.resumeOutput} is called.
   */
  write(byte: number): boolean;
}

export interface Uart16550Config {
  /** Default `uart16550`. */
  name?: string;
  irq: IrqLine;
  output: UartOutput;
  /**
   * {@link Uart16550.receive} took fewer bytes than it was given, and now it would take some. Called from inside the
   * guest's register access; calling `receive` right there is fine.
   */
  onInputRoom?: () => void;
}

export interface Uart16550State {
  ier: number;
  fifosEnabled: boolean;
  triggerLevel: number;
  lcr: number;
  mcr: number;
  overrun: boolean;
  modemDelta: number;
  scratch: number;
  divisor: number;
  thrEmptyPending: boolean;
  /** Received and not yet read by the guest, oldest first. */
  received: Uint8Array;
  /** Written by the guest and not yet taken by the output, oldest first. */
  transmitting: Uint8Array;
}

/** One serial port: 8 registers of a byte each. */
export class Uart16550 extends IsaDevice implements Snapshottable<Uart16550State> {
  readonly name: string;
  /** Bytes the guest wrote while the transmitter was busy and its FIFO full, or cleared out of the FIFO unsent. */
  droppedOutputBytes = 0;

  readonly #irq: IrqLine;
  readonly #output: UartOutput;
  readonly #onInputRoom: (() => void) | undefined;

  readonly #rx = new ByteFifo(FIFO_BYTES);
  readonly #tx = new ByteFifo(FIFO_BYTES);
  #ier = 0;
  #fifosEnabled = false;
  #triggerLevel = 1;
  #lcr = 0;
  #mcr = 0;
  #overrun = false;
  #modemDelta = 0;
  #scratch = 0;
  #divisor = DIVISOR_9600;
  /** THRE became true and neither an IIR read nor a THR write has acknowledged it: the chip's THRE interrupt latch. */
  #thrEmptyPending = false;
  /** The access before this one was a THR write too. */
  #inBurst = false;
  /** The host has input that we refused. */
  #inputRefused = false;

  constructor(config: Uart16550Config) {
    super();
    this.name = config.name ?? 'uart16550';
    this.#irq = config.irq;
    this.#output = config.output;
    this.#onInputRoom = config.onInputRoom;
  }

  /**
   * Input from the other end of the line.
   *
   * @returns How many bytes the receiver took: all it has room for, none while the guest is not ready to receive. When
   *   fewer than offered, `onInputRoom` tells when to offer the rest.
   */
  receive(bytes: Uint8Array): number {
    let taken = 0;
    if (this.#guestReceives()) {
      const room = this.#capacity() - this.#rx.length;
      while (taken < bytes.length && taken < room) this.#rx.push(bytes[taken++]);
    }
    this.#inputRefused = taken < bytes.length;
    this.#updateIrq();
    return taken;
  }

  /** The output has room again: sends what waits and shows the transmitter as empty if all of it was taken. */
  resumeOutput(): void {
    if (this.#tx.length === 0) return;
    while (this.#tx.length > 0 && this.#output.write(this.#tx.peek())) this.#tx.shift();
    if (this.#tx.length > 0) return;
    this.#thrEmptyPending = true;
    this.#updateIrq();
  }

  protected readByte(offset: number): number {
    this.#inBurst = false;
    switch (offset) {
      case RBR_THR_DLL:
        return this.#lcr & LCR_DLAB ? this.#divisor & 0xff : this.#readReceived();
      case IER_DLM:
        return this.#lcr & LCR_DLAB ? this.#divisor >> 8 : this.#ier;
      case IIR_FCR:
        return this.#readIir();
      case LCR:
        return this.#lcr;
      case MCR:
        return this.#mcr;
      case LSR: {
        const lsr = this.#lsr();
        this.#overrun = false;
        this.#updateIrq();
        return lsr;
      }
      case MSR: {
        const msr = this.#modemLines() | this.#modemDelta;
        this.#modemDelta = 0;
        this.#updateIrq();
        return msr;
      }
      case SCR:
        return this.#scratch;
      default:
        return 0xff;
    }
  }

  protected writeByte(offset: number, value: number): void {
    const inBurst = this.#inBurst;
    this.#inBurst = false;
    switch (offset) {
      case RBR_THR_DLL:
        if (this.#lcr & LCR_DLAB) this.#divisor = (this.#divisor & 0xff00) | value;
        else this.#transmit(value, inBurst);
        break;
      case IER_DLM:
        if (this.#lcr & LCR_DLAB) this.#divisor = (this.#divisor & 0xff) | (value << 8);
        else this.#writeIer(value);
        break;
      case IIR_FCR:
        this.#writeFcr(value);
        break;
      case LCR:
        this.#lcr = value;
        break;
      case MCR:
        this.#writeMcr(value & MCR_MASK);
        break;
      case SCR:
        this.#scratch = value;
        break;
      // LSR and MSR: the data sheet keeps writing them for factory tests.
    }
  }

  reset(): void {
    this.#dropUnsent();
    this.#rx.clear();
    this.#ier = 0;
    this.#fifosEnabled = false;
    this.#triggerLevel = 1;
    this.#lcr = 0;
    this.#mcr = 0;
    this.#overrun = false;
    this.#modemDelta = 0;
    this.#scratch = 0;
    this.#divisor = DIVISOR_9600;
    this.#thrEmptyPending = false;
    this.#inBurst = false;
    this.#updateIrq();
  }

  save(): Uart16550State {
    return {
      ier: this.#ier,
      fifosEnabled: this.#fifosEnabled,
      triggerLevel: this.#triggerLevel,
      lcr: this.#lcr,
      mcr: this.#mcr,
      overrun: this.#overrun,
      modemDelta: this.#modemDelta,
      scratch: this.#scratch,
      divisor: this.#divisor,
      thrEmptyPending: this.#thrEmptyPending,
      received: this.#rx.toBytes(),
      transmitting: this.#tx.toBytes(),
    };
  }

  /** Bytes in `transmitting` go out with the next {@link resumeOutput}. */
  restore(state: Uart16550State): void {
    const saved = new SavedState(this.name, state);
    const checked: Uart16550State = {
      ier: saved.integer('ier', IER_MASK),
      fifosEnabled: saved.boolean('fifosEnabled'),
      triggerLevel: saved.integer('triggerLevel', FIFO_BYTES),
      lcr: saved.integer('lcr', 0xff),
      mcr: saved.integer('mcr', MCR_MASK),
      overrun: saved.boolean('overrun'),
      modemDelta: saved.integer('modemDelta', 0x0f),
      scratch: saved.integer('scratch', 0xff),
      divisor: saved.integer('divisor', 0xffff),
      thrEmptyPending: saved.boolean('thrEmptyPending'),
      received: saved.bytes('received', 0, FIFO_BYTES),
      transmitting: saved.bytes('transmitting', 0, FIFO_BYTES),
    };
    this.#ier = checked.ier;
    this.#fifosEnabled = checked.fifosEnabled;
    this.#triggerLevel = checked.triggerLevel;
    this.#lcr = checked.lcr;
    this.#mcr = checked.mcr;
    this.#overrun = checked.overrun;
    this.#modemDelta = checked.modemDelta;
    this.#scratch = checked.scratch;
    this.#divisor = checked.divisor;
    this.#thrEmptyPending = checked.thrEmptyPending;
    this.#rx.clear();
    for (const byte of checked.received) this.#rx.push(byte);
    this.#tx.clear();
    for (const byte of checked.transmitting) this.#tx.push(byte);
    this.#inBurst = false;
    this.#updateIrq();
  }

  #capacity(): number {
    return this.#fifosEnabled ? FIFO_BYTES : 1;
  }

  #guestReceives(): boolean {
    if (this.#mcr & MCR_LOOP) return false; // the receiver listens to the transmitter, not to the line
    if (this.#mcr & MCR_RTS) return true;
    // All enables at once, with RTS down, is a driver that tests the register: it throws away what comes in.
    return (this.#ier & IER_RDI) !== 0 && this.#ier !== IER_MASK;
  }

  #readReceived(): number {
    const byte = this.#rx.shift();
    // Lower the line before the refill raises it: an edge-triggered controller must see the new bytes.
    this.#updateIrq();
    if (this.#rx.length === 0) this.#offerRoom();
    return byte;
  }

  #offerRoom(): void {
    if (!this.#inputRefused || !this.#guestReceives()) return;
    this.#inputRefused = false;
    this.#onInputRoom?.();
  }

  #transmit(byte: number, inBurst: boolean): void {
    this.#thrEmptyPending = false;
    // The write acknowledges the THRE interrupt and, the line being so fast, raises it again at once. A handler that
    // never reads IIR needs that edge. Inside a burst into the FIFO it would be an interrupt for each byte; the burst's
    // first one is enough, as the chip's FIFO too runs empty once.
    if (!(inBurst && this.#fifosEnabled)) this.#updateIrq();
    this.#inBurst = true;
    if (this.#mcr & MCR_LOOP) {
      this.#loopBack(byte);
    } else if (this.#tx.length > 0 || !this.#output.write(byte)) {
      if (this.#tx.length >= this.#capacity() || !this.#tx.push(byte)) this.droppedOutputBytes++;
      this.#updateIrq();
      return; // busy: the THRE interrupt waits for resumeOutput()
    }
    this.#thrEmptyPending = true;
    this.#updateIrq();
  }

  #loopBack(byte: number): void {
    if (this.#rx.length >= this.#capacity()) this.#overrun = true;
    else this.#rx.push(byte);
  }

  #writeIer(value: number): void {
    const enabled = value & ~this.#ier;
    this.#ier = value & IER_MASK;
    // Enabling the interrupt while the register is empty raises it: how drivers start a transmission.
    if (enabled & IER_THRI && this.#tx.length === 0) this.#thrEmptyPending = true;
    this.#updateIrq();
    if (this.#rx.length === 0) this.#offerRoom();
  }

  #readIir(): number {
    const id = this.#pendingInterrupt();
    // Reading the register acknowledges THRE, but only if it was the one shown.
    if (id === IIR_THRI) {
      this.#thrEmptyPending = false;
      this.#updateIrq();
    }
    return this.#fifosEnabled ? id | IIR_FIFOS_ENABLED : id;
  }

  #writeFcr(value: number): void {
    const enable = (value & FCR_ENABLE) !== 0;
    const switched = enable !== this.#fifosEnabled;
    this.#fifosEnabled = enable;
    this.#triggerLevel = enable ? TRIGGER_LEVELS[value >> 6] : 1;
    // The other bits count only while FIFOs are enabled; switching them on or off empties both. Not so the byte that
    // waits in RBR when they are switched on: Linux enables the interrupt first and the FIFOs then.
    if (switched || (enable && value & FCR_CLEAR_TX)) {
      const wasBusy = this.#tx.length > 0;
      this.#dropUnsent();
      if (wasBusy) this.#thrEmptyPending = true;
    }
    if ((switched && !enable) || (enable && value & FCR_CLEAR_RX)) {
      this.#rx.clear();
      this.#updateIrq();
      this.#offerRoom();
    }
    this.#updateIrq();
  }

  #writeMcr(value: number): void {
    const before = this.#modemLines();
    this.#mcr = value;
    const after = this.#modemLines();
    const changed = before ^ after;
    const delta = (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> MSR_DELTA_SHIFT;
    this.#modemDelta |= delta | (changed & before & MSR_RI ? MSR_TERI : 0);
    this.#updateIrq();
    if (this.#rx.length === 0) this.#offerRoom();
  }

  #modemLines(): number {
    if (!(this.#mcr & MCR_LOOP)) return MODEM_PRESENT;
    return (
      (this.#mcr & MCR_RTS ? MSR_CTS : 0) |
      (this.#mcr & MCR_DTR ? MSR_DSR : 0) |
      (this.#mcr & MCR_OUT1 ? MSR_RI : 0) |
      (this.#mcr & MCR_OUT2 ? MSR_DCD : 0)
    );
  }

  #lsr(): number {
    return (
      (this.#rx.length > 0 ? LSR_DR : 0) |
      (this.#overrun ? LSR_OE : 0) |
      (this.#tx.length === 0 ? LSR_THRE | LSR_TEMT : 0)
    );
  }

  /** The identification of the pending interrupt with the highest priority. */
  #pendingInterrupt(): number {
    const ier = this.#ier;
    if (ier & IER_RLSI && this.#overrun) return IIR_RLSI;
    if (ier & IER_RDI && this.#rx.length > 0) {
      return this.#rx.length >= this.#triggerLevel ? IIR_RDI : IIR_TIMEOUT;
    }
    if (ier & IER_THRI && this.#thrEmptyPending) return IIR_THRI;
    if (ier & IER_MSI && this.#modemDelta !== 0) return IIR_MSI;
    return IIR_NONE;
  }

  #updateIrq(): void {
    this.#irq.set(this.#pendingInterrupt() !== IIR_NONE);
  }

  #dropUnsent(): void {
    this.droppedOutputBytes += this.#tx.length;
    this.#tx.clear();
  }
}
