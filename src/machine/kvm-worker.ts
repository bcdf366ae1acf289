/** The worker thread of machines under KVM: their run loops, their devices, and their answers to the main thread. */
import { parentPort, type MessagePort } from 'node:worker_threads';
import { VmmError } from '../errors.js';
import { KVM_MP_STATE } from '../kvm/abi.js';
import type { ConsoleSize } from '../devices/virtio/console/console.js';
import { Kvm } from '../kvm/kvm.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { FatalExit } from '../loop/run-loop.js';
import { balloonStats, type BalloonStats } from './balloon.js';
import { Board } from './board.js';
import type { CpuHost } from './cpu-host.js';
import { describeExit, reportCrash } from './crash.js';
import type { MachineConfig, MachineExit, MachineStats } from './machine.js';
import { NamedPort } from './named-port.js';
import { openNetPorts, type NetPort } from './net-port.js';
import { toPlainError } from './plain-error.js';
import { StreamHub } from './stream-hub.js';
import { VsockPorts } from './vsock-ports.js';
import { loadUserDevices, type UserDevice } from './user-devices.js';
import {
  OutputWindow,
  type FromWorker,
  type NewMachine,
  type ToWorker,
  type WorkerMethods,
} from './worker-protocol.js';

/** How often an idle guest is looked at: one that halted with interrupts off will never exit by itself. */
const HALT_CHECK_MS = 1000;
const OUTPUT_CHUNK_BYTES = 4096;
const RFLAGS_IF = 1n << 9n;

/** Collects the guest's console output and sends it in pieces: when one is full, and whenever the event loop turns. */
class ConsoleSink {
  readonly #window: OutputWindow;
  readonly #send: (bytes: Uint8Array) => void;
  readonly #buffer = new Uint8Array(OUTPUT_CHUNK_BYTES);
  #length = 0;
  /** Bytes of the window that are ours, and not used yet. */
  #reserved = 0;

  constructor(window: OutputWindow, send: (bytes: Uint8Array) => void) {
    this.#window = window;
    this.#send = send;
  }

