import { decodeHeader, decodeReply, encodeRequest } from '../../src/backends/local/share/codec.js';
import {
  DATA_REPLY_BYTES,
  NOFID,
  type Reply,
  type Request,
  type RequestName,
} from '../../src/backends/local/share/protocol.js';
import type { FileServer } from '../../src/devices/virtio/9p/backend.js';

/** Carries one message to a server. @returns The reply, up to `room` bytes. */
export type P9Transport = (request: Buffer, room: number) => Promise<Buffer>;

export interface Entry {
  name: string;
  cookie: bigint;
  /** As in d_type of getdents(2). */
  type: number;
  qid: { type: number; path: bigint };
}

/** An Rlerror. */
export class P9Error extends Error {
  constructor(readonly errno: number) {
    super(`errno ${errno}`);
  }
}

/** Calls a server in place, with the messages cut into pieces of odd lengths as guest memory may have them. */
export const inPlace =
  (server: FileServer): P9Transport =>
  async (request, room) => {
    const reply = Buffer.alloc(room, 0xee);
    const { head, dataBytes } = await server.serve(cut(request, 5), cut(reply, 13));
    reply.set(head);
    return reply.subarray(0, head.length + dataBytes);
  };

function cut(bytes: Buffer, step: number): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  for (let at = 0, length = step; at < bytes.length; at += length, length *= 3)
    pieces.push(bytes.subarray(at, at + length));
  return pieces;
}

/** A client of 9P2000.L: numbers its requests and fids, and throws {@link P9Error}. */
export class P9Client {
  readonly msize: number;
  readonly #send: P9Transport;
  /** The tag of the next request. */
  nextTag = 0;
  #nextFid = 100;

  constructor(send: P9Transport, msize = 64 * 1024) {
    this.#send = send;
    this.msize = msize;
  }

  /** Any request. @param data Of a write. */
  async call<N extends RequestName>(name: N, fields: Request<N>, data: Buffer = Buffer.alloc(0)): Promise<Reply<N>> {
    return (await this.callForData(name, fields, data)).reply;
  }

  async callForData<N extends RequestName>(name: N, fields: Request<N>, data: Buffer = Buffer.alloc(0)) {
    const tag = this.nextTag++ % 0xffff;
    const message = Buffer.concat([encodeRequest(name, tag, fields, data.length), data]);
    const bytes = await this.#send(message, this.msize);
    const header = decodeHeader(bytes);
    if (header.size !== bytes.length || header.tag !== tag) throw new Error(`a reply of ${JSON.stringify(header)}`);
    const reply = decodeReply(name, bytes);
    if (typeof reply === 'number') throw new P9Error(reply);
    if (reply === undefined) throw new Error(`no reply to ${name}: type ${header.type}`);
    return { reply, data: bytes.subarray(DATA_REPLY_BYTES) };
  }

  newFid(): number {
    return this.#nextFid++;
  }

  /** Agrees on a version, and attaches. @returns The root's fid. */
  async start(uid = 0): Promise<number> {
    await this.call('version', { msize: this.msize, version: Buffer.from('9P2000.L') });
    const fid = this.newFid();
    const nothing = Buffer.alloc(0);
    await this.call('attach', { fid, afid: NOFID, uname: nothing, aname: nothing, nUname: uid });
    return fid;
  }

  /** @param path Names with slashes between them; '' clones the fid. @returns The new fid. */
  async walk(fid: number, path: string): Promise<number> {
    const names = path === '' ? [] : path.split('/').map((name) => Buffer.from(name));
    const newfid = this.newFid();
    const { qids } = await this.call('walk', { fid, newfid, names });
    if (qids.length < names.length) throw new P9Error(2);
    return newfid;
  }

  async open(fid: number, path: string, flags = 0): Promise<number> {
    const opened = await this.walk(fid, path);
    await this.call('lopen', { fid: opened, flags });
    return opened;
  }

  async create(dir: number, name: string, { flags = 2, mode = 0o644, gid = 0 } = {}): Promise<number> {
    const fid = await this.walk(dir, '');
    await this.call('lcreate', { fid, name: Buffer.from(name), flags, mode, gid });
    return fid;
  }

  async write(fid: number, offset: bigint, data: Buffer | string): Promise<number> {
    const bytes = Buffer.from(data);
    return (await this.call('write', { fid, offset, count: bytes.length }, bytes)).count;
  }

  async read(fid: number, offset: bigint, count: number): Promise<Buffer> {
    const { reply, data } = await this.callForData('read', { fid, offset, count });
    if (reply.count !== data.length) throw new Error(`${reply.count} bytes promised, ${data.length} sent`);
    return Buffer.from(data);
  }

  clunk(fid: number) {
    return this.call('clunk', { fid });
  }

  /** One Rreaddir. */
  async readdir(fid: number, offset: bigint, count: number): Promise<Entry[]> {
    const { data } = await this.callForData('readdir', { fid, offset, count });
    const entries: Entry[] = [];
    for (let at = 0; at < data.length;) {
      const length = data.readUInt16LE(at + 22);
      entries.push({
        qid: { type: data[at], path: data.readBigUInt64LE(at + 5) },
        cookie: data.readBigUInt64LE(at + 13),
        type: data[at + 21],
        name: data.toString('utf8', at + 24, at + 24 + length),
      });
      at += 24 + length;
    }
    return entries;
  }

  /** All of an opened directory, with so many bytes a request. */
  async list(fid: number, count = 4096): Promise<Entry[]> {
    const all: Entry[] = [];
    for (let more = await this.readdir(fid, 0n, count); more.length > 0;) {
      all.push(...more);
      more = await this.readdir(fid, more.at(-1)!.cookie, count);
    }
    return all;
  }
}
