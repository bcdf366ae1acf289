/** HOSTILE case 18: a shared directory keeps a guest within its root, whatever it asks for and whoever renames what. */
import { mkdtempSync, rmSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { decodeHeader, encodeRequest } from '../../src/backends/local/share/codec.js';
import {
  MESSAGES,
  P9_DOTL_AT_REMOVEDIR,
  P9_SETATTR_MODE,
  P9_SETATTR_MTIME,
  P9_SETATTR_SIZE,
  P9_SETATTR_UID,
  type RequestName,
} from '../../src/backends/local/share/protocol.js';
import { ShareServer } from '../../src/backends/local/share/server.js';
import { P9Client, P9Error, inPlace } from '../support/p9-client.js';

const { errno } = constants;
const O_RDWR = 2;
const SECRET = 'what nobody may read';
const name = (text: string) => Buffer.from(text);
const refused = (...codes: number[]) => expect.toSatisfy((error) => codes.includes((error as P9Error).errno)) as Error;

let scratch: string;
let dir: string;
let server: ShareServer;
let client: P9Client;
let root: number;
let outside: string;

/** All that is outside the shared directory, and must stay as it is. */
async function everythingOutside(): Promise<string> {
  const { mode, uid, size, mtimeNs, ctimeNs, nlink } = await fs.stat(join(scratch, 'secret'), { bigint: true });
  const names = (await fs.readdir(scratch)).sort();
  return [names, await fs.readdir(join(scratch, 'beside')), mode, uid, size, mtimeNs, ctimeNs, nlink].join(' ');
}

beforeEach(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'vmexit-hostile-share-'));
  dir = join(scratch, 'shared');
  await fs.mkdir(dir);
  await fs.mkdir(join(scratch, 'beside'));
  await fs.writeFile(join(scratch, 'secret'), SECRET, { mode: 0o600 });
  outside = await everythingOutside();
  // Passed-through ids give a guest the most that it can have.
  server = await ShareServer.open({ dir, ids: process.geteuid?.() === 0 ? 'passthrough' : 'squash' });
  client = new P9Client(inPlace(server));
  root = await client.start();
});

afterEach(async () => {
  await server.close();
  const after = await everythingOutside();
  rmSync(scratch, { recursive: true });
  expect(after).toBe(outside);
});

const setattr = (fid: number, valid: number) =>
  client.call('setattr', {
    ...{ fid, valid, mode: 0o777, uid: 1, gid: 1, size: 0n },
    ...{ atimeSec: 0n, atimeNsec: 0n, mtimeSec: 0n, mtimeNsec: 0n },
  });
const mkdir = (dfid: number, path: string) => client.call('mkdir', { dfid, name: name(path), mode: 0o755, gid: 0 });
const symlink = (path: string, target: string) =>
  client.call('symlink', { fid: root, name: name(path), target: name(target), gid: 0 });
const inodeOf = async (fid: number) => (await client.call('getattr', { fid, mask: 0x7ffn })).qid.path;

describe('names', () => {
  it('with .. lead up to the root and no further', async () => {
    await mkdir(root, 'a');
    await mkdir(await client.walk(root, 'a'), 'b');
    const inode = await inodeOf(root);
    for (const path of ['..', '../..', '../../..', 'a/..', 'a/../../..', 'a/b/../..', 'a/b/../../..', '.', './..']) {
      expect(await inodeOf(await client.walk(root, path)), path).toBe(inode);
    }
    expect(await inodeOf(await client.walk(root, 'a/b/..'))).toBe(await inodeOf(await client.walk(root, 'a')));
    await expect(client.walk(root, '../secret')).rejects.toEqual(refused(errno.ENOENT));
    await expect(client.walk(root, 'a/../../secret')).rejects.toEqual(refused(errno.ENOENT));
  });

  it('with slashes, NULs or nothing in them are none', async () => {
    await mkdir(root, 'a');
    const a = await client.walk(root, 'a');
    const secret = join(scratch, 'secret');
    for (const bad of ['../secret', secret, '/', '', 'a/', 'a/..', 'a\0', '../shared/a', '//', 'x'.repeat(256)]) {
      const names = [name(bad)];
      const none = refused(errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG);
      await expect(client.call('walk', { fid: root, newfid: 9, names }), bad).rejects.toEqual(none);
      await expect(client.create(root, bad), bad).rejects.toEqual(none);
      await expect(mkdir(root, bad), bad).rejects.toEqual(none);
      await expect(symlink(bad, 'x'), bad).rejects.toEqual(none);
      await expect(client.call('link', { dfid: root, fid: a, name: name(bad) }), bad).rejects.toEqual(none);
      for (const [from, to] of [
        ['a', bad],
        [bad, 'a'],
      ]) {
        const rename = { olddirfid: root, oldname: name(from), newdirfid: a, newname: name(to) };
        await expect(client.call('renameat', rename), bad).rejects.toEqual(none);
      }
      for (const flags of [0, P9_DOTL_AT_REMOVEDIR]) {
        await expect(client.call('unlinkat', { dirfid: root, name: name(bad), flags }), bad).rejects.toEqual(none);
      }
    }
    for (const special of ['.', '..']) {
      await expect(client.create(a, special)).rejects.toEqual(refused(errno.EINVAL));
      await expect(client.call('unlinkat', { dirfid: a, name: name(special), flags: 0x200 })).rejects.toEqual(
        refused(errno.EINVAL),
      );
    }
  });

  it('do not tell of the directory above the root', async () => {
    const entries = await client.list(await client.open(root, ''));
    const inode = await inodeOf(root);
    expect(entries.map(({ name, qid }) => [name, qid.path]).sort()).toEqual([
      ['.', inode],
      ['..', inode],
    ]);
  });
});

