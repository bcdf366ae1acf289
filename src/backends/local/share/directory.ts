import { putQid } from './codec.js';
import { QTDIR, QTFILE, QTSYMLINK } from './protocol.js';

// struct linux_dirent64 (getdents(2)): u64 d_ino, s64 d_off, u16 d_reclen, u8 d_type, d_name with a NUL
const D_OFF = 8;
const D_RECLEN = 16;
const D_TYPE = 18;
const D_NAME = 19;
const DT_DIR = 4;
const DT_LNK = 10;

/** Of an Rreaddir entry: qid[13] offset[8] type[1] and the name's count[2]. */
const ENTRY_BYTES = 13 + 8 + 1 + 2;

/**
 * Packs directory entries as Rreaddir carries them, as many as fit.
 *
 * @param entries What getdents64 returned.
 * @param qidPath Makes the qid's path of an entry.
 */
export function packDirectory(
  entries: Buffer,
  maxBytes: number,
  qidPath: (name: Buffer, ino: bigint) => bigint,
): Buffer {
  const packed = Buffer.alloc(maxBytes);
  let to = 0;
  for (let at = 0; at < entries.length; at += entries.readUInt16LE(at + D_RECLEN)) {
    const name = entries.subarray(at + D_NAME, entries.indexOf(0, at + D_NAME));
    if (to + ENTRY_BYTES + name.length > maxBytes) break;
    const kind = entries[at + D_TYPE];
    const type = kind === DT_DIR ? QTDIR : kind === DT_LNK ? QTSYMLINK : QTFILE;
    to = putQid(packed, to, { type, version: 0, path: qidPath(name, entries.readBigUInt64LE(at)) });
    to = packed.writeBigUInt64LE(entries.readBigUInt64LE(at + D_OFF), to);
    to = packed.writeUInt8(kind, to);
    to = packed.writeUInt16LE(name.length, to);
    packed.set(name, to);
    to += name.length;
  }
  return packed.subarray(0, to);
}
