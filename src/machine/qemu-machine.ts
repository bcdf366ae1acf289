import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import { VmmError } from '../errors.js';
import { Batches } from '../backends/qemu/batches.js';
import type { Accelerator } from './accelerator.js';
import { noBalloon, type Balloon } from './balloon.js';
import { ConsoleStream } from './console-stream.js';
import type {
  DeviceStats,
  Machine,
  MachineConfig,
  MachineEvents,
  MachineExit,
  MachineState,
  MachineStats,
} from './machine.js';
import { parseTarget } from './options.js';
import { QemuBalloon } from './qemu-balloon.js';
import { QemuGuest } from './qemu-guest.js';
import { checkSupported } from './qemu-devices.js';
import { checkImages } from './qemu-images.js';
import { QemuLinks } from './qemu-links.js';
import { openPlatform, type QemuPlatform } from './qemu-platform.js';
import type { Vsock } from './vsock.js';

/** Console output that may wait for a slow reader before QEMU, and so the guest's serial port, has to. */
const OUTPUT_WINDOW_BYTES = 2 ** 20;

/** The machine in a QEMU process: emulated by TCG, for hosts without a usable KVM, or a PC of QEMU's under either. */
export class QemuMachine implements Machine {
  readonly accel: Accelerator;
  readonly drives = [];
  readonly shares = [];
  readonly console: ConsoleStream;
  readonly exited: Promise<MachineExit>;
  readonly events = new EventEmitter<MachineEvents>();
  readonly #config: MachineConfig;
  readonly #platform: QemuPlatform;
  readonly #links: QemuLinks;
  #guest: QemuGuest;
  #outputs!: QemuGuest['outputs'];
  #balloon: QemuBalloon | undefined;
  #flush: () => void = () => {};
  /** By the guest that reset() is about to start. */
  #replaced: QemuGuest | undefined;
  #stopping = false;
  #waitingBytes = 0;
  #state: MachineState = 'created';
  #settle!: { resolve: (exit: MachineExit) => void; reject: (error: unknown) => void };

