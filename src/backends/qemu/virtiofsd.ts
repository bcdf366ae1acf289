/**
 * Directories by virtiofsd: a FUSE server behind vhost-user. Two programs have that name, with the same life: QEMU's own,
 * in C, up to QEMU 7.2, and its successor in Rust (https://gitlab.com/virtio-fs/virtiofsd).
 */
import { execFile } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { VmmError } from '../../errors.js';
import { addon, native, type NativeUnixSocket } from '../../native/addon.js';
import { describeExit, deathOf, findProgram, SupervisedProcess, type ProcessExit } from './supervised.js';

/** Of them each version says it when it can be connected to. */
const READY = 'Waiting for vhost-user socket connection';
const START_TIMEOUT_MS = 30_000;
const LISTENER_FD = 3;
/**
 * A directory that nobody may write to, in a mount namespace of its own. Not --rbind: what is mounted below would stay
 * writable.
 */
const READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"';

export interface VirtiofsdConfig {
  /** Absolute. */
  dir: string;
  readOnly: boolean;
}

/** Of {@link Virtiofsd}: what it emits. */
export interface VirtiofsdEvents {
  /** The process ended, and nobody asked it to: code "QEMU_FAILED", with the end of what it said. */
  died: [error: VmmError];
}

/**
 * One directory in a virtiofsd of its own.
 *
 * A virtiofsd serves one connection, and ends in order when that does. The socket stays here, so that the next connection
 * (of a machine that was reset, say) waits in it for the process that is started then.
 */
export class Virtiofsd extends EventEmitter<VirtiofsdEvents> {
  readonly #config: VirtiofsdConfig;
  readonly #folder: string;
  #listener: NativeUnixSocket | undefined;
  #process: SupervisedProcess | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #failure: VmmError | undefined;
  #closed = false;

  /**
   * Serves the directory at {@link socketPath}. The process is bound to the calling thread.
   *
   * @throws VmmError code "QEMU_UNAVAILABLE" when virtiofsd is not installed, "QEMU_FAILED" with what it says.
   */
  static async start(config: VirtiofsdConfig): Promise<Virtiofsd> {
    const daemon = new Virtiofsd(config, await mkdtemp(join(tmpdir(), 'vmexit-share-')));
    try {
      await daemon.#start();
      return daemon;
    } catch (error) {
      await daemon.close();
      throw error;
    }
  }

  private constructor(config: VirtiofsdConfig, folder: string) {
    super();
    this.#config = config;
    this.#folder = folder;
  }

