import { EventEmitter } from 'node:events';
import { VmmError } from '../errors.js';
import { Batches } from '../backends/qemu/batches.js';
import type { Accelerator } from './accelerator.js';
import { noBalloon, type Balloon } from './balloon.js';
import { ConsoleStream } from './console-stream.js';
import type { Machine, MachineConfig, MachineEvents, MachineExit, MachineState, MachineStats } from './machine.js';
import { QemuGuest } from './qemu-guest.js';
import { checkSupported, lockImages } from './qemu-devices.js';
import { checkImages } from './qemu-images.js';
import { openPlatform, type QemuPlatform } from './qemu-platform.js';

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
  /** What is given back when QEMU is gone. */
  readonly #held: readonly AsyncDisposable[];
  #guest: QemuGuest;
  #outputs!: QemuGuest['outputs'];
  #waitingBytes = 0;
  #state: MachineState = 'created';
  #settle!: { resolve: (exit: MachineExit) => void; reject: (error: unknown) => void };

  private constructor(
    config: MachineConfig,
    platform: QemuPlatform,
    guest: QemuGuest,
    held: readonly AsyncDisposable[],
  ) {
    this.#config = config;
    this.#platform = platform;
    this.accel = platform.accel;
    this.#held = held;
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
    const held = [await lockImages(config.drives)];
    try {
      const platform = await openPlatform(config, accel);
      held.push(platform);
      return new QemuMachine(config, platform, await QemuGuest.create(config, platform, options), held);
    } catch (error) {
      await dispose(held);
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

  /** A new process, in fact: QEMU's own reset leaves RAM as it was, and firmware that finds itself there resets again. */
  async reset(): Promise<void> {
    this.#require('reset', 'created', 'running', 'paused');
    if (this.#state === 'created') return;
    const old = this.#guest;
    await old.pause();
    const guest = await QemuGuest.create(this.#config, this.#platform);
    try {
      // The guest may have ended, or the machine been closed, while QEMU started.
      this.#require('reset', 'running', 'paused');
      if (this.#guest !== old) throw new VmmError('BUSY', 'another reset() of this machine is under way');
    } catch (error) {
      await guest.quit();
      throw error;
    }
    this.#adopt(guest);
    await old.quit();
    if (this.#state === 'running') await guest.run();
  }

  async stop(): Promise<void> {
    if (this.#state === 'closed') throw closed('stop');
    await this.#end();
  }

  async powerButton(): Promise<void> {
    this.#require('powerButton', 'running', 'paused');
    await this.#guest.pressPowerButton();
  }

  /** There are none. */
  port(name: string): never {
    throw new VmmError('ACCEL_UNAVAILABLE', `${name}: console ports need KVM`);
  }

  /** There are none. */
  net(index: number): never {
    throw new VmmError('ACCEL_UNAVAILABLE', `net[${index}]: network cards need KVM`);
  }

  resizeConsole(): Promise<never> {
    return Promise.reject(new VmmError('ACCEL_UNAVAILABLE', 'QEMU tells a console no size: this needs KVM'));
  }

  readonly balloon: Balloon = {
    setTarget: () => Promise.reject(this.#state === 'closed' ? closed('balloon.setTarget') : noBalloon()),
    stats: () => Promise.reject(this.#state === 'closed' ? closed('balloon.stats') : noBalloon()),
  };

  stats(): Promise<MachineStats> {
    if (this.#state === 'closed') return Promise.reject(closed('stats'));
    return Promise.resolve({
      exits: {},
      accesses: {},
      devices: {},
      kicks: 0,
      interrupts: 0,
      memoryBytes: this.#config.memoryBytes,
      consoleDroppedBytes: this.console.droppedBytes,
    });
  }

  async close(): Promise<void> {
    const ended = this.#end();
    this.#state = 'closed';
    await ended;
    await dispose(this.#held);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #adopt(guest: QemuGuest): void {
    this.#guest = guest;
    this.#outputs = guest.outputs;
    const output = new Batches((bytes) => {
      if (this.#guest !== guest) return;
      this.#waitingBytes += bytes.length;
      if (this.#waitingBytes > OUTPUT_WINDOW_BYTES && !guest.process.hasExited) {
        for (const stream of guest.outputs) stream.pause();
      }
      this.console.deliver(bytes);
    });
    for (const stream of guest.outputs) stream.on('data', (bytes: Buffer) => output.add(bytes));
    const settle = async (then: () => void) => {
      if (this.#guest !== guest) return; // reset() put another in its place
      if (this.#state !== 'closed') this.#state = 'exited';
      // What the guest printed last is in the sockets: little enough to take in at once, reader or not.
      for (const stream of guest.outputs) {
        stream.resume();
        if (stream.readableEnded || stream.destroyed) continue;
        await new Promise<void>((resolve) => stream.once('end', resolve).once('close', resolve));
      }
      output.flush();
      this.console.finish();
      then();
    };
    guest.ended.then(
      (exit) => settle(() => this.#settle.resolve(exit)),
      (error: unknown) => settle(() => this.#settle.reject(error)),
    );
  }

  async #end(): Promise<void> {
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

const dispose = (held: readonly AsyncDisposable[]) => Promise.all(held.map((each) => each[Symbol.asyncDispose]()));

const closed = (operation: string) =>
  new VmmError('CLOSED', `${operation}() on a machine that was closed: create another`, { operation });
