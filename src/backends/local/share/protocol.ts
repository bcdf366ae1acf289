/**
 * The messages of 9P2000.L as a table. Sources: the 9P manual of Plan 9 (section 5) for what 9P2000 has, the protocol
 * description of diod (protocol.md) and <net/9p/9p.h> of Linux for the dialect.
 *
 * A message is size[4] type[1] tag[2] and its fields, all little-endian. A reply's type is its request's plus one. Every
 * failure is answered by Rlerror, with an errno of Linux.
 */

/**
 * The kinds of fields. `s` is a counted string of up to 65,535 bytes: names are what Linux takes for names, so no
 * encoding is assumed.
 */
export interface FieldTypes {
  u8: number;
  u16: number;
  u32: number;
  u64: bigint;
  s: Buffer;
  /** u16 count, then so many strings. */
  's*': readonly Buffer[];
  qid: Qid;
  /** u16 count, then so many. */
  'qid*': readonly Qid[];
}

/** A file's identity on the server. */
export interface Qid {
  /** QT* bits. */
  type: number;
  version: number;
  /** The same for two files only if they are one. */
  path: bigint;
}

type Fields = Readonly<Record<string, keyof FieldTypes>>;
/** The values of a message's fields, by name. */
export type Values<F extends Fields> = { -readonly [K in keyof F]: FieldTypes[F[K]] };

/** By the request's name: its type, its fields, and the fields of its reply, in their order on the wire. */
export const MESSAGES = {
  statfs: {
    type: 8,
    request: { fid: 'u32' },
    reply: {
      type: 'u32',
      bsize: 'u32',
      blocks: 'u64',
      bfree: 'u64',
      bavail: 'u64',
      files: 'u64',
      ffree: 'u64',
      fsid: 'u64',
      namelen: 'u32',
    },
  },
  lopen: { type: 12, request: { fid: 'u32', flags: 'u32' }, reply: { qid: 'qid', iounit: 'u32' } },
  lcreate: {
    type: 14,
    request: { fid: 'u32', name: 's', flags: 'u32', mode: 'u32', gid: 'u32' },
    reply: { qid: 'qid', iounit: 'u32' },
  },
  symlink: { type: 16, request: { fid: 'u32', name: 's', target: 's', gid: 'u32' }, reply: { qid: 'qid' } },
  mknod: {
    type: 18,
    request: { dfid: 'u32', name: 's', mode: 'u32', major: 'u32', minor: 'u32', gid: 'u32' },
    reply: { qid: 'qid' },
  },
  rename: { type: 20, request: { fid: 'u32', dfid: 'u32', name: 's' }, reply: {} },
  readlink: { type: 22, request: { fid: 'u32' }, reply: { target: 's' } },
  getattr: {
    type: 24,
    request: { fid: 'u32', mask: 'u64' },
    reply: {
      valid: 'u64',
      qid: 'qid',
      mode: 'u32',
      uid: 'u32',
      gid: 'u32',
      nlink: 'u64',
      rdev: 'u64',
      size: 'u64',
      blksize: 'u64',
      blocks: 'u64',
      atimeSec: 'u64',
      atimeNsec: 'u64',
      mtimeSec: 'u64',
      mtimeNsec: 'u64',
      ctimeSec: 'u64',
      ctimeNsec: 'u64',
      btimeSec: 'u64',
      btimeNsec: 'u64',
      gen: 'u64',
      dataVersion: 'u64',
    },
  },
  setattr: {
    type: 26,
    request: {
      fid: 'u32',
      valid: 'u32',
      mode: 'u32',
      uid: 'u32',
      gid: 'u32',
      size: 'u64',
      atimeSec: 'u64',
      atimeNsec: 'u64',
      mtimeSec: 'u64',
      mtimeNsec: 'u64',
    },
    reply: {},
  },
  xattrwalk: { type: 30, request: { fid: 'u32', newfid: 'u32', name: 's' }, reply: { size: 'u64' } },
  xattrcreate: { type: 32, request: { fid: 'u32', name: 's', size: 'u64', flags: 'u32' }, reply: {} },
  /** The reply's data follows: entries of qid[13] offset[8] type[1] name[s]. */
  readdir: { type: 40, request: { fid: 'u32', offset: 'u64', count: 'u32' }, reply: { count: 'u32' } },
  fsync: { type: 50, request: { fid: 'u32', datasync: 'u32' }, reply: {} },
  lock: {
    type: 52,
    request: { fid: 'u32', type: 'u8', flags: 'u32', start: 'u64', length: 'u64', procId: 'u32', clientId: 's' },
    reply: { status: 'u8' },
  },
  getlock: {
    type: 54,
    request: { fid: 'u32', type: 'u8', start: 'u64', length: 'u64', procId: 'u32', clientId: 's' },
    reply: { type: 'u8', start: 'u64', length: 'u64', procId: 'u32', clientId: 's' },
  },
  link: { type: 70, request: { dfid: 'u32', fid: 'u32', name: 's' }, reply: {} },
  mkdir: { type: 72, request: { dfid: 'u32', name: 's', mode: 'u32', gid: 'u32' }, reply: { qid: 'qid' } },
  renameat: { type: 74, request: { olddirfid: 'u32', oldname: 's', newdirfid: 'u32', newname: 's' }, reply: {} },
  unlinkat: { type: 76, request: { dirfid: 'u32', name: 's', flags: 'u32' }, reply: {} },
  version: { type: 100, request: { msize: 'u32', version: 's' }, reply: { msize: 'u32', version: 's' } },
  auth: { type: 102, request: { afid: 'u32', uname: 's', aname: 's', nUname: 'u32' }, reply: { aqid: 'qid' } },
  attach: {
    type: 104,
    request: { fid: 'u32', afid: 'u32', uname: 's', aname: 's', nUname: 'u32' },
    reply: { qid: 'qid' },
  },
  flush: { type: 108, request: { oldtag: 'u16' }, reply: {} },
  walk: { type: 110, request: { fid: 'u32', newfid: 'u32', names: 's*' }, reply: { qids: 'qid*' } },
  /** The reply's data follows. */
  read: { type: 116, request: { fid: 'u32', offset: 'u64', count: 'u32' }, reply: { count: 'u32' } },
  /** The request's data follows. */
  write: { type: 118, request: { fid: 'u32', offset: 'u64', count: 'u32' }, reply: { count: 'u32' } },
  clunk: { type: 120, request: { fid: 'u32' }, reply: {} },
  remove: { type: 122, request: { fid: 'u32' }, reply: {} },
} as const satisfies Record<string, { type: number; request: Fields; reply: Fields }>;

