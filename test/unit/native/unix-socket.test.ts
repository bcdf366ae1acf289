import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addon, native, type NativeUnixSocket } from '../../../src/native/addon.js';

const MAX_FDS = 32;
const openFds = () => readdirSync('/proc/self/fd').length;
const adopt = (fd: number) => native(() => new (addon().UnixSocket)('adopt', fd));
const received = (socket: NativeUnixSocket, room = 100) => {
  const into = new Uint8Array(room);
  const got = native(() => socket.receive(into));
  return got && { bytes: [...into.subarray(0, got[0])], fds: got.slice(1) };
};

describe('UnixSocket', () => {
  let a: NativeUnixSocket;
  let b: NativeUnixSocket;
  let fdsBefore: number;

  beforeEach(() => {
    fdsBefore = openFds();
    [a, b] = native(() => addon().socketPair()).map(adopt);
  });

  afterEach(async () => {
    a.close();
    b.close();
    await expect.poll(openFds).toBe(fdsBefore);
  });

  it('carries bytes and descriptors, which are new ones of the same file', () => {
    const eventFd = new (addon().EventFd)();
    expect(a.send(Uint8Array.of(1, 2, 3), [eventFd.fd(), eventFd.fd()])).toBe(3);
    const { bytes, fds } = received(b)!;
    expect(bytes).toEqual([1, 2, 3]);
    expect(fds).toHaveLength(2);
    expect(new Set([...fds, eventFd.fd()]).size).toBe(3);
    expect(fds.map((fd) => fstatSync(fd).ino)).toEqual([fstatSync(eventFd.fd()).ino, fstatSync(eventFd.fd()).ino]);
    fds.forEach(closeSync);
    eventFd.close();
  });

  it('closes on exec what it received', async () => {
    const file = openSync('/dev/null', 'r');
    a.send(Uint8Array.of(0), [file]);
    const [fd] = received(b)!.fds;
    const child = spawn('test', ['!', '-e', `/proc/self/fd/${fd}`]);
    expect(await once(child, 'exit')).toEqual([0, null]);
    closeSync(fd);
    closeSync(file);
  });

  it('leaves a message whole that arrives in pieces, descriptors with its first byte', () => {
    const file = openSync('/dev/null', 'r');
    a.send(Uint8Array.of(1, 2, 3), [file]);
    closeSync(file);
    const first = received(b, 1)!;
    expect(first).toMatchObject({ bytes: [1], fds: [expect.any(Number)] });
    expect(received(b)).toEqual({ bytes: [2, 3], fds: [] });
    closeSync(first.fds[0]);
  });

  it('never blocks, and tells an empty socket from one that ended', () => {
    expect(received(b)).toBeUndefined();
    const block = new Uint8Array(64 * 1024);
    let sent = 0;
    for (let bytes = a.send(block, []); bytes > 0; bytes = a.send(block, [])) sent += bytes;
    expect(sent).toBeGreaterThan(0);
    a.close();
    while (received(b, 1 << 20)!.bytes.length > 0);
    expect(received(b)).toEqual({ bytes: [], fds: [] });
    expect(() => native(() => b.send(block, []))).toThrow(expect.objectContaining({ errno: 'EPIPE' }));
  });

  it(`takes ${MAX_FDS} descriptors a message, and no more`, () => {
    const file = openSync('/dev/null', 'r');
    a.send(Uint8Array.of(0), Array<number>(MAX_FDS).fill(file));
    received(b)!.fds.forEach(closeSync);
    const tooMany = () => native(() => a.send(Uint8Array.of(0), Array<number>(MAX_FDS + 1).fill(file)));
    expect(tooMany).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    closeSync(file);
  });

  it('keeps none of the descriptors when more come than fit', async () => {
    const count = 40;
    const program = `
import array, socket
s = socket.socket(fileno=3)
s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [3] * ${count}))])`;
    const child = spawn('python3', ['-c', program], { stdio: ['ignore', 'inherit', 'inherit', a.fd()] });
    expect(await once(child, 'exit')).toEqual([0, null]);
    expect(() => received(b)).toThrow(expect.objectContaining({ errno: 'EMSGSIZE' }));
  });

  it('calls its listener while there is something to receive', async () => {
    const readable = new Promise((resolve) => b.onReadable(() => resolve(received(b))));
    a.send(Uint8Array.of(7), []);
    expect(await readable).toEqual({ bytes: [7], fds: [] });
  });

  it('connects to one that listens', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-'));
    const path = join(folder, 'socket');
    const listener = native(() => new (addon().UnixSocket)('listen', path));
    expect(listener.accept()).toBeUndefined();
    const waiting = new Promise<void>((resolve) => listener.onReadable(resolve));
    const client = native(() => new (addon().UnixSocket)('connect', path));
    await waiting;
    const server = adopt(listener.accept()!);
    client.send(Uint8Array.of(9), []);
    expect(received(server)).toEqual({ bytes: [9], fds: [] });
    for (const socket of [server, client, listener]) socket.close();
    rmSync(folder, { recursive: true });
  });

  it('says what failed where it cannot connect', () => {
    const connect = (path: string) => () => native(() => new (addon().UnixSocket)('connect', path));
    expect(connect('/no/such/socket')).toThrow(expect.objectContaining({ code: 'SYSCALL', errno: 'ENOENT' }));
    for (const path of ['', '\0abstract', 'x'.repeat(108)]) {
      expect(connect(path)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    }
  });

  it('refuses what is no Unix stream socket, and leaves it open', () => {
    const file = openSync('/dev/null', 'r');
    expect(() => adopt(file)).toThrow(expect.objectContaining({ errno: 'ENOTSOCK' }));
    closeSync(file);
    expect(() => adopt(-1)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('exchanges a request for an answer, for which it waits, but not for ever', async () => {
    const program = `
import os, socket, time
s = socket.socket(fileno=3)
s.setblocking(True)
assert s.recv(3, socket.MSG_WAITALL) == bytes([1, 2, 3])
for i in range(4):
    time.sleep(0.01)
    s.send(bytes([i]))
s.recv(1)`;
    const child = spawn('python3', ['-c', program], { stdio: ['ignore', 'inherit', 'inherit', b.fd()] });
    const exited = once(child, 'exit');
    const reply = new Uint8Array(4);
    native(() => a.exchange(Uint8Array.of(1, 2, 3), reply, 20_000));
    expect([...reply]).toEqual([0, 1, 2, 3]);
    const began = performance.now();
    expect(() => native(() => b.exchange(Uint8Array.of(9), reply, 50))).toThrow(
      expect.objectContaining({ code: 'SYSCALL', errno: 'ETIMEDOUT' }),
    );
    expect(performance.now() - began).toBeGreaterThan(49);
    b.close();
    native(() => a.send(Uint8Array.of(0), []));
    expect(await exited).toEqual([0, null]);
    expect(() => native(() => a.exchange(Uint8Array.of(1), reply, 1000))).toThrow(
      expect.objectContaining({ errno: 'EPIPE' }),
    );
  });

  it('hears of the end while it waits for an answer, and drops descriptors that come with one', () => {
    const file = openSync('/dev/null', 'r');
    b.send(Uint8Array.of(7, 8), [file]);
    const reply = new Uint8Array(2);
    native(() => a.exchange(Uint8Array.of(1), reply, 1000));
    expect([...reply]).toEqual([7, 8]);
    b.send(Uint8Array.of(7), [file]);
    closeSync(file);
    received(b);
    b.close();
    expect(() => native(() => a.exchange(Uint8Array.of(1), reply, 1000))).toThrow(
      expect.objectContaining({ code: 'SYSCALL' }),
    );
  });

  it.each([
    ['exchange', (s: NativeUnixSocket) => s.exchange('x' as never, new Uint8Array(1), 1)],
    ['exchange', (s: NativeUnixSocket) => s.exchange(Uint8Array.of(1), undefined as never, 1)],
    ['exchange', (s: NativeUnixSocket) => s.exchange(Uint8Array.of(1), new Uint8Array(1), -1)],
    ['exchange', (s: NativeUnixSocket) => s.exchange(Uint8Array.of(1), new Uint8Array(1), 60_001)],
    ['send', (s: NativeUnixSocket) => s.send(new Uint8Array(0), [])],
    ['send', (s: NativeUnixSocket) => s.send('bytes' as never, [])],
    ['send', (s: NativeUnixSocket) => s.send(Uint8Array.of(1), undefined as never)],
    ['send', (s: NativeUnixSocket) => s.send(Uint8Array.of(1), [NaN])],
    ['send', (s: NativeUnixSocket) => s.send(Uint8Array.of(1), [-1])],
    ['send', (s: NativeUnixSocket) => s.send(Uint8Array.of(1), ['1' as never])],
    ['receive', (s: NativeUnixSocket) => s.receive(new Uint8Array(0))],
    ['receive', (s: NativeUnixSocket) => s.receive(undefined as never)],
    ['onReadable', (s: NativeUnixSocket) => s.onReadable(1 as never)],
  ])('%s refuses what is no argument of it', (_, call) => {
    expect(() => native(() => call(a))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('is closed once and for all', () => {
    a.close();
    a.close();
    for (const call of [() => a.send(Uint8Array.of(1), []), () => received(a), () => a.accept(), () => a.fd()]) {
      expect(() => native<unknown>(call)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    }
  });
});
