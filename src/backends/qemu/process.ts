/**
 * A supervised QEMU process: it never outlives this one, its monitor and its character devices are inherited
 * socketpairs (no path in the file system), and it may do little beyond emulating.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { basename, delimiter, join } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { VmmError } from '../../errors.js';
import { QmpClient, type QmpOptions } from './qmp.js';

/** What is kept of a QEMU's standard error: its end, in which the reason stands. */
const STDERR_TAIL_BYTES = 64 * 1024;
/** How long a QEMU may take from exec to its QMP greeting; a loaded machine needs seconds. */
const GREETING_TIMEOUT_MS = 30_000;
/** seccomp: no privileges to gain, no process to spawn, no scheduling to change. */
const SANDBOX = ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'];

/** Debian's package of each program, for the advice when one is missing. */
const PACKAGES: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  'qemu-storage-daemon': 'qemu-system-common',
};

export interface QemuProcessOptions {
  /** Name looked up in PATH, or an absolute path. */
  program: string;
  /** The arguments that describe the machine. Monitor, character devices, sandbox and the like are added. */
  args: readonly string[];
  /** Names of character devices (`-chardev` ids) to connect to this process, each by a socketpair. */
  chardevs?: readonly string[];
  signal?: AbortSignal;
}

export interface QemuExit {
  /** Null when a signal ended it. */
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A running QEMU with a QMP session. */
export class QemuProcess {
  readonly qmp: QmpClient;
  /** This end of each character device, by its name. */
  readonly chardevs: Readonly<Record<string, Duplex>>;
  /** Resolves when the process has ended and its standard error has been read to the end. Never rejects. */
  readonly exited: Promise<QemuExit>;
  readonly #child: ChildProcess;
  readonly #stderr: StderrTail;

  private constructor(
    child: ChildProcess,
    exited: Promise<QemuExit>,
    stderr: StderrTail,
    qmp: QmpClient,
    chardevs: Record<string, Duplex>,
  ) {
    this.#child = child;
    this.exited = exited;
    this.#stderr = stderr;
    this.qmp = qmp;
    this.chardevs = chardevs;
  }

  /**
   * Starts QEMU and negotiates QMP. The machine is stopped (`-S`) until `cont`.
   *
   * The process is bound to the thread that calls this: when the thread ends (this process is killed, or the worker
   * that called ends), the kernel kills QEMU. That is how PR_SET_PDEATHSIG works, and what setpriv(1) sets here.
   *
   * @throws VmmError code "QEMU_UNAVAILABLE" when the program is not installed, "QEMU_FAILED" with what QEMU said when
   *   it ends before its greeting, "TIMEOUT", or "ABORTED".
   */
  static async start(options: QemuProcessOptions): Promise<QemuProcess> {
    const program = findQemu(options.program);
    try {
      return await QemuProcess.#spawn(program, options, SANDBOX);
    } catch (error) {
      // A QEMU built without seccomp, or a kernel without it: run it as it is.
      const message = error instanceof VmmError && error.code === 'QEMU_FAILED' ? error.message : '';
      if (!/sandbox|seccomp/i.test(message)) throw error;
      return QemuProcess.#spawn(program, options, []);
    }
  }