  /** For consoles that print more than a byte at a time. */
  readonly output = {
    write: (bytes: Uint8Array): number => {
      let taken = 0;
      while (taken < bytes.length && this.#hasRoom()) {
        const room = Math.min(this.#reserved, OUTPUT_CHUNK_BYTES - this.#length);
        const piece = bytes.subarray(taken, taken + room);
        this.#buffer.set(piece, this.#length);
        taken += piece.length;
        this.#count(piece.length);
      }
      this.flush();
      return taken;
    },
  };

  write(byte: number): boolean {
    if (!this.#hasRoom()) return false;
    this.#buffer[this.#length] = byte;
    this.#count(1);
    return true;
  }

  #hasRoom(): boolean {
    if (this.#reserved === 0) this.#reserved = this.#window.reserve(OUTPUT_CHUNK_BYTES);
    return this.#reserved > 0;
  }

  #count(length: number): void {
    this.#reserved -= length;
    this.#length += length;
    if (this.#length === OUTPUT_CHUNK_BYTES) this.flush();
  }

  flush(): void {
    if (this.#length === 0) return;
    this.#send(this.#buffer.slice(0, this.#length));
    this.#length = 0;
  }
}

class WorkerMachine implements WorkerMethods {
  readonly #kvm: Kvm;
  readonly #config: MachineConfig;
  readonly #host: CpuHost;
  readonly #port: MessagePort;
  readonly #hasOwnThread: boolean;
  readonly #streams: StreamHub;
  readonly #sink: ConsoleSink;
  readonly #ports: readonly NamedPort[];
  readonly #netPorts: ReadonlyMap<number, NetPort>;
  #consoleSize: ConsoleSize | undefined;
  readonly #vsock: VsockPorts;
  #board!: Board;
  #input: Uint8Array | undefined;
  #exit: MachineExit | undefined;
  /** Settles when the guest has ended; undefined before start. */
  #running: Promise<void> | undefined;
  #resetting: Promise<void> | undefined;
  #paused = false;
  #ended = false;
  #haltCheck: NodeJS.Timeout | undefined;
  #accessesAtHaltCheck = 0;
  #checkingForHalt = false;
  #droppedBefore = 0;

  readonly #userDevices: readonly UserDevice[];

  constructor(kvm: Kvm, userDevices: readonly UserDevice[], { config, host, window, port, hasOwnThread }: NewMachine) {
    this.#kvm = kvm;
    this.#userDevices = userDevices;
    this.#config = config;
    this.#host = host;
    this.#port = port;
    this.#hasOwnThread = hasOwnThread;
    const streams = new StreamHub((message, transfer) => port.postMessage(message, transfer));
    this.#streams = streams;
    this.#sink = new ConsoleSink(new OutputWindow(window), (bytes) => this.#send({ type: 'output', bytes }));
    this.#ports = config.consolePorts.map((name) => new NamedPort(name, streams.open('console-port', name)));
    this.#netPorts = openNetPorts(config.net, streams);
    this.#vsock = new VsockPorts(streams);
  }

  #send(message: FromWorker): void {
    this.#port.postMessage(message);
  }

  async powerOn(): Promise<void> {
    this.#board = await Board.create(this.#kvm, this.#host, this.#config, {
      hasOwnThread: this.#hasOwnThread,
      console: this.#sink,
      onInputRoom: () => this.#feedInput(),
      streams: this.#streams,
      ports: this.#ports,
      netPorts: this.#netPorts,
      userDevices: this.#userDevices,
      onDeviceError: (device, error) => this.#send({ type: 'device-error', device, error: toPlainError(error) }),
      consoleSize: this.#consoleSize,
      vsock: this.#vsock,
      onEnd: (exit) => (this.#exit ??= exit),
      onTurn: () => this.#sink.flush(),
    });
  }

  start(): void {
    this.#haltCheck = setInterval(() => void this.#checkForHalt(), HALT_CHECK_MS);
    this.#running = this.#run().catch((error: unknown) => {
      this.#end();
      this.#send({ type: 'failed', error: toPlainError(error) });
    });
  }

  async pause(): Promise<void> {
    this.#paused = true;
    await this.#board.loop.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#board.loop.resume();
  }

  /** A reset that is asked for during another one is that one. */
  async reset(): Promise<void> {
    this.#resetting ??= this.#reset().finally(() => (this.#resetting = undefined));
    await this.#resetting;
  }

  async #reset(): Promise<void> {
    this.#droppedBefore += this.#board.stats().consoleDroppedBytes;
    await this.#board.close();
    await this.powerOn();
    if (this.#paused) await this.#board.loop.pause();
    this.#feedInput();
  }

  stop(): void {
    this.#exit ??= { reason: 'stopped' };
    this.#board.loop.stop();
    if (!this.#running) this.#end();
  }

  powerButton(): void {
    this.#board.pressPowerButton();
  }

  resizeConsole(size: ConsoleSize): void {
    this.#board.resizeConsole(size);
    this.#consoleSize = size;
  }

  stats(): MachineStats {
    const stats = this.#board.stats();
    const consoleDroppedBytes = this.#droppedBefore + stats.consoleDroppedBytes;
    return { ...stats, memoryBytes: this.#config.memoryBytes, consoleDroppedBytes };
  }

  connectVsock(port: number): Promise<number> {
    return this.#vsock.connect(port);
  }

  listenVsock(port: number): void {
    this.#vsock.listen(port);
  }

  unlistenVsock(port: number): void {
    this.#vsock.unlisten(port);
  }

  setBalloonTarget(bytes: number): void {
    const { balloon } = this.#board;
    if (!(bytes <= this.#config.memoryBytes)) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `the guest has ${this.#config.memoryBytes} bytes, it cannot give up ${bytes}`,
      );
    }
    balloon.setTarget(bytes);
  }

  balloonStats(): Promise<BalloonStats> {
    return balloonStats(this.#board.balloon, this.#board.memoryControl);
  }

  async close(): Promise<void> {
    // A reset makes a board, which must not be left behind.
    await this.#resetting?.catch(() => undefined);
    this.stop();
    await this.#running;
    await this.#board.close().finally(() => this.#kvm.close());
  }

  /** What comes for the machine from the main thread. */
  receive(message: ToWorker): void {
    switch (message.type) {
      case 'call':
        void this.#answer(message);
        break;
      case 'stream':
        this.#streams.receive(message);
        break;
      case 'input':
        this.#input = message.bytes;
        this.#feedInput();
        break;
      case 'output-room':
        this.#board.resumeOutput();
        break;
    }
  }

  async #answer({ id, method, args }: Extract<ToWorker, { type: 'call' }>): Promise<void> {
    try {
      // The other side's types say what arguments a method has.
      const methods = this as unknown as Record<string, (...args: unknown[]) => unknown>;
      this.#send({ type: 'answer', id, value: await methods[method](...args) });
    } catch (error) {
      this.#send({ type: 'answer', id, error: toPlainError(error) });
    }
    // What was posted before still arrives.
    if (method === 'close') this.#port.close();
  }

  async #run(): Promise<void> {
    while (!this.#exit) {
      const board = this.#board;
      const fatal = await board.loop.run();
      if (fatal) this.#exit ??= await endOf(fatal, board);
      else if (this.#resetting) await this.#resetting;
      else if (board === this.#board && !this.#exit) throw new VmmError('MACHINE_FAILED', 'the last reset failed');
    }
    this.#end();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#haltCheck);
    this.#sink.flush();
    this.#streams.end();
    if (this.#exit) this.#send({ type: 'exit', exit: this.#exit });
  }

  #feedInput(): void {
    if (!this.#input) return;
    const taken = this.#board.receive(this.#input);
    this.#input = taken < this.#input.length ? this.#input.subarray(taken) : undefined;
    if (!this.#input) this.#send({ type: 'input-taken' });
  }

  /** Every vCPU that was ever started sits in HLT with interrupts off: nothing will wake this guest. */
  async #checkForHalt(): Promise<void> {
    const { io = 0, mmio = 0 } = this.#board.loop.exits();
    const idle = io + mmio === this.#accessesAtHaltCheck;
    this.#accessesAtHaltCheck = io + mmio;
    // On a busy host vCPUs can take longer to park than until the next check.
    if (!idle || this.#paused || this.#checkingForHalt) return;
    this.#checkingForHalt = true;
    const { loop, vcpus } = this.#board;
    await loop.pause();
    this.#checkingForHalt = false;
    // Meanwhile the guest may have ended, or its user have paused and resumed it: then its vCPUs cannot be looked at.
    const halted = loop.isPaused && vcpus.every(isHaltedForGood);
    if (halted) this.#exit ??= { reason: 'halt' };
    if (halted) loop.stop();
    else if (!this.#paused) loop.resume();
  }
}

function isHaltedForGood(vcpu: Vcpu): boolean {
  const state = vcpu.getMpState();
  if (state === KVM_MP_STATE.UNINITIALIZED) return true;
  return state === KVM_MP_STATE.HALTED && !(vcpu.getRegs().rflags & RFLAGS_IF);
}

async function endOf({ vcpu, exit }: FatalExit, board: Board): Promise<MachineExit> {
  if (exit.reason === 'system_event') {
    if (exit.typeName === 'SHUTDOWN') return { reason: 'shutdown' };
    if (exit.typeName === 'RESET') return { reason: 'reset' };
  }
  return { reason: 'crash', crash: await reportCrash(describeExit(exit), vcpu, board.memory) };
}

async function open(given: NewMachine): Promise<void> {
  const { config, port } = given;
  const kvm = Kvm.open();
  try {
    const userDevices = await loadUserDevices(config.devices.filter((device) => device.type === 'module'));
    const machine = new WorkerMachine(kvm, userDevices, given);
    await machine.powerOn();
    port.on('message', (message: ToWorker) => machine.receive(message));
  } catch (error) {
    kvm.close();
    throw error;
  }
}

parentPort!.on('message', (message: NewMachine | 'end') => {
  if (message === 'end') {
    parentPort!.close();
    return;
  }
  const { port } = message;
  const send = (answer: FromWorker) => port.postMessage(answer);
  open(message).then(
    () => send({ type: 'ready' }),
    (error: unknown) => {
      send({ type: 'failed', error: toPlainError(error) });
      port.close();
    },
  );
});
