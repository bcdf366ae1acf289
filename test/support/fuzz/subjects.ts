import type { Duplex } from 'node:stream';
import { MemoryBackend } from '../../../src/backends/local/memory.js';
import { VirtioBalloon } from '../../../src/devices/virtio/balloon/balloon.js';
import { VirtioBlk } from '../../../src/devices/virtio/blk/blk.js';
import { VirtioConsole } from '../../../src/devices/virtio/console/console.js';
import type { NetBackend, NetClient } from '../../../src/devices/virtio/net/backend.js';
import { VirtioNet } from '../../../src/devices/virtio/net/net.js';
import { VirtioRng } from '../../../src/devices/virtio/rng/rng.js';
import { encodeHeader } from '../../../src/devices/virtio/vsock/packet.js';
import { VirtioVsock } from '../../../src/devices/virtio/vsock/vsock.js';
import type { VirtioDevice } from '../../../src/virtio/device.js';
import { RAM_END } from './memory.js';
import type { FuzzRandom } from './random.js';
import { share } from './share-subject.js';

/** A device under test, with a host at its other side that does what it likes, too. */
export interface Subject {
  readonly device: VirtioDevice;
  /** How many requests a driver makes in one case, at most; default 1. For a device that a single one does not get far. */
  readonly maxRequestsAtOnce?: number;
  /** Whether each request must have something to read and room for an answer, or it fails the device. */
  readonly answers?: boolean;
  /** What a guest has open at the host's side cannot always be saved. */
  readonly mayRefuseToSave?: boolean;
  /** The readable bytes of a request for a queue, as a driver might send them: right in form, wild in content. */
  payload(queue: number): Uint8Array;
  /** Something happens at the host's side. */
  hostActs(): void;
  /** What must hold at any time. @throws where it does not. */
  check(): void;
  close(): void | Promise<void>;
}

export type SubjectName = keyof typeof SUBJECTS;

const DISK_BYTES = 256 * 1024;

function blk(random: FuzzRandom, readOnly: boolean): Subject {
  const disk = new Uint8Array(DISK_BYTES).fill(0x5a);
  const untouched = disk.slice();
  return {
    device: new VirtioBlk({ backend: new MemoryBackend(disk, { readOnly }), readOnly, queues: 2, serial: 'fuzz' }),
    payload() {
      const type = random.chance(4) ? random.u32() : random.pick([0, 1, 4, 8, 11, 13]);
      const bytes = new Uint8Array(16 + (random.chance(2) ? 512 * random.below(4) : random.below(64)));
      const view = new DataView(bytes.buffer);
      view.setUint32(0, type, true);
      view.setBigUint64(8, random.chance(3) ? random.u64() : BigInt(random.below(DISK_BYTES / 512 + 2)), true);
      // Segments of discard and write-zeroes: sector, number of sectors, flags.
      for (let at = 16; at + 16 <= bytes.length && type >= 11; at += 16) {
        view.setBigUint64(at, random.chance(3) ? random.u64() : BigInt(random.below(600)), true);
        view.setUint32(at + 8, random.chance(3) ? random.u32() : random.below(64), true);
        view.setUint32(at + 12, random.below(4), true);
      }
      return bytes;
    },
    hostActs() {},
    check() {
      if (readOnly && Buffer.compare(disk, untouched) !== 0) throw new Error('a read-only disk was written');
    },
    close() {},
  };
}

function net(random: FuzzRandom): Subject {
  let client!: NetClient;
  const header = () => {
    const bytes = new Uint8Array(12);
    const view = new DataView(bytes.buffer);
    bytes[0] = random.below(random.chance(4) ? 256 : 8); // flags
    bytes[1] = random.chance(2) ? random.pick([0, 1, 3, 4, 0x81]) : random.below(256); // gso_type
    for (let at = 2; at < 12; at += 2) view.setUint16(at, random.chance(2) ? random.below(128) : random.u32(), true);
    return bytes;
  };
  const backend: NetBackend = {
    name: 'fuzz',
    offloads: random.chance(2) ? [] : ['checksum', 'tso4', 'tso6', 'tso-ecn', 'ufo'],
    connect: (device) => void (client = device),
    setReceiveOffloads: () => {},
    send: () => (random.chance(8) ? 'busy' : random.chance(8) ? 'refused' : 'sent'),
    flush: () => {},
    pause: () => {},
    resume: () => {},
    close: () => Promise.resolve(),
  };
  return {
    device: new VirtioNet({ backend }),
    payload: () => Buffer.concat([header(), random.bytes(random.chance(8) ? random.below(2000) : random.below(80))]),
    hostActs() {
      if (random.chance(3)) return client.drained();
      for (let count = random.below(4); count > 0; count--) {
        const length = random.chance(16) ? 60_000 + random.below(8000) : random.below(1600);
        const frame = [new Uint8Array(length).fill(length), new Uint8Array(random.below(3))];
        if (backend.offloads.length > 0) client.receive(frame, header());
        else client.receive(frame);
      }
      client.receiveEnd();
    },
    check() {},
    close() {},
  };
}

