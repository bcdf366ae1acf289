import { MessageChannel, type MessagePort, type TransferListItem } from 'node:worker_threads';
import { VmmError } from '../errors.js';
import { RemoteStream, type RemoteStreamOptions } from './remote-stream.js';

/** Opens a stream to the other thread. */
export interface StreamMessage {
  type: 'stream';
  /** Whom it is for. */
  name: string;
  /** What that one needs to know of it: anything that can be cloned. */
  detail: unknown;
  objectMode: boolean;
  port: MessagePort;
}

/** Streams between a machine's worker and the thread that made the machine, opened from either side by name. */
export class StreamHub {
  readonly #send: (message: StreamMessage, transfer: TransferListItem[]) => void;
  readonly #acceptors = new Map<string, (stream: RemoteStream, detail: unknown) => void>();
  readonly #streams = new Set<RemoteStream>();

  /** @param send To the other thread's hub. */
  constructor(send: (message: StreamMessage, transfer: TransferListItem[]) => void) {
    this.#send = send;
  }

  /** A stream to whoever accepts this name in the other thread; without one it is destroyed with code "INVALID_ARGUMENT". */
  open(name: string, detail?: unknown, { objectMode = false }: RemoteStreamOptions = {}): RemoteStream {
    const { port1, port2 } = new MessageChannel();
    this.#send({ type: 'stream', name, detail, objectMode, port: port2 }, [port2]);
    return this.#add(new RemoteStream(port1, { objectMode }));
  }

  /** From now on takes the streams that the other thread opens by this name. The handler listens for `error`. */
  accept(name: string, handler: (stream: RemoteStream, detail: unknown) => void): void {
    this.#acceptors.set(name, handler);
  }

  /** A message of the other thread's hub. */
  receive({ name, detail, objectMode, port }: StreamMessage): void {
    const stream = this.#add(new RemoteStream(port, { objectMode }));
    const handler = this.#acceptors.get(name);
    if (handler) {
      handler(stream, detail);
      return;
    }
    stream.on('error', () => {}); // it is the other end's
    stream.destroy(new VmmError('INVALID_ARGUMENT', `there is nothing named ${name} to open a stream to`));
  }

  /** Ends every stream: what was written before still arrives, what is unread here is dropped. */
  end(): void {
    for (const stream of this.#streams) stream.end(() => stream.destroy());
  }

  #add(stream: RemoteStream): RemoteStream {
    this.#streams.add(stream);
    return stream.once('close', () => this.#streams.delete(stream));
  }
}
