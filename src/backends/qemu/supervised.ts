/** Processes that serve a machine: none outlives this process, and one that dies is reported with what it said. */
import { spawn, type ChildProcess } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { basename, delimiter, join } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { VmmError } from '../../errors.js';

/** What is kept of a process's standard error: its end, in which the reason stands. */
const STDERR_TAIL_BYTES = 64 * 1024;

/** Debian's package of each program, for the advice when one is missing. */
const PACKAGES: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  'qemu-system-aarch64': 'qemu-system-arm',
  'qemu-system-riscv64': 'qemu-system-misc',
  'qemu-storage-daemon': 'qemu-system-common',
  virtiofsd: 'qemu-system-common',
  setpriv: 'util-linux',
  unshare: 'util-linux',
};

export interface ProcessExit {
  /** Null when a signal ended it. */
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface SupervisedOptions {
  /** Name looked up in PATH, or an absolute path. */
  program: string;
  args: readonly string[];
  /** Descriptors of this process that the child gets as 3, 4 and so on. Borrowed until the call returns. */
  inherit?: readonly number[];
  /** Connections to make, by a socketpair each: the child's ends are the descriptors after the inherited ones. */
  connections?: number;
}

/**
 * A child process that is bound to the thread that started it: when the thread ends, because this process is killed or
 * its worker ends, the kernel kills the child (PR_SET_PDEATHSIG, set by setpriv(1)).
 */
export class SupervisedProcess {
  readonly program: string;
  /** This process's ends of the connections. */
  readonly connections: readonly Duplex[];
  /** Resolves when the process has ended and its standard error has been read to the end. Never rejects. */
  readonly exited: Promise<ProcessExit>;
  readonly #child: ChildProcess;
  #stderr = '';
  #spawnError: Error | undefined;

  /** @throws VmmError code "QEMU_UNAVAILABLE" naming the command that installs what is missing. */
  constructor({ program, args, inherit = [], connections = 0 }: SupervisedOptions) {
    this.program = findProgram(program);
    const setpriv = [findProgram('setpriv'), '--pdeathsig', 'KILL', '--no-new-privs', '--'];
    // This process may have died before the child asked for the signal; then the child has another parent by now.
    const onlyIfOurs = ['/bin/sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', String(process.pid)];
    const [command, ...rest] = [...setpriv, ...onlyIfOurs, this.program, ...args];
    // A pipe of child_process is a socketpair: both ends read and write.
    const pipes = Array<'pipe'>(connections).fill('pipe');
    const child = spawn(command, rest, { stdio: ['ignore', 'ignore', 'pipe', ...inherit, ...pipes] });
    this.#child = child;
    const stderr = child.stderr as Readable;
    stderr.setEncoding('utf8');
    stderr.on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-STDERR_TAIL_BYTES)));
    stderr.on('error', () => {});
    // Without a listener a failed exec would be thrown at the whole process; whoever waits for the start reports it.
    child.on('error', (error) => (this.#spawnError = error));
    this.connections = pipes.map((_, i) => child.stdio[3 + inherit.length + i] as Duplex);
    for (const stream of this.connections) stream.on('error', () => {}); // EPIPE: the exit reports it
    this.exited = ended(child);
  }

  get hasExited(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Why it could not be run at all. */
  get spawnError(): Error | undefined {
    return this.#spawnError;
  }

  /** The end of what it wrote to standard error. */
  get stderrTail(): string {
    return this.#stderr;
  }

  /** The lines in which QEMU (or what started it) speaks, without its warnings and its register dumps, in one line. */
  get stderrMessage(): string {
    const spoken = /^(\S*\/)?(qemu[\w-]*|setpriv): /;
    const lines = this.#stderr.split('\n').filter((line) => spoken.test(line) && !line.includes(': warning: '));
    return lines.slice(-5).join('; ');
  }

  /** Resolves with whether it writes the text to standard error: true once it does, false when it has ended without. */
  says(text: string): Promise<boolean> {
    const stderr = this.#child.stderr as Readable;
    return new Promise((resolve) => {
      const settle = (said: boolean) => {
        stderr.off('data', look);
        resolve(said);
      };
      const look = () => void (this.#stderr.includes(text) && settle(true));
      stderr.on('data', look); // after the one that keeps the text
      look();
      void this.exited.then(() => settle(this.#stderr.includes(text)));
    });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

/** A short sentence on how a process ended. */
export function describeExit({ code, signal }: ProcessExit): string {
  return signal ? `it was killed by ${signal}` : `it ended with status ${code}`;
}

/** What to report of a process that nobody asked to end. @param advice What can be done about it. */
export function deathOf(
  program: string,
  { stderrTail }: { stderrTail: string },
  exit: ProcessExit,
  advice: string,
): VmmError {
  const said = lastWords(stderrTail);
  const what = `${program} died: ${describeExit(exit)}${said ? ` (${said})` : ''}; ${advice}`;
  return new VmmError('QEMU_FAILED', what, { operation: program });
}

/** What a process said last, in one line, without QEMU's warnings. */
export function lastWords(stderrTail: string): string {
  const lines = stderrTail.trim().split('\n');
  return lines
    .filter((line) => !line.includes(': warning: '))
    .slice(-5)
    .join('; ');
}

/** @throws VmmError code "QEMU_UNAVAILABLE" naming the command that installs it. */
export function findProgram(program: string): string {
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
function ended(child: ChildProcess): Promise<ProcessExit> {
  return new Promise((resolve) => {
    let stderrEnded = false;
    let exit: ProcessExit | undefined;
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
