import { EventEmitter } from 'node:events';
import type { MessagePort } from 'node:worker_threads';
import { VmmError } from '../errors.js';
import type { ConsoleSize } from '../devices/virtio/console/console.js';
import type { Balloon, BalloonStats } from './balloon.js';
import { ConsoleStream } from './console-stream.js';
import { cpuHost, type CpuHost } from './cpu-host.js';
import { StorageDaemon, type QemuDisk } from '../backends/qemu/storage-daemon.js';
import { Virtiofsd, type VirtiofsShare } from '../backends/qemu/virtiofsd.js';
import { MachineThread } from './machine-thread.js';
import type { Machine, MachineConfig, MachineEvents, MachineExit, MachineState, MachineStats } from './machine.js';
import { parseTarget } from './options.js';
import { fromPlainError } from './plain-error.js';
import type { RemoteStream } from './remote-stream.js';
import { StreamHub } from './stream-hub.js';
import { Vsock } from './vsock.js';
import type { VsockMethods } from './vsock-ports.js';
import {
  OUTPUT_WINDOW_BYTES,
  OutputWindow,
  type FromWorker,
  type ToWorker,
  type WorkerMethods,
} from './worker-protocol.js';

/** How long a machine may take to end in good order before it is left to the end of its thread. */
const CLOSE_TIMEOUT_MS = 5000;

/**
 * A machine under KVM. Its vCPU and devices live in a worker thread, so the thread that made it stays free; the process
 * stays alive while the guest runs.
 */
