import { mkdtempSync, rmSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import * as p9 from '../../../src/backends/local/share/protocol.js';
import { ShareServer, type ShareOptions } from '../../../src/backends/local/share/server.js';
import { P9Client, inPlace } from '../../support/p9-client.js';

const { errno } = constants;
const [O_WRONLY, O_RDWR, O_EXCL, O_TRUNC, O_APPEND] = [1, 2, 0o200, 0o1000, 0o2000];
const name = (text: string) => Buffer.from(text);
const refused = (code: number) => expect.objectContaining({ errno: code }) as Error;

let scratch: string;
/** The shared directory; beside it is what must stay out of reach. */
let dir: string;
let server: ShareServer;
let client: P9Client;
let root: number;

async function share(options: Partial<ShareOptions> = {}, uid = 0): Promise<void> {
  await server?.close();
  server = await ShareServer.open({ dir, ...options });
  client = new P9Client(inPlace(server));
  root = await client.start(uid);
}

beforeEach(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'vmexit-share-'));
  dir = join(scratch, 'shared');
  await fs.mkdir(dir);
  await fs.writeFile(join(scratch, 'secret'), 'secret', { mode: 0o600 });
  await share();
});
afterEach(async () => {
  await server.close();
  rmSync(scratch, { recursive: true });
});

const write = (path: string, text = path) => fs.writeFile(join(dir, path), text);
const text = (path: string) => fs.readFile(join(dir, path), 'utf8');
const lstat = (path: string) => fs.lstat(join(dir, path));

async function setattr(fid: number, valid: number, values: Partial<p9.Request<'setattr'>> = {}): Promise<void> {
  const times = { atimeSec: 0n, atimeNsec: 0n, mtimeSec: 0n, mtimeNsec: 0n };
  await client.call('setattr', { fid, valid, mode: 0, uid: 0, gid: 0, size: 0n, ...times, ...values });
}
const getattr = (fid: number) => client.call('getattr', { fid, mask: p9.P9_GETATTR_BASIC | p9.P9_GETATTR_BTIME });
const mkdir = (dfid: number, path: string, mode = 0o755) =>
  client.call('mkdir', { dfid, name: name(path), mode, gid: 0 });
const symlink = (fid: number, path: string, target: string) =>
  client.call('symlink', { fid, name: name(path), target: name(target), gid: 0 });
const unlink = (dirfid: number, path: string, flags = 0) =>
  client.call('unlinkat', { dirfid, name: name(path), flags });
const renameat = (olddirfid: number, oldname: string, newdirfid: number, newname: string) =>
  client.call('renameat', { olddirfid, oldname: name(oldname), newdirfid, newname: name(newname) });

describe('a session', () => {
  it('begins by a version, with the smaller message size', async () => {
    const version = name('9P2000.L');
    expect(await client.call('version', { msize: 8192, version })).toEqual({ msize: 8192, version });
    expect((await client.call('version', { msize: 2 ** 30, version })).msize).toBe(2 ** 20);
    expect((await client.call('version', { msize: 8192, version: name('9P2000.u') })).version).toEqual(name('unknown'));
    await expect(client.call('version', { msize: 4095, version })).rejects.toEqual(refused(errno.EMSGSIZE));
  });

  it('ends with the next version: its fids are gone, and their descriptors closed', async () => {
    await write('a');
    const fid = await client.open(root, 'a');
    expect(server.openFiles).toBe(2);
    await client.call('version', { msize: 8192, version: name('9P2000.L') });
    expect(server.openFiles).toBe(1);
    await expect(client.read(fid, 0n, 1)).rejects.toEqual(refused(errno.EBADF));
    await expect(client.walk(root, '')).rejects.toEqual(refused(errno.EBADF));
  });

  it('has one tree to attach to, and wants no authentication', async () => {
    const attach = { fid: 1, afid: p9.NOFID, uname: name('root'), aname: name('/'), nUname: 0 };
    expect((await client.call('attach', attach)).qid.type).toBe(p9.QTDIR);
    await expect(client.call('attach', attach)).rejects.toEqual(refused(errno.EBADF)); // the fid is in use
    await expect(client.call('attach', { ...attach, fid: 2, aname: name('/etc') })).rejects.toEqual(
      refused(errno.ENOENT),
    );
    const auth = { afid: 3, uname: name('root'), aname: name(''), nUname: 0 };
    await expect(client.call('auth', auth)).rejects.toEqual(refused(errno.EOPNOTSUPP));
  });
});

