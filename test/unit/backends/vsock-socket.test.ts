import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VsockSocket } from '../../../src/backends/local/vsock-socket.js';
import { OP, type Packet, VsockGuest } from '../../support/vsock-guest.js';

let folder: string;
let path: string;
let guest: VsockGuest;
let socket: VsockSocket;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'vmexit-vsock-'));
  path = join(folder, 'v.sock');
  guest = new VsockGuest({ onRequest: (request) => socket.offer(request) });
  socket = await VsockSocket.listen({ path, connect: (port) => guest.device.connect(port) });
});

afterEach(async () => {
  await socket.close();
  rmSync(folder, { recursive: true });
});

async function client(text = ''): Promise<Socket> {
  const socket = connect({ path, allowHalfOpen: true });
  await once(socket, 'connect');
  if (text) socket.write(text);
  return socket;
}

/** The next packets of the device, which come by the event loop. */
async function next(count = 1): Promise<Packet[]> {
  const packets: Packet[] = [];
  while (packets.length < count) {
    packets.push(...guest.packets());
    await turn();
  }
  return packets;
}

/** A client that the guest's port 99 has accepted, and the port of its connection on the host. */
async function connected(): Promise<{ host: Socket; hostPort: number }> {
  const host = await client('CONNECT 99\n');
  const [{ op, dstPort, srcPort: hostPort }] = await next();
  expect([op, dstPort]).toEqual([OP.REQUEST, 99]);
  guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort: hostPort });
  expect(String((await once(host, 'data'))[0])).toBe(`OK ${hostPort}\n`);
  return { host, hostPort };
}

describe('a client', () => {
  it('talks to the port that it names, each direction to its end', async () => {
    const { host, hostPort } = await connected();
    host.end('question');
    const packets = await next(2);
    expect(packets).toMatchObject([{ op: OP.RW }, { op: OP.SHUTDOWN, flags: 2 }]);
    expect(String(packets[0].payload)).toBe('question');
    const ended = once(host, 'close');
    let answer = '';
    host.on('data', (chunk: Buffer) => (answer += String(chunk)));
    guest.send({ op: OP.RW, srcPort: 99, dstPort: hostPort }, 'answer');
    guest.send({ op: OP.SHUTDOWN, srcPort: 99, dstPort: hostPort, flags: 3 });
    await ended;
    expect([answer, guest.device.counters.connections]).toEqual(['answer', 0]);
  });

  it('may send before it is answered', async () => {
    await client('CONNECT 99\nearly');
    const [{ srcPort: hostPort }] = await next();
    guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort: hostPort });
    expect(String((await next())[0].payload)).toBe('early');
  });

  it('is told by a close that the guest refuses, and no sooner', async () => {
    const host = await client('CONNECT 99\n');
    const [{ srcPort: hostPort }] = await next();
    let heard = '';
    host.on('data', (chunk) => (heard += String(chunk)));
    guest.send({ op: OP.RST, srcPort: 99, dstPort: hostPort });
    await once(host, 'end');
    expect(heard).toBe('');
  });

  it.each([
    'GET / HTTP/1.0\n',
    'CONNECT\n',
    'CONNECT x\n',
    'CONNECT 4294967295\n',
    'CONNECT 99999999999\n',
    'x'.repeat(70),
    'C',
  ])('that says %j and no more is sent away', async (line) => {
    const host = await client();
    host.resume().end(line);
    await once(host, 'close');
    expect(guest.packets()).toEqual([]);
  });

  it('that goes away takes its connection along', async () => {
    const { host, hostPort } = await connected();
    host.destroy();
    expect(await next()).toMatchObject([{ op: OP.SHUTDOWN, flags: 2 }]);
    guest.send({ op: OP.RW, srcPort: 99, dstPort: hostPort }, 'anybody there?');
    expect(await next()).toMatchObject([{ op: OP.SHUTDOWN, flags: 3 }]);
    guest.send({ op: OP.RST, srcPort: 99, dstPort: hostPort });
    expect(guest.device.counters.connections).toBe(0);
  });

  it('that goes away before the answer leaves nothing behind', async () => {
    const host = await client('CONNECT 99\n');
    const [{ srcPort: hostPort }] = await next();
    host.destroy();
    guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort: hostPort });
    for (let last: Packet | undefined; !(last?.flags === 3 || last?.op === OP.RST);) last = (await next()).at(-1);
    guest.send({ op: OP.RST, srcPort: 99, dstPort: hostPort });
    expect(guest.device.counters.connections).toBe(0);
  });

  it('hears of a reset', async () => {
    const { host, hostPort } = await connected();
    guest.send({ op: OP.RST, srcPort: 99, dstPort: hostPort });
    await once(host.resume(), 'end');
  });
});

describe('a connection of the guest', () => {
  let server: Server | undefined;
  afterEach(() => void server?.close());

  it('goes to the socket with the port in its name', async () => {
    server = createServer({ allowHalfOpen: true }, (peer) => peer.pipe(peer)).listen(`${path}_50`);
    await once(server, 'listening');
    guest.send({ op: OP.REQUEST });
    guest.send({ op: OP.CREDIT_UPDATE, srcPort: 3 }); // no connection: a reset comes first
    expect((await next(2)).map(({ op }) => op)).toEqual([OP.RST, OP.RESPONSE]);
    guest.send({ op: OP.RW }, 'echo');
    guest.send({ op: OP.SHUTDOWN, flags: 2 });
    const packets = await next(2);
    expect(packets.map(({ op }) => op).slice(0, 2)).toEqual([OP.RW, OP.SHUTDOWN]);
    expect(String(packets[0].payload)).toBe('echo');
  });

  it('that is given up before the host has answered takes the socket along', async () => {
    const closed = new Promise((resolve) => {
      server = createServer((peer) => peer.resume().once('close', resolve)).listen(`${path}_50`);
    });
    await once(server!, 'listening');
    guest.send({ op: OP.REQUEST });
    guest.send({ op: OP.RST });
    await closed;
    expect(guest.device.counters.connections).toBe(0);
  });

  it('is refused where nobody listens', async () => {
    guest.send({ op: OP.REQUEST });
    expect(await next()).toMatchObject([{ op: OP.RST, dstPort: 1000 }]);
  });
});

describe('the socket', () => {
  it('is gone after close, with its connections', async () => {
    const { host } = await connected();
    await Promise.all([once(host.resume(), 'end'), socket.close()]);
    expect(existsSync(path)).toBe(false);
  });

  it('is not taken from another', async () => {
    const second = VsockSocket.listen({ path, connect: (port) => guest.device.connect(port) });
    await expect(second).rejects.toMatchObject({ code: 'SYSCALL', errno: 'EADDRINUSE' });
    await client();
  });

  it('needs a path that leaves room for ports', async () => {
    const listening = VsockSocket.listen({
      path: `/tmp/${'x'.repeat(92)}`,
      connect: () => Promise.reject(new Error()),
    });
    await expect(listening).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
