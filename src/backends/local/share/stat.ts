/** `struct statx` (statx(2)) as the addon returns it, by the fields' offsets. */
export class FileStat {
  readonly #bytes: Buffer;

  constructor(statx: Buffer) {
    this.#bytes = statx;
  }

  /** Type and permissions. */
  get mode(): number {
    return this.#bytes.readUInt16LE(28);
  }
  get nlink(): number {
    return this.#bytes.readUInt32LE(16);
  }
  get uid(): number {
    return this.#bytes.readUInt32LE(20);
  }
  get gid(): number {
    return this.#bytes.readUInt32LE(24);
  }
  get ino(): bigint {
    return this.#bytes.readBigUInt64LE(32);
  }
  get size(): bigint {
    return this.#bytes.readBigUInt64LE(40);
  }
  /** In units of 512 bytes. */
  get blocks(): bigint {
    return this.#bytes.readBigUInt64LE(48);
  }
  get blksize(): number {
    return this.#bytes.readUInt32LE(4);
  }
  get rdev(): bigint {
    return deviceNumber(this.#bytes.readUInt32LE(128), this.#bytes.readUInt32LE(132));
  }
  /** The device that holds the file. */
  get dev(): bigint {
    return deviceNumber(this.#bytes.readUInt32LE(136), this.#bytes.readUInt32LE(140));
  }
  get atime(): FileTime {
    return this.#time(64);
  }
  get btime(): FileTime {
    return this.#time(80);
  }
  get ctime(): FileTime {
    return this.#time(96);
  }
  get mtime(): FileTime {
    return this.#time(112);
  }

  get isDirectory(): boolean {
    return (this.mode & S_IFMT) === S_IFDIR;
  }
  get isFile(): boolean {
    return (this.mode & S_IFMT) === S_IFREG;
  }
  get isSymlink(): boolean {
    return (this.mode & S_IFMT) === S_IFLNK;
  }

  isSameFile(other: FileStat): boolean {
    return this.ino === other.ino && this.dev === other.dev;
  }

  #time(at: number): FileTime {
    return { sec: this.#bytes.readBigUInt64LE(at), nsec: this.#bytes.readUInt32LE(at + 8) };
  }
}

export interface FileTime {
  /** Since 1970, as 64 bits of two's complement. */
  sec: bigint;
  nsec: number;
}

export const S_IFMT = 0o170000;
export const S_IFIFO = 0o010000;
export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;
export const S_IFLNK = 0o120000;
export const S_IFSOCK = 0o140000;
export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const PERMISSIONS = 0o7777;

/** dev_t: a major number of 12 bits and a minor one of 20, the latter in two parts. */
const deviceNumber = (major: number, minor: number) =>
  BigInt(((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)) >>> 0);
