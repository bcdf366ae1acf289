/**
 * A directory of the host and all below it, by descriptors.
 *
 * Confinement. Nothing is looked up by more than one name at a time, relative to a descriptor that is held (of O_PATH,
 * so that holding touches nothing), and no symbolic link is followed: links are for the client to resolve, within what
 * it mounted. `..` is never looked up either. What a client renames, or what anybody puts in the place of a name,
 * therefore changes which file of the tree a name means, and nothing else. Files are opened by what is held, not by name
 * again, once they are known to be plain files or directories: opening a device or a FIFO would be an action on the
 * host.
 */
import fs from 'node:fs/promises';
import { constants, ftruncate as ftruncateCallback } from 'node:fs';
import { addon } from '../../../native/addon.js';
import { Refusal, errno } from './errors.js';
import { type Handle, NO_NAME, O_PATH } from './handle.js';
import { type FileStat, PERMISSIONS, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_ISGID, S_ISUID } from './stat.js';

const { O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_TRUNC } = constants;
const O_ACCMODE = 0o3;
/** What a client may ask for when it opens a file; the rest is about its own descriptors, and is left out. */
const OPEN_FLAGS = O_ACCMODE | O_TRUNC | constants.O_APPEND | constants.O_SYNC | constants.O_DSYNC;
const NAME_MAX = 255;
const PATH_MAX = 4096;
const SELF = Buffer.from('.');
const PARENT = Buffer.from('..');
const SLASH = 0x2f;

/** Whose files a guest sees, and whose are those it makes. See {@link ShareOptions.ids}. */
export type IdMapping = 'squash' | 'passthrough';

export interface Owner {
  uid: number;
  gid: number;
}

export interface Found {
  handle: Handle;
  stat: FileStat;
}

export class Tree {
  readonly readOnly: boolean;
  readonly #root: Handle;
  readonly #rootStat: FileStat;
  readonly #ids: IdMapping;

  constructor(root: Found, readOnly: boolean, ids: IdMapping) {
    this.#root = root.handle;
    this.#rootStat = root.stat;
    this.readOnly = readOnly;
    this.#ids = ids;
  }

  close(): void {
    this.#root.release();
  }

