import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeHeader,
  decodeReply,
  decodeRequest,
  encodeError,
  encodeReply,
  encodeRequest,
  requestName,
} from '../../../src/backends/local/share/codec.js';
import { type FieldTypes, MESSAGES, type RequestName } from '../../../src/backends/local/share/protocol.js';

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const u32 = fc.nat(2 ** 32 - 1);
const text = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
const qid = fc.record({ type: fc.nat(255), version: u32, path: u64 });
const ARBITRARY: Record<keyof FieldTypes, fc.Arbitrary<unknown>> = {
  u8: fc.nat(255),
  u16: fc.nat(65535),
  u32,
  u64,
  s: text,
  's*': fc.array(text, { maxLength: 16 }),
  qid,
  'qid*': fc.array(qid, { maxLength: 16 }),
};
const names = Object.keys(MESSAGES) as RequestName[];
const valuesOf = (fields: Readonly<Record<string, keyof FieldTypes>>) =>
  fc.record(Object.fromEntries(Object.entries(fields).map(([name, kind]) => [name, ARBITRARY[kind]])));
/** A request of any kind, with a reply to it. */
const exchange = fc.constantFrom(...names).chain((name) =>
  fc.record({
    name: fc.constant(name),
    tag: fc.nat(65535),
    request: valuesOf(MESSAGES[name].request) as fc.Arbitrary<never>,
    reply: valuesOf(MESSAGES[name].reply) as fc.Arbitrary<never>,
  }),
);

describe('messages of 9P2000.L', () => {
  it('come back from their bytes as they were', () => {
    fc.assert(
      fc.property(exchange, ({ name, tag, request, reply }) => {
        const bytes = encodeRequest(name, tag, request);
        expect(decodeHeader(bytes)).toEqual({ size: bytes.length, type: MESSAGES[name].type, tag });
        expect(decodeRequest(bytes)).toEqual({ name, tag, fields: request });
        const answer = encodeReply(name, tag, reply, 5);
        expect(decodeHeader(answer)).toEqual({ size: answer.length + 5, type: MESSAGES[name].type + 1, tag });
        expect(decodeReply(name, answer)).toEqual(reply);
      }),
      { numRuns: 1000 },
    );
  });

  it('are refused when anything is missing', () => {
    fc.assert(
      fc.property(exchange, fc.nat(), ({ name, tag, request }, cut) => {
        const bytes = encodeRequest(name, tag, request);
        const length = 7 + (cut % (bytes.length - 6));
        if (length < bytes.length) expect(decodeRequest(bytes.subarray(0, length))).toBeUndefined();
      }),
      { numRuns: 1000 },
    );
  });

  it('are read from any bytes without an exception, and cost no more than their length', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 7, maxLength: 200 }), fc.constantFrom(...names), (bytes, name) => {
        bytes[4] = MESSAGES[name].type;
        decodeRequest(Buffer.from(bytes));
        bytes[4]++;
        decodeReply(name, Buffer.from(bytes));
      }),
      { numRuns: 2000 },
    );
  });

  it('have the bytes that the protocol description gives', () => {
    const version = encodeRequest('version', 0xffff, { msize: 8192, version: Buffer.from('9P2000.L') });
    expect(version.toString('hex')).toBe('15000000' + '64' + 'ffff' + '00200000' + '0800' + '3950323030302e4c');
    const walk = encodeRequest('walk', 1, { fid: 2, newfid: 3, names: [Buffer.from('a'), Buffer.from('bc')] });
    expect(walk.toString('hex')).toBe(
      '18000000' + '6e' + '0100' + '02000000' + '03000000' + '0200' + '010061' + '02006263',
    );
    const attach = encodeReply('attach', 4, { qid: { type: 0x80, version: 1, path: 0x1122334455667788n } });
    expect(attach.toString('hex')).toBe('14000000' + '69' + '0400' + '80' + '01000000' + '8877665544332211');
    expect(encodeError(5, 2).toString('hex')).toBe('0b000000' + '07' + '0500' + '02000000');
    expect(decodeReply('walk', encodeError(5, 2))).toBe(2);
  });

  it('are of the types of the dialect, each once, and no others', () => {
    const types = names.map((name) => MESSAGES[name].type);
    expect(new Set(types).size).toBe(types.length);
    for (const [i, type] of types.entries()) expect([type % 2, requestName(type)]).toEqual([0, names[i]]);
    // Tlerror, Terror, Topen, Tcreate, Tstat and Twstat are other dialects' or none's.
    for (const type of [6, 106, 112, 114, 124, 126, 7, 255]) expect(requestName(type)).toBeUndefined();
  });
});
