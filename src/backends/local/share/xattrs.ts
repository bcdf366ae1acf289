/** Extended attributes: a fid stands for one that is being read, or written and set when the fid is clunked. */
import { addon } from '../../../native/addon.js';
import { Refusal, errno } from './errors.js';
import type { Handle } from './handle.js';

/** XATTR_SIZE_MAX of Linux. */
const MAX_VALUE_BYTES = 64 * 1024;
/** What all fids of a session together may hold: a guest could make them by the thousands. */
const MAX_HELD_BYTES = 16 * 2 ** 20;

/** Bytes that fids hold. */
export class XattrBudget {
  #bytes = 0;

  /** @throws Refusal ENOMEM */
  take(bytes: number): () => void {
    if (this.#bytes + bytes > MAX_HELD_BYTES) throw new Refusal(errno.ENOMEM);
    this.#bytes += bytes;
    return () => (this.#bytes -= bytes);
  }
}

/** An attribute's value, or the names of all, as they were. */
export class XattrRead {
  readonly bytes: Buffer;
  readonly release: () => void;

  constructor(bytes: Buffer, budget: XattrBudget) {
    this.bytes = bytes;
    this.release = budget.take(bytes.length);
  }
}

/** A value on its way to a file. */
export class XattrWrite {
  readonly release: () => void;
  readonly #name: Buffer;
  readonly #value: Buffer;
  readonly #flags: number;
  #written = 0;

  /** @throws Refusal E2BIG, ENOMEM */
  constructor(name: Buffer, sizeBytes: bigint, flags: number, budget: XattrBudget) {
    if (sizeBytes > MAX_VALUE_BYTES) throw new Refusal(errno.E2BIG);
    if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) !== 0) throw new Refusal(errno.EINVAL);
    this.#name = name;
    this.#flags = flags;
    this.release = budget.take(Number(sizeBytes));
    this.#value = Buffer.alloc(Number(sizeBytes));
  }

  /** Takes bytes of the value, one piece after the other. @throws Refusal ENOSPC beyond its size, EINVAL out of order */
  write(offset: bigint, pieces: readonly Uint8Array[]): number {
    if (offset !== BigInt(this.#written)) throw new Refusal(errno.EINVAL);
    const before = this.#written;
    for (const piece of pieces) {
      if (piece.length > this.#value.length - this.#written) throw new Refusal(errno.ENOSPC);
      this.#value.set(piece, this.#written);
      this.#written += piece.length;
    }
    return this.#written - before;
  }

  /** Sets the attribute; an empty value that was to replace one removes it, as Linux's client means it. */
  async commit(handle: Handle): Promise<void> {
    if (this.#written !== this.#value.length) throw new Refusal(errno.EINVAL);
    if (this.#value.length === 0 && this.#flags === XATTR_REPLACE) return addon().removeXattr(handle.fd, this.#name);
    await addon().setXattr(handle.fd, this.#name, this.#value, this.#flags);
  }
}

const XATTR_CREATE = 1;
const XATTR_REPLACE = 2;

/** The names of a list that a filter lets through; in lists, a NUL follows each. */
export function filterNames(list: Buffer, keep: (name: Buffer) => boolean): Buffer {
  const kept: Buffer[] = [];
  for (let at = 0, end; (end = list.indexOf(0, at)) >= 0; at = end + 1) {
    if (keep(list.subarray(at, end))) kept.push(list.subarray(at, end + 1));
  }
  return Buffer.concat(kept);
}
