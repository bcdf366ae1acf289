import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { TapNetwork } from '../../../src/backends/net/tap.js';
import { VmmError } from '../../../src/errors.js';
import { NetGuest, type ReceivedFrame } from '../../support/net-guest.js';
import { ACK, FIN, type Packet, SYN, arp, ethernet, parse, tcp, udp } from '../../support/packets.js';

const NETNS = `vmexit-test-${process.pid}`;
const GUEST = { mac: '52:54:00:00:00:02', ip: '10.77.0.2' };
const HOST_IP = '10.77.0.1';
const F_NEEDS_CSUM = 1;
const F_DATA_VALID = 2;

const ip = (...args: string[]) => spawnSync('ip', args, { encoding: 'utf8' });
const usable = process.getuid?.() === 0 && existsSync('/dev/net/tun') && ip('netns', 'add', NETNS).status === 0;
if (!usable) console.warn('SKIPPED: tests with a tap device; they need root, /dev/net/tun and iproute2');
afterAll(() => void ip('netns', 'del', NETNS));

let tap: TapNetwork | undefined;
afterEach(async () => {
  await tap?.close();
  tap = undefined;
});

/** A tap whose host's end is in a network namespace of its own, with an address there. */
function openTap(): TapNetwork {
  tap = new TapNetwork({ name: 'vmexit%d' });
  for (const args of [
    ['link', 'set', tap.interfaceName, 'netns', NETNS],
    ['-n', NETNS, 'addr', 'add', `${HOST_IP}/24`, 'dev', tap.interfaceName],
    ['-n', NETNS, 'link', 'set', tap.interfaceName, 'up'],
    ['-n', NETNS, 'neigh', 'add', GUEST.ip, 'lladdr', GUEST.mac, 'dev', tap.interfaceName, 'nud', 'permanent'],
  ]) {
    expect(ip(...args)).toMatchObject({ status: 0, stderr: '' });
  }
  return tap;
}