describe('symbolic links', () => {
  const targets = ['../secret', '../beside', '..', '/', '/etc/passwd', '/proc/self/root', '/proc/self/fd/0'];

  it.each(targets)('to %s are not followed by anything', async (target) => {
    await symlink('link', target);
    const link = await client.walk(root, 'link');
    expect((await client.call('readlink', { fid: link })).target.toString()).toBe(target);
    await expect(client.walk(root, 'link/secret')).rejects.toEqual(refused(errno.ENOENT));
    await expect(client.walk(link, 'secret')).rejects.toEqual(refused(errno.ENOTDIR));
    await expect(client.walk(link, '..')).rejects.toEqual(refused(errno.ENOTDIR));
    for (const flags of [0, 1, O_RDWR, 0o1000]) {
      await expect(client.open(root, 'link', flags)).rejects.toEqual(refused(errno.ENXIO));
    }
    await expect(client.create(root, 'link')).rejects.toEqual(refused(errno.ENXIO));
    await expect(client.create(link, 'new')).rejects.toEqual(refused(errno.ENOTDIR));
    await expect(mkdir(root, 'link')).rejects.toEqual(refused(errno.EEXIST));
    await expect(mkdir(link, 'new')).rejects.toEqual(refused(errno.ENOTDIR));
    await expect(setattr(link, P9_SETATTR_SIZE)).rejects.toEqual(refused(errno.EINVAL));
    await setattr(link, P9_SETATTR_MODE).catch(() => {}); // some kernels change the link's own
    await setattr(link, P9_SETATTR_MTIME);
    await setattr(link, P9_SETATTR_UID).catch(() => {});
    await client.call('link', { dfid: root, fid: link, name: name('again') });
    expect(await fs.readlink(join(dir, 'again'))).toBe(target);
    const xattr = await client.walk(root, 'link');
    await client.call('xattrcreate', { fid: xattr, name: name('user.a'), size: 0n, flags: 0 });
    await expect(client.clunk(xattr)).rejects.toEqual(refused(errno.EPERM));
    await client.create(root, 'file');
    const rename = { olddirfid: root, oldname: name('file'), newdirfid: root, newname: name('link') };
    await client.call('renameat', rename);
    expect((await fs.lstat(join(dir, 'link'))).isFile()).toBe(true);
  });
});

describe('what moves meanwhile', () => {
  it('stays what it was for who holds it, and its new place is not shown', async () => {
    await mkdir(root, 'a');
    await mkdir(await client.walk(root, 'a'), 'b');
    const [a, b] = [await client.walk(root, 'a'), await client.walk(root, 'a/b')];
    await fs.rename(join(dir, 'a'), join(scratch, 'moved'));
    await fs.symlink('../beside', join(dir, 'a'));
    await client.create(a, 'new'); // where the host has put the directory, and not beside it
    expect(await fs.readdir(join(scratch, 'moved'))).toEqual(['b', 'new']);
    await expect(client.walk(b, '..')).rejects.toEqual(refused(errno.ENOENT));
    await expect(client.walk(a, '../secret')).rejects.toEqual(refused(errno.ENOENT));
    await expect(client.call('remove', { fid: b })).rejects.toEqual(refused(errno.ENOENT));
    rmSync(join(scratch, 'moved'), { recursive: true });
  });

  it('does not open a way out, while a directory and a link to outside take turns', async () => {
    await fs.mkdir(join(dir, 'turn'));
    await fs.writeFile(join(dir, 'turn/secret'), 'harmless');
    await fs.writeFile(join(dir, 'turn/old'), '');
    let swapping = true;
    let swaps = 0;
    const swap = async () => {
      const [turn, away] = [join(dir, 'turn'), join(dir, 'away')];
      while (swapping) {
        await fs.rename(turn, away);
        await fs.symlink(swaps % 2 ? '..' : '../beside', turn);
        await setImmediate();
        await fs.unlink(turn);
        await fs.rename(away, turn);
        swaps++;
      }
    };
    const outcomes = { harmless: 0, refused: 0 };
    const seenEnough = () => swaps > 20 && outcomes.harmless > 20;
    const attack = async (act: (i: number) => Promise<unknown>) => {
      for (let i = 0; i < 400 || !seenEnough(); i++) {
        try {
          await act(i);
          outcomes.harmless++;
        } catch (error) {
          if (!(error instanceof P9Error)) throw error;
          outcomes.refused++;
        }
      }
    };
    const reading = async () => {
      const fid = await client.open(root, 'turn/secret');
      const text = (await client.read(fid, 0n, 100)).toString();
      await client.clunk(fid);
      expect(text).toBe('harmless');
    };
    const creating = async (i: number) => {
      const fid = await client.walk(root, 'turn');
      await client.call('lcreate', { fid, name: name(`new${i}`), flags: O_RDWR, mode: 0o600, gid: 0 });
      await client.write(fid, 0n, 'x');
      await client.clunk(fid);
    };
    const changing = async (i: number) => {
      const fid = await client.walk(root, 'turn/secret');
      await (i % 2 ? setattr(fid, P9_SETATTR_MODE) : client.call('readlink', { fid }));
      await client.clunk(fid);
    };
    const moving = async (i: number) => {
      const fid = await client.walk(root, 'turn');
      await client.call('mkdir', { dfid: fid, name: name(`dir${i}`), mode: 0o700, gid: 0 });
      const rename = { olddirfid: fid, oldname: name('old'), newdirfid: fid, newname: name('new') };
      await client.call('renameat', rename).catch(() => client.walk(fid, '..').then((up) => client.clunk(up)));
      await client.clunk(fid);
    };
    const swapped = swap();
    await Promise.all([reading, creating, changing, moving].map(attack));
    swapping = false;
    await swapped;
  });
});

