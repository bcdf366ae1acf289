import { randomBytes } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import { Worker, MessageChannel } from 'node:worker_threads';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { VmmError } from '../../../src/errors.js';
import { RemoteStream, STREAM_WINDOW_BYTES, type RemoteStreamOptions } from '../../../src/machine/remote-stream.js';
import { StreamHub } from '../../../src/machine/stream-hub.js';

function pair(options?: RemoteStreamOptions): [RemoteStream, RemoteStream] {
  const { port1, port2 } = new MessageChannel();
  return [new RemoteStream(port1, options), new RemoteStream(port2, options)];
}

/** Unlike those of node:stream/consumers, leaves a stream alone whose other direction is still open. */
async function buffer(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'end');
  return Buffer.concat(chunks);
}

const text = async (stream: Readable) => String(await buffer(stream));
const closed = (stream: Readable) => (stream.closed ? undefined : once(stream, 'close'));

const settle = async () => {
  for (let i = 0; i < 20; i++) await turn();
};

describe('a stream to another thread', () => {
  it('carries bytes both ways, whole and in order', async () => {
    const [here, there] = pair();
    const sent = randomBytes(3 * STREAM_WINDOW_BYTES + 12345);
    for (let at = 0; at < sent.length; at += 7001) here.write(sent.subarray(at, at + 7001));
    here.end();
    there.end('and back');
    expect((await buffer(there)).equals(sent)).toBe(true);
    expect(await text(here)).toBe('and back');
  });

  it('carries one chunk that is larger than the window', async () => {
    const [here, there] = pair();
    const sent = randomBytes(5 * STREAM_WINDOW_BYTES);
    here.end(sent);
    expect((await buffer(there)).equals(sent)).toBe(true);
  });

  it('copies what it is given before the write returns', async () => {
    const [here, there] = pair();
    const chunk = Buffer.from('before');
    here.write(chunk);
    chunk.write('after!');
    here.end();
    expect(await text(there)).toBe('before');
  });

  it('makes a writer wait for a reader that does not read, with a bounded amount under way', async () => {
    const [here, there] = pair();
    let completed = 0;
    const chunk = Buffer.alloc(4096, 'x');
    for (let i = 0; i < 1000; i++) here.write(chunk, () => completed++);
    await settle();
    const taken = completed * chunk.length;
    expect(taken).toBeGreaterThanOrEqual(STREAM_WINDOW_BYTES / 2);
    expect(taken).toBeLessThanOrEqual(STREAM_WINDOW_BYTES + there.readableHighWaterMark + chunk.length);
    expect(here.writableNeedDrain).toBe(true);
    here.end();
    expect((await buffer(there)).length).toBe(1000 * chunk.length);
    expect(completed).toBe(1000);
  });

  it('counts what empty packets cost', async () => {
    const [here] = pair({ objectMode: true });
    let completed = 0;
    for (let i = 0; i < 50_000; i++) here.write(new Uint8Array(0), () => completed++);
    await settle();
    expect(completed).toBeLessThan(10_000);
    here.destroy();
  });

  it('keeps the boundaries of packets, empty ones too', async () => {
    const [here, there] = pair({ objectMode: true });
    const packets = [1, 0, 1514, 65_550].map((length) => randomBytes(length));
    here.cork();
    for (const packet of packets) here.write(packet);
    here.uncork();
    here.end();
    const received = await there.toArray();
    expect(received.map((packet: Buffer) => packet.length)).toEqual([1, 0, 1514, 65_550]);
    expect(received).toEqual(packets);
  });

  it('refuses an object that is no packet', async () => {
    const [here, there] = pair({ objectMode: true });
    there.on('error', () => {});
    here.write('text');
    const [error] = (await once(here, 'error')) as [VmmError];
    expect(error.code).toBe('INVALID_ARGUMENT');
  });

  it('closes one direction at a time', async () => {
    const [here, there] = pair();
    here.end('question');
    expect(await text(there)).toBe('question');
    expect(there.destroyed).toBe(false);
    there.end('answer');
    expect(await text(here)).toBe('answer');
    await Promise.all([closed(there), closed(here)]);
  });

  it('tells the other end of an error', async () => {
    const [here, there] = pair();
    const heard = once(there, 'error');
    here.on('error', () => {});
    here.destroy(new VmmError('NETWORK_FAILED', 'the cable broke', { errno: 'ECONNRESET' }));
    const [error] = (await heard) as [VmmError];
    expect(error).toBeInstanceOf(VmmError);
    expect(error).toMatchObject({ code: 'NETWORK_FAILED', message: 'the cable broke', errno: 'ECONNRESET' });
  });

  it('gives an error without a code of ours the code CLOSED', async () => {
    const [here, there] = pair();
    const heard = once(there, 'error');
    here.on('error', () => {});
    here.destroy(new Error('enough'));
    expect((await heard)[0]).toMatchObject({ code: 'CLOSED', message: 'enough' });
  });

  it('ends after what was sent last when the other end is destroyed without an error', async () => {
    const [here, there] = pair();
    there.write('last words');
    there.destroy();
    expect(await text(here)).toBe('last words');
    await closed(here);
    expect(here.errored).toBeNull();
  });

  it('takes the end of an async iteration, where Node 20 aborts the Duplex, for a plain end', async () => {
    const [here, there] = pair();
    here.resume().end('all');
    for await (const chunk of there) expect(String(chunk)).toBe('all');
    there.end(); // Node 24 leaves it half open
    await closed(here);
    expect(here.errored).toBeNull();
  });

  it('fails the write that waits for an end which was destroyed', async () => {
    const [here, there] = pair();
    const failed = once(here, 'error');
    here.write(Buffer.alloc(2 * STREAM_WINDOW_BYTES));
    await settle();
    there.destroy();
    expect((await failed)[0]).toMatchObject({ code: 'CLOSED' });
  });

  it('fails a write that comes after the other end was destroyed', async () => {
    const [here, there] = pair();
    there.destroy();
    await settle();
    here.write('too late');
    expect((await once(here, 'error'))[0]).toMatchObject({ code: 'CLOSED' });
  });

  it('ends when the thread at the other end is terminated', async () => {
    const { port1, port2 } = new MessageChannel();
    const here = new RemoteStream(port1);
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads');
       workerData.postMessage({ type: 'data', bytes: new Uint8Array([111, 107]), lengths: [2] });
       setInterval(() => {}, 1000);`,
      { eval: true, workerData: port2, transferList: [port2], execArgv: [] },
    );
    const [first] = (await once(here, 'data')) as [Buffer];
    expect(String(first)).toBe('ok');
    await Promise.all([once(here, 'close'), worker.terminate()]);
    expect(here.readableEnded).toBe(true);
  });
});

describe('streams by name', () => {
  function hubs(): [StreamHub, StreamHub] {
    const here: StreamHub = new StreamHub((message) => there.receive(message));
    const there: StreamHub = new StreamHub((message) => here.receive(message));
    return [here, there];
  }

  it('lead to who accepts the name, with what that one is told', async () => {
    const [here, there] = hubs();
    there.accept('echo', (stream, detail) => {
      stream.write(JSON.stringify(detail));
      stream.pipe(stream);
    });
    const stream = here.open('echo', { port: 1024 });
    stream.end('!');
    expect(await text(stream)).toBe('{"port":1024}!');
  });

  it('fail where nobody accepts the name', async () => {
    const [here] = hubs();
    const [error] = (await once(here.open('nobody'), 'error')) as [VmmError];
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(error.message).toContain('nobody');
  });

  it('end together, after what was written before', async () => {
    const [here, there] = hubs();
    there.accept('port', (stream) => stream.write('last'));
    const streams = [here.open('port'), here.open('port')];
    there.end();
    expect(await Promise.all(streams.map((stream) => text(stream)))).toEqual(['last', 'last']);
  });
});
