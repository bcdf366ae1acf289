import { Duplex } from 'node:stream';
import { VmmError } from '../../../errors.js';
import { ByteQueue } from './byte-queue.js';
import type { VsockFault } from './counters.js';
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_BOTH,
  VIRTIO_VSOCK_SHUTDOWN_RECEIVE,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from './defs.js';
import type { VsockHeader } from './packet.js';

/** Bytes of the guest that may wait for the host's reader, on each connection: buf_alloc. */
export const BUFFER_BYTES = 256 * 1024;
/** The guest hears of room once so much has come about: the rest of the buffer is enough to keep it sending. */
const CREDIT_STEP_BYTES = BUFFER_BYTES / 4;
/** How long a guest may take to confirm the end of a connection (5.10.6.5). Linux waits as long. */
const CLOSE_TIMEOUT_MS = 8_000;

/** What a connection tells its device. */
export interface ConnectionOwner {
  /** It has something to send: {@link Connection.take} is to be called when the guest has a buffer. */
  ready(connection: Connection): void;
  /** The connection is established. */
  opened(connection: Connection): void;
  /**
   * It is over, between guest and host: its ports are free.
   *
   * @param reset Whether the guest must be told.
   */
  left(connection: Connection, reset: boolean): void;
  /** Its stream is destroyed: it holds no more memory. */
  released(connection: Connection): void;
}

/** What the connection has to say next; the owner adds the rest of the header. */
export interface OutgoingPacket {
  op: number;
  flags: number;
  /** Payload, borrowed until {@link sent} was called. */
  pieces: readonly Uint8Array[];
  length: number;
  /** Call when the payload was copied. */
  sent: () => void;
}

type State =
  | 'offered' // the guest asked, the host has not answered
  | 'connecting' // the host asked
  | 'open'
  | 'closing' // the host's stream is gone, and the guest is to confirm
  | 'over';

const NO_PAYLOAD = { flags: 0, pieces: [], length: 0, sent: () => {} } as const;

/**
 * One connection: the protocol towards the guest, a Duplex towards the host (virtio 1.2, 5.10.6.3 to 5.10.6.5). Both
 * directions have backpressure by credit, and end each by itself.
 */
export class Connection {
  readonly stream: Duplex;
  readonly #owner: ConnectionOwner;
  #state: State;
  #openDue: number | undefined;
  #closeTimer: NodeJS.Timeout | undefined;
  /** Settles the host's wish to connect. */
  #onAnswer: ((error?: VmmError) => void) | undefined;

  // To the guest. Counts of bytes are modulo 2^32, as the protocol's are.
  #pieces: Uint8Array[] = [];
  #written: ((error?: Error | null) => void) | undefined;
  #ended: (() => void) | undefined;
  #shutdownDue = 0;
  #shutdownSent = 0;
  #sentBytes = 0;
  #guestBufAlloc = 0;
  #guestFwdCnt = 0;
  #creditAsked = false;

  // From the guest.
  readonly #unread = new ByteQueue();
  #wanted = false;
  #endRead = false;
  #guestShutdown = 0;
  #receivedBytes = 0;
  #forwardedBytes = 0;
  #forwardedTold = 0;
  #creditDue = false;

