import { type Qid, QTDIR, QTFILE, QTSYMLINK } from './protocol.js';
import type { FileStat } from './stat.js';

/** Makes qids. A path is the inode's number; those of other file systems, mounted below the root, are set apart. */
export class QidMaker {
  readonly #devices = new Map<bigint, bigint>();

  of(stat: FileStat): Qid {
    const { mtime } = stat;
    return {
      type: stat.isDirectory ? QTDIR : stat.isSymlink ? QTSYMLINK : QTFILE,
      // A client that caches by version must see another one after a change.
      version: (Number(mtime.sec & 0xffffffffn) ^ mtime.nsec ^ (Number(stat.size & 0xffffffn) << 8)) >>> 0,
      path: this.path(stat.dev, stat.ino),
    };
  }

  path(dev: bigint, ino: bigint): bigint {
    let index = this.#devices.get(dev);
    if (index === undefined) this.#devices.set(dev, (index = BigInt(this.#devices.size)));
    // The root is seen first, and keeps its numbers as they are.
    return BigInt.asUintN(64, ino ^ (index << 48n));
  }
}