  private constructor(platform: QemuPlatform, links: QemuLinks, guest: QemuGuest) {
    this.#config = links.config;
    this.#platform = platform;
    this.accel = platform.accel;
    this.#links = links;
    this.#guest = guest;
    this.console = new ConsoleStream({
      write: (bytes, taken) => this.#outputs[0].write(bytes, taken),
      onConsumed: (length) => {
        this.#waitingBytes -= length;
        if (this.#waitingBytes > OUTPUT_WINDOW_BYTES) return;
        for (const stream of this.#outputs) stream.resume();
      },
      keepBytes: OUTPUT_WINDOW_BYTES / 2,
    });
    this.exited = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.exited.catch(() => {}); // it stays rejected for whoever asks; nobody asking is no reason to end the program
    links.onDeviceError = (device, error) => this.events.emit('deviceError', { device, error });
    this.#adopt(guest);
  }

  /**
   * Starts a QEMU process with the machine in it, stopped before its first instruction.
   *
   * The process is bound to the thread that calls this, and ends with it; see `QemuProcess.start`.
   *
   * @param options.accel Default: `tcg`.
   * @throws VmmError code "ACCEL_UNAVAILABLE" for what this machine does not have. "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE", "OUT_OF_GUEST_MEMORY"; "QEMU_UNAVAILABLE" naming
   *   what to install, "QEMU_FAILED" with what QEMU said, or "ABORTED".
   */
  static async create(
    config: MachineConfig,
    { accel = 'tcg', ...options }: { accel?: Accelerator; signal?: AbortSignal } = {},
  ): Promise<QemuMachine> {
    checkSupported(config);
    await checkImages(config);
    const links = await QemuLinks.open(config);
    let platform: QemuPlatform | undefined;
    try {
      platform = await openPlatform(config, accel);
      return new QemuMachine(platform, links, await QemuGuest.create(links.config, platform, links, options));
    } catch (error) {
      await links.close();
      await platform?.[Symbol.asyncDispose]();
      throw error;
    }
  }

  get state(): MachineState {
    return this.#state;
  }

  /** The QEMU process's id. `reset` starts another. */
  get pid(): number | undefined {
    return this.#guest.process.pid;
  }

  async start(): Promise<void> {
    this.#require('start', 'created');
    this.#state = 'running';
    await this.#guest.run();
  }

  async pause(): Promise<void> {
    this.#require('pause', 'running', 'paused');
    this.#state = 'paused';
    await this.#guest.pause();
  }

  async resume(): Promise<void> {
    this.#require('resume', 'paused', 'running');
    this.#state = 'running';
    await this.#guest.run();
  }

  /**
   * A new process, in fact: QEMU's own reset leaves RAM as it was, and firmware that finds itself there resets again. The old
   * one goes first: two cannot have the same images.
   */
  async reset(): Promise<void> {
    this.#require('reset', 'created', 'running', 'paused');
    if (this.#state === 'created') return;
    if (this.#replaced) throw new VmmError('BUSY', 'another reset() of this machine is under way');
    const old = this.#guest;
    this.#replaced = old;
    try {
      await old.quit();
      const { reason } = await old.ended;
      if (reason === 'stopped' && !this.#stopping) await this.#replace();
    } catch (error) {
      this.#replaced = undefined;
      await this.#end(old, () => this.#settle.reject(error));
      throw error;
    }
    this.#replaced = undefined;
    if (this.#guest !== old) return;
    // It had ended by itself, or stop() or close() came.
    this.#awaitEnd(old);
    await this.exited;
    this.#require('reset', 'running', 'paused');
  }

  async #replace(): Promise<void> {
    const guest = await QemuGuest.create(this.#config, this.#platform, this.#links);
    if (this.#stopping) return void (await guest.quit());
    this.#adopt(guest);
    if (this.#state === 'running') await guest.run();
  }

  async stop(): Promise<void> {
    if (this.#state === 'closed') throw closed('stop');
    await this.#quit();
  }

  async powerButton(): Promise<void> {
    this.#require('powerButton', 'running', 'paused');
    await this.#guest.pressPowerButton();
  }

  port(name: string): Duplex {
    if (this.#state === 'closed') throw closed('port');
    return this.#links.port(name);
  }

  get vsock(): Vsock | undefined {
    return this.#links.vsock;
  }

  net(index: number): Duplex {
    if (this.#state === 'closed') throw closed('net');
    return this.#links.net(index);
  }

  /** No QEMU tells a console a size. @throws VmmError code "ACCEL_UNAVAILABLE", or "INVALID_STATE" where it is a serial port. */
  resizeConsole(): Promise<never> {
    const refusal =
      this.#config.console === 'serial'
        ? new VmmError('INVALID_STATE', 'a serial console has no size: make the machine with console: "virtio"')
        : new VmmError('ACCEL_UNAVAILABLE', 'QEMU tells a console no size: this needs a microvm under KVM');
    return Promise.reject(refusal);
  }

  readonly balloon: Balloon = {
    setTarget: async (size) => {
      this.#require('balloon.setTarget', 'created', 'running', 'paused');
      if (!this.#balloon) throw noBalloon();
      await this.#balloon.setTarget(parseTarget(size));
    },
    stats: async () => {
      this.#require('balloon.stats', 'created', 'running', 'paused');
      if (!this.#balloon) throw noBalloon();
      return this.#balloon.stats();
    },
  };

  async stats(): Promise<MachineStats> {
    if (this.#state === 'closed') throw closed('stats');
    const devices: Record<string, DeviceStats> = await this.#guest.deviceStats();
    for (const [id, device] of Object.entries(devices)) {
      const error = this.#links.errorOf(id);
      if (error) devices[id] = { ...device, error: error.message };
    }
    return {
      exits: {},
      accesses: {},
      devices,
      kicks: 0,
      interrupts: 0,
      memoryBytes: this.#config.memoryBytes,
      consoleDroppedBytes: this.console.droppedBytes,
    };
  }

  async close(): Promise<void> {
    const ended = this.#quit();
    this.#state = 'closed';
    await ended;
    await this.#links.close();
    await this.#platform[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #adopt(guest: QemuGuest): void {
    this.#guest = guest;
    this.#outputs = guest.outputs;
    this.#links.attach(guest);
    this.#balloon = this.#config.balloon ? new QemuBalloon(guest.process, this.#config.memoryBytes) : undefined;
    const output = new Batches((bytes) => {
      if (this.#guest !== guest) return;
      this.#waitingBytes += bytes.length;
      if (this.#waitingBytes > OUTPUT_WINDOW_BYTES && !guest.process.hasExited) {
        for (const stream of guest.outputs) stream.pause();
      }
      this.console.deliver(bytes);
    });
    for (const stream of guest.outputs) stream.on('data', (bytes: Buffer) => output.add(bytes));
    this.#flush = () => output.flush();
    this.#awaitEnd(guest);
  }

  #awaitEnd(guest: QemuGuest): void {
    guest.ended.then(
      (exit) => this.#end(guest, () => this.#settle.resolve(exit)),
      (error: unknown) => this.#end(guest, () => this.#settle.reject(error)),
    );
  }

  /** This guest's end is the machine's, unless reset() puts another in its place. */
  async #end(guest: QemuGuest, then: () => void): Promise<void> {
    if (this.#guest !== guest || this.#replaced === guest) return;
    if (this.#state !== 'closed') this.#state = 'exited';
    // What the guest printed last is in the sockets: little enough to take in at once, reader or not.
    for (const stream of guest.outputs) {
      stream.resume();
      if (stream.readableEnded || stream.destroyed) continue;
      await new Promise<void>((resolve) => stream.once('end', resolve).once('close', resolve));
    }
    this.#flush();
    await this.#links.end(guest);
    this.console.finish();
    then();
  }

  async #quit(): Promise<void> {
    this.#stopping = true;
    await this.#guest.quit();
    await this.exited.catch(() => {});
  }

  #require(operation: string, ...states: MachineState[]): void {
    if (this.#state === 'closed') throw closed(operation);
    if (states.includes(this.#state)) return;
    throw new VmmError(
      'INVALID_STATE',
      `${operation}() needs a machine that is ${states.join(' or ')}; this one is ${this.#state}`,
      { operation },
    );
  }
}

const closed = (operation: string) =>
  new VmmError('CLOSED', `${operation}() on a machine that was closed: create another`, { operation });
