import type { Duplex } from 'node:stream';
import { VmmError } from '../errors.js';
import { EXIT_PORT_NAME } from '../guest/initramfs.js';
import { QemuProcess } from '../backends/qemu/process.js';
import { describeExit, type ProcessExit } from '../backends/qemu/supervised.js';
import type { QmpShutdownCause } from '../backends/qemu/qmp.js';
import { allHalted, parseBytes, parseCodeBits, parseRegisters } from '../backends/qemu/registers.js';
import type { GuestArch } from '../guest/arch.js';
import type { Accelerator } from './accelerator.js';
import { isForeignKernel } from './foreign.js';
import { deviceArguments, portChardev } from './qemu-devices.js';
import type { QemuLinks } from './qemu-links.js';
import type { QemuPlatform } from './qemu-platform.js';
import type { ServedDevices } from './qemu-served.js';
import { diskCounters, qemuDevices, type QemuBlkCounters } from './qemu-stats.js';
import type { CrashReport, DeviceStats, MachineConfig, MachineExit } from './machine.js';

/** Carries seven bits of what the guest writes; see `#debugExit`. */
const DEBUG_EXIT = 'isa-debug-exit,iobase=0xf4,iosize=0x04';
/** Takes all eight bits, for who writes there first; nothing else has this port. */
const DEBUG_EXIT_BYTE = 'isa-debugcon,iobase=0xf8,chardev=debug';

/** Output of the test device, for the console. */
const TEST_OUTPUT = 'test-output';

/** How often to look whether every vCPU has halted for good, which QEMU does not report. */
const HALT_POLL_MS = 1_000;

/** One guest in one QEMU process, from its kernel's first instruction to its end, and why it ended. */
export class QemuGuest {
  readonly process: QemuProcess;
  /** Its devices that are ours. */
  readonly served: ServedDevices;
  /**
   * Resolves when the guest has ended by itself or by `quit` ('stopped'), and its process is gone.
   * Rejects with code "QEMU_FAILED" when the process ended without a reason that the guest could have given.
   */
  readonly ended: Promise<MachineExit>;
  #cause: QmpShutdownCause | 'halt' | 'quit' | undefined;
  #crashSite: Promise<CrashReport | undefined> = Promise.resolve(undefined);
  readonly #arch: GuestArch;
  readonly #accel: Accelerator;
  readonly #config: MachineConfig;
  /** The last that QEMU said: when the guest has ended, nobody can be asked any more. */
  #diskCounters: Record<string, QemuBlkCounters> = {};
  #lastDebugByte: number | undefined;
  #haltPoll: NodeJS.Timeout | undefined;