/** A program on the host's side of the tap. */
function inNamespace(program: string) {
  const child = spawn('ip', ['netns', 'exec', NETNS, process.execPath, '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  child.stdout.on('data', (text: Buffer) => (output += text.toString()));
  return {
    async line(): Promise<string> {
      while (!output.includes('\n')) await new Promise((done) => setTimeout(done, 5));
      const line = output.slice(0, output.indexOf('\n'));
      output = output.slice(line.length + 1);
      return line;
    },
    [Symbol.dispose]: () => void child.kill('SIGKILL'),
  };
}

const isUdpTo = (port: number) => (received: ReceivedFrame) => {
  const packet = parse(received.frame);
  return packet.protocol === 17 && packet.to.port === port;
};

async function macOfHost(guest: NetGuest): Promise<string> {
  guest.send(
    ethernet('ff:ff:ff:ff:ff:ff', GUEST.mac, 0x0806, arp(1, GUEST, { mac: '00:00:00:00:00:00', ip: HOST_IP })),
  );
  const isReply = ({ frame }: ReceivedFrame) => parse(frame).type === 0x0806 && parse(frame).from.ip === HOST_IP;
  return parse((await guest.next(isReply)).frame).fromMac;
}

describe.skipIf(!usable)('a tap network (skipped unless root, with /dev/net/tun)', () => {
  it('carries frames both ways, checksums left to the other side', async () => {
    const guest = new NetGuest(openTap(), { mac: GUEST.mac });
    const hostMac = await macOfHost(guest);
    using host = inNamespace(`
      const socket = require('node:dgram').createSocket('udp4');
      socket.on('message', (text, from) => { console.log(text + ''); socket.send('answer', from.port, from.address); });
      socket.bind(7000, () => console.log('ready'));`);
    expect(await host.line()).toBe('ready');

    // The checksum holds the pseudo header's sum: Linux delivers the datagram only when the header says that this is so.
    const datagram = udp({ ip: GUEST.ip, port: 9 }, { ip: HOST_IP, port: 7000 }, Buffer.from('question'), true);
    const needsChecksum = Buffer.from([F_NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
    guest.send(ethernet(hostMac, GUEST.mac, 0x0800, datagram), needsChecksum);
    expect(await host.line()).toBe('question');

    const { header, frame } = await guest.next(isUdpTo(9));
    expect(parse(frame)).toMatchObject({ checksumGood: false, payload: Buffer.from('answer') });
    expect([header[0] & F_NEEDS_CSUM, header.readUInt16LE(6), header.readUInt16LE(8)]).toEqual([1, 34, 6]);
    expect(guest.device.counters.received.dropped).toEqual({});
  });

  it('completes checksums for a guest that does not take them undone', async () => {
    const guest = new NetGuest(openTap(), { mac: GUEST.mac }, 0n);
    using _host = inNamespace(`require('node:dgram').createSocket('udp4').send('hello', 9, '${GUEST.ip}')`);
    const { header, frame } = await guest.next(isUdpTo(9));
    expect([header[0] & (F_NEEDS_CSUM | F_DATA_VALID), parse(frame).checksumGood]).toEqual([0, true]);
  });

  it.each([
    ['whole to a guest that takes them so', ~0n, true],
    ['cut up to one that does not', ~(1n << 7n), false],
  ])('gives large TCP packets %s', async (_how, features, large) => {
    const guest = new NetGuest(openTap(), { mac: GUEST.mac }, features);
    const hostMac = await macOfHost(guest);
    const content = Buffer.alloc(200_000, 'the quick brown fox jumps over the lazy dog. ');
    using _host = inNamespace(`
      const socket = require('node:net').connect(80, '${GUEST.ip}');
      socket.end(Buffer.alloc(${content.length}, 'the quick brown fox jumps over the lazy dog. '));`);

    const received: Buffer[] = [];
    const lengths: number[] = [];
    let gsoHeaders = 0;
    const reply = ({ from, to }: Packet, seq: number, ack: number, flags: number) =>
      guest.send(
        ethernet(hostMac, GUEST.mac, 0x0800, tcp(to, from, { seq, ack, flags, ...(flags & SYN && { mss: 1460 }) })),
      );
    await new Promise<void>((resolve) => {
      let expected = 0;
      guest.onFrame = ({ header, frame }) => {
        const packet = parse(frame);
        if (!packet.tcp || packet.to.port !== 80) return;
        const { seq, flags } = packet.tcp;
        if (flags & SYN) {
          expected = seq + 1;
          reply(packet, 5000, expected, SYN | ACK);
          return;
        }
        if (seq !== expected) return;
        if (packet.payload.length > 0) {
          received.push(packet.payload);
          lengths.push(frame.length);
          if (header[1] !== 0) {
            gsoHeaders++;
            expect([header[1], header.readUInt16LE(4), header[0] & F_NEEDS_CSUM]).toEqual([1, 1460, 1]);
          }
        }
        expected += packet.payload.length + (flags & FIN ? 1 : 0);
        reply(packet, 5001, expected, ACK);
        if (flags & FIN) resolve();
      };
    });
    expect(Buffer.concat(received).equals(content)).toBe(true);
    expect([Math.max(...lengths) > 1514, gsoHeaders > 0]).toEqual([large, large]);
  });

  it('holds frames in the kernel while it is paused', async () => {
    const network = openTap();
    const guest = new NetGuest(network, { mac: GUEST.mac });
    network.pause();
    using host = inNamespace(`
      const socket = require('node:dgram').createSocket('udp4');
      let left = 50;
      const next = () => left-- ? socket.send('datagram ' + left, 9, '${GUEST.ip}', next) : console.log('sent');
      next();`);
    expect(await host.line()).toBe('sent');
    for (let i = 0; i < 10; i++) await turn();
    expect(guest.device.counters.received.frames).toBe(0);
    const isData = isUdpTo(9);
    network.resume();
    for (let left = 49; left >= 0; left--) {
      expect(parse((await guest.next(isData)).frame).payload.toString()).toBe(`datagram ${left}`);
    }
  });

  it('counts frames that the kernel finds fault with, or that its interface is down for, and goes on', async () => {
    const network = openTap();
    const guest = new NetGuest(network, { mac: GUEST.mac });
    await macOfHost(guest);
    ip('-n', NETNS, 'link', 'set', network.interfaceName, 'down');
    guest.send(new Uint8Array(60));
    ip('-n', NETNS, 'link', 'set', network.interfaceName, 'up');
    guest.send(new Uint8Array(60));
    expect(guest.device.counters.transmitted).toMatchObject({ frames: 2, dropped: { refused: 1 } });
  });

  it('takes the link down when the interface is deleted', async () => {
    const network = openTap();
    const failure = new Promise<VmmError>((resolve) => new NetGuest(network, { onBackendFailure: resolve }));
    ip('-n', NETNS, 'link', 'del', network.interfaceName);
    expect(await failure).toMatchObject({ code: 'NETWORK_FAILED' });
    expect(network.send([new Uint8Array(60)], new Uint8Array(12))).toBe('refused');
  });

  it('says that an interface is in use, and what to do about another kind', () => {
    const network = new TapNetwork({ name: 'vmexit%d' });
    tap = network;
    expect(() => new TapNetwork({ name: network.interfaceName })).toThrowError(
      expect.objectContaining({ code: 'SYSCALL', errno: 'EBUSY', operation: 'TUNSETIFF' }),
    );
    expect(() => new TapNetwork({ name: 'lo' })).toThrowError(expect.objectContaining({ errno: 'EINVAL' }));
  });

  it('works on an fd that another part of the program opened', async () => {
    const opened = openTap();
    const fd = readdirSync('/proc/self/fd').find((name) => {
      try {
        return readlinkSync(`/proc/self/fd/${name}`) === '/dev/net/tun';
      } catch {
        return false; // the fd that read the folder
      }
    });
    const adopted = new TapNetwork({ fd: Number(fd) });
    await opened.close();
    tap = adopted;
    expect(adopted.interfaceName).toBe(opened.interfaceName);
    await macOfHost(new NetGuest(adopted, { mac: GUEST.mac }));
  });

  it('takes the fd of a tap only', () => {
    expect(() => new TapNetwork({ fd: 0 })).toThrowError(VmmError);
    expect(() => new TapNetwork({ fd: 999_999 })).toThrowError(expect.objectContaining({ errno: 'EBADF' }));
  });

  it('may be closed twice, and then carries nothing', async () => {
    const network = openTap();
    const guest = new NetGuest(network);
    await network.close();
    await network.close();
    network.pause();
    network.resume();
    guest.send(new Uint8Array(60));
    expect(guest.device.counters.transmitted.dropped).toEqual({ refused: 1 });
  });
});

describe('the options of a tap network', () => {
  it.each([
    {},
    { name: 'tap0', fd: 3 },
    { name: '' },
    { name: 'x'.repeat(16) },
    { name: 'a\0b' },
    { fd: -1 },
    { fd: 1.5 },
  ])('may not be %j', (options) => {
    expect(() => new TapNetwork(options)).toThrowError(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