describe('requests that no client sends', () => {
  const messages = fc.oneof(
    fc.uint8Array({ minLength: 7, maxLength: 300 }),
    // Whole in form, hostile in content: every fid, name and number may be anything.
    fc
      .record({
        type: fc.constantFrom(...(Object.keys(MESSAGES) as RequestName[])),
        fid: fc.constantFrom(0, 1, 2, 3, 100, 0xffffffff),
        number: fc.constantFrom(0, 1, 2, 0o100, 0o1000, 0x200, 0o100600, 0o140600, 4096, 0x7fffffff, 0xffffffff),
        large: fc.constantFrom(0n, 1n, 4096n, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n),
        text: fc.constantFrom('', '.', '..', '/', '../secret', 'a', 'b', 'link', 'user.a', '9P2000.L', '\0', 'a/../..'),
      })
      .map(({ type, fid, number, large, text }) => {
        const value = { u8: number & 0xff, u16: number & 0xffff, u32: number, u64: large, s: name(text) };
        const fields = Object.entries(MESSAGES[type].request).map(([field, kind]) => [
          field,
          kind === 's*' ? [name(text), name('a')] : field.endsWith('fid') ? fid : value[kind as 'u32'],
        ]);
        return encodeRequest(type, number & 0xffff, Object.fromEntries(fields) as never);
      }),
  );

  it('are answered, each by one well-formed reply, and change nothing outside', async () => {
    await symlink('link', '../beside');
    await fc.assert(
      fc.asyncProperty(fc.array(messages, { maxLength: 40 }), fc.integer({ min: 11, max: 600 }), async (all, room) => {
        const attach = { fid: 1, afid: 0xffffffff, uname: name(''), aname: name(''), nUname: 0 };
        await client.call('attach', attach).catch(() => {});
        const replies = all.map(async (bytes) => {
          const request = Buffer.from(bytes);
          const reply = Buffer.alloc(room);
          const { head, dataBytes } = await server.serve([request], [reply]);
          const { size, type, tag } = decodeHeader(Buffer.from(head));
          expect(size).toBe(head.length + dataBytes);
          expect(size).toBeLessThanOrEqual(room);
          expect(type === 7 || type === request[4] + 1).toBe(true);
          expect(tag).toBe(request.readUInt16LE(5));
        });
        await Promise.all(replies);
        expect(server.openFiles).toBeLessThan(100);
      }),
      { numRuns: 300 },
    );
    server.reset();
    expect(server.openFiles).toBe(1);
  });

  it('cannot hold more of the host’s descriptors than they may, nor leave any behind', async () => {
    await server.close();
    server = await ShareServer.open({ dir, maxOpenFiles: 50 });
    client = new P9Client(inPlace(server));
    root = await client.start();
    await client.clunk(await client.create(root, 'a'));
    const before = (await fs.readdir('/proc/self/fd')).length;
    const opened = await Promise.allSettled(Array.from({ length: 500 }, () => client.open(root, 'a')));
    const failures = opened.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
    expect(opened.length - failures.length).toBeLessThanOrEqual(49);
    for (const { reason } of failures) expect(reason).toEqual(refused(errno.EMFILE));
    expect((await fs.readdir('/proc/self/fd')).length - before).toBeLessThanOrEqual(50);
    server.reset();
    await expect.poll(async () => (await fs.readdir('/proc/self/fd')).length).toBeLessThanOrEqual(before);
  });
});