export type RequestName = keyof typeof MESSAGES;
export type Request<N extends RequestName> = Values<(typeof MESSAGES)[N]['request']>;
export type Reply<N extends RequestName> = Values<(typeof MESSAGES)[N]['reply']>;

export const RLERROR = 7;
export const VERSION_9P2000_L = '9P2000.L';
export const HEADER_BYTES = 7; // size[4] type[1] tag[2]
/** What precedes the data of Rread and Rreaddir. */
export const DATA_REPLY_BYTES = HEADER_BYTES + 4; // count[4]
/** Rlerror: the smallest reply that a client must have room for. */
export const RLERROR_BYTES = HEADER_BYTES + 4; // ecode[4]
/** What precedes the data of Twrite. */
export const WRITE_REQUEST_BYTES = HEADER_BYTES + 4 + 8 + 4; // fid[4] offset[8] count[4]

export const NOFID = 0xffffffff;
/** Names that one Twalk may hold. */
export const MAXWELEM = 16;

// Qid.type
export const QTDIR = 0x80;
export const QTSYMLINK = 0x02;
export const QTFILE = 0x00;

// Tgetattr.mask, Rgetattr.valid
export const P9_GETATTR_BASIC = 0x7ffn; // all that stat(2) tells
export const P9_GETATTR_BTIME = 0x800n;

// Tsetattr.valid
export const P9_SETATTR_MODE = 0x1;
export const P9_SETATTR_UID = 0x2;
export const P9_SETATTR_GID = 0x4;
export const P9_SETATTR_SIZE = 0x8;
export const P9_SETATTR_ATIME = 0x10;
export const P9_SETATTR_MTIME = 0x20;
export const P9_SETATTR_ATIME_SET = 0x80; // else: now
export const P9_SETATTR_MTIME_SET = 0x100;

// Tlock, Tgetlock
export const P9_LOCK_SUCCESS = 0;
export const P9_LOCK_TYPE_UNLCK = 2;

export const P9_DOTL_AT_REMOVEDIR = 0x200; // Tunlinkat.flags
export const V9FS_MAGIC = 0x01021997; // Rstatfs.type
