import {
  type FieldTypes,
  HEADER_BYTES,
  MESSAGES,
  type Qid,
  type Reply,
  type Request,
  type RequestName,
  RLERROR,
  RLERROR_BYTES,
} from './protocol.js';

/** A request whose fields are read: one type for each name, so that a switch on the name narrows the fields. */
export type DecodedRequest = { [N in RequestName]: { name: N; tag: number; fields: Request<N> } }[RequestName];

export interface MessageHeader {
  /** Of the whole message, in bytes. */
  size: number;
  type: number;
  tag: number;
}

type Direction = 'request' | 'reply';
type FieldTable = readonly (readonly [string, keyof FieldTypes])[];

interface MessageTables {
  name: RequestName;
  type: number;
  request: FieldTable;
  reply: FieldTable;
}

const TABLES = Object.entries(MESSAGES).map(([name, { type, request, reply }]): MessageTables => ({
  name: name as RequestName,
  type,
  request: Object.entries(request),
  reply: Object.entries(reply),
}));
const BY_TYPE = new Map(TABLES.map((table) => [table.type, table]));
const BY_NAME = new Map(TABLES.map((table) => [table.name, table]));

/** Reads size, type and tag. @param bytes At least {@link HEADER_BYTES}. */
export function decodeHeader(bytes: Buffer): MessageHeader {
  return { size: bytes.readUInt32LE(0), type: bytes[4], tag: bytes.readUInt16LE(5) };
}

/** The name of a request by its type; undefined for what is none, or none of this dialect. */
export function requestName(type: number): RequestName | undefined {
  return BY_TYPE.get(type)?.name;
}

/** @returns The fields of a message, strings in place; undefined when it is too short. Bytes after the last are ignored. */
function decode(table: FieldTable, bytes: Buffer): Record<string, unknown> | undefined {
  const reader = new Reader(bytes);
  const fields: Record<string, unknown> = {};
  for (const [name, kind] of table) fields[name] = reader[kind]();
  return reader.overrun ? undefined : fields;
}

/** @param bytes A whole message. Undefined when it is too short for its fields, or of an unknown type. */
export function decodeRequest(bytes: Buffer): DecodedRequest | undefined {
  const { type, tag } = decodeHeader(bytes);
  const table = BY_TYPE.get(type);
  const fields = table && decode(table.request, bytes);
  return fields && ({ name: table.name, tag, fields } as DecodedRequest);
}

/** For clients: the reply to a request of that name, or the errno of an Rlerror. */
export function decodeReply<N extends RequestName>(name: N, bytes: Buffer): Reply<N> | number | undefined {
  const { type } = decodeHeader(bytes);
  if (type === RLERROR) return bytes.readUInt32LE(HEADER_BYTES);
  const { type: requestType, reply } = BY_NAME.get(name)!;
  return type === requestType + 1 ? (decode(reply, bytes) as Reply<N> | undefined) : undefined;
}

/** @param dataBytes Bytes of data that follow the message and count as part of it. */
export function encodeReply<N extends RequestName>(name: N, tag: number, fields: Reply<N>, dataBytes = 0): Buffer {
  return encode(name, 'reply', tag, fields, dataBytes);
}

/** For clients. */
export function encodeRequest<N extends RequestName>(name: N, tag: number, fields: Request<N>, dataBytes = 0): Buffer {
  return encode(name, 'request', tag, fields, dataBytes);
}

export function encodeError(tag: number, errno: number): Buffer {
  const bytes = Buffer.alloc(RLERROR_BYTES);
  putHeader(bytes, RLERROR_BYTES, RLERROR, tag);
  bytes.writeUInt32LE(errno, HEADER_BYTES);
  return bytes;
}

