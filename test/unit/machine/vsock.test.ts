import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { StreamHub } from '../../../src/machine/stream-hub.js';
import { Vsock } from '../../../src/machine/vsock.js';
import { VsockPorts } from '../../../src/machine/vsock-ports.js';
import { OP, type Packet, VsockGuest } from '../../support/vsock-guest.js';

let guest: VsockGuest;
let ports: VsockPorts;
let vsock: Vsock;

/** Both halves, on two ends of message channels, with a real device. */
beforeEach(() => {
  const here: StreamHub = new StreamHub((message) => there.receive(message));
  const there: StreamHub = new StreamHub((message) => here.receive(message));
  ports = new VsockPorts(there);
  guest = new VsockGuest({ onRequest: ports.accept });
  ports.device = guest.device;
  vsock = new Vsock(
    {
      connectVsock: (port) => ports.connect(port),
      listenVsock: (port) => ports.listen(port),
      unlistenVsock: (port) => ports.unlisten(port),
    },
    here,
  );
});

async function next(count = 1): Promise<Packet[]> {
  const packets: Packet[] = [];
  while (packets.length < count) {
    packets.push(...guest.packets());
    await turn();
  }
  return packets;
}

describe('vm.vsock', () => {
  it('connects to the guest', async () => {
    const connecting = vsock.connect(99);
    const [{ srcPort: dstPort }] = await next();
    guest.send({ op: OP.RESPONSE, srcPort: 99, dstPort });
    const stream = await connecting;
    stream.end('question');
    expect((await next(2)).map(({ op, payload }) => [op, String(payload)])).toEqual([
      [OP.RW, 'question'],
      [OP.SHUTDOWN, ''],
    ]);
    const closed = once(stream, 'close');
    guest.send({ op: OP.RW, srcPort: 99, dstPort }, 'answer');
    guest.send({ op: OP.SHUTDOWN, srcPort: 99, dstPort, flags: 3 });
    expect(String((await once(stream, 'data'))[0])).toBe('answer');
    await closed;
    expect(guest.device.counters.connections).toBe(0);
  });

  it('says why it cannot connect', async () => {
    const connecting = vsock.connect(99);
    const [{ srcPort: dstPort }] = await next();
    guest.send({ op: OP.RST, srcPort: 99, dstPort });
    await expect(connecting).rejects.toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNREFUSED' });
    await expect(vsock.connect(-1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('listens for the guest, until the listener is closed', async () => {
    const listener = await vsock.listen(50);
    const connection = once(listener, 'connection') as Promise<[Duplex, number]>;
    guest.send({ op: OP.REQUEST });
    guest.send({ op: OP.RW }, 'hello');
    const [stream, guestPort] = await connection;
    expect([guestPort, String((await once(stream, 'data'))[0])]).toEqual([1000, 'hello']);
    await listener.close();
    await listener.close();
    guest.packets();
    guest.send({ op: OP.REQUEST, srcPort: 1001 });
    expect(await next()).toMatchObject([{ op: OP.RST, dstPort: 1001 }]);
    stream.write('still here');
    expect(String((await next())[0].payload)).toBe('still here');
    await using _again = await vsock.listen(50);
  });

  it('hears of a reset as of an error, which need not be listened to', async () => {
    const streams: Duplex[] = [];
    await vsock.listen(50, (stream) => streams.push(stream));
    guest.send({ op: OP.REQUEST });
    guest.send({ op: OP.REQUEST, srcPort: 1001 });
    await next(2);
    const failure = once(streams[0], 'error');
    guest.send({ op: OP.RST });
    guest.send({ op: OP.RST, srcPort: 1001 });
    expect((await failure)[0]).toMatchObject({ code: 'CONNECTION_FAILED', errno: 'ECONNRESET' });
    await expect.poll(() => streams[1].destroyed).toBe(true);
  });

  it('gives a port to one listener', async () => {
    const listener = await vsock.listen(50);
    await expect(vsock.listen(50)).rejects.toMatchObject({ code: 'BUSY' });
    await expect(vsock.listen(2 ** 32)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await listener.close();
  });

  it('holds a guest back that sends faster than the program reads', async () => {
    const streams: Duplex[] = [];
    await vsock.listen(50, (stream) => streams.push(stream));
    guest.send({ op: OP.REQUEST });
    let [sent, forwarded] = [0, 0];
    for (let quiet = 0; quiet < 100 && sent < 2 ** 20;) {
      for (const { fwdCnt } of guest.packets()) forwarded = fwdCnt;
      if (sent - forwarded + 65536 <= 256 * 1024) {
        guest.send({ op: OP.RW }, Buffer.alloc(65536));
        sent += 65536;
        quiet = 0;
      } else quiet++;
      await turn();
    }
    expect(sent).toBeLessThan(2 ** 20);
    let read = 0;
    streams[0].on('data', (chunk: Buffer) => (read += chunk.length));
    await expect.poll(() => read).toBe(sent);
  });
});