  static async #spawn(program: string, options: QemuProcessOptions, sandbox: string[]): Promise<QemuProcess> {
    const names = ['qmp', ...(options.chardevs ?? [])];
    const fdOf = (index: number) => index + 3;
    const command = [
      program,
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-S', ...sandbox],
      ...names.flatMap((name, i) => ['-chardev', `socket,id=${name},fd=${fdOf(i)}`]),
      ...['-mon', 'chardev=qmp,mode=control'],
      ...options.args,
    ];
    const setpriv = which('setpriv');
    if (setpriv) command.unshift(setpriv, '--pdeathsig', 'KILL', '--no-new-privs', '--');
    // A pipe of child_process is a socketpair: both ends read and write, as QEMU's socket character device wants it.
    const child = spawn(command[0], command.slice(1), {
      stdio: ['ignore', 'ignore', 'pipe', ...names.map(() => 'pipe' as const)],
    });
    const stderr = new StderrTail(child.stderr as Readable);
    // Without a listener a failed exec would be thrown at the whole process; the greeting's failure reports it.
    let spawnError: Error | undefined;
    child.on('error', (error) => (spawnError = error));
    const chardevs = Object.fromEntries(names.map((name, i) => [name, child.stdio[fdOf(i)] as Duplex]));
    for (const stream of Object.values(chardevs)) stream.on('error', () => {}); // EPIPE: the exit reports it
    const exited = ended(child);
    const connect: QmpOptions = { timeoutMs: GREETING_TIMEOUT_MS, ...(options.signal && { signal: options.signal }) };
    try {
      const qmp = await QmpClient.connect(chardevs['qmp'], connect);
      delete chardevs['qmp'];
      return new QemuProcess(child, exited, stderr, qmp, chardevs);
    } catch (error) {
      child.kill('SIGKILL');
      const { code, signal } = await exited;
      for (const stream of Object.values(chardevs)) stream.destroy();
      if (!(error instanceof VmmError) || error.code !== 'QEMU_FAILED') throw error;
      const said = spawnError?.message ?? stderr.message;
      throw new VmmError('QEMU_FAILED', `${program} did not start: ${said || describeExit({ code, signal })}`, {
        operation: program,
        cause: spawnError ?? error,
      });
    }
  }

  get hasExited(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The end of what QEMU wrote to standard error. */
  get stderrTail(): string {
    return this.#stderr.text;
  }

  /** QEMU's own messages on standard error, in one line; empty when it said nothing. */
  get stderrMessage(): string {
    return this.#stderr.message;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** Asks QEMU to quit, and kills it when it has not ended after `graceMs`. @returns How it ended. */
  async quit(graceMs = 2_000): Promise<QemuExit> {
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

/** A short sentence on how a process ended. */
export function describeExit({ code, signal }: QemuExit): string {
  return signal ? `it was killed by ${signal}` : `it ended with status ${code}`;
}

/** @throws VmmError code "QEMU_UNAVAILABLE" naming the command that installs it. */
export function findQemu(program: string): string {
  const path = which(program);
  if (path) return path;
  const name = PACKAGES[basename(program)];
  const advice = name ? `Run: sudo apt-get install --no-install-recommends ${name}` : 'Install it, or correct PATH';
  throw new VmmError('QEMU_UNAVAILABLE', `${program} is not installed. ${advice}`, { operation: program });
}

/** The full path of a program, by PATH and the directories that services often lack in theirs. */
function which(program: string): string | undefined {
  if (program.startsWith('/')) return isProgram(program) ? program : undefined;
  const directories = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/bin', '/usr/libexec', '/usr/lib/qemu'];
  return directories
    .filter((directory) => directory.startsWith('/'))
    .map((directory) => join(directory, program))
    .find(isProgram);
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** Resolves when the process is gone and its standard error at its end; a failed exec counts as status 127. */
function ended(child: ChildProcess): Promise<QemuExit> {
  return new Promise((resolve) => {
    let stderrEnded = false;
    let exit: QemuExit | undefined;
    const settle = () => {
      if (stderrEnded && exit) resolve(exit);
    };
    child.stderr!.once('close', () => {
      stderrEnded = true;
      settle();
    });
    child.once('exit', (code, signal) => {
      exit = { code, signal };
      settle();
    });
    child.once('error', () => {
      if (child.pid === undefined) resolve({ code: 127, signal: null });
    });
  });
}

class StderrTail {
  #text = '';

  constructor(stream: Readable) {
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => (this.#text = (this.#text + text).slice(-STDERR_TAIL_BYTES)));
    stream.on('error', () => {});
  }

  get text(): string {
    return this.#text;
  }

  /** The lines in which QEMU (or what started it) speaks, without its warnings and its register dumps. */
  get message(): string {
    const spoken = /^(\S*\/)?(qemu[\w-]*|setpriv): (?!warning: )/;
    const lines = this.#text.split('\n').filter((line) => spoken.test(line));
    return lines.slice(-5).join('; ');
  }
}
