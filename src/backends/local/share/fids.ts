import { Refusal, errno } from './errors.js';
import type { Handle } from './handle.js';
import { NOFID } from './protocol.js';
import type { XattrRead, XattrWrite } from './xattrs.js';

/** What a client calls by a number: a file, perhaps opened, or an extended attribute of one. */
export interface Fid {
  /** Of O_PATH until the file is opened. */
  handle: Handle;
  /** S_IFMT bits of the file's mode. */
  readonly type: number;
  /** The guest's user for whom it was attached. */
  readonly uid: number;
  /** Since Tlopen or Tlcreate: the access mode of the handle. */
  access?: 'read' | 'write' | 'both';
  xattr?: XattrRead | XattrWrite;
}

/** The fids of one session. */
export class Fids {
  readonly #fids = new Map<number, Fid>();
  readonly #limit: number;
  #closed = false;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get size(): number {
    return this.#fids.size;
  }

  entries(): Iterable<[number, Fid]> {
    return this.#fids.entries();
  }

  /** @throws Refusal EBADF */
  get(id: number): Fid {
    const fid = this.#fids.get(id);
    if (!fid) throw new Refusal(errno.EBADF);
    return fid;
  }

  /** A new fid, which owns its handle from now on. @throws Refusal EBADF when the number is in use, EMFILE */
  add(id: number, fid: Fid): void {
    const refused =
      this.#closed || id === NOFID || this.#fids.has(id)
        ? errno.EBADF
        : this.#fids.size >= this.#limit
          ? errno.EMFILE
          : undefined;
    if (refused === undefined) return void this.#fids.set(id, fid);
    drop(fid);
    throw new Refusal(refused);
  }

  /** Makes the fid another file, or the same one opened. @throws Refusal EBADF when it is not there any more */
  replace(id: number, old: Fid, fid: Fid): void {
    if (this.#fids.get(id) === old) {
      this.#fids.set(id, fid);
      drop(old);
    } else {
      drop(fid);
      throw new Refusal(errno.EBADF);
    }
  }

  /** Forgets a fid; what goes on with its handle meanwhile ends first. @throws Refusal EBADF */
  remove(id: number): Fid {
    const fid = this.get(id);
    this.#fids.delete(id);
    drop(fid);
    return fid;
  }

  /** Forgets all fids, and takes no more. */
  close(): void {
    this.#closed = true;
    for (const fid of this.#fids.values()) drop(fid);
    this.#fids.clear();
  }
}

function drop(fid: Fid): void {
  fid.handle.release();
  fid.xattr?.release();
}