function console(random: FuzzRandom): Subject {
  const port = (name?: string) => ({
    output: { write: (bytes: Uint8Array) => (random.chance(3) ? random.below(bytes.length + 1) : bytes.length) },
    maxStallMs: 60_000,
    ...(name !== undefined && { name }),
  });
  const device = new VirtioConsole({ ports: [port(), port('fuzz')], size: { columns: 80, rows: 25 } });
  return {
    device,
    payload(queue) {
      if (queue !== 3) return random.bytes(random.below(100));
      const bytes = new Uint8Array(random.chance(8) ? random.below(20) : 8);
      const view = new DataView(bytes.buffer);
      if (bytes.length < 8) return bytes;
      view.setUint32(0, random.chance(4) ? random.u32() : random.below(3), true);
      view.setUint16(4, random.chance(4) ? random.u32() : random.below(8), true);
      view.setUint16(6, random.below(3), true);
      return bytes;
    },
    hostActs() {
      const end = random.pick(device.ports);
      const kind = random.below(3);
      if (kind === 0) end.receive(new Uint8Array(random.below(300)).fill(0x41));
      else if (kind === 1) end.resumeOutput();
      else device.resize({ columns: random.below(0x10000), rows: random.below(0x10000) });
    },
    check() {},
    close() {},
  };
}

function rng(random: FuzzRandom): Subject {
  return {
    device: new VirtioRng({ fill: (bytes) => void bytes.fill(0x77) }),
    payload: () => random.bytes(random.below(16)),
    hostActs() {},
    check() {},
    close() {},
  };
}

function vsock(random: FuzzRandom): Subject {
  const CID = 7;
  const MAX_CONNECTIONS = 16;
  const streams: Duplex[] = [];
  const keep = (stream: Duplex) => {
    stream.on('error', () => {});
    stream.resume();
    streams.push(stream);
  };
  const device = new VirtioVsock({
    cid: CID,
    maxConnections: MAX_CONNECTIONS,
    connectTimeoutMs: 60_000, // no timer of the real clock: a seed would not replay
    onRequest: (request) => {
      if (random.chance(4)) return false;
      if (random.chance(4)) request.reject();
      else keep(request.accept());
      return true;
    },
  });
  return {
    device,
    payload() {
      const bytes = new Uint8Array(random.chance(8) ? random.below(60) : 44 + random.below(200));
      if (bytes.length < 44) return bytes;
      encodeHeader(bytes, {
        srcCid: random.chance(10) ? random.u64() : BigInt(CID),
        dstCid: random.chance(10) ? random.u64() : 2n,
        srcPort: random.chance(8) ? random.u32() : random.below(6),
        dstPort: random.chance(8) ? random.u32() : random.below(6) + (random.chance(3) ? 2 ** 30 : 0),
        length: random.chance(6) ? random.u32() : bytes.length - 44,
        type: random.chance(10) ? random.below(4) : 1,
        op: random.chance(10) ? random.u32() & 0xffff : random.below(8),
        flags: random.below(4),
        bufAlloc: random.chance(3) ? random.u32() : 65536,
        fwdCnt: random.chance(3) ? random.u32() : 0,
      });
      return bytes;
    },
    hostActs() {
      const stream = streams[random.below(streams.length + 1)];
      if (!stream) {
        device.connect(random.below(6)).then(
          ({ stream }) => keep(stream),
          () => {},
        );
        return;
      }
      const kind = random.below(4);
      if (kind < 2 && stream.writable) stream.write(new Uint8Array(random.below(5000)));
      else if (kind === 2 && stream.writable) stream.end();
      else stream.destroy();
      if (stream.destroyed) streams.splice(streams.indexOf(stream), 1);
    },
    check() {
      const { connections } = device.counters;
      if (connections > MAX_CONNECTIONS) throw new Error(`${connections} connections`);
    },
    close: () => streams.forEach((stream) => stream.destroy()),
  };
}

function balloon(random: FuzzRandom): Subject {
  const device = new VirtioBalloon({
    discard: (gpa, length) => {
      if (!(Number.isSafeInteger(gpa) && gpa >= 0 && Number.isSafeInteger(length) && length >= 0)) {
        throw new Error(`discard(${gpa}, ${length})`);
      }
      return gpa % 4096 === 0 && length % 4096 === 0 && gpa + length <= RAM_END;
    },
  });
  return {
    device,
    payload(queue) {
      if (queue === 2) return random.bytes(10 * random.below(12));
      const words = Uint32Array.from({ length: random.below(300) }, () =>
        random.chance(8) ? random.u32() : random.below(RAM_END / 4096),
      );
      return new Uint8Array(words.buffer);
    },
    hostActs() {
      if (random.chance(2)) device.setTarget(random.u32());
      else void device.refreshStats();
    },
    check() {},
    close() {},
  };
}

/** Every virtio device there is. */
export const SUBJECTS = {
  blk: (random: FuzzRandom) => blk(random, false),
  'blk, read-only': (random: FuzzRandom) => blk(random, true),
  net,
  console,
  rng,
  vsock,
  balloon,
  share,
} satisfies Record<string, (random: FuzzRandom) => Subject | Promise<Subject>>;
