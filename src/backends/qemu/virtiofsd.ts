/**
 * Directories by virtiofsd: a FUSE server behind vhost-user. Two programs have that name, with the same life: QEMU's own,
 * in C, up to QEMU 7.2, and its successor in Rust (https://gitlab.com/virtio-fs/virtiofsd).
 */
import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import { promisify } from 'node:util';
import { VmmError } from '../../errors.js';
import { addon, native, type NativeUnixSocket } from '../../native/addon.js';
import { describeExit, deathOf, findProgram, SupervisedProcess, type ProcessExit } from './supervised.js';
import { VhostUserDaemon } from './vhost-user-daemon.js';

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

/**
 * One directory in a virtiofsd of its own.
 *
 * A virtiofsd serves one connection, and ends in order when that does. The socket stays here, so that the next connection
 * (of a machine that was reset, say) waits in it for the process that is started then.
 *
 * Between the end of one connection and the begin of the next no process runs. A new one, by {@link restart} too, answers
 * the guest's requests, those of a mount from before with an error: what the guest has mounted it must unmount, and mount
 * again.
 */
export class Virtiofsd extends VhostUserDaemon<SupervisedProcess> {
  readonly #config: VirtiofsdConfig;
  #listener: NativeUnixSocket | undefined;
  #failure: VmmError | undefined;

  /**
   * Serves the directory at {@link socketPath}. The process is bound to the calling thread.
   *
   * @throws VmmError code "QEMU_UNAVAILABLE" when virtiofsd is not installed, "QEMU_FAILED" with what it says.
   */
  static start(config: VirtiofsdConfig): Promise<Virtiofsd> {
    return Virtiofsd.begin('vmexit-share-', (folder) => new Virtiofsd(config, folder));
  }

  private constructor(config: VirtiofsdConfig, folder: string) {
    super(folder, 'share');
    this.#config = config;
  }

  /** Why the last process ended that was not asked to. */
  get failure(): VmmError | undefined {
    return this.#failure;
  }

  protected async start(): Promise<void> {
    this.assertOpen();
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
    this.assertOpen();
    const process = new SupervisedProcess({ ...command, inherit: [listener.fd()] });
    const timer = setTimeout(() => process.kill(), START_TIMEOUT_MS);
    const isReady = await process.says(READY);
    clearTimeout(timer);
    if (!isReady || this.isClosed) {
      process.kill();
      const exit = await process.exited;
      const said = process.spawnError?.message ?? process.stderrTail.trim();
      const what = `virtiofsd did not start: ${said || describeExit(exit)}`;
      throw new VmmError('QEMU_FAILED', what, { operation: 'virtiofsd', cause: process.spawnError });
    }
    this.process = process;
    void process.exited.then((exit) => this.#onExit(process, exit));
  }

  #onExit(process: SupervisedProcess, exit: ProcessExit): void {
    const wasAsked = this.process !== process;
    if (exit.code !== 0 && !(wasAsked && exit.signal === 'SIGKILL')) {
      this.#failure = deathOf('virtiofsd', process, exit, 'restart() starts another');
    }
    if (wasAsked) return;
    this.process = undefined;
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
        this.inTurn(async () => {
          if (this.#listener === listener) await this.#spawn(listener);
        }).catch((error: VmmError) => {
          if (this.isClosed) return;
          this.#unlisten();
          this.emit('died', (this.#failure = error));
        });
      }),
    );
  }

  protected async end(): Promise<void> {
    const process = this.process;
    this.process = undefined;
    this.#unlisten();
    process?.kill();
    await process?.exited;
  }

  #unlisten(): void {
    this.#listener?.close();
    this.#listener = undefined;
    rmSync(this.socketPath, { force: true });
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