  private constructor(config: MachineConfig, accel: Accelerator, process: QemuProcess, served: ServedDevices) {
    this.#arch = config.arch;
    this.#accel = accel;
    this.#config = config;
    this.process = process;
    this.served = served;
    process.chardevs['debug'].on('data', (bytes: Buffer) => (this.#lastDebugByte = bytes.at(-1)));
    process.qmp.onEvent('SHUTDOWN', ({ reason }) => this.#onShutdown(reason));
    // With shutdown=pause a panic only pauses the guest.
    process.qmp.onEvent('GUEST_PANICKED', () => this.#onShutdown('guest-panic'));
    this.ended = process.exited.then((exit) => this.#onExit(exit));
    this.ended.catch(() => {}); // whoever waits for it gets the rejection; a guest that was discarded has nobody
  }

  /** Starts QEMU; the guest waits before its first instruction. @throws as `QemuProcess.start` does. */
  static async create(
    config: MachineConfig,
    platform: QemuPlatform,
    links: QemuLinks,
    options: { signal?: AbortSignal } = {},
  ): Promise<QemuGuest> {
    const { arch, kernelPath } = config;
    // QEMU puts a Multiboot kernel's name first by itself.
    const foreign = arch === 'x86_64' && kernelPath !== undefined && (await isForeignKernel(kernelPath));
    // Linux counts timer interrupts at boot, and panics when a busy host emulates too few; KVM tells it not to look.
    const linux = arch === 'x86_64' && platform.accel === 'tcg' ? `no_timer_check ${config.cmdline}` : config.cmdline;
    const served = await links.serve();
    try {
      const process = await QemuProcess.start({
        program: programOf(config),
        chardevs: [
          ...['serial0', 'debug', ...(config.testdev ? [TEST_OUTPUT] : [])],
          ...config.consolePorts.map((_, index) => portChardev(index)),
        ],
        args: [
          ...platform.args,
          ...qemuArguments(config, foreign ? config.kernelArguments : linux, platform),
          ...(await deviceArguments(config, served)),
        ],
        ...options,
      });
      await served.handOver();
      return new QemuGuest(config, platform.accel, process, served);
    } catch (error) {
      await served.close();
      throw error;
    }
  }

  /** What the guest prints: its serial port, which takes input, too, then its other outputs. */
  get outputs(): readonly [Duplex, ...Duplex[]] {
    const { serial0, [TEST_OUTPUT]: test } = this.process.chardevs;
    return test ? [serial0, test] : [serial0];
  }

  async run(): Promise<void> {
    await this.#command('cont');
    // Only an x86 CPU says that nothing will wake it; and only by TCG is it asked at no cost to the guest.
    if (this.#arch === 'x86_64' && this.#accel === 'tcg')
      this.#haltPoll ??= setInterval(() => void this.#pollHalt(), HALT_POLL_MS).unref();
  }

  async pause(): Promise<void> {
    clearInterval(this.#haltPoll);
    this.#haltPoll = undefined;
    await this.#command('stop');
  }

  async pressPowerButton(): Promise<void> {
    await this.#command('system_powerdown');
  }

  async deviceStats(): Promise<Record<string, DeviceStats>> {
    await this.#countDisks();
    const devices: Record<string, DeviceStats> = { ...qemuDevices(this.#config), ...this.served.stats() };
    for (const [id, counters] of Object.entries(this.#diskCounters)) {
      if (devices[id]) devices[id] = { ...devices[id], counters };
    }
    return devices;
  }

  async #countDisks(): Promise<void> {
    if (this.#config.drives.length === 0 || this.process.qmp.closed) return;
    try {
      this.#diskCounters = await diskCounters(this.process);
    } catch (error) {
      if (!this.process.qmp.closed) throw error; // the guest's end came before the answer
    }
  }

  /** Ends the guest, unless it has ended. @returns when the process is gone. */
  async quit(): Promise<void> {
    this.#cause ??= 'quit';
    await this.process.quit();
  }

  /** The guest has ended one way or another, and QEMU has stopped it there (`-action shutdown=pause`). */
  #onShutdown(cause: QmpShutdownCause): void {
    // Our own `quit` is reported as a shutdown too; a signal from outside ends QEMU without us.
    if (this.#cause !== undefined || cause === 'host-qmp-quit' || cause === 'host-signal') return;
    this.#cause = cause;
    // To QEMU a triple fault is a reset: take down where it was while the CPU is still there to be asked.
    if (cause === 'guest-reset') this.#crashSite = this.#inspect().catch(() => undefined);
    void this.#crashSite
      .then(() => this.#countDisks())
      .catch(() => {}) // it is about to end, with or without its counters
      .then(() => this.process.quit());
  }

  async #onExit(exit: ProcessExit): Promise<MachineExit> {
    clearInterval(this.#haltPoll);
    await this.served.close();
    await ended(this.process.chardevs['debug']);
    switch (this.#cause) {
      case 'quit':
        return { reason: 'stopped' };
      case 'halt':
        return { reason: 'halt' };
      case 'guest-shutdown':
        // Where there is no port that ends the guest, it says its status and powers off.
        if (this.#arch === 'x86_64' || this.#lastDebugByte === undefined) return { reason: 'shutdown' };
        return { reason: 'shutdown', debugExit: this.#lastDebugByte };
      case 'guest-panic':
        return { reason: 'panic' };
      case 'guest-reset': {
        const crash = /^Triple fault/m.test(this.process.stderrTail) ? await this.#crashSite : undefined;
        return crash ? { reason: 'crash', crash } : { reason: 'reset' };
      }
      case undefined:
        return { reason: 'shutdown', debugExit: this.#debugExit(exit) };
      default:
        throw this.#failure(exit);
    }
  }

  /**
   * The byte the guest wrote to the debug-exit port: QEMU ended with status (byte << 1) | 1, which has no room for the
   * top bit. A guest that needs all eight bits writes the byte to port 0xf8 first.
   *
   * @throws VmmError code "QEMU_FAILED" when that is not how QEMU ended.
   */
  #debugExit(exit: ProcessExit): number {
    // Status 1 is a guest's 0, and also what QEMU ends with when it gives up; then it says why.
    const byGuest =
      exit.code !== null && (exit.code & 1) === 1 && (exit.code !== 1 || this.process.stderrMessage === '');
    if (!byGuest) throw this.#failure(exit);
    const low = exit.code! >> 1;
    const full = this.#lastDebugByte;
    return full !== undefined && (full & 0x7f) === low ? full : low;
  }

  #failure(exit: ProcessExit): VmmError {
    const said = this.process.stderrMessage;
    return new VmmError(
      'QEMU_FAILED',
      `QEMU died under the guest: ${describeExit(exit)}${said ? ` (${said})` : ''}. Create the machine anew`,
      { operation: `qemu-system-${this.#arch}` },
    );
  }

  async #inspect(): Promise<CrashReport> {
    const text = await this.#monitor('info registers');
    const code = parseBytes(await this.#monitor('x /16xb $pc'));
    const registers = parseRegisters(text);
    // Loaded when it is needed: it is large, and most guests do not crash.
    const { disassemble } = await import('./disassemble.js');
    return {
      cause: 'triple fault',
      vcpu: Number(/CPU#(\d+)/.exec(text)?.[1] ?? 0),
      registers,
      code,
      disassembly: disassemble(code, registers['rip'] ?? 0n, parseCodeBits(text)),
    };
  }

  async #pollHalt(): Promise<void> {
    const text = await this.#monitor('info registers -a').catch(() => '');
    if (this.#cause !== undefined || this.#haltPoll === undefined || !allHalted(text)) return;
    this.#cause = 'halt';
    await this.process.quit();
  }

  #monitor(line: string): Promise<string> {
    return this.process.qmp.execute('human-monitor-command', { 'command-line': line }, { timeoutMs: 2_000 });
  }

  /** A command that the guest's end may overtake: then it has not failed. */
  async #command(command: 'cont' | 'stop' | 'system_powerdown'): Promise<void> {
    try {
      await this.process.qmp.execute(command);
    } catch (error) {
      if (!(error instanceof VmmError) || error.code !== 'QEMU_FAILED' || !this.process.qmp.closed) throw error;
    }
  }
}

const programOf = ({ arch }: MachineConfig) => `qemu-system-${arch}`;

/** Resolves when all that QEMU wrote has been read; QEMU is gone. */
async function ended(stream: Duplex): Promise<void> {
  if (stream.readableEnded || stream.destroyed) return;
  await new Promise<void>((resolve) => stream.once('end', resolve).once('close', resolve));
}

function qemuArguments(config: MachineConfig, cmdline: string, { accel }: QemuPlatform): string[] {
  return [
    ...['-cpu', 'max', '-smp', String(config.cpus)],
    ...['-m', `size=${Math.ceil(config.memoryBytes / 2 ** 10)}k`],
    ...(config.kernelPath === undefined ? [] : ['-kernel', config.kernelPath, '-append', cmdline]),
    ...(config.initrdPath === undefined ? [] : ['-initrd', config.initrdPath]),
    // A virtio console has the character device instead.
    ...(config.console === 'serial' ? ['-serial', 'chardev:serial0'] : []),
    ...(config.arch === 'x86_64' ? pcArguments(config, accel) : virtArguments()),
    // The guest's end stops it, so that it can be looked at; `quit` then ends the process.
    ...['-action', 'reboot=shutdown,shutdown=pause,panic=shutdown'],
  ];
}

function pcArguments(config: MachineConfig, accel: Accelerator): string[] {
  return [
    ...['-device', DEBUG_EXIT_BYTE, '-device', DEBUG_EXIT, '-device', 'pvpanic'],
    ...(config.testdev ? ['-device', 'pc-testdev', '-device', `isa-debugcon,iobase=0xf1,chardev=${TEST_OUTPUT}`] : []),
    // The only way to tell a triple fault from a reset the guest asked for: QEMU logs the former, its KVM does not.
    ...(accel === 'tcg' ? ['-d', 'cpu_reset'] : []),
  ];
}

function virtArguments(): string[] {
  return [
    ...['-device', 'pvpanic-pci', '-device', 'virtio-serial-pci,id=exit'],
    ...['-device', `virtserialport,bus=exit.0,chardev=debug,name=${EXIT_PORT_NAME}`],
  ];
}
