import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameBatch, FrameSplitter } from '../../../src/backends/net/frame-stream.js';

describe('frames on a byte stream', () => {
  it('come out as they went in, however the stream is cut, with pauses anywhere', () => {
    const frames = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 });
    fc.assert(
      fc.property(frames, fc.array(fc.integer({ min: 1, max: 100 })), fc.array(fc.boolean()), (sent, cuts, answers) => {
        const batch = new FrameBatch(66_000);
        for (const frame of sent) expect(batch.add([frame.subarray(0, 3), frame.subarray(3)])).toBe(true);
        const received: Buffer[] = [];
        let calls = 0;
        const splitter = new FrameSplitter((pieces) => {
          received.push(Buffer.concat(pieces));
          return answers[calls++] ?? true;
        });
        let bytes = batch.bytes;
        for (let i = 0; bytes.length > 0; i++) {
          const size = cuts[i] ?? bytes.length;
          let chunk: Uint8Array | undefined = bytes.subarray(0, size);
          while (chunk) chunk = splitter.push(chunk);
          bytes = bytes.subarray(size);
        }
        expect(received).toEqual(sent.map((frame) => Buffer.from(frame)));
      }),
    );
  });

  it('have at most 65,550 bytes', () => {
    const splitter = new FrameSplitter(() => true);
    expect(splitter.push(Uint8Array.of(0, 1, 0, 14))).toBeUndefined();
    expect(() => new FrameSplitter(() => true).push(Uint8Array.of(0, 1, 0, 15))).toThrow(RangeError);
  });

  it('are collected until the memory is full, and not overwritten while it is in use', () => {
    const batch = new FrameBatch(100);
    expect([batch.add([new Uint8Array(60)]), batch.add([new Uint8Array(33)])]).toEqual([true, false]);
    const inUse = batch.bytes;
    batch.reuse(true);
    batch.add([new Uint8Array(60).fill(7)]);
    expect([inUse.at(-1), batch.bytes.at(-1), batch.bytes.buffer === inUse.buffer]).toEqual([0, 7, false]);
  });
});
