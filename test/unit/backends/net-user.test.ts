import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createTcpServer, connect, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { parsePortForward } from '../../../src/backends/net/port-forward.js';
import { UserNetwork, type UserNetworkOptions } from '../../../src/backends/net/user.js';
import type { VmmError } from '../../../src/errors.js';
import { NetGuest } from '../../support/net-guest.js';
import {
  ACK,
  BROADCAST,
  SYN,
  arp,
  dhcpAddress,
  dhcpDiscover,
  ethernet,
  parse,
  parseDhcp,
  tcp,
} from '../../support/packets.js';

const GUEST_MAC = '52:54:00:12:34:56';
const PASST = spawnSync('passt', ['--version']).status === 0;
if (!PASST) console.warn('SKIPPED: tests with passt; run: sudo apt-get install --no-install-recommends passt');

const networks: UserNetwork[] = [];
async function start(options: UserNetworkOptions = {}): Promise<UserNetwork> {
  const network = await UserNetwork.start(options);
  networks.push(network);
  return network;
}
afterEach(async () => {
  for (const network of networks.splice(0)) await network.close();
});

/** The ARP request by which the network finds out that its program is there, and the length before it. */
const PROBE_BYTES = 4 + 42;

const isRunning = (pid: number) => existsSync(`/proc/${pid}`);
async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0);
  await new Promise((done) => server.once('listening', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

/** Forwards a free port of the host; another one when somebody takes it before passt does. */
async function startForwarding(guestPort: number): Promise<{ network: UserNetwork; hostPort: number }> {
  for (;;) {
    const hostPort = await freePort();
    try {
      return { network: await start({ forwards: [parsePortForward(`127.0.0.1:${hostPort}:${guestPort}`)] }), hostPort };
    } catch (error) {
      if (!/Failed to bind/.test((error as VmmError).message)) throw error;
    }
  }
}

/** Asks for an address, as a DHCP client begins. */
async function lease(guest: NetGuest): Promise<{ address: string; router: string; mtu: number }> {
  guest.send(dhcpDiscover(guest.mac, 0xc0ffee));
  const offer = await guest.next(({ frame }) => parse(frame).to.port === 68);
  const { transaction, address, options } = parseDhcp(parse(offer.frame).payload);
  expect([transaction, options.get(53)]).toEqual([0xc0ffee, Buffer.from([2])]);
  return { address, router: dhcpAddress(options.get(3)!), mtu: options.get(26)?.readUInt16BE() ?? 0 };
}

describe.skipIf(!PASST)('a user network with passt (skipped where passt is not installed)', () => {
  it('offers the guest an address, a router and the MTU by DHCP', async () => {
    const guest = new NetGuest(await start(), { mac: GUEST_MAC });
    const { address, router, mtu } = await lease(guest);
    expect(address).toMatch(/^\d+\.\d+\.\d+\.\d+$/);
    expect(router).toMatch(/^\d+\.\d+\.\d+\.\d+$/);
    expect([mtu, guest.device.counters.received.dropped]).toEqual([65520, {}]);
  });

  it('answers in frames with right checksums, its router by ARP', async () => {
    const guest = new NetGuest(await start(), { mac: GUEST_MAC });
    const { address, router } = await lease(guest);
    const request = arp(1, { mac: guest.mac, ip: address }, { mac: '00:00:00:00:00:00', ip: router });
    guest.send(ethernet(BROADCAST, guest.mac, 0x0806, request));
    const reply = parse((await guest.next(({ frame }) => parse(frame).type === 0x0806)).frame);
    expect([reply.toMac, reply.from.ip]).toEqual([guest.mac, router]);
  });

  it('connects the guest to a service on the host, at the gateway', async () => {
    const server = createTcpServer((socket) => socket.on('error', () => {}).end('from the host')).listen(
      0,
      '127.0.0.1',
    );
    await new Promise((done) => server.once('listening', done));
    const guest = new NetGuest(await start(), { mac: GUEST_MAC });
    const { address, router } = await lease(guest);
    const from = { ip: address, port: 40000 };
    const to = { ip: router, port: (server.address() as AddressInfo).port };
    const send = (seq: number, ack: number, flags: number) =>
      guest.send(ethernet(BROADCAST, guest.mac, 0x0800, tcp(from, to, { seq, ack, flags, mss: 1400 })));
    send(1000, 0, SYN);
    const isOurs = (frame: Buffer) => parse(frame).tcp !== undefined && parse(frame).from.port === to.port;
    const answer = parse((await guest.next(({ frame }) => isOurs(frame))).frame);
    expect([answer.tcp!.flags & (SYN | ACK), answer.tcp!.ack, answer.checksumGood]).toEqual([SYN | ACK, 1001, true]);
    send(1001, answer.tcp!.seq + 1, ACK);
    const data = await guest.next(({ frame }) => isOurs(frame) && parse(frame).payload.length > 0);
    expect(parse(data.frame)).toMatchObject({ checksumGood: true, payload: Buffer.from('from the host') });
    server.close();
  });

  it('forwards ports of the host to the guest', async () => {
    const { network, hostPort } = await startForwarding(80);
    const guest = new NetGuest(network, { mac: GUEST_MAC });
    await lease(guest);
    const client = connect(hostPort, '127.0.0.1');
    client.on('error', () => {});
    const { frame } = await guest.next((received) => parse(received.frame).tcp !== undefined);
    client.destroy();
    expect(parse(frame)).toMatchObject({ to: { port: 80 }, tcp: { flags: SYN }, checksumGood: true });
  });

  it('says what is wrong when a port is taken', async () => {
    const server = createTcpServer().listen(0);
    await new Promise((done) => server.once('listening', done));
    const { port } = server.address() as AddressInfo;
    await expect(UserNetwork.start({ forwards: [{ hostPort: port, guestPort: 80 }] })).rejects.toMatchObject({
      code: 'NETWORK_FAILED',
      message: expect.stringContaining(`${port}:80`) as string,
    });
    server.close();
  });

  it('ends passt when it is closed, twice too', async () => {
    const network = await start();
    const pid = network.pid!;
    expect(isRunning(pid)).toBe(true);
    await Promise.all([network.close(), network.close()]);
    expect([isRunning(pid), network.send([new Uint8Array(60)])]).toEqual([false, 'refused']);
  });

  it('takes the link down when passt dies, and says so', async () => {
    const network = await start();
    const failure = new Promise<VmmError>((resolve) => {
      const guest = new NetGuest(network, {
        onBackendFailure: (error) => {
          expect(guest.device.linkUp).toBe(false);
          resolve(error);
        },
      });
    });
    process.kill(network.pid!, 'SIGKILL');
    expect((await failure).code).toBe('NETWORK_FAILED');
  });

  it('leaves no passt behind when this process is killed', async () => {
    const source = fileURLToPath(new URL('../../../src/backends/net/user.ts', import.meta.url));
    const program = `import(${JSON.stringify(source)}).then(async ({ UserNetwork }) => console.log((await UserNetwork.start()).pid))`;
    const child = spawn(process.execPath, ['--import', 'tsx', '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
    const pid = await new Promise<number>((resolve) =>
      child.stdout.once('data', (text: Buffer) => resolve(Number(text))),
    );
    expect(isRunning(pid)).toBe(true);
    child.kill('SIGKILL');
    await expect.poll(() => isRunning(pid)).toBe(false);
  });
});

describe('a user network', () => {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-net-'));
  const slowEcho = join(folder, 'slow-echo');
  beforeAll(() => {
    // Reads in bursts with pauses between them, and sends back what it read: all but the probe, which may be late.
    writeFileSync(
      slowEcho,
      `#!${process.execPath}
const socket = new (require('node:net').Socket)({ fd: 3 });
socket.on('end', () => process.exit());
let left = ${PROBE_BYTES};
const skipProbe = new (require('node:stream').Transform)({
  transform(chunk, _encoding, done) {
    const skipped = Math.min(left, chunk.length);
    left -= skipped;
    done(null, chunk.subarray(skipped));
  },
});
socket.pipe(skipProbe).pipe(socket);
setInterval(() => { socket.pause(); setTimeout(() => socket.resume(), 4); }, 5);
`,
      { mode: 0o755 },
    );
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('names the command that installs a program which is missing', async () => {
    await expect(UserNetwork.start({ program: '/nonexistent/passt' })).rejects.toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      message: expect.stringContaining('apt-get install') as string,
    });
  });

  it.each([
    { mtu: 1279 },
    { mtu: 65521 },
    { forwards: [{ hostPort: 0, guestPort: 80 }] },
    { forwards: [{ hostPort: 80, guestPort: 65536 }] },
    { forwards: [{ hostPort: 80, guestPort: 80, hostAddress: '--help' }] },
  ])('refuses %j', async (options) => {
    await expect(UserNetwork.start(options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('loses and mixes up no frame when the other side is slow, both ways', async () => {
    const network = await start({ program: slowEcho });
    const guest = new NetGuest(network);
    const frames = Array.from({ length: 1500 }, (_, i) => {
      const frame = Buffer.alloc(14 + ((i * 7919) % 20000), i);
      frame.writeUInt32BE(i, 0);
      return frame;
    });
    let returned = 0;
    let wrong = 0;
    const finished = new Promise<void>((resolve) => {
      guest.onFrame = ({ frame }) => {
        if (!frame.equals(frames[returned])) wrong++;
        if (++returned === frames.length) resolve();
      };
    });
    let waits = 0;
    for (const frame of frames) {
      for (; !guest.send(frame); waits++) await new Promise((done) => setTimeout(done, 1));
    }
    await finished;
    const { transmitted, received } = guest.device.counters;
    expect([wrong, transmitted.frames, received.frames, transmitted.dropped, received.dropped]).toEqual([
      0,
      1500,
      1500,
      {},
      {},
    ]);
    expect(transmitted.bytes).toBe(received.bytes);
    expect(waits).toBeGreaterThan(0);
  });

  it('breaks down when the program sends something that is no frame', async () => {
    const garbage = join(folder, 'garbage');
    // Not before the guest is there and has sent a frame.
    const waits = `dd bs=1 count=${PROBE_BYTES + 1} <&3 >/dev/null 2>&1`;
    writeFileSync(garbage, `#!/bin/sh\n${waits}\nprintf '\\377\\377\\377\\377' >&3\nexec sleep 60\n`, { mode: 0o755 });
    const network = await start({ program: garbage });
    const failure = new Promise<VmmError>((resolve) => {
      new NetGuest(network, { onBackendFailure: resolve }).send(new Uint8Array(60));
    });
    expect(await failure).toMatchObject({
      code: 'NETWORK_FAILED',
      message: expect.stringContaining('no frame') as string,
    });
  });
});

describe('a port forward', () => {
  it.each([
    ['8080:80', { hostPort: 8080, guestPort: 80, protocol: 'tcp' }],
    ['5353:53/udp', { hostPort: 5353, guestPort: 53, protocol: 'udp' }],
    ['127.0.0.1:2222:22/tcp', { hostPort: 2222, guestPort: 22, protocol: 'tcp', hostAddress: '127.0.0.1' }],
    ['[::1]:2222:22', { hostPort: 2222, guestPort: 22, protocol: 'tcp', hostAddress: '::1' }],
  ])('is written %s', (text, forward) => {
    expect(parsePortForward(text)).toEqual(forward);
  });

  it.each(['', '80', '8080:', '0:80', '8080:70000', '8080:80/sctp', 'localhost:8080:80', '1.2.3:8080:80', '8080:80 '])(
    'is not written "%s"',
    (text) => {
      expect(() => parsePortForward(text)).toThrowError(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    },
  );
});