function encode(name: RequestName, direction: Direction, tag: number, values: object, dataBytes: number): Buffer {
  const table = BY_NAME.get(name)!;
  const fields = table[direction].map(([field, kind]) => [kind, (values as Record<string, unknown>)[field]] as const);
  const bytes = Buffer.alloc(fields.reduce((sum, [kind, value]) => sum + sizeOf(kind, value), HEADER_BYTES));
  putHeader(bytes, bytes.length + dataBytes, direction === 'reply' ? table.type + 1 : table.type, tag);
  let at = HEADER_BYTES;
  for (const [kind, value] of fields) at = put(bytes, at, kind, value);
  return bytes;
}

function putHeader(bytes: Buffer, size: number, type: number, tag: number): void {
  bytes.writeUInt32LE(size, 0);
  bytes[4] = type;
  bytes.writeUInt16LE(tag, 5);
}

const FIXED_BYTES = { u8: 1, u16: 2, u32: 4, u64: 8, qid: 13 } as const;
export const QID_BYTES = FIXED_BYTES.qid;

function sizeOf(kind: keyof FieldTypes, value: unknown): number {
  switch (kind) {
    case 's':
      return 2 + (value as Buffer).length;
    case 's*':
      return (value as readonly Buffer[]).reduce((sum, text) => sum + 2 + text.length, 2);
    case 'qid*':
      return 2 + QID_BYTES * (value as readonly Qid[]).length;
    default:
      return FIXED_BYTES[kind];
  }
}

/** @returns Where the next field goes. */
function put(bytes: Buffer, at: number, kind: keyof FieldTypes, value: unknown): number {
  switch (kind) {
    case 'u8':
      return bytes.writeUInt8(value as number, at);
    case 'u16':
      return bytes.writeUInt16LE(value as number, at);
    case 'u32':
      return bytes.writeUInt32LE(value as number, at);
    case 'u64':
      return bytes.writeBigUInt64LE(value as bigint, at);
    case 's': {
      const text = value as Buffer;
      bytes.set(text, bytes.writeUInt16LE(text.length, at));
      return at + 2 + text.length;
    }
    case 'qid':
      return putQid(bytes, at, value as Qid);
    case 's*':
    case 'qid*': {
      const list = value as readonly unknown[];
      const element = kind === 's*' ? 's' : 'qid';
      return list.reduce<number>((to, item) => put(bytes, to, element, item), bytes.writeUInt16LE(list.length, at));
    }
  }
}

/** qid: type[1] version[4] path[8]. @returns Where the next field goes. */
export function putQid(bytes: Buffer, at: number, { type, version, path }: Qid): number {
  bytes[at] = type;
  bytes.writeUInt32LE(version, at + 1);
  return bytes.writeBigUInt64LE(path, at + 5);
}

/** Reads fields one after the other; past the end everything reads as nothing, and `overrun` is set. */
class Reader implements Record<keyof FieldTypes, () => unknown> {
  overrun = false;
  readonly #bytes: Buffer;
  #at = HEADER_BYTES;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  u8(): number {
    return this.#take(1)?.readUInt8() ?? 0;
  }
  u16(): number {
    return this.#take(2)?.readUInt16LE() ?? 0;
  }
  u32(): number {
    return this.#take(4)?.readUInt32LE() ?? 0;
  }
  u64(): bigint {
    return this.#take(8)?.readBigUInt64LE() ?? 0n;
  }
  s(): Buffer {
    return this.#take(this.u16()) ?? NOTHING;
  }
  qid(): Qid {
    return { type: this.u8(), version: this.u32(), path: this.u64() };
  }
  's*'(): Buffer[] {
    return this.#list(() => this.s());
  }
  'qid*'(): Qid[] {
    return this.#list(() => this.qid());
  }

  #list<T>(read: () => T): T[] {
    const list: T[] = [];
    // A count is no promise: what is missing is not waited for.
    for (let left = this.u16(); left > 0 && !this.overrun; left--) list.push(read());
    return list;
  }

  #take(length: number): Buffer | undefined {
    const end = this.#at + length;
    this.overrun ||= end > this.#bytes.length;
    if (this.overrun) return undefined;
    const part = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return part;
  }
}

const NOTHING = Buffer.alloc(0);
