import type { FileServer, FileServerReply } from '../../../devices/virtio/9p/backend.js';
import { VmmError } from '../../../errors.js';
import { type Pieces, byteLength, gather, slicePieces } from '../../../virtio/queue/pieces.js';
import { decodeHeader, decodeRequest, encodeError, encodeReply, requestName, type DecodedRequest } from './codec.js';
import { Refusal, errno, errnoOf } from './errors.js';
import { Handle, OpenFiles } from './handle.js';
import { openFilesLimit } from './limits.js';
import {
  DATA_REPLY_BYTES,
  HEADER_BYTES,
  type Reply,
  type Request,
  type RequestName,
  VERSION_9P2000_L,
  WRITE_REQUEST_BYTES,
} from './protocol.js';
import { QidMaker } from './qids.js';
import { type Operations, Session } from './session.js';
import { type IdMapping, Tree } from './tree.js';

/** More than Linux's client can use over virtio, which is 500 KiB. */
const MAX_MSIZE = 1024 * 1024;
const MIN_MSIZE = 4096;
/** A request without data: the longest is a symbolic link's, with a path of 4 KiB and a name, or a walk of 16 names. */
const MAX_REQUEST_BYTES = 16 * 1024;

export interface ShareOptions {
  /** A directory of the host. */
  dir: string;
  /** Refuses every change. Default: false. */
  readOnly?: boolean;
  /**
   * `squash`, the default: the guest sees every file as its root's, and what it makes belongs to this process's user.
   * Set-ID bits and all extended attributes but `user.*` stay out.
   * `passthrough`: users and groups have the same numbers on both sides, as in a container without user namespaces. For
   * processes of root, and guests that are trusted with whatever root could leave in the directory.
   */
  ids?: IdMapping;
  /**
   * How many descriptors of the host, and fids, the guest may hold. Default: half of what this process may open, at most
   * 65,536.
   */
  maxOpenFiles?: number;
}

export interface ShareCounters {
  requests: number;
  /** Requests that were answered by an error. */
  errors: number;
  bytesRead: number;
  bytesWritten: number;
}

/** Shares a directory of the host with one client, by 9P2000.L. Everything is done on libuv's thread pool. */
export class ShareServer implements FileServer {
  readonly counters: ShareCounters = { requests: 0, errors: 0, bytesRead: 0, bytesWritten: 0 };
  readonly #tree: Tree;
  readonly #files: OpenFiles;
  readonly #qids = new QidMaker();
  #session: Session;
  /** Requests under way, by tag. */
  readonly #underWay = new Map<number, Promise<void>>();
  #closed = false;

  /** @throws VmmError code "SYSCALL" when it is no directory, "INVALID_ARGUMENT" for what cannot be done. */
  static async open(options: ShareOptions): Promise<ShareServer> {
    const { dir, readOnly = false, ids = 'squash', maxOpenFiles = openFilesLimit() } = options;
    if (!(Number.isInteger(maxOpenFiles) && maxOpenFiles > 0)) {
      throw new VmmError('INVALID_ARGUMENT', `maxOpenFiles is ${maxOpenFiles}, and not a whole number above 0`);
    }
    if (ids === 'passthrough' && process.geteuid?.() !== 0) {
      throw new VmmError('INVALID_ARGUMENT', 'ids: "passthrough" needs root, to give files their owners; use "squash"');
    }
    const files = new OpenFiles(maxOpenFiles);
    try {
      return new ShareServer(new Tree(await Handle.openRoot(dir, files), readOnly, ids), files);
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      throw new VmmError('SYSCALL', `the directory ${dir} cannot be shared: ${message}; check the path`, {
        operation: 'open',
        ...(code !== undefined && { errno: code }),
        cause,
      });
    }
  }

  private constructor(tree: Tree, files: OpenFiles) {
    this.#tree = tree;
    this.#files = files;
    this.#session = this.#newSession(MIN_MSIZE);
  }

  /** Descriptors that are open for the guest, and for the root. */
  get openFiles(): number {
    return this.#files.count;
  }

