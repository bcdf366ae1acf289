import { VmmError } from '../../errors.js';
import { addon, native, type NativeUnixSocket } from '../../native/addon.js';
import { decodeHeader, encodeHeader, HEADER_BYTES, MAX_CONFIG_BYTES, type Header } from './protocol.js';

/** No message is longer: a peer that announces more is broken, or after our memory. */
const MAX_PAYLOAD_BYTES = 12 + MAX_CONFIG_BYTES;
/** Messages handled before the event loop goes on: a peer that never stops talking must not keep it for itself. */
const MAX_MESSAGES_A_TURN = 16;

export interface Message extends Header {
  /** Valid during the call. */
  payload: Uint8Array;
  /** Whoever keeps one takes it out of the array; the others are closed when the message has been handled. */
  fds: number[];
}

/** Cuts a Unix socket's bytes into vhost-user messages; the same at both ends. */
export class MessageSocket {
  readonly #socket: NativeUnixSocket;
  readonly #onMessage: (message: Message) => void;
  readonly #onEnd: (error: VmmError) => void;
  readonly #buffer = new Uint8Array(HEADER_BYTES + MAX_PAYLOAD_BYTES);
  #filled = 0;
  #header: Header | undefined;
  #fds: number[] = [];
  #closed = false;

  /**
   * @param socket Owned from now on.
   * @param onEnd Called once, with the reason, when the peer closes the connection or breaks the protocol, also by an
   *   exception from `onMessage`; not by {@link close}.
   */
  constructor(socket: NativeUnixSocket, onMessage: (message: Message) => void, onEnd: (error: VmmError) => void) {
    this.#socket = socket;
    this.#onMessage = onMessage;
    this.#onEnd = onEnd;
    native(() => socket.onReadable(() => this.#receive()));
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** @param fds Borrowed. @throws VmmError code "BACKEND_FAILED" when the peer does not take the message. */
  send(header: Omit<Header, 'payloadBytes'>, payload: Uint8Array, fds: readonly number[] = []): void {
    const message = Buffer.concat([encodeHeader({ ...header, payloadBytes: payload.length }), payload]);
    let sent: number;
    try {
      sent = native(() => this.#socket.send(message, fds));
    } catch (cause) {
      throw new VmmError('BACKEND_FAILED', `the connection is broken: ${(cause as Error).message}`, { cause });
    }
    // Messages are small and few: a full socket is one that nobody reads.
    if (sent < message.length) throw new VmmError('BACKEND_FAILED', 'the peer reads no messages any more');
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
    this.#dropFds();
  }

  #receive(): void {
    try {
      for (let i = 0; i < MAX_MESSAGES_A_TURN && !this.#closed && this.#step(); i++);
    } catch (error) {
      if (this.#closed) return;
      this.close();
      const { message, code } = error as VmmError;
      this.#onEnd(code === 'BACKEND_FAILED' ? (error as VmmError) : broken(`the connection is broken: ${message}`));
    }
  }

  /** Receives up to the end of a header or message. @returns Whether more may wait. */
  #step(): boolean {
    const end = HEADER_BYTES + (this.#header?.payloadBytes ?? 0);
    const isMore = this.#filled === end || this.#fill(end);
    if (!isMore || this.#filled < end) return isMore;
    if (!this.#header) {
      this.#header = decodeHeader(this.#buffer);
      if (!this.#header) throw broken('it sent a message of an unknown version');
      if (this.#header.payloadBytes > MAX_PAYLOAD_BYTES) {
        throw broken(`it sent a message of ${this.#header.payloadBytes} bytes; the largest has ${MAX_PAYLOAD_BYTES}`);
      }
      if (this.#header.payloadBytes > 0) return true;
    }
    const message = { ...this.#header, payload: this.#buffer.subarray(HEADER_BYTES, this.#filled), fds: this.#fds };
    this.#header = undefined;
    this.#filled = 0;
    this.#fds = [];
    try {
      this.#onMessage(message);
    } finally {
      closeFds(message.fds);
    }
    return true;
  }

  #fill(end: number): boolean {
    const received = native(() => this.#socket.receive(this.#buffer.subarray(this.#filled, end)));
    if (!received) return false;
    const [count, ...fds] = received;
    this.#fds.push(...fds);
    if (count === 0) throw broken('it closed the connection');
    // Descriptors come with a message's first byte; more of them later would pile up.
    if (fds.length > 0 && this.#filled > 0) throw broken('it sent descriptors in the middle of a message');
    this.#filled += count;
    return true;
  }

  #dropFds(): void {
    closeFds(this.#fds);
  }
}

/** Closes descriptors that came by the socket, and takes them out of the array: nobody closes one twice. */
export function closeFds(fds: number[]): void {
  for (const fd of fds.splice(0)) addon().closeFd(fd);
}

const broken = (what: string) => new VmmError('BACKEND_FAILED', what);
