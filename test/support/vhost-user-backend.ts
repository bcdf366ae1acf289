/** A vhost-user backend that answers as it is told to: honestly, or not. It moves no data. */
import { openSync } from 'node:fs';
import { closeFds, MessageSocket, type Message } from '../../src/backends/vhost-user/message-socket.js';
import {
  F_PROTOCOL_FEATURES,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  PROTOCOL_F,
  REQUEST,
} from '../../src/backends/vhost-user/protocol.js';
import { addon, native, type NativeUnixSocket } from '../../src/native/addon.js';
import { VIRTIO_F_VERSION_1 } from '../../src/virtio/defs.js';

export const CONFIG = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
const FEATURES = VIRTIO_F_VERSION_1 | F_PROTOCOL_FEATURES;
const PROTOCOL_FEATURES = Object.values(PROTOCOL_F).reduce((all, bit) => all | bit, 0n);
const u64 = (value: bigint) => new Uint8Array(BigUint64Array.of(value).buffer);

/** One frontend's connection. */
export interface Connection {
  /** Answers a message, with bytes that need not make sense. */
  answer: (message: Pick<Message, 'request'>, payload: Uint8Array, fds?: readonly number[]) => void;
  /** Sends bytes that need not be a message. */
  raw: (bytes: Uint8Array) => void;
  close(): void;
}

/** What is done in place of the honest answer, by the request's name. */
export type Lies = Partial<Record<keyof typeof REQUEST, (connection: Connection, message: Message) => void>>;

const NAMES = Object.fromEntries(Object.entries(REQUEST).map(([name, { id }]) => [id, name as keyof typeof REQUEST]));

export class FakeBackend {
  /** Requests seen, in order. */
  readonly seen: string[] = [];
  lies: Lies;
  /** The frontend's end of the channel of SET_BACKEND_REQ_FD. */
  channel: NativeUnixSocket | undefined;
  /** The eventfds of SET_VRING_ERR that came last. */
  errFd: number | undefined;
  readonly #listener: NativeUnixSocket;
  readonly #sockets = new Set<{ close(): void }>();

  constructor(path: string, lies: Lies = {}) {
    this.lies = lies;
    this.#listener = native(() => new (addon().UnixSocket)('listen', path));
    this.#listener.onReadable(() => this.#accept());
  }

  /** Ends all connections; new ones are accepted still. */
  drop(): void {
    for (const socket of this.#sockets) socket.close();
    this.#sockets.clear();
    this.channel?.close();
    this.channel = undefined;
    if (this.errFd !== undefined) closeFds([this.errFd]);
    this.errFd = undefined;
  }

  close(): void {
    this.#listener.close();
    this.drop();
  }

  #accept(): void {
    const fd = this.#listener.accept();
    if (fd === undefined) return;
    const socket = native(() => new (addon().UnixSocket)('adopt', fd));
    const messages: MessageSocket = new MessageSocket(
      socket,
      (message) => this.#onMessage(connection, message),
      () => {},
    );
    this.#sockets.add(messages);
    const connection: Connection = {
      answer: ({ request }, payload, fds) => messages.send({ request, flags: FLAG_REPLY }, payload, fds),
      raw: (bytes) => void native(() => socket.send(bytes, [])),
      close: () => messages.close(),
    };
  }

  #onMessage(connection: Connection, message: Message): void {
    const name = NAMES[message.request];
    this.seen.push(name);
    const lie = this.lies[name];
    if (lie) return lie(connection, message);
    const { fds } = message;
    switch (name) {
      case 'getFeatures':
        return connection.answer(message, u64(FEATURES));
      case 'getProtocolFeatures':
        return connection.answer(message, u64(PROTOCOL_FEATURES));
      case 'getQueueNum':
        return connection.answer(message, u64(8n));
      case 'getConfig':
        return connection.answer(message, REQUEST.getConfig.query.encode({ offset: 0, bytes: CONFIG }));
      case 'getVringBase':
        return connection.answer(message, message.payload);
      case 'getInflightFd': {
        const file = openSync('/dev/null', 'r');
        connection.answer(message, message.payload, [file]);
        return closeFds([file]);
      }
      case 'setBackendReqFd':
        this.channel?.close();
        this.channel = native(() => new (addon().UnixSocket)('adopt', fds.pop()!));
        break;
      case 'setVringErr':
        if (this.errFd !== undefined) closeFds([this.errFd]);
        this.errFd = fds.pop();
        break;
      default:
    }
    if (message.flags & FLAG_NEED_REPLY) connection.answer(message, u64(0n));
  }
}
