/**
 * The messages of vhost-user: https://www.qemu.org/docs/master/interop/vhost-user.html
 *
 * A message is a header of three 32-bit words (request, flags, payload bytes) and its payload, in the host's byte order,
 * which is little-endian here. File descriptors travel beside it.
 */

export const HEADER_BYTES = 12;
export const FLAG_VERSION = 1;
const FLAG_VERSION_MASK = 0x3;
export const FLAG_REPLY = 1 << 2;
export const FLAG_NEED_REPLY = 1 << 3;

/** Bit of the virtio feature word that offers protocol features. It is the protocol's own: no driver sees it. */
export const F_PROTOCOL_FEATURES = 1n << 30n;

/** "Protocol features": what both ends can do beyond the first version. */
export const PROTOCOL_F = {
  MQ: 1n << 0n,
  REPLY_ACK: 1n << 3n,
  BACKEND_REQ: 1n << 5n,
  CONFIG: 1n << 9n,
  INFLIGHT_SHMFD: 1n << 12n,
} as const;

/** The largest configuration space that a message carries. */
export const MAX_CONFIG_BYTES = 256;
/** Regions that one SET_MEM_TABLE announces. */
export const MAX_MEMORY_REGIONS = 8;
/** Payloads of 64 bits that go with a descriptor have the queue's index in their low byte. */
export const VRING_INDEX_MASK = 0xffn;
/** There is no descriptor. */
export const VRING_NO_FD = 0x100n;
const CONFIG_HEADER_BYTES = 12; // u32 offset, u32 size, u32 flags
const INFLIGHT_BYTES = 24; // u64 size, u64 offset, u16 queues, u16 queue size, padding to the u64s' alignment

/** How a value is laid out in a payload. `decode` answers undefined for bytes that are no such value. */
export interface Codec<T> {
  encode(value: T): Uint8Array;
  decode(payload: Uint8Array): T | undefined;
}

export interface VringState {
  index: number;
  /** Size, first index or on/off: the request says which. */
  num: number;
}

export interface VringAddress {
  index: number;
  /** In the frontend's address space, as the memory table announces it. */
  desc: bigint;
  used: bigint;
  avail: bigint;
}

export interface MemoryTableRegion {
  gpa: bigint;
  sizeBytes: bigint;
  /** Where the region is in the address space that {@link VringAddress} speaks of. */
  userAddress: bigint;
  /** Where the region begins in its descriptor. */
  mmapOffset: bigint;
}

export interface ConfigPart {
  offset: number;
  bytes: Uint8Array;
}

/** The backend's memory of requests under way, which outlives it. */
export interface InflightArea {
  sizeBytes: bigint;
  mmapOffset: bigint;
  queues: number;
  queueSize: number;
}

/** No payload; only ever encoded. */
const none: Codec<void> = { encode: () => new Uint8Array(0), decode: () => undefined };

const u64: Codec<bigint> = {
  encode: (value) => bytes(8, (view) => view.setBigUint64(0, value, true)),
  decode: (payload) => (payload.length === 8 ? viewOf(payload).getBigUint64(0, true) : undefined),
};

const vringState: Codec<VringState> = {
  encode: ({ index, num }) =>
    bytes(8, (view) => {
      view.setUint32(0, index, true);
      view.setUint32(4, num, true);
    }),
  decode: (payload) =>
    payload.length === 8
      ? { index: viewOf(payload).getUint32(0, true), num: viewOf(payload).getUint32(4, true) }
      : undefined,
};

const vringAddress: Codec<VringAddress> = {
  encode: ({ index, desc, used, avail }) =>
    bytes(40, (view) => {
      view.setUint32(0, index, true); // flags, of dirty logging, stay 0
      [desc, used, avail].forEach((address, i) => view.setBigUint64(8 + 8 * i, address, true));
    }),
  decode: (payload) => {
    if (payload.length !== 40) return undefined;
    const view = viewOf(payload);
    const [desc, used, avail] = [8, 16, 24].map((at) => view.getBigUint64(at, true));
    return { index: view.getUint32(0, true), desc, used, avail };
  },
};

const memoryTable: Codec<readonly MemoryTableRegion[]> = {
  encode: (regions) =>
    bytes(8 + 32 * regions.length, (view) => {
      view.setUint32(0, regions.length, true);
      regions.forEach(({ gpa, sizeBytes, userAddress, mmapOffset }, i) => {
        [gpa, sizeBytes, userAddress, mmapOffset].forEach((v, j) => view.setBigUint64(8 + 32 * i + 8 * j, v, true));
      });
    }),
  decode: (payload) => {
    const view = viewOf(payload);
    const count = payload.length >= 8 ? view.getUint32(0, true) : 0;
    if (count > MAX_MEMORY_REGIONS || payload.length !== 8 + 32 * count) return undefined;
    return Array.from({ length: count }, (_, i) => {
      const [gpa, sizeBytes, userAddress, mmapOffset] = [0, 8, 16, 24].map((at) =>
        view.getBigUint64(8 + 32 * i + at, true),
      );
      return { gpa, sizeBytes, userAddress, mmapOffset };
    });
  },
};

