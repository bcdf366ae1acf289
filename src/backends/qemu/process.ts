/**
 * A QEMU process with a QMP session. Its monitor and its character devices are inherited socketpairs (no path in the file
 * system), and it may do little beyond emulating.
 */
import type { Duplex } from 'node:stream';
import { VmmError } from '../../errors.js';
import { QmpClient, type QmpOptions } from './qmp.js';
import { describeExit, SupervisedProcess, type ProcessExit } from './supervised.js';

/** How long a QEMU may take from exec to its QMP greeting; a loaded machine needs seconds. */
const GREETING_TIMEOUT_MS = 30_000;
/** seccomp: no privileges to gain, no process to spawn, no scheduling to change. */
const SANDBOX = ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'];

export interface QemuProcessOptions {
  /** Name looked up in PATH, or an absolute path. */
  program: string;
  /** The arguments that describe the machine. Monitor, character devices, sandbox and the like are added. */
  args: readonly string[];
  /** `qemu-storage-daemon` has other options for the same things. Default: `system`. */
  kind?: 'system' | 'storage-daemon';
  /** Names of character devices (`-chardev` ids) to connect to this process, each by a socketpair. */
  chardevs?: readonly string[];
  /** Descriptors that QEMU gets as 3, 4 and so on. Borrowed until the call returns. */
  inherit?: readonly number[];
  signal?: AbortSignal;
}

/** A running QEMU with a QMP session. */
export class QemuProcess {
  readonly qmp: QmpClient;
  /** This end of each character device, by its name. */
  readonly chardevs: Readonly<Record<string, Duplex>>;
  readonly #process: SupervisedProcess;

  private constructor(process: SupervisedProcess, qmp: QmpClient, chardevs: Record<string, Duplex>) {
    this.#process = process;
    this.qmp = qmp;
    this.chardevs = chardevs;
  }

  /**
   * Starts QEMU and negotiates QMP. A machine is stopped (`-S`) until `cont`.
   *
   * The process is bound to the thread that calls this, and never outlives it: see {@link SupervisedProcess}.
   *
   * @throws VmmError code "QEMU_UNAVAILABLE" when the program is not installed, "QEMU_FAILED" with what QEMU said when
   *   it ends before its greeting, "TIMEOUT", or "ABORTED".
   */
  static async start(options: QemuProcessOptions): Promise<QemuProcess> {
    if (options.kind === 'storage-daemon') return QemuProcess.#spawn(options, []);
    try {
      return await QemuProcess.#spawn(options, SANDBOX);
    } catch (error) {
      // A QEMU built without seccomp, or a kernel without it: run it as it is.
      const message = error instanceof VmmError && error.code === 'QEMU_FAILED' ? error.message : '';
      if (!/sandbox|seccomp/i.test(message)) throw error;
      return QemuProcess.#spawn(options, []);
    }
  }

  static async #spawn(options: QemuProcessOptions, sandbox: string[]): Promise<QemuProcess> {
    const { program, args, kind = 'system', inherit = [], signal } = options;
    const names = ['qmp', ...(options.chardevs ?? [])];
    const isMachine = kind === 'system';
    const process = new SupervisedProcess({
      program,
      inherit,
      connections: names.length,
      args: [
        ...(isMachine ? ['-nodefaults', '-no-user-config', '-display', 'none', '-S', ...sandbox] : []),
        ...names.flatMap((name, i) => ['--chardev', `socket,id=${name},fd=${3 + inherit.length + i}`]),
        ...(isMachine ? ['-mon', 'chardev=qmp,mode=control'] : ['--monitor', 'chardev=qmp']),
        ...args,
      ],
    });
    const chardevs = Object.fromEntries(names.map((name, i) => [name, process.connections[i]]));
    const connect: QmpOptions = { timeoutMs: GREETING_TIMEOUT_MS, ...(signal && { signal }) };
    try {
      const qmp = await QmpClient.connect(chardevs['qmp'], connect);
      delete chardevs['qmp'];
      return new QemuProcess(process, qmp, chardevs);
    } catch (error) {
      process.kill();
      const exit = await process.exited;
      for (const stream of Object.values(chardevs)) stream.destroy();
      if (!(error instanceof VmmError) || error.code !== 'QEMU_FAILED') throw error;
      const said = process.spawnError?.message ?? process.stderrMessage;
      throw new VmmError('QEMU_FAILED', `${process.program} did not start: ${said || describeExit(exit)}`, {
        operation: process.program,
        cause: process.spawnError ?? error,
      });
    }
  }

  /** Resolves when the process has ended and its standard error has been read to the end. Never rejects. */
  get exited(): Promise<ProcessExit> {
    return this.#process.exited;
  }

  get hasExited(): boolean {
    return this.#process.hasExited;
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** The end of what QEMU wrote to standard error. */
  get stderrTail(): string {
    return this.#process.stderrTail;
  }

  /** QEMU's own messages on standard error, in one line; empty when it said nothing. */
  get stderrMessage(): string {
    return this.#process.stderrMessage;
  }

  kill(): void {
    this.#process.kill();
  }

  /** Asks QEMU to quit, and kills it when it has not ended after `graceMs`. @returns How it ended. */
  async quit(graceMs = 2_000): Promise<ProcessExit> {
    const timer = setTimeout(() => this.kill(), graceMs);
    this.qmp.execute('quit', undefined, { timeoutMs: graceMs }).catch(() => {}); // it may be gone before it answers
    try {
      return await this.exited;
    } finally {
      clearTimeout(timer);
      this.qmp.close();
    }
  }
}
