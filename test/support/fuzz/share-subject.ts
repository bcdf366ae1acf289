import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encodeRequest } from '../../../src/backends/local/share/codec.js';
import {
  type FieldTypes,
  MESSAGES,
  NOFID,
  type Request,
  type RequestName,
} from '../../../src/backends/local/share/protocol.js';
import { ShareServer } from '../../../src/backends/local/share/server.js';
import { Virtio9p } from '../../../src/devices/virtio/9p/9p.js';
import type { FuzzRandom } from './random.js';
import type { Subject } from './subjects.js';

const MAX_OPEN_FILES = 24;
const TYPES = Object.keys(MESSAGES) as RequestName[];
/** What leads to files, and what must lead nowhere. */
const NAMES = ['a', 'b', 'dir', 'file', 'link', '.', '..'].map((name) => Buffer.from(name));
const ODD_NAMES = ['', '/', '../secret', 'a/../..', 'a\0', 'user.a', '9P2000.L', 'x'.repeat(255), 'x'.repeat(5000)].map(
  (name) => Buffer.from(name),
);
/** Flags, modes and counts that mean something somewhere in the protocol. */
const NUMBERS = [0, 1, 2, 0o100, 0o1000, 0o2000, 0x200, 0o644, 0o100600, 0o10600, 0o140600, 0o60600, 512, 5000];

/**
 * A directory of this machine's, shared for real: the server's threads read and write files beside guest memory. Which
 * of two requests is served first is not the seed's to say.
 */
export async function share(random: FuzzRandom): Promise<Subject> {
  const scratch = mkdtempSync(join(tmpdir(), 'vmexit-fuzz-share-'));
  const dir = join(scratch, 'shared');
  mkdirSync(join(dir, 'dir'), { recursive: true });
  writeFileSync(join(dir, 'file'), Buffer.alloc(9000, 'file'));
  symlinkSync('../secret', join(dir, 'link'));
  writeFileSync(join(scratch, 'secret'), 'what is outside');
  const outside = () => {
    const { mode, uid, size, nlink, mtimeNs, ctimeNs } = statSync(join(scratch, 'secret'), { bigint: true });
    return [readdirSync(scratch), mode, uid, size, nlink, mtimeNs, ctimeNs].join();
  };
  const outsideThen = outside();

  const server = await ShareServer.open({
    dir,
    readOnly: random.chance(4),
    ids: process.geteuid?.() === 0 && random.chance(2) ? 'passthrough' : 'squash',
    maxOpenFiles: MAX_OPEN_FILES,
  });

  const fid = () => (random.chance(30) ? random.pick([NOFID, random.u32()]) : random.below(4));
  const text = () => random.pick(random.chance(5) ? ODD_NAMES : NAMES);
  const number = () => (random.chance(8) ? random.u32() : random.pick(NUMBERS));
  const field = (name: string, kind: keyof FieldTypes): FieldTypes[keyof FieldTypes] => {
    if (name.endsWith('fid')) return fid();
    switch (kind) {
      case 'u64':
        return random.chance(4) ? random.u64() : BigInt(random.below(10_000));
      case 's':
        return text();
      case 's*':
        return Array.from({ length: random.below(random.chance(10) ? 20 : 3) }, text);
      default:
        return number() % 2 ** (kind === 'u8' ? 8 : kind === 'u16' ? 16 : 32);
    }
  };
  const message = (type: RequestName, known: object, data: Uint8Array = Buffer.alloc(0)): Uint8Array => {
    const fields = Object.entries(MESSAGES[type].request).map(([name, kind]) => [name, field(name, kind)]);
    const values = { ...(Object.fromEntries(fields) as object), ...known } as Request<RequestName>;
    const bytes = Buffer.concat([encodeRequest(type, random.below(8), values as never, data.length), data]);
    if (random.chance(20)) bytes.writeUInt32LE(random.u32(), 0);
    return bytes;
  };

  return {
    device: new Virtio9p({ server, tag: 'fuzz' }),
    maxRequestsAtOnce: 8,
    answers: true,
    mayRefuseToSave: true,
    payload() {
      const opened = { fid: 1 + random.below(3), offset: BigInt(random.below(10_000)) };
      // Without these there is nothing to attack.
      switch (random.below(20)) {
        case 0:
        case 1:
          return message('attach', { fid: 0, afid: NOFID, aname: Buffer.alloc(0) });
        case 2:
        case 3:
        case 4:
          return message('walk', { fid: 0, newfid: opened.fid, names: [text()].slice(random.below(2)) });
        case 5:
        case 6:
          return message('lopen', { ...opened, flags: random.below(3) });
        case 7:
          return message('lcreate', { ...opened, name: random.pick(NAMES), flags: random.below(3), mode: 0o644 });
        case 8: {
          const data = random.bytes(random.below(600));
          return message('write', { ...opened, count: random.chance(5) ? random.u32() : data.length }, data);
        }
        case 9:
          return message(random.pick(['read', 'readdir', 'clunk']), opened);
        default: {
          if (random.chance(20)) return random.bytes(random.pick([7, 8, 23, 100, random.below(7)]));
          const type = random.pick(TYPES);
          // It ends the session.
          return message(type === 'version' && !random.chance(4) ? 'fsync' : type, {});
        }
      }
    },
    hostActs() {
      try {
        const [from, to] = ['dir', 'file', 'a', 'b', 'link']
          .map((name) => join(dir, name))
          .sort(() => random.below(3) - 1);
        const kind = random.below(4);
        if (kind === 0) renameSync(from, to);
        else if (kind === 1) symlinkSync('..', from);
        else if (kind === 2) rmSync(from, { recursive: true });
        else mkdirSync(from);
      } catch {
        // The guest has been there before.
      }
    },
    check() {
      if (server.openFiles > MAX_OPEN_FILES) throw new Error(`${server.openFiles} files are open`);
      if (outside() !== outsideThen) throw new Error(`outside of the share: ${outsideThen} has become ${outside()}`);
    },
    async close() {
      await server.close();
      rmSync(scratch, { recursive: true });
      if (server.openFiles !== 0) throw new Error(`${server.openFiles} files are open after close`);
    },
  };
}