const configPart: Codec<ConfigPart> = {
  encode: ({ offset, bytes: content }) =>
    bytes(CONFIG_HEADER_BYTES + content.length, (view, all) => {
      view.setUint32(0, offset, true);
      view.setUint32(4, content.length, true);
      all.set(content, CONFIG_HEADER_BYTES);
    }),
  decode: (payload) => {
    if (payload.length < CONFIG_HEADER_BYTES) return undefined;
    const view = viewOf(payload);
    const content = payload.subarray(CONFIG_HEADER_BYTES);
    if (content.length > MAX_CONFIG_BYTES || view.getUint32(4, true) !== content.length) return undefined;
    return { offset: view.getUint32(0, true), bytes: content.slice() };
  },
};

const inflightArea: Codec<InflightArea> = {
  encode: ({ sizeBytes, mmapOffset, queues, queueSize }) =>
    bytes(INFLIGHT_BYTES, (view) => {
      view.setBigUint64(0, sizeBytes, true);
      view.setBigUint64(8, mmapOffset, true);
      view.setUint16(16, queues, true);
      view.setUint16(18, queueSize, true);
    }),
  decode: (payload) => {
    if (payload.length !== INFLIGHT_BYTES) return undefined;
    const view = viewOf(payload);
    return {
      sizeBytes: view.getBigUint64(0, true),
      mmapOffset: view.getBigUint64(8, true),
      queues: view.getUint16(16, true),
      queueSize: view.getUint16(18, true),
    };
  },
};

/** A request: its number, what it carries, and what the answer carries where it has one of its own. */
export interface MessageType<Q, A> {
  readonly id: number;
  readonly name: string;
  readonly query: Codec<Q>;
  /** Absent: the request has no answer but the acknowledgement of REPLY_ACK. */
  readonly answer?: Codec<A>;
  /** Descriptors that the answer must come with. Default: none. */
  readonly answerFds?: number;
}

const type = <Q, A = never>(
  id: number,
  name: string,
  query: Codec<Q>,
  answer?: Codec<A>,
  answerFds = 0,
): MessageType<Q, A> => ({ id, name, query, answerFds, ...(answer && { answer }) });

/** What a frontend asks of a backend. */
export const REQUEST = {
  getFeatures: type(1, 'GET_FEATURES', none, u64),
  setFeatures: type(2, 'SET_FEATURES', u64),
  setOwner: type(3, 'SET_OWNER', none),
  setMemTable: type(5, 'SET_MEM_TABLE', memoryTable),
  setVringNum: type(8, 'SET_VRING_NUM', vringState),
  setVringAddr: type(9, 'SET_VRING_ADDR', vringAddress),
  setVringBase: type(10, 'SET_VRING_BASE', vringState),
  getVringBase: type(11, 'GET_VRING_BASE', vringState, vringState),
  setVringKick: type(12, 'SET_VRING_KICK', u64),
  setVringCall: type(13, 'SET_VRING_CALL', u64),
  setVringErr: type(14, 'SET_VRING_ERR', u64),
  getProtocolFeatures: type(15, 'GET_PROTOCOL_FEATURES', none, u64),
  setProtocolFeatures: type(16, 'SET_PROTOCOL_FEATURES', u64),
  getQueueNum: type(17, 'GET_QUEUE_NUM', none, u64),
  setVringEnable: type(18, 'SET_VRING_ENABLE', vringState),
  setBackendReqFd: type(21, 'SET_BACKEND_REQ_FD', none),
  getConfig: type(24, 'GET_CONFIG', configPart, configPart),
  setConfig: type(25, 'SET_CONFIG', configPart),
  getInflightFd: type(31, 'GET_INFLIGHT_FD', inflightArea, inflightArea, 1),
  setInflightFd: type(32, 'SET_INFLIGHT_FD', inflightArea),
} as const;

/** What a backend tells a frontend, over the channel of SET_BACKEND_REQ_FD. */
export const BACKEND_REQUEST = {
  configChange: type(2, 'BACKEND_CONFIG_CHANGE_MSG', none),
} as const;

export interface Header {
  request: number;
  flags: number;
  payloadBytes: number;
}

export function encodeHeader({ request, flags, payloadBytes }: Header): Uint8Array {
  return bytes(HEADER_BYTES, (view) => {
    view.setUint32(0, request, true);
    view.setUint32(4, flags | FLAG_VERSION, true);
    view.setUint32(8, payloadBytes, true);
  });
}

/** @returns Undefined for a header of another version. */
export function decodeHeader(header: Uint8Array): Header | undefined {
  const view = viewOf(header);
  const flags = view.getUint32(4, true);
  if ((flags & FLAG_VERSION_MASK) !== FLAG_VERSION) return undefined;
  return { request: view.getUint32(0, true), flags, payloadBytes: view.getUint32(8, true) };
}

const viewOf = (part: Uint8Array) => new DataView(part.buffer, part.byteOffset, part.byteLength);

function bytes(length: number, fill: (view: DataView, all: Uint8Array) => void): Uint8Array {
  const all = new Uint8Array(length);
  fill(viewOf(all), all);
  return all;
}
