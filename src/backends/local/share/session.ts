import { constants, fdatasync, fsync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { addon } from '../../../native/addon.js';
import { type Pieces, byteLength, scatter, slicePieces } from '../../../virtio/queue/pieces.js';
import { readv, writev } from '../file-ops.js';
import { packDirectory } from './directory.js';
import { Refusal, errno } from './errors.js';
import { type Fid, Fids } from './fids.js';
import type { Handle, OpenFiles } from './handle.js';
import * as p9 from './protocol.js';
import type { Qid, Reply, Request, RequestName } from './protocol.js';
import type { QidMaker } from './qids.js';
import { PERMISSIONS, S_IFDIR, S_IFLNK, S_IFMT } from './stat.js';
import type { Found, Owner, Tree } from './tree.js';
import { XattrBudget, XattrRead, XattrWrite, filterNames } from './xattrs.js';

/** utimensat(2): special nanoseconds. */
const UTIME_NOW = (1n << 30n) - 1n;
const UTIME_OMIT = (1n << 30n) - 2n;
const NSEC_PER_SEC = 1_000_000_000n;
const MAX_OFFSET = (1n << 63n) - 1n;
/** Chown leaves an id as it is. */
const NO_ID = 0xffffffff;
const O_ACCMODE = 0o3;
const NAME_MAX = 255;
const PARENT = Buffer.from('..');

export interface SessionConfig {
  tree: Tree;
  qids: QidMaker;
  files: OpenFiles;
  msize: number;
}

/**
 * What is done for each request.
 *
 * @param data Of a write, what is written; of a read, where to; both in place.
 */
export type Operations = {
  [N in Exclude<RequestName, 'version' | 'flush'>]: (fields: Request<N>, data: Pieces) => Reply<N> | Promise<Reply<N>>;
};

/** What a client has from its Tversion to the next one: fids, and the operations on them. */
export class Session implements Operations {
  /** The largest message that was agreed on, in bytes. */
  readonly msize: number;
  readonly fids: Fids;
  readonly #tree: Tree;
  readonly #qids: QidMaker;
  readonly #xattrBytes = new XattrBudget();

  constructor({ tree, qids, files, msize }: SessionConfig) {
    this.#tree = tree;
    this.#qids = qids;
    this.msize = msize;
    this.fids = new Fids(files.limit);
  }

  /** No use of authentication: the device has one client. */
  auth(): never {
    throw new Refusal(errno.EOPNOTSUPP);
  }

  async attach({ fid, afid, aname, nUname }: Request<'attach'>): Promise<Reply<'attach'>> {
    if (afid !== p9.NOFID) throw new Refusal(errno.EBADF);
    // There is one tree; a client that asks for another must not get this one.
    if (!['', '/'].includes(aname.toString('latin1'))) throw new Refusal(errno.ENOENT);
    const { handle, stat } = await this.#tree.root();
    this.fids.add(fid, { handle, type: S_IFDIR, uid: nUname });
    return { qid: this.#qids.of(stat) };
  }

  /** Names one after the other; the reply ends before the first that is not there. */
  async walk({ fid, newfid, names }: Request<'walk'>): Promise<Reply<'walk'>> {
    const from = this.fids.get(fid);
    if (names.length > p9.MAXWELEM || from.xattr) throw new Refusal(errno.EINVAL);
    let { type } = from;
    let handle = from.handle.hold();
    const qids: Qid[] = [];
    try {
      for (const name of names) {
        const next: Found = await this.#tree.walk(handle, name);
        handle.release();
        handle = next.handle;
        type = next.stat.mode & S_IFMT;
        qids.push(this.#qids.of(next.stat));
      }
    } catch (error) {
      handle.release();
      if (qids.length === 0) throw error;
      return { qids };
    }
    const found: Fid = { handle, type, uid: from.uid };
    if (newfid === fid) this.fids.replace(fid, from, found);
    else this.fids.add(newfid, found);
    return { qids };
  }

  async lopen({ fid, flags }: Request<'lopen'>): Promise<Reply<'lopen'>> {
    const of = this.#unopened(fid);
    const { handle, stat } = await held(of.handle, () => this.#tree.open(of.handle, of.type, flags));
    this.fids.replace(fid, of, { handle, type: of.type, uid: of.uid, access: accessOf(flags) });
    return { qid: this.#qids.of(stat), iounit: 0 };
  }

  async lcreate({ fid, name, flags, mode, gid }: Request<'lcreate'>): Promise<Reply<'lcreate'>> {
    const dir = this.#unopened(fid);
    const owner = { uid: dir.uid, gid };
    const { handle, stat } = await held(dir.handle, () => this.#tree.createFile(dir.handle, name, flags, mode, owner));
    const created: Fid = { handle, type: stat.mode & S_IFMT, uid: dir.uid, access: accessOf(flags) };
    this.fids.replace(fid, dir, created);
    return { qid: this.#qids.of(stat), iounit: 0 };
  }

  async mkdir({ dfid, name, mode, gid }: Request<'mkdir'>): Promise<Reply<'mkdir'>> {
    return this.#make(dfid, gid, (dir, owner) => this.#tree.createDirectory(dir, name, mode, owner));
  }

  async symlink({ fid, name, target, gid }: Request<'symlink'>): Promise<Reply<'symlink'>> {
    return this.#make(fid, gid, (dir, owner) => this.#tree.createSymlink(dir, name, target, owner));
  }

  async mknod({ dfid, name, mode, gid }: Request<'mknod'>): Promise<Reply<'mknod'>> {
    return this.#make(dfid, gid, (dir, owner) => this.#tree.createNode(dir, name, mode, owner));
  }

  async link({ dfid, fid, name }: Request<'link'>): Promise<Reply<'link'>> {
    const [dir, { handle }] = [this.#directory(dfid), this.fids.get(fid)];
    await held(dir, () => held(handle, () => this.#tree.link(handle, dir, name)));
    return {};
  }

  async readlink({ fid }: Request<'readlink'>): Promise<Reply<'readlink'>> {
    const { handle, type } = this.fids.get(fid);
    if (type !== S_IFLNK) throw new Refusal(errno.EINVAL);
    return { target: await held(handle, () => addon().readlinkInode(handle.fd)) };
  }

  async renameat(request: Request<'renameat'>): Promise<Reply<'renameat'>> {
    const [from, to] = [this.#directory(request.olddirfid), this.#directory(request.newdirfid)];
    await held(from, () => held(to, () => this.#tree.rename(from, request.oldname, to, request.newname)));
    return {};
  }

  async rename({ fid, dfid, name }: Request<'rename'>): Promise<Reply<'rename'>> {
    const [to, { handle }] = [this.#directory(dfid), this.fids.get(fid)];
    await held(to, () => this.#atItsPlace(handle, (dir, oldname) => this.#tree.rename(dir, oldname, to, name)));
    return {};
  }

  async unlinkat({ dirfid, name, flags }: Request<'unlinkat'>): Promise<Reply<'unlinkat'>> {
    const dir = this.#directory(dirfid);
    await held(dir, () => this.#tree.unlink(dir, name, (flags & p9.P9_DOTL_AT_REMOVEDIR) !== 0));
    return {};
  }

  /** Removes the file, and the fid also when that fails. */
  async remove({ fid }: Request<'remove'>): Promise<Reply<'remove'>> {
    const { handle, type } = this.fids.get(fid);
    handle.hold();
    this.fids.remove(fid);
    try {
      await this.#atItsPlace(handle, (dir, name) => this.#tree.unlink(dir, name, type === S_IFDIR));
    } finally {
      handle.release();
    }
    return {};
  }

  async getattr({ fid, mask }: Request<'getattr'>): Promise<Reply<'getattr'>> {
    const { handle } = this.fids.get(fid);
    const stat = await held(handle, () => handle.stat());
    const { atime, mtime, ctime, btime } = stat;
    return {
      valid: mask & (p9.P9_GETATTR_BASIC | (btime.sec === 0n ? 0n : p9.P9_GETATTR_BTIME)),
      qid: this.#qids.of(stat),
      mode: stat.mode,
      ...this.#tree.ownerOf(stat),
      nlink: BigInt(stat.nlink),
      rdev: stat.rdev,
      size: stat.size,
      blksize: BigInt(stat.blksize),
      blocks: stat.blocks,
      atimeSec: atime.sec,
      atimeNsec: BigInt(atime.nsec),
      mtimeSec: mtime.sec,
      mtimeNsec: BigInt(mtime.nsec),
      ctimeSec: ctime.sec,
      ctimeNsec: BigInt(ctime.nsec),
      btimeSec: btime.sec,
      btimeNsec: BigInt(btime.nsec),
      gen: 0n,
      dataVersion: 0n,
    };
  }

  async setattr(request: Request<'setattr'>): Promise<Reply<'setattr'>> {
    if (this.#tree.readOnly) throw new Refusal(errno.EROFS);
    const fid = this.fids.get(request.fid);
    await held(fid.handle, () => this.#setattr(fid, request));
    return {};
  }

  async #setattr({ handle, type, access }: Fid, request: Request<'setattr'>): Promise<void> {
    const has = (bit: number) => (request.valid & bit) !== 0;
    const time = (bit: number, setBit: number, sec: bigint, nsec: bigint) => {
      if (!has(bit)) return [0n, UTIME_OMIT] as const;
      if (!has(setBit)) return [0n, UTIME_NOW] as const;
      if (nsec >= NSEC_PER_SEC) throw new Refusal(errno.EINVAL);
      return [sec, nsec] as const;
    };
    const { atimeSec, atimeNsec, mtimeSec, mtimeNsec } = request;
    const atime = time(p9.P9_SETATTR_ATIME, p9.P9_SETATTR_ATIME_SET, atimeSec, atimeNsec);
    const mtime = time(p9.P9_SETATTR_MTIME, p9.P9_SETATTR_MTIME_SET, mtimeSec, mtimeNsec);

    if (has(p9.P9_SETATTR_SIZE)) {
      await this.#tree.truncate(handle, type, request.size, access === 'write' || access === 'both');
    }
    // Before the mode: a change of owner takes the set-ID bits away.
    if (has(p9.P9_SETATTR_UID | p9.P9_SETATTR_GID)) {
      const id = (bit: number, value: number) => (has(bit) && value !== NO_ID ? value : undefined);
      await this.#tree.chown(handle, id(p9.P9_SETATTR_UID, request.uid), id(p9.P9_SETATTR_GID, request.gid));
    }
    if (has(p9.P9_SETATTR_MODE)) await this.#tree.chmod(handle, type, request.mode & PERMISSIONS);
    if (has(p9.P9_SETATTR_ATIME | p9.P9_SETATTR_MTIME)) await addon().utimensInode(handle.fd, ...atime, ...mtime);
  }

  async read({ fid, offset, count }: Request<'read'>, reply: Pieces): Promise<Reply<'read'>> {
    const { handle, access, xattr } = this.fids.get(fid);
    if (xattr instanceof XattrRead) {
      const from = offset < xattr.bytes.length ? Number(offset) : xattr.bytes.length;
      return { count: scatter(xattr.bytes.subarray(from, from + count), reply) };
    }
    if (access === undefined || access === 'write') throw new Refusal(errno.EBADF);
    const into = slicePieces(reply, 0, count);
    if (into.length === 0) return { count: 0 };
    return { count: await held(handle, () => readv(handle.fd, into, position(offset))) };
  }

  async write({ fid, offset, count }: Request<'write'>, data: Pieces): Promise<Reply<'write'>> {
    const { handle, access, xattr } = this.fids.get(fid);
    const pieces = slicePieces(data, 0, count);
    if (xattr instanceof XattrWrite) return { count: xattr.write(offset, pieces) };
    if (access === undefined || access === 'read') throw new Refusal(errno.EBADF);
    if (pieces.length === 0) return { count: 0 };
    return { count: await held(handle, () => writev(handle.fd, pieces, position(offset))) };
  }

  async readdir({ fid, offset, count }: Request<'readdir'>, reply: Pieces): Promise<Reply<'readdir'>> {
    const { handle, type, access } = this.fids.get(fid);
    if (type !== S_IFDIR || access === undefined) throw new Refusal(errno.EBADF);
    if (offset > MAX_OFFSET) throw new Refusal(errno.EINVAL);
    const room = Math.min(count, byteLength(reply));
    const [stat, entries] = await held(handle, () =>
      Promise.all([handle.stat(), handle.inTurn(() => addon().readDirectory(handle.fd, offset, room))]),
    );
    const isRoot = this.#tree.isRoot(stat);
    // What is above the root is not told of, not even by a number.
    const packed = packDirectory(entries, room, (name, ino) =>
      this.#qids.path(stat.dev, isRoot && name.equals(PARENT) ? stat.ino : ino),
    );
    // There are more, and not even one fits: "nothing" would mean the end.
    if (packed.length === 0 && entries.length > 0) throw new Refusal(errno.EINVAL);
    return { count: scatter(packed, reply) };
  }

  async fsync({ fid, datasync }: Request<'fsync'>): Promise<Reply<'fsync'>> {
    const { handle, access } = this.fids.get(fid);
    if (access === undefined) throw new Refusal(errno.EBADF);
    await held(handle, () => sync(handle.fd, datasync !== 0));
    return {};
  }

  async statfs({ fid }: Request<'statfs'>): Promise<Reply<'statfs'>> {
    const { handle } = this.fids.get(fid);
    const { bsize, blocks, bfree, bavail, files, ffree } = await held(handle, () =>
      statfs(handle.path(), { bigint: true }),
    );
    const totals = { blocks, bfree, bavail, files, ffree, fsid: 0n };
    return { type: p9.V9FS_MAGIC, bsize: Number(bsize), ...totals, namelen: NAME_MAX };
  }

  /** Locks are the client's business: its kernel has settled them among its processes before it asks, and it is alone. */
  lock({ fid }: Request<'lock'>): Reply<'lock'> {
    this.fids.get(fid);
    return { status: p9.P9_LOCK_SUCCESS };
  }

  getlock({ fid, start, length, procId, clientId }: Request<'getlock'>): Reply<'getlock'> {
    this.fids.get(fid);
    return { type: p9.P9_LOCK_TYPE_UNLCK, start, length, procId, clientId };
  }

  /** A fid for an attribute's value, or by the empty name for the names of all. */
  async xattrwalk({ fid, newfid, name }: Request<'xattrwalk'>): Promise<Reply<'xattrwalk'>> {
    const { handle, type, uid } = this.fids.get(fid);
    return held(handle, async () => {
      const xattr = new XattrRead(await this.#readXattr(handle, name), this.#xattrBytes);
      this.fids.add(newfid, { handle: handle.hold(), type, uid, xattr });
      return { size: BigInt(xattr.bytes.length) };
    });
  }

  async #readXattr(handle: Handle, name: Buffer): Promise<Buffer> {
    if (name.length === 0) return filterNames(await addon().listXattr(handle.fd), (n) => this.#tree.isXattrShared(n));
    this.#checkXattr(name);
    return addon().getXattr(handle.fd, name);
  }

  /** The fid becomes the attribute's value, to be written; it is set when the fid is clunked. */
  xattrcreate({ fid, name, size, flags }: Request<'xattrcreate'>): Reply<'xattrcreate'> {
    if (this.#tree.readOnly) throw new Refusal(errno.EROFS);
    const of = this.#unopened(fid);
    this.#checkXattr(name);
    const xattr = new XattrWrite(Buffer.from(name), size, flags, this.#xattrBytes);
    this.fids.replace(fid, of, { handle: of.handle.hold(), type: of.type, uid: of.uid, xattr });
    return {};
  }

  async clunk({ fid }: Request<'clunk'>): Promise<Reply<'clunk'>> {
    const { handle, xattr } = this.fids.get(fid);
    handle.hold();
    this.fids.remove(fid);
    try {
      if (xattr instanceof XattrWrite) await xattr.commit(handle);
    } finally {
      handle.release();
    }
    return {};
  }

  #unopened(id: number): Fid {
    const fid = this.fids.get(id);
    if (fid.access !== undefined || fid.xattr) throw new Refusal(errno.EINVAL);
    return fid;
  }

  #directory(id: number): Handle {
    const { handle, type } = this.fids.get(id);
    if (type !== S_IFDIR) throw new Refusal(errno.ENOTDIR);
    return handle;
  }

  async #make(
    dfid: number,
    gid: number,
    make: (dir: Handle, owner: Owner) => ReturnType<Tree['createDirectory']>,
  ): Promise<{ qid: Qid }> {
    const dir = this.#directory(dfid);
    const owner = { uid: this.fids.get(dfid).uid, gid };
    return { qid: this.#qids.of(await held(dir, () => make(dir, owner))) };
  }

  async #atItsPlace(handle: Handle, act: (dir: Handle, name: Buffer) => Promise<void>): Promise<void> {
    const { dir, name } = await held(handle, () => this.#tree.locate(handle));
    try {
      await act(dir, name);
    } finally {
      dir.release();
    }
  }

  #checkXattr(name: Buffer): void {
    if (name.includes(0)) throw new Refusal(errno.EINVAL);
    if (!this.#tree.isXattrShared(name)) throw new Refusal(errno.EOPNOTSUPP);
  }
}

/** Keeps the descriptor open, and its number its own, while something goes on with it. */
async function held<T>(handle: Handle, act: () => Promise<T>): Promise<T> {
  handle.hold();
  try {
    return await act();
  } finally {
    handle.release();
  }
}

function accessOf(flags: number): 'read' | 'write' | 'both' {
  const mode = flags & O_ACCMODE;
  return mode === constants.O_RDONLY ? 'read' : mode === constants.O_WRONLY ? 'write' : 'both';
}

function position(offset: bigint): number {
  if (offset > Number.MAX_SAFE_INTEGER) throw new Refusal(errno.EFBIG);
  return Number(offset);
}

function sync(fd: number, dataOnly: boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    (dataOnly ? fdatasync : fsync)(fd, (error) => (error ? reject(error) : resolve()));
  });
}