export class KvmMachine implements Machine {
  readonly accel = 'kvm';
  readonly console: ConsoleStream;
  readonly exited: Promise<MachineExit>;
  /** Streams to and from devices in the worker. */
  readonly streams: StreamHub;
  readonly events = new EventEmitter<MachineEvents>();
  readonly #daemons: Daemons;
  readonly #ports = new Map<string, RemoteStream>();
  readonly vsock: Vsock | undefined;
  readonly #nets = new Map<number, RemoteStream>();
  readonly #thread: MachineThread;
  readonly #port: MessagePort;
  readonly #calls = new Map<number, { resolve: (value: unknown) => void; reject: (error: VmmError) => void }>();
  #lastCall = 0;
  #state: MachineState = 'created';
  #inputTaken: (() => void) | undefined;
  #settleExited!: { resolve: (exit: MachineExit) => void; reject: (error: VmmError) => void };
  #settleReady!: { resolve: () => void; reject: (error: VmmError) => void };
  readonly #ready: Promise<void>;
  readonly #onThreadEnd = (cause: Error | undefined) => {
    const died = cause && new VmmError('MACHINE_FAILED', `the machine's thread died: ${cause.message}`, { cause });
    this.#threadEnd = died ?? new VmmError('MACHINE_FAILED', "the machine's thread ended");
    this.#fail(this.#threadEnd);
  };
  /** Set when nobody is there any more to answer a call. */
  #threadEnd: VmmError | undefined;
  #closing: Promise<void> | undefined;

  /**
   * Builds the machine and loads its kernel.
   *
   * @throws VmmError code "KVM_UNAVAILABLE", or as the boot loaders do.
   */
  static async create(config: MachineConfig): Promise<KvmMachine> {
    // The thread starts while this one is busy.
    MachineThread.prepare();
    const host = cpuHost();
    const daemons = await startDaemons(config);
    const machine = new KvmMachine(config, host, daemons);
    try {
      await machine.#ready;
    } catch (error) {
      await machine.close();
      // A process that ended by itself knows more than who was connected to it.
      throw daemons.shares.find((daemon) => daemon?.failure)?.failure ?? error;
    }
    machine.#updateRef();
    return machine;
  }

  private constructor(given: MachineConfig, host: CpuHost, daemons: Daemons) {
    this.#daemons = daemons;
    const config = servedBy(daemons, given);
    const shared = new SharedArrayBuffer(OutputWindow.BYTES);
    const window = new OutputWindow(shared);
    this.#thread = MachineThread.join(config.devices.some(({ type }) => type === 'module'));
    try {
      this.#port = this.#thread.open({ config, host, window: shared });
    } catch (cause) {
      void this.#thread.leave(this, true);
      const { message } = cause as Error;
      throw new VmmError('INVALID_ARGUMENT', `devices: a config cannot be cloned: ${message}`, { cause });
    }
    this.#thread.events.once('exit', this.#onThreadEnd);
    this.#thread.setBusy(this, true);
    this.streams = new StreamHub((message, transfer) => this.#port.postMessage(message, transfer));
    this.streams.accept('console-port', (stream, name) => this.#ports.set(name as string, stream));
    this.vsock = config.vsock && new Vsock(this.#vsockMethods(), this.streams);
    this.streams.accept('net', (stream, index) => this.#nets.set(index as number, stream));
    this.console = new ConsoleStream({
      write: (bytes, taken) => {
        this.#inputTaken = taken;
        this.#send({ type: 'input', bytes });
      },
      onConsumed: (length) => {
        if (window.consume(length)) this.#send({ type: 'output-room' });
      },
      keepBytes: OUTPUT_WINDOW_BYTES / 2,
    });
    this.#ready = new Promise((resolve, reject) => (this.#settleReady = { resolve, reject }));
    this.exited = new Promise((resolve, reject) => (this.#settleExited = { resolve, reject }));
    // Whoever looks at `exited` hears of a failure; a program that never does must not die of an unhandled rejection.
    this.exited.catch(() => {});
    this.#ready.catch(() => {});
    this.#port.on('message', (message: FromWorker) => this.#receive(message));
    this.#port.unref();
  }

  get drives(): readonly (QemuDisk | undefined)[] {
    return this.#daemons.drives;
  }

  get shares(): readonly (VirtiofsShare | undefined)[] {
    return this.#daemons.shares;
  }

  get state(): MachineState {
    return this.#state;
  }

  async start(): Promise<void> {
    this.#require('created');
    this.#state = 'running';
    await this.#call('start');
  }

  async pause(): Promise<void> {
    this.#require('running', 'paused');
    await this.#call('pause');
    if (this.#state === 'running') this.#state = 'paused';
  }

  async resume(): Promise<void> {
    this.#require('running', 'paused');
    await this.#call('resume');
    if (this.#state === 'paused') this.#state = 'running';
  }

  async reset(): Promise<void> {
    this.#require('created', 'running', 'paused');
    await this.#call('reset');
  }

  async stop(): Promise<void> {
    this.#require('created', 'running', 'paused', 'exited');
    if (this.#state === 'exited') return;
    await this.#call('stop');
    await this.exited;
  }

  async powerButton(): Promise<void> {
    this.#require('running', 'paused');
    await this.#call('powerButton');
  }

  port(name: string): RemoteStream {
    this.#require('created', 'running', 'paused', 'exited');
    const stream = this.#ports.get(name);
    if (stream) return stream;
    const known = [...this.#ports.keys()].join(', ') || 'none';
    throw new VmmError('INVALID_ARGUMENT', `there is no console port named ${name}; consolePorts has: ${known}`);
  }

  net(index: number): RemoteStream {
    this.#require('created', 'running', 'paused', 'exited');
    const stream = this.#nets.get(index);
    if (stream) return stream;
    throw new VmmError('INVALID_ARGUMENT', `net[${index}] is no network card of type "port"; only those have a stream`);
  }

  async resizeConsole(size: ConsoleSize): Promise<void> {
    this.#require('created', 'running', 'paused');
    await this.#call('resizeConsole', size);
  }

  readonly balloon: Balloon = {
    setTarget: async (size) => {
      this.#require('created', 'running', 'paused');
      await this.#call('setBalloonTarget', parseTarget(size));
    },
    stats: async () => {
      this.#require('created', 'running', 'paused');
      return (await this.#call('balloonStats')) as BalloonStats;
    },
  };

  async stats(): Promise<MachineStats> {
    this.#require('created', 'running', 'paused', 'exited');
    const stats = (await this.#call('stats')) as MachineStats;
    return { ...stats, consoleDroppedBytes: stats.consoleDroppedBytes + this.console.droppedBytes };
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#thread.setBusy(this, true);
    // One that never got ready listens to nothing, but has nothing to give back either.
    const ready = await this.#ready.then(
      () => true,
      () => false,
    );
    const inOrder = ready && (await this.#callClose());
    this.#thread.events.off('exit', this.#onThreadEnd);
    await this.#thread.leave(this, inOrder);
    this.#port.close();
    this.#onThreadEnd(undefined);
    await closeDaemons(this.#daemons);
    this.#state = 'closed';
  }

  /** @returns Whether the machine has ended in time. */
  async #callClose(): Promise<boolean> {
    const closed = this.#call('close').then(
      () => true,
      () => false,
    );
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(false), CLOSE_TIMEOUT_MS)));
    return Promise.race([closed, late]).finally(() => clearTimeout(timer));
  }

  #vsockMethods(): VsockMethods {
    const call = async (method: keyof VsockMethods, port: number) => {
      this.#require('created', 'running', 'paused');
      return (await this.#call(method, port)) as number;
    };
    return {
      connectVsock: (port) => call('connectVsock', port),
      listenVsock: (port) => call('listenVsock', port),
      unlistenVsock: (port) => call('unlistenVsock', port),
    };
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case 'ready':
        this.#settleReady.resolve();
        break;
      case 'failed':
        this.#fail(fromPlainError(message.error));
        break;
      case 'answer': {
        const call = this.#calls.get(message.id);
        this.#calls.delete(message.id);
        if (message.error) call?.reject(fromPlainError(message.error));
        else call?.resolve(message.value);
        this.#updateRef();
        break;
      }
      case 'output':
        this.console.deliver(message.bytes);
        break;
      case 'input-taken':
        this.#inputTaken?.();
        break;
      case 'stream':
        this.streams.receive(message);
        break;
      case 'device-error':
        this.events.emit('deviceError', { device: message.device, error: fromPlainError(message.error) });
        break;
      case 'exit':
        this.#end(() => this.#settleExited.resolve(message.exit));
        break;
    }
  }

  #fail(error: VmmError): void {
    this.#settleReady.reject(error);
    for (const call of this.#calls.values()) call.reject(error);
    this.#calls.clear();
    this.#end(() => this.#settleExited.reject(error));
  }

  #end(settle: () => void): void {
    if (this.#state !== 'closed') this.#state = 'exited';
    this.console.finish();
    settle();
    this.#updateRef();
  }

  #require(...states: MachineState[]): void {
    if (this.#closing) throw new VmmError('CLOSED', 'the machine is closed');
    if (!states.includes(this.#state)) {
      throw new VmmError('INVALID_STATE', `the machine is ${this.#state}; this call needs it ${states.join(' or ')}`);
    }
  }

  #call<M extends keyof WorkerMethods>(method: M, ...args: Parameters<WorkerMethods[M]>): Promise<unknown> {
    if (this.#threadEnd) return Promise.reject(this.#threadEnd);
    return new Promise((resolve, reject) => {
      const id = ++this.#lastCall;
      this.#calls.set(id, { resolve, reject });
      this.#updateRef();
      this.#send({ type: 'call', id, method, args });
    });
  }

  #send(message: ToWorker): void {
    this.#port.postMessage(message);
  }

  /** The process lives while the guest runs or an answer is due. */
  #updateRef(): void {
    const busy = this.#state === 'running' || this.#state === 'paused' || this.#calls.size > 0;
    this.#thread.setBusy(this, busy || this.#closing !== undefined);
  }
}

/** What serves a machine's disks and shares, by their index. It belongs to this thread, and outlives a reset. */
interface Daemons {
  drives: readonly (StorageDaemon | undefined)[];
  shares: readonly (Virtiofsd | undefined)[];
}

async function startDaemons({ drives, shares, cpus }: MachineConfig): Promise<Daemons> {
  const results = await Promise.all([
    startAll(drives, (drive) => {
      if (drive.backend !== 'qemu') return undefined;
      const { backend: _, ...config } = drive;
      return StorageDaemon.start({ ...config, queues: cpus });
    }),
    startAll(shares, (share) => (share.backend === 'virtiofsd' ? Virtiofsd.start(share) : undefined)),
  ]);
  const daemons = { drives: results[0].started, shares: results[1].started };
  const failed = results.find(({ failed }) => failed)?.failed;
  if (!failed) return daemons;
  await closeDaemons(daemons);
  throw failed.reason;
}

async function startAll<C, D>(configs: readonly C[], start: (config: C) => Promise<D> | undefined) {
  const results = await Promise.allSettled(configs.map(async (config) => start(config)));
  return {
    started: results.map((result) => (result.status === 'fulfilled' ? result.value : undefined)),
    failed: results.find((result) => result.status === 'rejected'),
  };
}

async function closeDaemons({ drives, shares }: Daemons): Promise<void> {
  await Promise.all([...drives, ...shares].map(async (daemon) => daemon?.close()));
}

/** The machine, as the worker has to know it: by sockets. */
function servedBy(daemons: Daemons, config: MachineConfig): MachineConfig {
  return {
    ...config,
    drives: config.drives.map((drive, index) => {
      const path = daemons.drives[index]?.socketPath;
      return path === undefined ? drive : { backend: 'vhost-user', readOnly: drive.readOnly, path };
    }),
    shares: config.shares.map((share, index) => {
      const path = daemons.shares[index]?.socketPath;
      return path === undefined ? share : { backend: 'vhost-user', tag: share.tag, path };
    }),
  };
}