  isRoot(stat: FileStat): boolean {
    return stat.isSameFile(this.#rootStat);
  }

  async root(): Promise<Found> {
    return { handle: this.#root.hold(), stat: await this.#root.stat() };
  }

  /** What a directory calls `name`. `..` is the directory above; the root's is the root. */
  async walk(from: Handle, name: Buffer): Promise<Found> {
    if (name.equals(PARENT)) return this.#above(from);
    // What no name can be is no file's.
    if (!isName(name)) throw new Refusal(errno.ENOENT);
    return from.open(name, O_PATH);
  }

  /** Opens what is held, as Tlopen's flags say. */
  async open(handle: Handle, type: number, flags: number): Promise<Found> {
    if (this.readOnly && ((flags & O_ACCMODE) !== O_RDONLY || flags & O_TRUNC)) throw new Refusal(errno.EROFS);
    if (type === S_IFDIR) {
      if ((flags & O_ACCMODE) !== O_RDONLY) throw new Refusal(errno.EISDIR);
      return handle.open(NO_NAME, O_RDONLY | O_DIRECTORY);
    }
    if (type !== S_IFREG) throw new Refusal(errno.ENXIO);
    return handle.open(NO_NAME, flags & OPEN_FLAGS);
  }

  /** Makes a file and opens it; opens the one that is there, unless O_EXCL is among the flags. */
  async createFile(dir: Handle, name: Buffer, flags: number, mode: number, owner: Owner): Promise<Found> {
    this.#checkNewName(name);
    try {
      // With O_EXCL what is opened was made by this call, whatever else goes on in the directory.
      const made = await dir.open(name, (flags & OPEN_FLAGS) | O_CREAT | O_EXCL, mode & PERMISSIONS);
      return await this.#settle(made, mode, owner);
    } catch (error) {
      if ((flags & O_EXCL) !== 0 || (error as { errno?: unknown }).errno !== 'EEXIST') throw error;
    }
    const { handle, stat } = await dir.open(name, O_PATH);
    try {
      return await this.open(handle, stat.mode & S_IFMT, flags);
    } finally {
      handle.release();
    }
  }

  async createDirectory(dir: Handle, name: Buffer, mode: number, owner: Owner): Promise<FileStat> {
    this.#checkNewName(name);
    await fs.mkdir(dir.path(name), mode & PERMISSIONS);
    return this.#settleByName(dir, name, mode, owner);
  }

  async createSymlink(dir: Handle, name: Buffer, target: Buffer, owner: Owner): Promise<FileStat> {
    this.#checkNewName(name);
    if (target.length === 0 || target.includes(0)) throw new Refusal(errno.ENOENT);
    if (target.length >= PATH_MAX) throw new Refusal(errno.ENAMETOOLONG);
    await fs.symlink(target, dir.path(name));
    return this.#settleByName(dir, name, undefined, owner);
  }

  /** Makes an empty file, a FIFO or a socket; devices are refused, as they would be the host's. */
  async createNode(dir: Handle, name: Buffer, mode: number, owner: Owner): Promise<FileStat> {
    this.#checkNewName(name);
    if (![S_IFREG, S_IFIFO, S_IFSOCK].includes(mode & S_IFMT)) throw new Refusal(errno.EPERM);
    await addon().mknodAt(dir.fd, name, (mode & S_IFMT) | (mode & PERMISSIONS));
    return this.#settleByName(dir, name, mode, owner);
  }

  async link(handle: Handle, dir: Handle, name: Buffer): Promise<void> {
    this.#checkNewName(name);
    await addon().linkInode(handle.fd, dir.fd, name);
  }

  async rename(fromDir: Handle, from: Buffer, toDir: Handle, to: Buffer): Promise<void> {
    this.#checkNewName(from);
    this.#checkNewName(to);
    await fs.rename(fromDir.path(from), toDir.path(to));
  }

  async unlink(dir: Handle, name: Buffer, isDirectory: boolean): Promise<void> {
    this.#checkNewName(name);
    await (isDirectory ? fs.rmdir : fs.unlink)(dir.path(name));
  }

  /** @param isOpen Whether the handle is open for writing. */
  async truncate(handle: Handle, type: number, sizeBytes: bigint, isOpen: boolean): Promise<void> {
    if (type !== S_IFREG) throw new Refusal(type === S_IFDIR ? errno.EISDIR : errno.EINVAL);
    if (sizeBytes > Number.MAX_SAFE_INTEGER) throw new Refusal(errno.EFBIG);
    if (isOpen) return ftruncate(handle.fd, Number(sizeBytes));
    await fs.truncate(handle.path(), Number(sizeBytes));
  }

  /** Changes owner and group; undefined leaves one as it is. */
  async chown(handle: Handle, uid: number | undefined, gid: number | undefined): Promise<void> {
    if (this.#ids === 'passthrough') return fs.chown(handle.path(), uid ?? -1, gid ?? -1);
    if ((uid ?? SQUASHED) !== SQUASHED || (gid ?? SQUASHED) !== SQUASHED) throw new Refusal(errno.EPERM);
  }

  async chmod(handle: Handle, type: number, mode: number): Promise<void> {
    await fs.chmod(handle.path(), this.#permissions(type, mode));
  }

  /** The owner that the guest sees. */
  ownerOf(stat: FileStat): Owner {
    return this.#ids === 'passthrough' ? { uid: stat.uid, gid: stat.gid } : { uid: SQUASHED, gid: SQUASHED };
  }

  /** Whether the guest may see and set an extended attribute: one that means nothing to the host, by `squash`. */
  isXattrShared(name: Buffer): boolean {
    return this.#ids === 'passthrough' || name.subarray(0, 5).toString('latin1') === 'user.';
  }

  /**
   * The directory in which a file is, and its name there: for the two old operations that name neither. Found by the
   * path that the kernel tells, walked from the root, and only if that leads to the same file.
   */
  async locate(handle: Handle): Promise<{ dir: Handle; name: Buffer }> {
    const [root, path] = await Promise.all(
      [this.#root, handle].map((each) => fs.readlink(each.path(), { encoding: 'buffer' })),
    );
    const inside = root.length === 1 ? 1 : root.length + 1;
    if (!path.subarray(0, root.length).equals(root) || path.length <= inside || path[inside - 1] !== SLASH) {
      throw new Refusal(errno.ENOENT);
    }
    const names = splitPath(path.subarray(inside));
    const name = names.pop()!;
    let dir = this.#root.hold();
    try {
      for (const each of names) {
        const next = await dir.open(each, O_PATH | O_DIRECTORY);
        dir.release();
        dir = next.handle;
      }
      const found = await dir.open(name, O_PATH);
      found.handle.release();
      if (!found.stat.isSameFile(await handle.stat())) throw new Refusal(errno.ENOENT);
      return { dir: dir.hold(), name };
    } finally {
      dir.release();
    }
  }

  async #above(handle: Handle): Promise<Found> {
    const stat = await handle.stat();
    if (!stat.isDirectory) throw new Refusal(errno.ENOTDIR);
    if (this.isRoot(stat)) return this.root();
    const { dir } = await this.locate(handle);
    return { handle: dir, stat: await dir.stat() };
  }

  async #settleByName(dir: Handle, name: Buffer, mode: number | undefined, owner: Owner): Promise<FileStat> {
    const { handle, stat } = await this.#settle(await dir.open(name, O_PATH), mode, owner);
    handle.release();
    return stat;
  }

  /** Gives a new file its owner and, whatever this process's umask is, its permissions. */
  async #settle(found: Found, mode: number | undefined, owner: Owner): Promise<Found> {
    const { handle, stat } = found;
    try {
      const chown = this.#ids === 'passthrough' && (stat.uid !== owner.uid || stat.gid !== owner.gid);
      if (chown) await fs.chown(handle.path(), owner.uid, owner.gid);
      const permissions = mode === undefined ? undefined : this.#permissions(stat.mode & S_IFMT, mode);
      // A change of owner takes the set-ID bits away.
      const chmod = permissions !== undefined && (chown || permissions !== (stat.mode & PERMISSIONS));
      if (chmod) await fs.chmod(handle.path(), permissions);
      return chown || chmod ? { handle, stat: await handle.stat() } : found;
    } catch (error) {
      handle.release();
      throw error;
    }
  }

  /** Squashed files belong to this process's user on the host: a set-ID program among them would lend its rights. */
  #permissions(type: number, mode: number): number {
    const setId = this.#ids === 'squash' && type !== S_IFDIR ? S_ISUID | S_ISGID : 0;
    return mode & PERMISSIONS & ~setId;
  }

  /** For names to be made or taken away. */
  #checkNewName(name: Buffer): void {
    if (this.readOnly) throw new Refusal(errno.EROFS);
    if (name.length > NAME_MAX) throw new Refusal(errno.ENAMETOOLONG);
    if (!isName(name) || name.equals(SELF) || name.equals(PARENT)) throw new Refusal(errno.EINVAL);
  }
}

/** The user and group that a guest sees behind every squashed file: root. */
const SQUASHED = 0;

const isName = (name: Buffer) => name.length > 0 && !name.includes(SLASH) && !name.includes(0);

function splitPath(path: Buffer): Buffer[] {
  const names: Buffer[] = [];
  for (let at = 0; at <= path.length;) {
    const slash = path.indexOf(SLASH, at);
    const end = slash < 0 ? path.length : slash;
    names.push(path.subarray(at, end));
    at = end + 1;
  }
  return names;
}

function ftruncate(fd: number, sizeBytes: number): Promise<void> {
  return new Promise((resolve, reject) => {
    ftruncateCallback(fd, sizeBytes, (error) => (error ? reject(error) : resolve()));
  });
}
