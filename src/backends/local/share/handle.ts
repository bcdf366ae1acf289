import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { addon } from '../../../native/addon.js';
import { Refusal, errno } from './errors.js';
import { FileStat } from './stat.js';

/** open(2): holds an inode without opening the file. Not among Node's constants. */
export const O_PATH = 0o10000000;

/** How many descriptors a share has open, and may have. */
export class OpenFiles {
  count = 0;
  constructor(readonly limit: number) {}
}

/**
 * A descriptor of a file or of what else has a name, shared by those that hold the handle; the last one to let go closes
 * it. What is done through it is done to that inode, wherever its name leads by now.
 */
export class Handle {
  readonly fd: number;
  readonly #files: OpenFiles;
  #holders = 1;
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(fd: number, files: OpenFiles) {
    this.fd = fd;
    this.#files = files;
    files.count++;
  }

  /** The directory at a path of the host, links and all. @throws An error of Node.js when it is none. */
  static async openRoot(path: string, files: OpenFiles): Promise<{ handle: Handle; stat: FileStat }> {
    const directory = await open(path, O_PATH | constants.O_DIRECTORY);
    try {
      const [fd, statx] = await addon().openAt(directory.fd, NO_NAME, O_PATH | constants.O_DIRECTORY, 0);
      return { handle: new Handle(fd, files), stat: new FileStat(statx) };
    } finally {
      await directory.close();
    }
  }

  /**
   * Opens what a directory calls `name`, or what this handle holds itself by the empty name; a symbolic link is never
   * followed.
   *
   * @param name One component, and not `..`.
   */
  async open(name: Uint8Array, flags: number, mode = 0): Promise<{ handle: Handle; stat: FileStat }> {
    // A guest that opens more and more would leave the rest of the process without descriptors.
    if (this.#files.count >= this.#files.limit) throw new Refusal(errno.EMFILE);
    this.#files.count++;
    try {
      const [fd, statx] = await addon().openAt(this.fd, name, flags, mode);
      return { handle: new Handle(fd, this.#files), stat: new FileStat(statx) };
    } finally {
      this.#files.count--;
    }
  }

  async stat(): Promise<FileStat> {
    return new FileStat(await addon().statInode(this.fd));
  }

  /** The inode as a path, for calls that have only paths; a name in it, for a directory. Nothing is followed but this. */
  path(name?: Uint8Array): Buffer {
    const self = Buffer.from(`/proc/self/fd/${this.fd}`);
    return name ? Buffer.concat([self, SLASH, name]) : self;
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  release(): void {
    if (--this.#holders > 0) return;
    this.#files.count--;
    void addon().closeInode(this.fd);
  }

  /** For what moves the descriptor's position: one at a time. */
  inTurn<T>(call: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(call);
    this.#turn = result.catch(() => {});
    return result;
  }
}

/** The name for what a handle holds itself. */
export const NO_NAME = Buffer.alloc(0);
const SLASH = Buffer.from('/');
