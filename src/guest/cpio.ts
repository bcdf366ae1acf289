import { VmmError } from '../errors.js';

const MAGIC = '070701'; // "newc": thirteen fields of eight hex digits, no checksum
const TRAILER = 'TRAILER!!!';
const MAX_U32 = 0xffff_ffff;

const S_IFMT = 0o170000;
const S_IFIFO = 0o010000;
const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFBLK = 0o060000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

interface Entry {
  mode: number;
  data?: Uint8Array;
  rdevMajor?: number;
  rdevMinor?: number;
}

/**
 * Writes a cpio archive in the "newc" format, the one that the Linux kernel unpacks as its initramfs (kernel
 * documentation, "initramfs buffer format"). Everything belongs to root and carries the same time, so that equal
 * contents give equal bytes.
 *
 * Paths are relative to the archive's root, a leading slash is dropped. Parent directories that were not added are added
 * with mode 0755, since the kernel creates none by itself. Adding a path twice throws.
 *
 * @example
 * const archive = new CpioWriter().file('init', script, 0o755).symlink('bin/sh', 'busybox').finish();
 */
export class CpioWriter {
  readonly #parts: Uint8Array[] = [];
  readonly #paths = new Map<string, 'directory' | 'other'>();
  #sizeBytes = 0;
  #inode = 0;
  #finished = false;

  /** @param data Borrowed until `finish()` returns. */
  file(path: string, data: Uint8Array | string, mode = 0o644): this {
    const bytes = typeof data === 'string' ? new TextEncoder().encode(data) : data;
    return this.#add(path, { mode: S_IFREG | permissions(mode), data: bytes });
  }

  /** Adds a directory; one that was implied by an earlier path keeps its mode 0755. */
  directory(path: string, mode = 0o755): this {
    if (this.#paths.get(normalise(path)) === 'directory') return this;
    return this.#add(path, { mode: S_IFDIR | permissions(mode) });
  }

  symlink(path: string, target: string): this {
    if (target === '' || target.includes('\0')) throw invalid(`symlink target ${JSON.stringify(target)}`);
    return this.#add(path, { mode: S_IFLNK | 0o777, data: new TextEncoder().encode(target) });
  }

  device(path: string, kind: 'char' | 'block', major: number, minor: number, mode = 0o600): this {
    for (const n of [major, minor]) {
      if (!Number.isInteger(n) || n < 0 || n > MAX_U32) throw invalid(`device number ${major}:${minor}`);
    }
    const type = kind === 'char' ? S_IFCHR : S_IFBLK;
    return this.#add(path, { mode: type | permissions(mode), rdevMajor: major, rdevMinor: minor });
  }

  fifo(path: string, mode = 0o644): this {
    return this.#add(path, { mode: S_IFIFO | permissions(mode) });
  }

  /** The whole archive, padded to 512 bytes. Nothing can be added afterwards. */
  finish(): Uint8Array {
    this.#emit(TRAILER, { mode: 0 }, 1, 0);
    this.#finished = true;
    const archive = new Uint8Array(Math.ceil(this.#sizeBytes / 512) * 512);
    let at = 0;
    for (const part of this.#parts) {
      archive.set(part, at);
      at += part.length;
    }
    return archive;
  }

  #add(rawPath: string, entry: Entry): this {
    const path = normalise(rawPath);
    if (path === TRAILER) throw invalid(`path ${TRAILER}: it ends the archive`);
    if (this.#paths.has(path)) throw invalid(`path ${path}: already in the archive`);
    const slash = path.lastIndexOf('/');
    if (slash > 0) {
      const parent = path.slice(0, slash);
      if (this.#paths.get(parent) === 'other') throw invalid(`path ${path}: ${parent} is not a directory`);
      this.directory(parent);
    }
    const isDirectory = (entry.mode & S_IFMT) === S_IFDIR;
    this.#paths.set(path, isDirectory ? 'directory' : 'other');
    this.#emit(path, entry, isDirectory ? 2 : 1, ++this.#inode);
    return this;
  }

  #emit(path: string, entry: Entry, links: number, inode: number): void {
    if (this.#finished) throw new VmmError('INVALID_STATE', 'the archive is finished: use a new CpioWriter');
    const name = new TextEncoder().encode(`${path}\0`);
    const data = entry.data ?? new Uint8Array();
    if (data.length > MAX_U32) throw invalid(`file ${path}: newc cannot hold 4 GiB or more`);
    const fields = [
      inode,
      entry.mode,
      0, // uid
      0, // gid
      links,
      0, // mtime
      data.length,
      0, // major and minor number of the device that holds the file
      0,
      entry.rdevMajor ?? 0,
      entry.rdevMinor ?? 0,
      name.length,
      0, // checksum, of another format
    ];
    const header = MAGIC + fields.map((field) => field.toString(16).padStart(8, '0')).join('');
    // The header with the name, and the data, each end on a multiple of four bytes.
    this.#push(new TextEncoder().encode(header));
    this.#push(name);
    this.#pad();
    this.#push(data);
    this.#pad();
  }

  #push(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.#sizeBytes += bytes.length;
  }

  #pad(): void {
    if (this.#sizeBytes % 4 !== 0) this.#push(new Uint8Array(4 - (this.#sizeBytes % 4)));
  }
}

function permissions(mode: number): number {
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o7777) throw invalid(`mode ${mode}: give permission bits only`);
  return mode;
}

function normalise(path: string): string {
  const relative = path.replace(/^\/+/, '');
  const bad =
    relative === '' || relative.includes('\0') || relative.split('/').some((s) => ['', '.', '..'].includes(s));
  if (bad) throw invalid(`path ${JSON.stringify(path)}`);
  return relative;
}

function invalid(what: string): VmmError {
  return new VmmError('INVALID_ARGUMENT', `cpio archive: bad ${what}`);
}