  async serve(request: Pieces, reply: Pieces): Promise<FileServerReply> {
    this.counters.requests++;
    // Requests that are under way when their session ends go on in it, and find their fids gone.
    const session = this.#session;
    const head = Buffer.alloc(Math.min(WRITE_REQUEST_BYTES, byteLength(request)));
    gather(request, 0, head);
    const { size, type, tag } = decodeHeader(head);
    const work = this.#execute(session, request, reply, head, size, requestName(type));
    const answered = work.catch((error: unknown) => {
      this.counters.errors++;
      return { head: encodeError(tag, errnoOf(error)), dataBytes: 0 };
    });
    // Two with one tag are the client's mistake; a flush then means both.
    const all = Promise.all([this.#underWay.get(tag), answered]).then(() => {
      if (this.#underWay.get(tag) === all) this.#underWay.delete(tag);
    });
    this.#underWay.set(tag, all);
    return answered;
  }

  reset(): void {
    this.#session.fids.close();
    this.#session = this.#newSession(MIN_MSIZE);
  }

  /** @throws VmmError code "INVALID_STATE" while the guest has it mounted: what it has open cannot be saved. */
  save(): unknown {
    if (this.#session.fids.size > 0) {
      throw new VmmError('INVALID_STATE', 'the guest has the shared directory mounted; unmount it before saving');
    }
    return { msize: this.#session.msize };
  }

  restore(state: unknown): void {
    const msize = (state as { msize?: unknown } | undefined)?.msize;
    if (!(typeof msize === 'number' && Number.isInteger(msize) && msize >= MIN_MSIZE && msize <= MAX_MSIZE)) {
      throw new VmmError('INVALID_ARGUMENT', 'virtio-9p: saved state: msize; give a state that save() returned');
    }
    this.#session = this.#newSession(msize);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.all(this.#underWay.values());
    this.#session.fids.close();
    this.#tree.close();
  }

  #newSession(msize: number): Session {
    return new Session({ tree: this.#tree, qids: this.#qids, files: this.#files, msize });
  }

  async #execute(
    session: Session,
    pieces: Pieces,
    reply: Pieces,
    head: Buffer,
    size: number,
    name: RequestName | undefined,
  ): Promise<FileServerReply> {
    if (this.#closed) throw new Refusal(errno.EIO);
    if (name === undefined) throw new Refusal(errno.EOPNOTSUPP);
    if (size < HEADER_BYTES || size > byteLength(pieces)) throw new Refusal(errno.EPROTO);
    if (size > Math.max(session.msize, MIN_MSIZE)) throw new Refusal(errno.EMSGSIZE);
    // Every byte is read once: what was copied is not looked at again. The data of a write stays where it is.
    const message = name === 'write' ? head.subarray(0, size) : wholeRequest(pieces, head, size);
    const request = decodeRequest(message);
    if (!request) throw new Refusal(errno.EPROTO);

    const room = Math.min(session.msize, byteLength(reply));
    const data =
      name === 'write'
        ? slicePieces(pieces, WRITE_REQUEST_BYTES, size - WRITE_REQUEST_BYTES)
        : slicePieces(reply, DATA_REPLY_BYTES, room - DATA_REPLY_BYTES);
    const fields = await this.#dispatch(session, request, data);
    const moved = (fields as { count?: number }).count ?? 0;
    if (name === 'read') this.counters.bytesRead += moved;
    if (name === 'write') this.counters.bytesWritten += moved;
    const dataBytes = name === 'read' || name === 'readdir' ? moved : 0;
    const bytes = encodeReply(name, request.tag, fields, dataBytes);
    if (bytes.length > room) throw new Refusal(errno.EMSGSIZE);
    return { head: bytes, dataBytes };
  }

  async #dispatch(session: Session, { name, fields }: DecodedRequest, data: Pieces): Promise<Reply<RequestName>> {
    if (name === 'version') return this.#version(fields);
    if (name === 'flush') return this.#flush(fields);
    const operations: Operations = session;
    const operation = operations[name] as (fields: unknown, data: Pieces) => Reply<RequestName>;
    return operation.call(session, fields, data);
  }

  /** Begins a session: the old one's fids are gone. */
  #version({ msize, version }: Request<'version'>): Reply<'version'> {
    if (msize < MIN_MSIZE) throw new Refusal(errno.EMSGSIZE);
    this.#session.fids.close();
    this.#session = this.#newSession(Math.min(msize, MAX_MSIZE));
    const known = version.toString('latin1') === VERSION_9P2000_L;
    return { msize: this.#session.msize, version: Buffer.from(known ? VERSION_9P2000_L : 'unknown') };
  }

  /** Answers when the other request was answered: no operation here takes for ever. */
  async #flush({ oldtag }: Request<'flush'>): Promise<Reply<'flush'>> {
    await this.#underWay.get(oldtag);
    return {};
  }
}

/** @param head Its first bytes, which were read before. */
function wholeRequest(pieces: Pieces, head: Buffer, size: number): Buffer {
  if (size <= head.length) return head.subarray(0, size);
  if (size > MAX_REQUEST_BYTES) throw new Refusal(errno.EMSGSIZE);
  const message = Buffer.alloc(size);
  message.set(head);
  gather(pieces, head.length, message.subarray(head.length));
  return message;
}
