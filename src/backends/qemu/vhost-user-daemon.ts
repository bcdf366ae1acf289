import { EventEmitter } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VmmError } from '../../errors.js';

/** Of {@link VhostUserDaemon}: what it emits. */
export interface VhostUserDaemonEvents {
  /** The process ended, and nobody asked it to: code "QEMU_FAILED", with the end of what it said. */
  died: [error: VmmError];
}

interface Process {
  readonly pid: number | undefined;
}

/** A program that serves one device of one machine by vhost-user, and its processes, one after the other. */
export abstract class VhostUserDaemon<P extends Process> extends EventEmitter<VhostUserDaemonEvents> {
  readonly #folder: string;
  readonly #what: string;
  #last: Promise<unknown> = Promise.resolve();
  protected process: P | undefined;
  protected isClosed = false;

  /** @param make Gives the daemon the folder it is for. @returns It, started. */
  protected static async begin<Daemon extends VhostUserDaemon<Process>>(
    folderPrefix: string,
    make: (folder: string) => Daemon,
  ): Promise<Daemon> {
    const daemon = make(await mkdtemp(join(tmpdir(), folderPrefix)));
    try {
      await daemon.start();
      return daemon;
    } catch (error) {
      await daemon.close();
      throw error;
    }
  }

  /** @param what It is to its user: a disk, a share. */
  protected constructor(folder: string, what: string) {
    super();
    this.#folder = folder;
    this.#what = what;
  }

  /** Where it serves vhost-user: in a folder that only this user may enter. */
  get socketPath(): string {
    return join(this.#folder, 'vhost-user');
  }

  /** Undefined while no process runs. */
  get pid(): number | undefined {
    return this.process?.pid;
  }

  /** Whether a process runs. */
  get running(): boolean {
    return this.process !== undefined;
  }

  /** Starts the process anew, after it died or to get rid of one that hangs. */
  restart(): Promise<void> {
    return this.inTurn(async () => {
      await this.end();
      await this.start();
    });
  }

  /** Ends the process. Idempotent. */
  async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    await this.end();
    // A start that was under way finds it closed, and ends its process.
    await this.#last;
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** @throws VmmError code "CLOSED" */
  protected assertOpen(): void {
    if (this.isClosed) throw new VmmError('CLOSED', `the ${this.#what} was closed`);
  }

  /** Starts a process, or throws; one that is closed meanwhile leaves none behind. */
  protected abstract start(): Promise<void>;

  /** Ends the process, if one runs. */
  protected abstract end(): Promise<void>;

  /** Does one thing after the other. */
  protected inTurn<T>(what: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(what);
    this.#last = turn.catch(() => {});
    return turn;
  }
}
