import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { PortNetwork } from '../../../src/backends/net/port.js';
import type { VmmError } from '../../../src/errors.js';
import { NetGuest } from '../../support/net-guest.js';

const ports: PortNetwork[] = [];
function port(options?: ConstructorParameters<typeof PortNetwork>[0]): PortNetwork {
  const made = new PortNetwork(options);
  made.stream.on('error', () => {});
  ports.push(made);
  return made;
}
afterEach(async () => {
  for (const made of ports.splice(0)) await made.close();
});

const frame = (seed: number, bytes = 64) => Buffer.alloc(bytes, seed);

/** Lets port, device and guest do what they have to. */
const settle = async () => {
  for (let i = 0; i < 10; i++) await turn();
};

describe('a network port', () => {
  it('hands the frames of the guest to the program, and the frames of the program to the guest', async () => {
    const network = port();
    const guest = new NetGuest(network);
    guest.send(frame(1));
    for await (const chunk of network.stream.iterator({ destroyOnReturn: false })) {
      expect(chunk).toEqual(frame(1));
      break;
    }
    network.stream.write(frame(2));
    expect((await guest.next(() => true)).frame).toEqual(frame(2));
  });

  it('connects two guests back to back', async () => {
    const [left, right] = [port(), port()];
    left.stream.pipe(right.stream).pipe(left.stream);
    const [a, b] = [new NetGuest(left), new NetGuest(right)];
    for (let i = 0; i < 300; i++) {
      const bytes = 60 + ((i * 37) % 1400);
      while (!a.send(frame(i, bytes))) await turn();
      expect((await b.next(() => true)).frame).toEqual(frame(i, bytes));
    }
    b.send(frame(9));
    expect((await a.next(() => true)).frame).toEqual(frame(9));
    expect([a.device.counters.transmitted, b.device.counters.received]).toEqual([
      { ...b.device.counters.received },
      { ...a.device.counters.transmitted },
    ]);
  });

  it('carries unfinished checksums and large packets between guests that both take them', async () => {
    const offloads = ['checksum', 'tso4'] as const;
    const [left, right] = [port({ offloads }), port({ offloads })];
    left.stream.pipe(right.stream).pipe(left.stream);
    const [a, b] = [new NetGuest(left), new NetGuest(right)];
    const header = Buffer.from([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    a.send(frame(5, 40_000), header);
    const received = await b.next(() => true);
    expect(received.frame).toEqual(frame(5, 40_000));
    expect(received.header.subarray(0, 10)).toEqual(header.subarray(0, 10));
  });

  it('stops the guest from sending while nobody reads', async () => {
    const network = port();
    const guest = new NetGuest(network);
    let sent = 0;
    while (guest.send(frame(sent))) sent++;
    await settle();
    while (guest.send(frame(sent))) sent++;
    // What the stream buffers, and what the guest has buffers for.
    expect(sent).toBe(256 + 64);
    const received: Buffer[] = [];
    network.stream.on('data', (chunk: Buffer) => received.push(chunk));
    await expect.poll(() => received.length).toBe(sent);
    expect(received).toEqual(Array.from({ length: sent }, (_, i) => frame(i)));
    expect(guest.send(frame(0))).toBe(true);
  });

  it('completes a write when the guest has taken the frame', async () => {
    const network = port();
    const guest = new NetGuest(network);
    await guest.device.quiesce();
    let written = 0;
    for (let i = 0; i < 4; i++) network.stream.write(frame(i), () => written++);
    await settle();
    expect(written).toBeLessThan(4);
    guest.device.resume();
    for (let i = 0; i < 4; i++) expect((await guest.next(() => true)).frame).toEqual(frame(i));
    expect(written).toBe(4);
  });

  it('refuses what is no frame', async () => {
    const network = port();
    const guest = new NetGuest(network);
    const error = new Promise<VmmError>((resolve) => network.stream.once('error', resolve as (error: Error) => void));
    network.stream.write('text');
    expect(await error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(guest.device.linkUp).toBe(false);
  });

  it('takes the link down when the program destroys the stream, and not when it is closed', async () => {
    const failures: string[] = [];
    const onBackendFailure = (error: VmmError) => failures.push(error.code);
    const [first, second] = [port(), port()];
    const guests = [first, second].map((network) => new NetGuest(network, { onBackendFailure }));
    first.stream.destroy();
    await second.close();
    await settle();
    expect([failures, guests.map(({ device }) => device.linkUp)]).toEqual([['CLOSED'], [false, true]]);
    expect(guests[0].send(frame(1)) && guests[1].send(frame(1))).toBe(true);
    expect(guests.map(({ device }) => device.counters.transmitted.dropped)).toEqual([
      { 'link down': 1 },
      { refused: 1 },
    ]);
  });

  it('drops and counts a chunk that is shorter than its header', async () => {
    const network = port({ offloads: ['checksum'] });
    const guest = new NetGuest(network);
    network.stream.write(new Uint8Array(5));
    await settle();
    expect(guest.device.counters.received.dropped).toEqual({ 'bad header': 1 });
  });
});