describe('walking', () => {
  it('goes down several names at once, and says how far it came', async () => {
    await fs.mkdir(join(dir, 'a/b'), { recursive: true });
    await write('a/b/c');
    const names = ['a', 'b', 'c'].map(name);
    const { qids } = await client.call('walk', { fid: root, newfid: 7, names });
    expect(qids.map(({ type }) => type)).toEqual([p9.QTDIR, p9.QTDIR, p9.QTFILE]);
    const ino = async (path: string) => (await fs.stat(join(dir, path), { bigint: true })).ino;
    expect(qids.map(({ path }) => path)).toEqual([await ino('a'), await ino('a/b'), await ino('a/b/c')]);
    const partly = await client.call('walk', { fid: root, newfid: 8, names: ['a', 'x', 'c'].map(name) });
    expect(partly.qids).toEqual(qids.slice(0, 1));
    await expect(client.call('clunk', { fid: 8 })).rejects.toEqual(refused(errno.EBADF));
    await expect(client.walk(root, 'x')).rejects.toEqual(refused(errno.ENOENT));
    await expect(client.call('walk', { fid: 7, newfid: 9, names: [name('d')] })).rejects.toEqual(
      refused(errno.ENOTDIR),
    );
  });

  it('takes names of any bytes', async () => {
    const odd = Buffer.from([0xff, 0xfe, 0x0a, 0x20]);
    await fs.writeFile(Buffer.concat([Buffer.from(`${dir}/`), odd]), 'odd');
    await client.call('walk', { fid: root, newfid: 7, names: [odd] });
    await client.call('lopen', { fid: 7, flags: 0 });
    expect((await client.read(7, 0n, 9)).toString()).toBe('odd');
  });

  it('refuses a fid that is in use, too many names and too many fids', async () => {
    await expect(client.call('walk', { fid: root, newfid: p9.NOFID, names: [] })).rejects.toEqual(refused(errno.EBADF));
    const names = Array.from({ length: 17 }, () => name('.'));
    await expect(client.call('walk', { fid: root, newfid: 7, names })).rejects.toEqual(refused(errno.EINVAL));
    await share({ maxOpenFiles: 5 });
    await write('a');
    for (let i = 0; i < 4; i++) await client.walk(root, 'a');
    await expect(client.walk(root, 'a')).rejects.toEqual(refused(errno.EMFILE));
    await expect(client.walk(root, '')).rejects.toEqual(refused(errno.EMFILE));
    expect(server.openFiles).toBe(5);
  });
});