  /** @param onAnswer For a connection that the host wants: called once, with an error when it does not come about. */
  constructor(
    readonly port: number,
    readonly guestPort: number,
    owner: ConnectionOwner,
    onAnswer?: (error?: VmmError) => void,
  ) {
    this.#owner = owner;
    this.#onAnswer = onAnswer;
    this.#state = onAnswer ? 'connecting' : 'offered';
    this.#openDue = onAnswer && VIRTIO_VSOCK_OP_REQUEST;
    this.stream = new Duplex({
      // What waits, waits in our own queue: Node's would keep an object for each packet.
      readableHighWaterMark: 1,
      read: () => {
        this.#wanted = true;
        this.#deliver();
      },
      write: (chunk: Uint8Array, _encoding, done) => this.#write([chunk], done),
      writev: (chunks, done) =>
        this.#write(
          chunks.map(({ chunk }) => chunk as Uint8Array),
          done,
        ),
      final: (done) => this.#end(done),
      destroy: (error, done) => {
        this.#onDestroy();
        done(error);
      },
    });
    // The guest may reset it before, or while, nobody listens: that must not end the program.
    this.stream.on('error', () => {});
  }

  get state(): State {
    return this.#state;
  }

  /** Bytes of the guest that have left the buffer, for the header of every packet. */
  get fwdCnt(): number {
    return this.#forwardedBytes;
  }

  /** The host takes the guest's offer. */
  accept(): Duplex {
    if (this.#state === 'offered') {
      this.#state = 'open';
      this.#openDue = VIRTIO_VSOCK_OP_RESPONSE;
      this.#owner.opened(this);
      this.#owner.ready(this);
    }
    return this.stream;
  }

  /** Ends it at once, both ways. @param reset Whether the guest must be told. */
  fail(error: VmmError, reset: boolean): void {
    // Nobody has the stream before the answer, so nobody could handle its error.
    const unanswered = this.#state === 'offered' || this.#state === 'connecting';
    this.#leave(reset);
    this.#answer(error);
    this.stream.destroy(unanswered ? undefined : error);
  }

  /**
   * A packet of the guest, its addresses and length already checked.
   *
   * @param read Copies the payload.
   * @returns What is wrong with it: then the connection must be failed.
   */
  receive(header: VsockHeader, read: (target: Uint8Array) => void): VsockFault | undefined {
    this.setCredit(header);
    const fault = this.#handle(header, read);
    if (this.sendable) this.#owner.ready(this);
    return fault;
  }

  #handle({ op, flags, length }: VsockHeader, read: (target: Uint8Array) => void): VsockFault | undefined {
    if (op === VIRTIO_VSOCK_OP_RST) {
      this.#onReset();
    } else if (this.#state === 'connecting') {
      if (op !== VIRTIO_VSOCK_OP_RESPONSE || this.#openDue !== undefined) return 'unexpected packet';
      this.#onResponse();
    } else if (op === VIRTIO_VSOCK_OP_SHUTDOWN) {
      this.#onShutdown(flags);
    } else if (this.#state === 'offered') {
      return 'unexpected packet';
    } else if (op === VIRTIO_VSOCK_OP_RW) {
      return this.#onData(length, read);
    } else if (op === VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
      this.#creditDue = true;
    } else if (op !== VIRTIO_VSOCK_OP_CREDIT_UPDATE) {
      return 'unexpected packet';
    }
    return undefined;
  }

  /** What the guest has room for, as every packet of its tells. */
  setCredit({ bufAlloc, fwdCnt }: Pick<VsockHeader, 'bufAlloc' | 'fwdCnt'>): void {
    this.#guestBufAlloc = bufAlloc;
    this.#guestFwdCnt = fwdCnt;
  }

  /** Whether there is something to send. */
  get sendable(): boolean {
    return this.#nextOp() !== undefined;
  }

  /** The next packet. @param room For its payload, above 0. */
  take(room: number): OutgoingPacket | undefined {
    const op = this.#nextOp();
    if (op === undefined) return undefined;
    this.#creditDue = false;
    this.#forwardedTold = this.#forwardedBytes;
    switch (op) {
      case VIRTIO_VSOCK_OP_REQUEST:
      case VIRTIO_VSOCK_OP_RESPONSE:
        this.#openDue = undefined;
        break;
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        this.#creditAsked = true;
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        return { ...NO_PAYLOAD, op, flags: this.#takeShutdown(), sent: () => this.#onShutdownSent() };
      case VIRTIO_VSOCK_OP_RW:
        return { op, flags: 0, ...this.#takeData(Math.min(room, this.#credit())) };
    }
    return { op, ...NO_PAYLOAD };
  }

  #nextOp(): number | undefined {
    if (this.#state === 'over' || this.#state === 'offered') return undefined;
    if (this.#openDue !== undefined) return this.#openDue;
    if (this.#state === 'connecting') return undefined;
    if (this.#pieces.length > 0) {
      if (this.#credit() > 0) return VIRTIO_VSOCK_OP_RW;
      if (!this.#creditAsked) return VIRTIO_VSOCK_OP_CREDIT_REQUEST;
    } else if (this.#shutdownDue & ~this.#shutdownSent) {
      return VIRTIO_VSOCK_OP_SHUTDOWN;
    }
    return this.#creditDue ? VIRTIO_VSOCK_OP_CREDIT_UPDATE : undefined;
  }

  /** Bytes that the guest has room for. A count that is ahead of ours gives none: it hurts nobody else. */
  #credit(): number {
    const underWay = (this.#sentBytes - this.#guestFwdCnt) >>> 0;
    return Math.max(0, this.#guestBufAlloc - underWay);
  }

  #takeData(limit: number): Omit<OutgoingPacket, 'op' | 'flags'> {
    const pieces: Uint8Array[] = [];
    let length = 0;
    while (length < limit && this.#pieces.length > 0) {
      const piece = this.#pieces[0].subarray(0, limit - length);
      pieces.push(piece);
      length += piece.length;
      if (piece.length === this.#pieces[0].length) this.#pieces.shift();
      else this.#pieces[0] = this.#pieces[0].subarray(piece.length);
    }
    this.#sentBytes = (this.#sentBytes + length) >>> 0;
    this.#creditAsked = false;
    const sent = () => {
      if (this.#pieces.length === 0) this.#settleWrite();
    };
    return { pieces, length, sent };
  }

  #takeShutdown(): number {
    return (this.#shutdownSent = this.#shutdownDue);
  }

  #onShutdownSent(): void {
    const ended = this.#ended;
    this.#ended = undefined;
    ended?.();
  }

  #settleWrite(error?: VmmError): void {
    this.#pieces = [];
    const written = this.#written;
    this.#written = undefined;
    written?.(error);
  }

  #write(chunks: Uint8Array[], done: (error?: Error | null) => void): void {
    this.#pieces = chunks.filter((chunk) => chunk.length > 0);
    this.#written = done;
    if (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RECEIVE) this.#refuseWrite();
    else if (this.#pieces.length === 0) this.#settleWrite();
    else this.#owner.ready(this);
  }

  /** The guest will not take what is being written. The error ends the stream: not before its reader saw all there is. */
  #refuseWrite(): void {
    if (!this.#written) return;
    const refuse = () =>
      this.#settleWrite(lost('EPIPE', `the guest receives no more on port ${this.guestPort}; stop writing`));
    if (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND && !this.stream.readableEnded) this.stream.once('end', refuse);
    else refuse();
  }

  #end(done: () => void): void {
    if (this.#state === 'over' || this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RECEIVE) return done();
    this.#ended = done;
    this.#shutdownDue |= VIRTIO_VSOCK_SHUTDOWN_SEND;
    this.#owner.ready(this);
  }

  #onResponse(): void {
    this.#state = 'open';
    this.#owner.opened(this);
    this.#answer();
  }

  #answer(error?: VmmError): void {
    const onAnswer = this.#onAnswer;
    this.#onAnswer = undefined;
    onAnswer?.(error);
  }

  #onReset(): void {
    if (this.#state === 'connecting') {
      this.fail(lost('ECONNREFUSED', `nothing in the guest listens on vsock port ${this.guestPort}`), false);
    } else if (this.#state === 'open' && !(this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND)) {
      this.fail(lost('ECONNRESET', `the guest reset the connection on port ${this.guestPort}`), false);
    } else {
      // It had sent all that it wanted to, and the host may still read that.
      this.#onGuestGone(false);
    }
  }

  #onShutdown(flags: number): void {
    this.#guestShutdown |= flags & VIRTIO_VSOCK_SHUTDOWN_BOTH;
    if (this.#guestShutdown === VIRTIO_VSOCK_SHUTDOWN_BOTH) return this.#onGuestGone(true);
    this.#deliver();
    if (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RECEIVE) this.#refuseWrite();
  }

  #onGuestGone(confirm: boolean): void {
    const offered = this.#state === 'offered';
    this.#guestShutdown = VIRTIO_VSOCK_SHUTDOWN_BOTH;
    this.#leave(confirm);
    if (offered) this.stream.destroy();
    this.#deliver();
    this.#refuseWrite();
    this.#onShutdownSent();
    if (this.stream.readableEnded) this.stream.end();
    else this.stream.once('end', () => this.stream.end());
  }

  #onData(length: number, read: (target: Uint8Array) => void): VsockFault | undefined {
    if (((this.#receivedBytes - this.#forwardedBytes) >>> 0) + length > BUFFER_BYTES) return 'over credit';
    if (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) return 'unexpected packet';
    this.#receivedBytes = (this.#receivedBytes + length) >>> 0;
    if (this.stream.destroyed) {
      this.#forwardedBytes = this.#receivedBytes; // the guest does not know yet that nobody reads
    } else if (length > 0 && this.#wanted && this.#unread.length === 0) {
      const bytes = new Uint8Array(length);
      read(bytes);
      this.#forward(bytes);
      this.#tellCredit();
    } else if (length > 0) {
      this.#unread.append(length, read);
      this.#deliver();
    }
    return undefined;
  }

  #deliver(): void {
    while (this.#wanted) {
      const bytes = this.#unread.shift();
      if (!bytes) break;
      this.#forward(bytes);
    }
    this.#tellCredit();
    if (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND && this.#unread.length === 0 && !this.#endRead) {
      this.#endRead = true;
      this.stream.push(null);
    }
  }

  #forward(bytes: Uint8Array): void {
    this.#forwardedBytes = (this.#forwardedBytes + bytes.length) >>> 0;
    this.#wanted = this.stream.push(bytes);
  }

  #tellCredit(): void {
    if (this.#state !== 'open' || (this.#forwardedBytes - this.#forwardedTold) >>> 0 < CREDIT_STEP_BYTES) return;
    this.#creditDue = true;
    this.#owner.ready(this);
  }

  #onDestroy(): void {
    this.#wanted = false;
    this.#endRead = true;
    this.#unread.clear();
    this.#pieces = [];
    if (this.#state === 'open' && this.#shutdownSent & VIRTIO_VSOCK_SHUTDOWN_SEND) {
      this.#state = 'closing';
      this.#shutdownDue = VIRTIO_VSOCK_SHUTDOWN_BOTH;
      this.#closeTimer = setTimeout(() => this.#leave(true), CLOSE_TIMEOUT_MS);
      this.#closeTimer.unref();
      this.#owner.ready(this);
    } else {
      this.#leave(true);
    }
    this.#owner.released(this);
  }

  #leave(reset: boolean): void {
    if (this.#state === 'over') return;
    this.#state = 'over';
    clearTimeout(this.#closeTimer);
    // A request that the guest never saw needs no reset.
    this.#owner.left(this, reset && this.#openDue !== VIRTIO_VSOCK_OP_REQUEST);
  }
}

/** A connection that failed, with the errno that a socket would give. */
export function lost(errno: string, message: string): VmmError {
  return new VmmError('CONNECTION_FAILED', message, { errno });
}
