import { VmmError } from '../../errors.js';
import type { NativeUnixSocket } from '../../native/addon.js';
import { closeFds, MessageSocket, type Message } from './message-socket.js';
import { FLAG_NEED_REPLY, FLAG_REPLY, type MessageType } from './protocol.js';

interface Pending {
  type: { readonly id: number; readonly name: string };
  resolve: (answer: { payload: Uint8Array; fds: number[] }) => void;
  reject: (error: VmmError) => void;
  timer: NodeJS.Timeout;
}

/**
 * The asking end of a vhost-user connection. Requests may be sent ahead of the answers: those come in order.
 *
 * The first error, a timeout included, ends the connection: its order is lost.
 */
export class Requester {
  readonly #socket: MessageSocket;
  readonly #timeoutMs: number;
  readonly #onEnd: (error: VmmError) => void;
  readonly #pending: Pending[] = [];
  #error: VmmError | undefined;
  /** REPLY_ACK was agreed on: requests without an answer of their own are acknowledged. */
  acknowledged = false;

  /** @param onEnd Called once when the connection breaks; not by {@link close}. */
  constructor(socket: NativeUnixSocket, timeoutMs: number, onEnd: (error: VmmError) => void) {
    this.#timeoutMs = timeoutMs;
    this.#onEnd = onEnd;
    this.#socket = new MessageSocket(
      socket,
      (message) => this.#onAnswer(message),
      (error) => this.#end(error),
    );
  }

  /**
   * Sends a request that has an answer.
   *
   * @param fds Borrowed. @returns The answer, and its descriptors, the caller's to close.
   * @throws VmmError code "BACKEND_FAILED", or "TIMEOUT".
   */
  async ask<Q, A>(
    type: MessageType<Q, A>,
    query: Q,
    fds: readonly number[] = [],
  ): Promise<{ value: A; fds: number[] }> {
    const answer = await this.#send(type, query, fds, 0);
    const value = type.answer!.decode(answer.payload);
    const wanted = type.answerFds ?? 0;
    if (value !== undefined && answer.fds.length === wanted) return { value, fds: answer.fds };
    closeFds(answer.fds);
    const error = failed(
      value === undefined
        ? `it answered ${type.name} with ${answer.payload.length} bytes that are no such answer`
        : `it answered ${type.name} with ${answer.fds.length} descriptors, not ${wanted}`,
    );
    this.#end(error);
    throw error;
  }

  /** Sends a request without an answer, and waits for its acknowledgement where that was agreed on. Throws as {@link ask}. */
  async tell<Q>(type: MessageType<Q, never>, query: Q, fds: readonly number[] = []): Promise<void> {
    if (!this.acknowledged) {
      if (this.#error) throw this.#error;
      return this.#write(type, query, fds, 0);
    }
    const { payload, fds: stray } = await this.#send(type, query, fds, FLAG_NEED_REPLY);
    closeFds(stray);
    if (payload.length === 8 && payload.every((byte) => byte === 0)) return;
    const error = failed(`it refused ${type.name}`);
    this.#end(error);
    throw error;
  }

  close(): void {
    this.#stop(failed('the connection was closed'));
  }

  #send<Q>(type: MessageType<Q, unknown>, query: Q, fds: readonly number[], flags: number) {
    return new Promise<{ payload: Uint8Array; fds: number[] }>((resolve, reject) => {
      if (this.#error) return reject(this.#error);
      const timer = setTimeout(() => {
        this.#end(new VmmError('TIMEOUT', `it did not answer ${type.name} within ${this.#timeoutMs} ms`));
      }, this.#timeoutMs);
      this.#pending.push({ type, resolve, reject, timer });
      try {
        this.#write(type, query, fds, flags);
      } catch {
        // #write ended the connection, and with it this request
      }
    });
  }

  #write<Q>(type: MessageType<Q, unknown>, query: Q, fds: readonly number[], flags: number): void {
    try {
      this.#socket.send({ request: type.id, flags }, type.query.encode(query), fds);
    } catch (error) {
      this.#end(error as VmmError);
      throw error;
    }
  }

  #onAnswer({ request, flags, payload, fds }: Message): void {
    const pending = this.#pending[0];
    if (!pending || !(flags & FLAG_REPLY) || request !== pending.type.id) {
      throw failed(`it sent message ${request}, which nobody asked for`);
    }
    this.#pending.shift();
    clearTimeout(pending.timer);
    pending.resolve({ payload: payload.slice(), fds: fds.splice(0) });
  }

  #end(error: VmmError): void {
    if (this.#error) return;
    this.#stop(error);
    this.#onEnd(error);
  }

  #stop(error: VmmError): void {
    this.#error ??= error;
    this.#socket.close();
    for (const { timer, reject } of this.#pending.splice(0)) {
      clearTimeout(timer);
      reject(error);
    }
  }
}

const failed = (what: string) => new VmmError('BACKEND_FAILED', what);
