/** The worker thread of one machine under KVM: its run loop, its devices, and their answers to the main thread. */
import { parentPort, workerData } from 'node:worker_threads';
import { KVM_MP_STATE } from '../kvm/abi.js';
import type { VmExit } from '../kvm/exit.js';
import { Kvm } from '../kvm/kvm.js';
import { EventLoopTurns } from '../loop/event-loop-turns.js';
import { Board } from './board.js';
import { describeExit, reportCrash } from './crash.js';
import type { MachineExit, MachineStats } from './machine.js';
import {
  OutputWindow,
  toPlainError,
  type FromWorker,
  type ToWorker,
  type WorkerData,
  type WorkerMethods,
} from './worker-protocol.js';

/** How often an idle guest is looked at: one that halted with interrupts off will never exit by itself. */
const HALT_CHECK_MS = 1000;
const OUTPUT_CHUNK_BYTES = 4096;
const RFLAGS_IF = 1n << 9n;

const { config, window } = workerData as WorkerData;
const send = (message: FromWorker) => parentPort!.postMessage(message);

/** Collects the guest's console output and sends it in pieces: when one is full, and whenever the event loop turns. */
class ConsoleSink {
  readonly #window = new OutputWindow(window);
  readonly #buffer = new Uint8Array(OUTPUT_CHUNK_BYTES);
  #length = 0;

  write(byte: number): boolean {
    if (!this.#window.tryReserve(1)) return false;
    this.#buffer[this.#length++] = byte;
    if (this.#length === OUTPUT_CHUNK_BYTES) this.flush();
    return true;
  }

  flush(): void {
    if (this.#length === 0) return;
    send({ type: 'output', bytes: this.#buffer.slice(0, this.#length) });
    this.#length = 0;
  }
}

class WorkerMachine implements WorkerMethods {
  readonly #kvm: Kvm;
  readonly #sink = new ConsoleSink();
  #board: Board | undefined;
  #input: Uint8Array | undefined;
  #exit: MachineExit | undefined;
  /** Settles when the run loop has ended; undefined before start. */
  #running: Promise<void> | undefined;
  /** Pending while the guest must not run: paused, or being reset. */
  #gate: PromiseWithResolvers | undefined;
  #ended = false;
  #haltCheck: NodeJS.Timeout | undefined;
  #exitsAtHaltCheck = 0;
  #droppedBefore = 0;

  constructor(kvm: Kvm) {
    this.#kvm = kvm;
  }

  async powerOn(): Promise<void> {
    this.#board = await Board.create(this.#kvm, config, {
      console: this.#sink,
      onInputRoom: () => this.#feedInput(),
      onEnd: (exit) => (this.#exit ??= exit),
    });
    this.#exitsAtHaltCheck = 0;
  }

  start(): void {
    this.#haltCheck = setInterval(() => this.#checkForHalt(), HALT_CHECK_MS);
    this.#running = this.#run().catch((error: unknown) => {
      this.#end();
      send({ type: 'failed', error: toPlainError(error) });
    });
  }

  pause(): void {
    this.#gate ??= withResolvers();
  }

  resume(): void {
    this.#gate?.resolve();
    this.#gate = undefined;
  }

  async reset(): Promise<void> {
    const wasPaused = this.#gate !== undefined;
    this.pause();
    this.#droppedBefore += this.#board!.uart.droppedOutputBytes;
    this.#board![Symbol.dispose]();
    await this.powerOn();
    this.#feedInput();
    if (!wasPaused) this.resume();
  }

  stop(): void {
    this.#exit ??= { reason: 'stopped' };
    this.resume();
    if (!this.#running) this.#end();
  }

  stats(): MachineStats {
    const { loop, ports, mmio, uart } = this.#board!;
    const unmapped = ports.unmappedAccesses + mmio.unmappedAccesses;
    return {
      exits: loop.exits(),
      accesses: { ...ports.accesses(), ...mmio.accesses(), ...(unmapped > 0 && { unmapped }) },
      memoryBytes: config.memoryBytes,
      consoleDroppedBytes: this.#droppedBefore + uart.droppedOutputBytes,
    };
  }

  async close(): Promise<void> {
    this.stop();
    await this.#running;
    this.#board?.[Symbol.dispose]();
    this.#kvm.close();
    parentPort!.close();
  }

  input(bytes: Uint8Array): void {
    this.#input = bytes;
    this.#feedInput();
  }

  outputRoom(): void {
    this.#board!.uart.resumeOutput();
  }

  async #run(): Promise<void> {
    using turns = new EventLoopTurns();
    while (!this.#exit) {
      if (this.#gate) await this.#gate.promise;
      else {
        const exit = this.#board!.loop.runTurn();
        this.#sink.flush();
        if (exit) this.#exit ??= await endOf(exit, this.#board!);
        else await turns.next();
      }
    }
    this.#end();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#haltCheck);
    this.#sink.flush();
    if (this.#exit) send({ type: 'exit', exit: this.#exit });
  }

  #feedInput(): void {
    if (!this.#input) return;
    const taken = this.#board!.uart.receive(this.#input);
    this.#input = taken < this.#input.length ? this.#input.subarray(taken) : undefined;
    if (!this.#input) send({ type: 'input-taken' });
  }

  /** The event loop has this turn, so the vCPU is outside KVM_RUN. */
  #checkForHalt(): void {
    if (this.#gate) return;
    const { vcpu, loop } = this.#board!;
    const { exitCount } = loop;
    // Its own interruptions count as exits: one a check.
    const idle = exitCount - this.#exitsAtHaltCheck <= 2;
    this.#exitsAtHaltCheck = exitCount;
    if (idle && vcpu.getMpState() === KVM_MP_STATE.HALTED && !(vcpu.getRegs().rflags & RFLAGS_IF)) {
      this.#exit ??= { reason: 'halt' };
    }
  }
}

async function endOf(exit: VmExit, board: Board): Promise<MachineExit> {
  if (exit.reason === 'system_event') {
    if (exit.typeName === 'SHUTDOWN') return { reason: 'shutdown' };
    if (exit.typeName === 'RESET') return { reason: 'reset' };
  }
  return { reason: 'crash', crash: await reportCrash(describeExit(exit), board.vcpu, board.memory) };
}

interface PromiseWithResolvers {
  promise: Promise<void>;
  resolve: () => void;
}
function withResolvers(): PromiseWithResolvers {
  let resolve!: () => void;
  const promise = new Promise<void>((fulfil) => (resolve = fulfil));
  return { promise, resolve };
}

async function main(): Promise<void> {
  const machine = new WorkerMachine(Kvm.open());
  await machine.powerOn();
  parentPort!.on('message', (message: ToWorker) => {
    switch (message.type) {
      case 'call':
        void answer(machine, message);
        break;
      case 'input':
        machine.input(message.bytes);
        break;
      case 'output-room':
        machine.outputRoom();
        break;
    }
  });
  send({ type: 'ready' });
}

async function answer(machine: WorkerMachine, { id, method }: { id: number; method: keyof WorkerMethods }) {
  try {
    send({ type: 'answer', id, value: await machine[method]() });
  } catch (error) {
    send({ type: 'answer', id, error: toPlainError(error) });
  }
}

main().catch((error: unknown) => send({ type: 'failed', error: toPlainError(error) }));
