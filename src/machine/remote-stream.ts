import { Duplex } from 'node:stream';
import type { MessagePort } from 'node:worker_threads';
import { VmmError } from '../errors.js';
import { fromPlainError, toPlainError, type PlainError } from './plain-error.js';

/** What may be under way in one direction, in bytes, before the writer waits for the reader; and one chunk more. */
export const STREAM_WINDOW_BYTES = 256 * 1024;
/** What a chunk costs beside its bytes: a million empty ones must not fit into the window. */
const CHUNK_COST_BYTES = 64;
const OBJECTS_BUFFERED = 256;

type Message =
  /** The chunks one after another, and the length of each. */
  | { type: 'data'; bytes: Uint8Array; lengths: number[] }
  /** The reader has consumed this much. */
  | { type: 'room'; costBytes: number }
  | { type: 'end' }
  | { type: 'destroyed'; error?: PlainError };

export interface RemoteStreamOptions {
  /** Chunks keep their boundaries: for packets. Both ends must agree. Default: false, a stream of bytes. */
  objectMode?: boolean;
}

/**
 * One end of a Duplex whose other end is in another thread, over a MessagePort; chunks are Uint8Arrays.
 *
 * A reader that is slow makes the writer at the other end wait. Each end may end its writing side alone. `destroy(error)`
 * arrives at the other end as a VmmError, with the code of the one given or else "CLOSED". When the other end is
 * destroyed without an error, or its thread ends, reading goes on to what was last sent and ends; a write that waits, or
 * comes later, fails with code "CLOSED".
 *
 * It does not keep its thread alive.
 */
export class RemoteStream extends Duplex {
  readonly #port: MessagePort;
  /** Sent, and not yet reported as consumed. */
  #underWayBytes = 0;
  #unsent: Uint8Array[] = [];
  #writeDone: ((error?: Error) => void) | undefined;
  #unread: Uint8Array[] = [];
  #wanted = false;
  /** Consumed, and not yet reported. */
  #consumedBytes = 0;
  #remoteEnded = false;
  #remoteGone = false;

  constructor(port: MessagePort, { objectMode = false }: RemoteStreamOptions = {}) {
    super({ objectMode, ...(objectMode && { highWaterMark: OBJECTS_BUFFERED }) });
    this.#port = port;
    port.on('message', (message: Message) => this.#receive(message));
    port.on('close', () => this.#onRemoteGone());
    port.unref();
  }

  override _write(chunk: unknown, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    this.#take([chunk], done);
  }

  override _writev(chunks: { chunk: unknown }[], done: (error?: Error) => void): void {
    this.#take(
      chunks.map(({ chunk }) => chunk),
      done,
    );
  }

  override _final(done: () => void): void {
    this.#post({ type: 'end' });
    done();
  }

  override _read(): void {
    this.#wanted = true;
    this.#deliver();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    // Node 20 ends every async iteration of a Duplex that way.
    const failed = error !== null && error.name !== 'AbortError';
    this.#post({ type: 'destroyed', ...(failed && { error: toPlainError(error) }) });
    this.#remoteGone = true;
    this.#unread = [];
    this.#unsent = [];
    this.#port.close();
    done(error);
  }

  #take(chunks: unknown[], done: (error?: Error) => void): void {
    const wrong = chunks.find((chunk) => !(chunk instanceof Uint8Array));
    if (wrong !== undefined) {
      done(new VmmError('INVALID_ARGUMENT', `this stream takes each chunk as a Uint8Array, not as ${typeof wrong}`));
      return;
    }
    this.#unsent = chunks as Uint8Array[];
    this.#writeDone = done;
    if (this.#remoteGone) this.#refuseWrite();
    else this.#send();
  }

  #send(): void {
    const lengths: number[] = [];
    const pieces: Uint8Array[] = [];
    while (this.#unsent.length > 0 && this.#underWayBytes < STREAM_WINDOW_BYTES) {
      let piece = this.#unsent[0];
      // A packet goes as a whole; bytes need not.
      if (!this.writableObjectMode) piece = piece.subarray(0, STREAM_WINDOW_BYTES - this.#underWayBytes);
      if (piece.length === this.#unsent[0].length) this.#unsent.shift();
      else this.#unsent[0] = this.#unsent[0].subarray(piece.length);
      this.#underWayBytes += costOf(piece);
      lengths.push(piece.length);
      pieces.push(piece);
    }
    if (pieces.length > 0) {
      // A copy: the chunks may be parts of a pool, which cannot be transferred, or of guest memory.
      const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
      let at = 0;
      for (const piece of pieces) {
        bytes.set(piece, at);
        at += piece.length;
      }
      this.#post({ type: 'data', bytes, lengths }, bytes.buffer);
    }
    if (this.#unsent.length > 0) return;
    const done = this.#writeDone;
    this.#writeDone = undefined;
    done?.();
  }

  #receive(message: Message): void {
    if (this.destroyed) return;
    switch (message.type) {
      case 'data': {
        let at = 0;
        for (const length of message.lengths) this.#unread.push(message.bytes.subarray(at, (at += length)));
        this.#deliver();
        break;
      }
      case 'room':
        this.#underWayBytes -= message.costBytes;
        this.#send();
        break;
      case 'end':
        this.#remoteEnded = true;
        this.#deliver();
        break;
      case 'destroyed':
        if (!message.error) this.#onRemoteGone();
        else this.destroy(fromPlainError(message.error, 'CLOSED'));
        break;
    }
  }

  #deliver(): void {
    while (this.#wanted && this.#unread.length > 0) {
      const chunk = this.#unread.shift()!;
      this.#consumedBytes += costOf(chunk);
      this.#wanted = this.push(toBuffer(chunk));
    }
    if (this.#consumedBytes >= STREAM_WINDOW_BYTES / 2) {
      this.#post({ type: 'room', costBytes: this.#consumedBytes });
      this.#consumedBytes = 0;
    }
    if (this.#remoteEnded && this.#unread.length === 0 && this.#wanted) {
      this.#wanted = false;
      this.push(null);
    }
  }

  #onRemoteGone(): void {
    if (this.#remoteGone || this.destroyed) return;
    this.#remoteGone = true;
    this.#remoteEnded = true;
    this.#refuseWrite();
    if (this.destroyed) return;
    if (this.readableEnded) this.destroy();
    else this.once('end', () => this.destroy());
    this.#deliver();
  }

  #refuseWrite(): void {
    const done = this.#writeDone;
    this.#writeDone = undefined;
    this.#unsent = [];
    done?.(new VmmError('CLOSED', 'the other end of the stream is closed'));
  }

  #post(message: Message, ...transfer: ArrayBuffer[]): void {
    if (!this.#remoteGone) this.#port.postMessage(message, transfer);
  }
}

function costOf(chunk: Uint8Array): number {
  return chunk.length + CHUNK_COST_BYTES;
}

function toBuffer({ buffer, byteOffset, length }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, length);
}
