import type { MessagePort } from 'node:worker_threads';
import type { ConsoleSize } from '../devices/virtio/console/console.js';
import type { BalloonStats } from './balloon.js';
import type { CpuHost } from './cpu-host.js';
import type { MachineConfig, MachineExit, MachineStats } from './machine.js';
import type { PlainError } from './plain-error.js';
import type { StreamMessage } from './stream-hub.js';
import type { VsockMethods } from './vsock-ports.js';

/** What the main thread asks of a machine's worker, and what each answers. */
export interface WorkerMethods extends VsockMethods {
  start(): void;
  pause(): Promise<void>;
  resume(): void;
  reset(): Promise<void>;
  stop(): void;
  powerButton(): void;
  resizeConsole(size: ConsoleSize): void;
  stats(): MachineStats;
  setBalloonTarget(bytes: number): void;
  balloonStats(): Promise<BalloonStats>;
  /** Gives everything back. */
  close(): Promise<void>;
}

export type ToWorker =
  | { type: 'call'; id: number; method: keyof WorkerMethods; args: unknown[] }
  | StreamMessage
  | { type: 'input'; bytes: Uint8Array }
  /** There is room for output again: see {@link OutputWindow}. */
  | { type: 'output-room' };

export type FromWorker =
  | { type: 'ready' }
  | StreamMessage
  | { type: 'failed'; error: PlainError }
  | { type: 'answer'; id: number; value?: unknown; error?: PlainError }
  | { type: 'output'; bytes: Uint8Array }
  /** The last input went to the guest whole. */
  | { type: 'input-taken' }
  | { type: 'device-error'; device: string; error: PlainError }
  | { type: 'exit'; exit: MachineExit };

/** What a worker makes a machine of. */
export interface NewMachine {
  config: MachineConfig;
  host: CpuHost;
  /** Shared memory of the {@link OutputWindow}. */
  window: SharedArrayBuffer;
  /** Takes {@link ToWorker}, gives {@link FromWorker}. */
  port: MessagePort;
  /** No other machine is, or will be, in this thread: it may stand still while the guest runs. */
  hasOwnThread: boolean;
}

/** Console output that may be under way from the worker to its reader, in bytes. */
export const OUTPUT_WINDOW_BYTES = 1 << 20;

/**
 * Flow control of the console's output: the reader counts what it has consumed in shared memory, so that in steady state
 * no message (which would interrupt the guest) goes back. Counts wrap at 2^32.
 */
export class OutputWindow {
  static readonly BYTES = 8;
  readonly #words: Int32Array;
  #sent = 0;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared);
  }

  /** Writer: up to `length` more bytes may be sent. @returns How many. If none, the reader will send `output-room`. */
  reserve(length: number): number {
    let room = Math.min(length, this.#room());
    if (room === 0) {
      // Announce, then look again: the reader consumes, then looks whether someone waits.
      Atomics.store(this.#words, 1, 1);
      room = Math.min(length, this.#room());
      if (room > 0) Atomics.store(this.#words, 1, 0);
    }
    this.#sent = (this.#sent + room) | 0;
    return room;
  }

  /** Reader: `length` bytes are consumed. @returns Whether the writer waits to hear of it. */
  consume(length: number): boolean {
    Atomics.add(this.#words, 0, length);
    return Atomics.exchange(this.#words, 1, 0) === 1;
  }

  #room(): number {
    return OUTPUT_WINDOW_BYTES - ((this.#sent - Atomics.load(this.#words, 0)) | 0);
  }
}
