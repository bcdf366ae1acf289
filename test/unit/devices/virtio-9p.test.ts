import { mkdtempSync, rmSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ShareServer } from '../../../src/backends/local/share/server.js';
import { Virtio9p } from '../../../src/devices/virtio/9p/9p.js';
import type { FileServer } from '../../../src/devices/virtio/9p/backend.js';
import { MMIO_CONFIG, MMIO_DEVICE_ID, MMIO_STATUS, STATUS_NEEDS_RESET } from '../../../src/virtio/defs.js';
import { P9Client } from '../../support/p9-client.js';
import { P9Driver } from '../../support/p9-driver.js';

/** Holds requests until they are let go, each answered by its own bytes, the first one changed. */
class HeldServer implements FileServer {
  readonly held: { request: Buffer; reply: readonly Uint8Array[]; finish: () => void }[] = [];
  resets = 0;
  serve(request: readonly Uint8Array[], reply: readonly Uint8Array[]) {
    const copy = Buffer.concat(request);
    return new Promise<{ head: Uint8Array; dataBytes: number }>((resolve) => {
      const finish = () => {
        copy[0] ^= 0xff;
        resolve({ head: copy, dataBytes: 0 });
      };
      this.held.push({ request: copy, reply, finish });
    });
  }
  reset(): void {
    this.resets++;
  }
  save(): unknown {
    return 'state';
  }
  restore(): void {}
  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Lets device and driver do what they have to: the driver looks at what came back in a turn of its own. */
const settle = async () => {
  for (let i = 0; i < 4; i++) await turn();
};

describe('a 9P device', () => {
  it('tells its mount tag', () => {
    const { driver } = new P9Driver(new Virtio9p({ server: new HeldServer(), tag: 'home-1' }));
    expect(driver.get(MMIO_DEVICE_ID)).toBe(9);
    expect(driver.deviceFeatures() & 1n).toBe(1n);
    const bytes = Array.from({ length: 9 }, (_, i) => driver.get(MMIO_CONFIG + 4 * (i >> 2)) >>> (8 * (i & 3)));
    expect(Buffer.from(bytes).toString('latin1')).toBe('\x06\0home-1\xff');
  });

  it.each(['', 'x'.repeat(32), 'a b', 'a/b', 'ä'])('refuses %j as a tag', (tag) => {
    expect(() => new Virtio9p({ server: new HeldServer(), tag })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  it('has requests in flight in parallel, and answers them in whatever order they end', async () => {
    const server = new HeldServer();
    const guest = new P9Driver(new Virtio9p({ server, tag: 't' }));
    const order: string[] = [];
    const all = ['1 first', '2 second', '3 third'].map(async (text) => {
      const reply = await guest.send(Buffer.from(text), 100);
      order.push(reply.toString('latin1', 1));
    });
    await settle();
    expect(server.held.map(({ request }) => request.toString())).toEqual(['1 first', '2 second', '3 third']);
    for (const i of [2, 0, 1]) {
      server.held[i].finish();
      await settle();
    }
    await Promise.all(all);
    expect(order).toEqual([' third', ' first', ' second']);
  });

  it('hands the server 32 requests at a time, and the others when those end', async () => {
    const server = new HeldServer();
    const guest = new P9Driver(new Virtio9p({ server, tag: 't' }), 40);
    const all = Array.from({ length: 40 }, (_, i) => guest.send(Buffer.from(`request ${i}`), 100));
    await settle();
    expect(server.held).toHaveLength(32);
    server.held[7].finish();
    await expect.poll(() => server.held.length).toBe(33);
    for (let i = 0; i < 40; i++) {
      await expect.poll(() => server.held.length).toBeGreaterThan(i);
      if (i !== 7) server.held[i].finish();
    }
    expect(new Set((await Promise.all(all)).map(String)).size).toBe(40);
  });

  it('gives the server the guest’s own buffers', async () => {
    const server = new HeldServer();
    const guest = new P9Driver(new Virtio9p({ server, tag: 't' }));
    void guest.send(Buffer.from('request'), 5000);
    await settle();
    const [{ reply }] = server.held;
    expect(reply.map(({ length }) => length)).toEqual([11, 4096, 893]);
    for (const piece of reply) expect(piece.buffer).toBe(guest.memory.view(0, 1).buffer);
  });

  it.each([
    ['no whole header', 6, 100],
    ['no room for a reply', 100, 10],
  ])('fails on a request with %s', async (_what, readable, writable) => {
    const server = new HeldServer();
    const guest = new P9Driver(new Virtio9p({ server, tag: 't' }));
    void guest.send(Buffer.alloc(readable), writable);
    await settle();
    expect(guest.driver.get(MMIO_STATUS) & STATUS_NEEDS_RESET).toBe(STATUS_NEEDS_RESET);
    expect(server.held).toEqual([]);
  });

  it('waits at a reset until the server is done with guest memory, and writes nothing after it', async () => {
    const server = new HeldServer();
    const guest = new P9Driver(new Virtio9p({ server, tag: 't' }));
    void guest.send(Buffer.from('request'), 100);
    await settle();
    guest.driver.set(MMIO_STATUS, 0);
    await settle();
    expect([guest.driver.status !== 0, server.resets]).toEqual([true, 2]); // once when it was taken up
    const before = guest.memory.read(0, 16 * 2 ** 20);
    server.held[0].finish();
    await expect.poll(() => guest.driver.status).toBe(0);
    expect(Buffer.compare(before, guest.memory.read(0, 16 * 2 ** 20))).toBe(0);
  });

  it('takes nothing between quiesce and resume, and can be saved then', async () => {
    const server = new HeldServer();
    const device = new Virtio9p({ server, tag: 't' });
    const guest = new P9Driver(device);
    const first = guest.send(Buffer.from('1 first'), 100);
    await settle();
    expect(() => device.save()).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
    const quiet = device.quiesce();
    const second = guest.send(Buffer.from('2 second'), 100);
    server.held[0].finish();
    await Promise.all([quiet, first]);
    expect([device.save(), server.held.length]).toEqual(['state', 1]);
    device.resume();
    await expect.poll(() => server.held.length).toBe(2);
    server.held[1].finish();
    await second;
  });
});

describe('a shared directory behind the device', () => {
  let dir: string;
  let server: ShareServer;
  let device: Virtio9p;
  let client: P9Client;
  let root: number;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'vmexit-9p-'));
    server = await ShareServer.open({ dir });
    device = new Virtio9p({ server, tag: 'share' });
    client = new P9Client(new P9Driver(device).send, 128 * 1024);
    root = await client.start();
  });
  afterEach(async () => {
    await device.quiesce();
    await server.close();
    rmSync(dir, { recursive: true });
  });

  it('is read and written, several requests at a time', async () => {
    const bytes = Buffer.from(Uint8Array.from({ length: 1_000_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    const fid = await client.create(root, 'large');
    const step = 100_000;
    const parts = Array.from({ length: 10 }, (_, i) => i * step);
    await Promise.all(parts.map((at) => client.write(fid, BigInt(at), bytes.subarray(at, at + step))));
    expect(Buffer.compare(await fs.readFile(join(dir, 'large')), bytes)).toBe(0);
    const read = await Promise.all(parts.map((at) => client.read(fid, BigInt(at), step)));
    expect(Buffer.compare(Buffer.concat(read), bytes)).toBe(0);
  });

  it('answers a flush after what it flushes', async () => {
    const fid = await client.create(root, 'a');
    await client.write(fid, 0n, Buffer.alloc(100_000));
    const order: string[] = [];
    for (let i = 0; i < 20; i++) {
      const oldtag = client.nextTag;
      const read = client.read(fid, 0n, 100_000).then(() => order.push('read'));
      const flush = client.call('flush', { oldtag }).then(() => order.push('flush'));
      await Promise.all([read, flush]);
    }
    expect(order).toEqual(Array.from({ length: 20 }, () => ['read', 'flush']).flat());
  });

  it('is forgotten by a reset: nothing stays open, and the next mount begins anew', async () => {
    await client.create(root, 'a');
    const guest = new P9Driver(device); // resets it
    expect(server.openFiles).toBe(1);
    const again = new P9Client(guest.send);
    const fid = await again.open(await again.start(), 'a');
    expect(await again.read(fid, 0n, 9)).toHaveLength(0);
  });

  it('cannot be saved while it is mounted', async () => {
    expect(() => device.save()).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
    await client.clunk(root);
    const state = device.save();
    device.restore(state);
    expect(() => device.restore({ msize: 1 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