describe('files', () => {
  it('are created, written, read and removed', async () => {
    const fid = await client.create(root, 'new', { mode: 0o640 });
    expect(await client.write(fid, 0n, 'hello world')).toBe(11);
    expect(await client.write(fid, 6n, 'there')).toBe(5);
    expect((await client.read(fid, 3n, 100)).toString()).toBe('lo there');
    expect(await client.read(fid, 11n, 100)).toHaveLength(0);
    await client.call('fsync', { fid, datasync: 0 });
    await client.clunk(fid);
    expect(await text('new')).toBe('hello there');
    expect((await lstat('new')).mode & 0o7777).toBe(0o640);
    await unlink(root, 'new');
    await expect(lstat('new')).rejects.toThrow('ENOENT');
    expect(server.openFiles).toBe(1); // its root, which the client's fid shares
  });

  it('have exactly the permissions asked for, whatever the umask is', async () => {
    await client.create(root, 'all', { mode: 0o777 });
    await mkdir(root, 'open', 0o1777);
    expect((await lstat('all')).mode & 0o7777).toBe(0o777);
    expect((await lstat('open')).mode & 0o7777).toBe(0o1777);
  });

  it('move megabytes in messages as large as were agreed on', async () => {
    client = new P9Client(inPlace(server), 500_000);
    root = await client.start();
    const bytes = Buffer.from(Uint8Array.from({ length: 3_000_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    const fid = await client.create(root, 'large');
    const step = 500_000 - 24;
    for (let at = 0; at < bytes.length; at += step) {
      await client.write(fid, BigInt(at), bytes.subarray(at, at + step));
    }
    expect(Buffer.compare(await fs.readFile(join(dir, 'large')), bytes)).toBe(0);
    const parts = await Promise.all(
      Array.from({ length: 7 }, (_, i) => client.read(fid, BigInt(i * step), step)), // in parallel
    );
    expect(Buffer.compare(Buffer.concat(parts), bytes)).toBe(0);
    expect(server.counters).toMatchObject({ bytesRead: 3_000_000, bytesWritten: 3_000_000 });
  });

  it('keep to the open’s flags', async () => {
    await write('a', 'abc');
    const reading = await client.open(root, 'a');
    const writing = await client.open(root, 'a', O_WRONLY | O_APPEND);
    await expect(client.write(reading, 0n, 'x')).rejects.toEqual(refused(errno.EBADF));
    await expect(client.read(writing, 0n, 1)).rejects.toEqual(refused(errno.EBADF));
    await client.write(writing, 0n, 'd');
    expect(await text('a')).toBe('abcd');
    await client.open(root, 'a', O_RDWR | O_TRUNC);
    expect(await text('a')).toBe('');
    await expect(client.create(root, 'a', { flags: O_RDWR | O_EXCL })).rejects.toEqual(refused(errno.EEXIST));
    await client.create(root, 'a', { flags: O_RDWR });
    await expect(client.call('lopen', { fid: reading, flags: 0 })).rejects.toEqual(refused(errno.EINVAL));
    await expect(client.read(await client.walk(root, 'a'), 0n, 1)).rejects.toEqual(refused(errno.EBADF));
    await expect(client.open(root, '', O_RDWR)).rejects.toEqual(refused(errno.EISDIR));
  });

  it('stay readable by who has them open, when their name is gone or means another', async () => {
    await write('a', 'old');
    const fid = await client.open(root, 'a');
    await unlink(root, 'a');
    await write('a', 'new');
    expect((await client.read(fid, 0n, 9)).toString()).toBe('old');
    expect((await getattr(fid)).nlink).toBe(0n);
  });

  it('tell of themselves what stat(2) tells', async () => {
    await write('a', 'abc');
    const stat = await fs.stat(join(dir, 'a'), { bigint: true });
    const attributes = await getattr(await client.walk(root, 'a'));
    expect(attributes).toMatchObject({
      valid: p9.P9_GETATTR_BASIC | p9.P9_GETATTR_BTIME,
      mode: Number(stat.mode),
      uid: 0,
      gid: 0,
      nlink: 1n,
      size: 3n,
      blocks: stat.blocks,
      mtimeSec: stat.mtimeNs / 10n ** 9n,
      mtimeNsec: stat.mtimeNs % 10n ** 9n,
      ctimeNsec: stat.ctimeNs % 10n ** 9n,
      btimeNsec: stat.birthtimeNs % 10n ** 9n,
    });
    expect(attributes.qid.path).toBe(stat.ino);
  });

  it('have size, permissions and times changed, to the nanosecond and before 1970', async () => {
    await write('a', 'abc');
    const fid = await client.walk(root, 'a');
    await setattr(fid, p9.P9_SETATTR_SIZE | p9.P9_SETATTR_MODE, { size: 2n, mode: 0o604 });
    expect(await text('a')).toBe('ab');
    expect((await lstat('a')).mode & 0o7777).toBe(0o604);
    const set = p9.P9_SETATTR_ATIME | p9.P9_SETATTR_ATIME_SET | p9.P9_SETATTR_MTIME | p9.P9_SETATTR_MTIME_SET;
    const before1970 = BigInt.asUintN(64, -5n);
    await setattr(fid, set, { atimeSec: 1_700_000_000n, atimeNsec: 123_456_789n, mtimeSec: before1970, mtimeNsec: 7n });
    const { atimeNs, mtimeNs } = await fs.stat(join(dir, 'a'), { bigint: true });
    expect([atimeNs, mtimeNs]).toEqual([1_700_000_000_123_456_789n, -4_999_999_993n]);
    expect(await getattr(fid)).toMatchObject({ mtimeSec: before1970, mtimeNsec: 7n });
    const beforeMs = Date.now();
    await setattr(fid, p9.P9_SETATTR_MTIME);
    const now = await fs.stat(join(dir, 'a'));
    // The kernel's clock for files is some milliseconds behind.
    expect(now.mtimeMs).toBeGreaterThan(beforeMs - 1000);
    expect(now.mtimeMs).toBeLessThan(Date.now() + 1);
    expect(now.atimeMs).toBeCloseTo(1_700_000_000_123.457, 2);
    await expect(setattr(fid, set, { atimeNsec: 10n ** 9n })).rejects.toEqual(refused(errno.EINVAL));
    await expect(setattr(fid, p9.P9_SETATTR_SIZE, { size: 2n ** 63n })).rejects.toEqual(refused(errno.EFBIG));
    await expect(setattr(root, p9.P9_SETATTR_SIZE)).rejects.toEqual(refused(errno.EISDIR));
  });

  it('have other names, by links', async () => {
    await write('a', 'abc');
    await client.call('link', { dfid: root, fid: await client.walk(root, 'a'), name: name('b') });
    expect((await getattr(await client.walk(root, 'b'))).nlink).toBe(2n);
    await symlink(root, 'l', '/etc/passwd');
    const link = await client.walk(root, 'l');
    expect((await client.call('readlink', { fid: link })).target.toString()).toBe('/etc/passwd');
    expect((await getattr(link)).mode & 0o170000).toBe(0o120000);
    await client.call('link', { dfid: root, fid: link, name: name('m') });
    expect(await fs.readlink(join(dir, 'm'))).toBe('/etc/passwd');
    await expect(client.call('readlink', { fid: root })).rejects.toEqual(refused(errno.EINVAL));
  });

  it('are renamed, by both operations, over what is there', async () => {
    await mkdir(root, 'sub');
    const sub = await client.walk(root, 'sub');
    await write('a');
    await write('sub/b');
    await renameat(root, 'a', sub, 'b');
    expect(await text('sub/b')).toBe('a');
    const fid = await client.walk(root, 'sub/b');
    await client.call('rename', { fid, dfid: root, name: name('c') });
    expect(await text('c')).toBe('a');
    await client.call('rename', { fid, dfid: sub, name: name('d') }); // the fid is the file, not its name
    expect(await text('sub/d')).toBe('a');
    await client.call('remove', { fid });
    expect(await fs.readdir(join(dir, 'sub'))).toEqual([]);
    await expect(client.clunk(fid)).rejects.toEqual(refused(errno.EBADF));
    await expect(renameat(root, 'sub', sub, 'sub')).rejects.toEqual(refused(errno.EINVAL));
  });

  it('may be FIFOs and sockets, which nobody opens here, and no devices', async () => {
    const mknod = (path: string, mode: number) =>
      client.call('mknod', { dfid: root, name: name(path), mode, major: 8, minor: 0, gid: 0 });
    await mknod('fifo', 0o010600);
    await mknod('socket', 0o140600);
    await mknod('plain', 0o100600);
    expect((await lstat('fifo')).isFIFO()).toBe(true);
    expect((await lstat('socket')).isSocket()).toBe(true);
    for (const path of ['fifo', 'socket']) {
      for (const flags of [0, O_WRONLY, O_RDWR]) {
        await expect(client.open(root, path, flags)).rejects.toEqual(refused(errno.ENXIO));
      }
      await expect(client.create(root, path)).rejects.toEqual(refused(errno.ENXIO));
      await expect(setattr(await client.walk(root, path), p9.P9_SETATTR_SIZE)).rejects.toEqual(refused(errno.EINVAL));
    }
    for (const mode of [0o020666, 0o060666]) {
      await expect(mknod('device', mode)).rejects.toEqual(refused(errno.EPERM));
    }
  });

  it('say how full their file system is', async () => {
    const { blocks, type, namelen } = await client.call('statfs', { fid: root });
    expect(blocks).toBe((await fs.statfs(dir, { bigint: true })).blocks);
    expect([type, namelen]).toEqual([0x01021997, 255]);
  });

  it('are the client’s to lock', async () => {
    const fid = await client.create(root, 'a');
    const range = { start: 1n, length: 2n, procId: 3, clientId: name('guest') };
    expect(await client.call('lock', { fid, type: 1, flags: 0, ...range })).toEqual({ status: 0 });
    expect(await client.call('getlock', { fid, type: 1, ...range })).toEqual({ type: 2, ...range });
  });
});

describe('directories', () => {
  it('are made and removed', async () => {
    const { qid } = await mkdir(root, 'sub');
    expect(qid.type).toBe(p9.QTDIR);
    await write('sub/a');
    await expect(mkdir(root, 'sub')).rejects.toEqual(refused(errno.EEXIST));
    await expect(unlink(root, 'sub')).rejects.toEqual(refused(errno.EISDIR));
    await expect(unlink(root, 'sub', p9.P9_DOTL_AT_REMOVEDIR)).rejects.toEqual(refused(errno.ENOTEMPTY));
    await fs.unlink(join(dir, 'sub/a'));
    await unlink(root, 'sub', p9.P9_DOTL_AT_REMOVEDIR);
    expect(await fs.readdir(dir)).toEqual([]);
  });

  it.each([300, 4096, 60_000])('of 3,000 entries are listed whole, %i bytes at a time', async (count) => {
    const names = Array.from({ length: 3000 }, (_, i) => `${i}-${'x'.repeat(i % 200)}`);
    await Promise.all(names.map((each) => write(each, '')));
    await fs.mkdir(join(dir, 'sub'));
    await fs.symlink('x', join(dir, 'link'));
    const entries = await client.list(await client.open(root, ''), count);
    expect(entries.map((entry) => entry.name).sort()).toEqual(['.', '..', 'link', 'sub', ...names].sort());
    const byName = new Map(entries.map((entry) => [entry.name, entry]));
    expect(['0-', 'sub', 'link'].map((each) => byName.get(each)!.type)).toEqual([8, 4, 10]);
    expect(['0-', 'sub', 'link'].map((each) => byName.get(each)!.qid.type)).toEqual([0, 0x80, 2]);
    expect(byName.get('sub')!.qid.path).toBe((await fs.stat(join(dir, 'sub'), { bigint: true })).ino);
  });

  it('are read from any cookie on, by several at once through one fid', async () => {
    for (let i = 0; i < 200; i++) await write(`file${i}`, '');
    const fid = await client.open(root, '');
    const all = await client.list(fid);
    const rests = await Promise.all(all.map(({ cookie }) => client.readdir(fid, cookie, 60_000)));
    rests.forEach((rest, i) => expect(rest).toEqual(all.slice(i + 1)));
  });

  it('do not pretend to be empty to who has no room for an entry', async () => {
    const fid = await client.open(root, '');
    await expect(client.readdir(fid, 0n, 20)).rejects.toEqual(refused(errno.EINVAL));
    await expect(client.readdir(fid, 2n ** 63n, 4096)).rejects.toEqual(refused(errno.EINVAL));
    await expect(client.readdir(root, 0n, 4096)).rejects.toEqual(refused(errno.EBADF)); // not open
  });
});

describe('extended attributes', () => {
  const read = async (fid: number, attribute: string) => {
    const newfid = client.newFid();
    const { size } = await client.call('xattrwalk', { fid, newfid, name: name(attribute) });
    const bytes = await client.read(newfid, 0n, 60_000);
    await client.clunk(newfid);
    expect(BigInt(bytes.length)).toBe(size);
    return bytes.toString();
  };
  const set = async (of: number, attribute: string, value: string, flags = 0, size = value.length) => {
    const fid = await client.walk(of, '');
    await client.call('xattrcreate', { fid, name: name(attribute), size: BigInt(size), flags });
    for (let at = 0; at < value.length; at += 3) await client.write(fid, BigInt(at), value.slice(at, at + 3));
    await client.clunk(fid);
  };

  it('are set, read, listed and removed', async () => {
    await write('a');
    const fid = await client.walk(root, 'a');
    await set(fid, 'user.one', 'value one');
    await set(fid, 'user.two', '');
    expect(await read(fid, 'user.one')).toBe('value one');
    expect((await read(fid, '')).split('\0').sort()).toEqual(['', 'user.one', 'user.two']);
    await expect(set(fid, 'user.one', 'x', 1)).rejects.toEqual(refused(errno.EEXIST));
    await expect(set(fid, 'user.new', 'x', 2)).rejects.toEqual(refused(errno.ENODATA));
    await set(fid, 'user.one', '', 2);
    await expect(read(fid, 'user.one')).rejects.toEqual(refused(errno.ENODATA));
  });

  it('are set whole, or not at all', async () => {
    const fid = await client.create(root, 'a');
    await client.clunk(fid);
    const file = await client.walk(root, 'a');
    await expect(set(file, 'user.a', 'short', 0, 9)).rejects.toEqual(refused(errno.EINVAL));
    await expect(set(file, 'user.a', 'longer', 0, 4)).rejects.toEqual(refused(errno.ENOSPC));
    await expect(set(file, 'user.a', '', 0, 65_537)).rejects.toEqual(refused(errno.E2BIG));
    expect(await read(file, '')).toBe('');
  });

  it('of the host’s own concern stay out', async () => {
    const fid = await client.create(root, 'a');
    await client.clunk(fid);
    const file = await client.walk(root, 'a');
    for (const each of ['security.capability', 'trusted.x', 'system.posix_acl_access', 'user', 'userX.a']) {
      await expect(set(file, each, 'x')).rejects.toEqual(refused(errno.EOPNOTSUPP));
      await expect(read(file, each)).rejects.toEqual(refused(errno.EOPNOTSUPP));
    }
  });

  it('cannot fill the host’s memory while they are written', async () => {
    await write('a');
    const begin = async () => {
      const fid = await client.walk(root, 'a');
      await client.call('xattrcreate', { fid, name: name('user.a'), size: 65_536n, flags: 0 });
      return fid;
    };
    const fids: number[] = [];
    for (let i = 0; i < 256; i++) fids.push(await begin());
    await expect(begin()).rejects.toEqual(refused(errno.ENOMEM));
    await expect(client.clunk(fids[0])).rejects.toEqual(refused(errno.EINVAL)); // unwritten, and gone
    await begin();
  });
});

describe('ownership', () => {
  it('is the guest’s root’s where it is squashed, and no program lends rights', async () => {
    await write('a');
    const fid = await client.walk(root, 'a');
    await fs.lchown(join(dir, 'a'), 1234, 1235).catch(() => {}); // only root can
    expect(await getattr(fid)).toMatchObject({ uid: 0, gid: 0 });
    await setattr(fid, p9.P9_SETATTR_UID | p9.P9_SETATTR_GID, { uid: 0, gid: 0 });
    await expect(setattr(fid, p9.P9_SETATTR_UID, { uid: 1000 })).rejects.toEqual(refused(errno.EPERM));
    await setattr(fid, p9.P9_SETATTR_MODE, { mode: 0o6755 });
    expect((await lstat('a')).mode & 0o7777).toBe(0o755);
    await client.create(root, 'b', { mode: 0o6755 });
    expect((await lstat('b')).mode & 0o7777).toBe(0o755);
    await mkdir(root, 'sub', 0o2775);
    expect((await lstat('sub')).mode & 0o7777).toBe(0o2775);
  });

  it.runIf(process.geteuid?.() === 0)('has the same numbers on both sides where it is passed through', async () => {
    await share({ ids: 'passthrough' }, 1001);
    await client.create(root, 'a', { mode: 0o4755, gid: 1002 });
    await client.call('mkdir', { dfid: root, name: name('sub'), mode: 0o700, gid: 1003 });
    await client.call('symlink', { fid: root, name: name('l'), target: name('a'), gid: 1004 });
    const owners = await Promise.all(['a', 'sub', 'l'].map(lstat));
    expect(owners.map(({ uid, gid }) => [uid, gid])).toEqual([
      [1001, 1002],
      [1001, 1003],
      [1001, 1004],
    ]);
    expect(owners[0].mode & 0o7777).toBe(0o4755);
    const link = await client.walk(root, 'l');
    await setattr(link, p9.P9_SETATTR_UID | p9.P9_SETATTR_GID, { uid: 5, gid: 6 });
    expect([(await lstat('l')).uid, (await lstat('a')).uid]).toEqual([5, 1001]);
    expect(await getattr(link)).toMatchObject({ uid: 5, gid: 6 });
  });
});

describe('a read-only share', () => {
  it('is read, and nothing in it is changed', async () => {
    await write('a', 'abc');
    await fs.mkdir(join(dir, 'sub'));
    const before = await fs.stat(join(dir, 'a'), { bigint: true });
    await share({ readOnly: true });
    expect((await client.read(await client.open(root, 'a'), 0n, 9)).toString()).toBe('abc');
    const a = await client.walk(root, 'a');
    const attempts: (() => Promise<unknown>)[] = [
      () => client.open(root, 'a', O_RDWR),
      () => client.open(root, 'a', O_WRONLY),
      () => client.open(root, 'a', O_TRUNC),
      () => client.create(root, 'a', { flags: 0 }),
      () => client.create(root, 'b'),
      () => mkdir(root, 'b'),
      () => symlink(root, 'b', 'a'),
      () => client.call('mknod', { dfid: root, name: name('b'), mode: 0o100644, major: 0, minor: 0, gid: 0 }),
      () => client.call('link', { dfid: root, fid: a, name: name('b') }),
      () => renameat(root, 'a', root, 'b'),
      () => client.call('rename', { fid: a, dfid: root, name: name('b') }),
      () => unlink(root, 'a'),
      () => unlink(root, 'sub', p9.P9_DOTL_AT_REMOVEDIR),
      () => setattr(a, p9.P9_SETATTR_MODE, { mode: 0 }),
      () => setattr(a, p9.P9_SETATTR_SIZE),
      () => setattr(a, p9.P9_SETATTR_MTIME),
      () => client.call('xattrcreate', { fid: a, name: name('user.a'), size: 0n, flags: 0 }),
      () => client.call('remove', { fid: a }),
    ];
    for (const attempt of attempts) await expect(attempt(), String(attempt)).rejects.toEqual(refused(errno.EROFS));
    expect((await fs.readdir(dir)).sort()).toEqual(['a', 'sub']);
    const after = await fs.stat(join(dir, 'a'), { bigint: true });
    expect([after.ctimeNs, after.mtimeNs, after.size]).toEqual([before.ctimeNs, before.mtimeNs, before.size]);
  });
});