  /** Where it serves the directory by vhost-user: in a folder that only this user may enter. */
  get socketPath(): string {
    return join(this.#folder, 'vhost-user');
  }

  /** Undefined while no process runs: after its death, and from the end of one connection to the begin of the next. */
  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** Whether the process runs. */
  get running(): boolean {
    return this.#process !== undefined;
  }

  /** Why the last process ended that was not asked to. */
  get failure(): VmmError | undefined {
    return this.#failure;
  }

  /**
   * Starts the process anew, after it died or to get rid of one that hangs. The guest's requests are answered again, those
   * of a mount from before with an error: what the guest has mounted it must unmount, and mount again.
   */
  restart(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#end();
      await this.#start();
    });
  }

  /** Ends the process. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#end();
    // A start that was under way finds it closed, and ends its process.
    await this.#last;
    await rm(this.#folder, { recursive: true, force: true });
  }

  async #start(): Promise<void> {
    if (this.#closed) throw new VmmError('CLOSED', 'the share was closed');
    this.#listener = native(() => new (addon().UnixSocket)('listen-for-child', this.socketPath));
    try {
      await this.#spawn(this.#listener);
    } catch (error) {
      this.#unlisten();
      throw error;
    }
  }

  async #spawn(listener: NativeUnixSocket): Promise<void> {
    const command = await commandOf(this.#config);
    if (this.#closed) throw new VmmError('CLOSED', 'the share was closed');
    const process = new SupervisedProcess({ ...command, inherit: [listener.fd()] });
    const timer = setTimeout(() => process.kill(), START_TIMEOUT_MS);
    const isReady = await process.says(READY);
    clearTimeout(timer);
    if (!isReady || this.#closed) {
      process.kill();
      const exit = await process.exited;
      const said = process.spawnError?.message ?? process.stderrTail.trim();
      const what = `virtiofsd did not start: ${said || describeExit(exit)}`;
      throw new VmmError('QEMU_FAILED', what, { operation: 'virtiofsd', cause: process.spawnError });
    }
    this.#process = process;
    void process.exited.then((exit) => this.#onExit(process, exit));
  }

  #onExit(process: SupervisedProcess, exit: ProcessExit): void {
    const wasAsked = this.#process !== process;
    if (exit.code !== 0 && !(wasAsked && exit.signal === 'SIGKILL')) {
      this.#failure = deathOf('virtiofsd', process, exit, 'restart() starts another');
    }
    if (wasAsked) return;
    this.#process = undefined;
    if (exit.code === 0) return this.#awaitConnection(this.#listener!);
    // Nobody is to wait for a process that nobody has started.
    this.#unlisten();
    this.emit('died', this.#failure!);
  }

  /** Starts the next process for the next connection. */
  #awaitConnection(listener: NativeUnixSocket): void {
    native(() =>
      listener.onReadable(() => {
        listener.onReadable(undefined);
        this.#inTurn(async () => {
          if (this.#listener === listener) await this.#spawn(listener);
        }).catch((error: VmmError) => {
          if (this.#closed) return;
          this.#unlisten();
          this.emit('died', (this.#failure = error));
        });
      }),
    );
  }

  async #end(): Promise<void> {
    const process = this.#process;
    this.#process = undefined;
    this.#unlisten();
    process?.kill();
    await process?.exited;
  }

  #unlisten(): void {
    this.#listener?.close();
    this.#listener = undefined;
    rmSync(this.socketPath, { force: true });
  }

  #inTurn<T>(what: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(what);
    this.#last = turn.catch(() => {});
    return turn;
  }
}

/** A guest's directory in a virtiofsd, to whoever uses the guest: see {@link Virtiofsd}. */
export type VirtiofsShare = Omit<Virtiofsd, 'close' | 'socketPath' | 'failure'>;

/** What to run for a directory, by the virtiofsd that is installed. */
async function commandOf({ dir, readOnly }: VirtiofsdConfig): Promise<{ program: string; args: string[] }> {
  const program = findProgram('virtiofsd');
  const { stdout: help } = await run(program, ['--help']).catch((cause: Error) => {
    throw new VmmError('QEMU_FAILED', `${program} --help failed: ${cause.message}`, { operation: program, cause });
  });
  // A pool would answer requests in another order than they came: then nobody knows which one a dead process left undone.
  const common = [`--fd=${LISTENER_FD}`, '--thread-pool-size=0'];
  const sandbox = await chooseSandbox();
  if (help.includes('--shared-dir')) {
    if (readOnly && !help.includes('--readonly')) {
      const what = `${program} cannot share a directory read-only; install a later one, or use backend: 'local'`;
      throw new VmmError('QEMU_UNAVAILABLE', what, { operation: program });
    }
    const args = [`--shared-dir=${dir}`, `--sandbox=${sandbox}`, ...(readOnly ? ['--readonly'] : [])];
    return { program, args: [...common, ...args] };
  }
  // A backslash takes a comma's meaning away.
  const args = [...common, '-o', `source=${dir.replace(/[\\,]/g, '\\$&')}`, '-o', `sandbox=${sandbox}`];
  if (!readOnly) return { program, args };
  return { program: 'unshare', args: ['--mount', '--', '/bin/sh', '-c', READ_ONLY, dir, program, ...args] };
}

/** The stronger one, of namespaces, unless this is root in a container that may make none. */
async function chooseSandbox(): Promise<'namespace' | 'chroot'> {
  if (process.geteuid?.() !== 0) return 'namespace';
  return run(findProgram('unshare'), ['--mount', '--pid', '--net', '--', 'true']).then(
    () => 'namespace',
    () => 'chroot',
  );
}

const run = promisify(execFile);
