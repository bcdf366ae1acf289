import { EventEmitter } from 'node:events';
import { availableParallelism } from 'node:os';
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import type { NewMachine } from './worker-protocol.js';

/** This many machines have a thread to themselves, as far as there are processors; the further ones share threads. */
const OWN_THREADS = Math.min(4, availableParallelism());
/** Machines in each shared thread before there is another one, of which there are as many as processors. */
const SHARED_BY = 16;

/** How long a thread waits for a machine: its start is most of a machine's. */
const SPARE_MS = 60_000;
/** How long a thread may take to end in good order before it is terminated. */
const END_TIMEOUT_MS = 5000;

interface MachineThreadEvents {
  /** The thread is no more. With the error that nobody caught in it, if that was the cause. */
  exit: [error: Error | undefined];
}

/** Those with machines. */
const threads = new Set<MachineThread>();
/** Has no machine and waits for one, without keeping the process alive. */
let spare: { thread: MachineThread; end: NodeJS.Timeout } | undefined;

/**
 * A worker thread that machines live in. A JavaScript heap with the code of run loop and devices is nearly all of the
 * memory that an idle machine takes, so only the first few have one each. It is most of the time that a machine's start
 * takes, too, so when machines come one after the other, the next has the thread of the last.
 */
export class MachineThread {
  readonly events = new EventEmitter<MachineThreadEvents>().setMaxListeners(0);
  /** It has one machine at a time. */
  readonly isOwn: boolean;
  readonly #worker: Worker;
  readonly #ended: Promise<void>;
  readonly #busy = new Set<object>();
  #machines = 0;
  /** Nothing happened in it that the next machine could meet. */
  #canBeSpare: boolean;

  /**
   * A thread for one machine more, which must {@link leave} it.
   *
   * @param alone The machine runs code that is not ours, which may hold up its thread, or end it.
   */
  static join(alone: boolean): MachineThread {
    const all = [...threads];
    const shared = all.filter(({ isOwn }) => !isOwn).sort((a, b) => a.#machines - b.#machines);
    let thread: MachineThread;
    if (alone || all.length - shared.length < OWN_THREADS)
      thread = MachineThread.#takeSpare() ?? new MachineThread(true);
    else if (shared.length === 0 || (shared[0].#machines >= SHARED_BY && shared.length < availableParallelism()))
      thread = new MachineThread(false);
    else thread = shared[0];
    threads.add(thread);
    if (alone) thread.#canBeSpare = false;
    thread.#machines++;
    return thread;
  }

  /** Starts a thread for the next machine: for programs that have something else to do before they make it. */
  static prepare(): void {
    if (!spare && threads.size < OWN_THREADS) new MachineThread(true).#waitForMachine();
  }

  #waitForMachine(): void {
    spare = { thread: this, end: setTimeout(() => void this.#end(true), SPARE_MS).unref() };
  }

  static #takeSpare(): MachineThread | undefined {
    const taken = spare?.thread;
    clearTimeout(spare?.end);
    spare = undefined;
    return taken;
  }

  private constructor(isOwn: boolean) {
    this.isOwn = isOwn;
    this.#canBeSpare = isOwn;
    // The worker needs nothing of the program's own flags (a TypeScript loader, say), and has nothing to say on stdout.
    this.#worker = new Worker(new URL('./kvm-worker.cjs', import.meta.url), { execArgv: [], name: 'vmexit' });
    this.#worker.unref();
    let error: Error | undefined;
    this.#worker.once('error', (cause) => {
      this.#forget();
      error = cause;
    });
    this.#ended = new Promise((resolve) => {
      this.#worker.once('exit', () => {
        this.#forget();
        this.events.emit('exit', error);
        resolve();
      });
    });
  }

  /** Makes a machine in the thread. @returns Where its messages come and go. @throws DataCloneError */
  open(machine: Omit<NewMachine, 'port' | 'hasOwnThread'>): MessagePort {
    const { port1, port2 } = new MessageChannel();
    const message: NewMachine = { ...machine, port: port2, hasOwnThread: this.isOwn };
    this.#worker.postMessage(message, [port2]);
    return port1;
  }

  /** The process lives while any of the thread's machines is busy. */
  setBusy(machine: object, busy: boolean): void {
    if (busy) this.#busy.add(machine);
    else this.#busy.delete(machine);
    if (this.#busy.size > 0) this.#worker.ref();
    else this.#worker.unref();
  }

  /**
   * The machine is gone from the thread. With the last one it ends, or is spare.
   *
   * @param inOrder Whether the machine has given everything back. If not, what is left of it goes with the thread.
   */
  async leave(machine: object, inOrder: boolean): Promise<void> {
    if (--this.#machines === 0) {
      threads.delete(this);
      if (inOrder && this.#canBeSpare && !spare) {
        this.#waitForMachine();
      } else {
        this.setBusy(machine, true);
        await this.#end(inOrder);
      }
    }
    this.setBusy(machine, false);
  }

  async #end(inOrder: boolean): Promise<void> {
    this.#forget();
    if (inOrder) this.#worker.postMessage('end');
    const terminate = setTimeout(() => void this.#worker.terminate(), inOrder ? END_TIMEOUT_MS : 0);
    await this.#ended;
    clearTimeout(terminate);
  }

  /** No machine shall get it. */
  #forget(): void {
    threads.delete(this);
    this.#canBeSpare = false;
    if (spare?.thread === this) MachineThread.#takeSpare();
  }
}
