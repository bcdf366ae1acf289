import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { STRUCTS } from '../../../src/kvm/abi.js';
import { decode, encode, sizeOf, type StructName } from '../../../src/kvm/struct.js';

interface Field {
  offset: number;
  kind: string;
  length?: number;
  struct?: StructName;
}
const fieldsOf = (name: StructName) => Object.entries<Field>(STRUCTS[name].fields);
const names = Object.keys(STRUCTS) as StructName[];

const integer = (kind: string): fc.Arbitrary<number | bigint> => {
  const bits = Number(kind.slice(1));
  const signed = kind.startsWith('s');
  if (bits === 64) {
    const min = signed ? -(2n ** 63n) : 0n;
    return fc.bigInt({ min, max: min + 2n ** 64n - 1n });
  }
  const min = signed ? -(2 ** (bits - 1)) : 0;
  return fc.integer({ min, max: min + 2 ** bits - 1 });
};

const valueOf = ({ kind, length, struct }: Field): fc.Arbitrary<unknown> => {
  if (kind === 'struct') return structOf(struct!);
  if (kind === 'bytes') return fc.uint8Array({ minLength: length!, maxLength: length! });
  return length === undefined ? integer(kind) : fc.array(integer(kind), { minLength: length, maxLength: length });
};

const structOf = (name: StructName): fc.Arbitrary<Record<string, unknown>> =>
  fc.record(Object.fromEntries(fieldsOf(name).map(([key, field]) => [key, valueOf(field)])), {
    noNullPrototype: true,
  });

describe('the structure codec', () => {
  it('is what the generator makes of the fields', () => {
    const at = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url));
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    const made = join(folder, 'coders.ts');
    execFileSync(process.execPath, ['--import', 'tsx', at('scripts/generate-kvm-coders.ts'), made]);
    expect(readFileSync(at('src/kvm/coders.ts'), 'utf8')).toBe(readFileSync(made, 'utf8'));
  });

  it.each(names)('reads back what it wrote: %s', (name) => {
    fc.assert(
      fc.property(structOf(name), fc.nat(16), (value, offset) => {
        const bytes = new Uint8Array(sizeOf(name) + offset);
        encode(name, value as never, bytes, offset);
        expect(decode(name, bytes, offset)).toEqual(value);
      }),
      { numRuns: 30 },
    );
  });

  it.each(names)('writes back what it read, and nothing that no field names: %s', (name) => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: sizeOf(name), maxLength: sizeOf(name) }), (bytes) => {
        const copy = bytes.slice();
        encode(name, decode(name, bytes), copy);
        expect(copy).toEqual(bytes);
      }),
      { numRuns: 30 },
    );
  });

  it.each(names)('has fields that lie inside the structure and do not overlap: %s', (name) => {
    const width = ({ kind, length = 1, struct }: Field) =>
      kind === 'struct' ? sizeOf(struct!) : kind === 'bytes' ? length : (Number(kind.slice(1)) / 8) * length;
    let end = 0;
    for (const [, field] of fieldsOf(name).sort(([, a], [, b]) => a.offset - b.offset)) {
      expect(field.offset).toBeGreaterThanOrEqual(end);
      end = field.offset + width(field);
    }
    expect(end).toBeLessThanOrEqual(sizeOf(name));
  });

  it.each([
    ['kvm_segment', 'type', 256],
    ['kvm_segment', 'type', -1],
    ['kvm_segment', 'type', 1.5],
    ['kvm_segment', 'type', NaN],
    ['kvm_segment', 'type', '1'],
    ['kvm_segment', 'limit', 2 ** 32],
    ['kvm_segment', 'base', 1],
    ['kvm_segment', 'base', 2n ** 64n],
    ['kvm_segment', 'base', undefined],
    ['kvm_fpu', 'fpr', new Uint8Array(127)],
    ['kvm_fpu', 'fpr', new Array(128).fill(0)],
    ['kvm_debugregs', 'db', [1n, 2n, 3n]],
    ['kvm_debugregs', 'db', [1n, 2n, 3n, 4]],
    ['kvm_debugregs', 'db', null],
  ] as [StructName, string, unknown][])('refuses %s.%s = %s by name', (name, key, value) => {
    const good = decode(name, new Uint8Array(sizeOf(name)));
    expect(() => encode(name, { ...good, [key]: value }, new Uint8Array(sizeOf(name)))).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining(`${name}.${key}`) as string,
      }),
    );
  });

  it('names the field of a nested structure', () => {
    const sregs = decode('kvm_sregs', new Uint8Array(sizeOf('kvm_sregs')));
    sregs.cs.base = -1n;
    expect(() => encode('kvm_sregs', sregs, new Uint8Array(sizeOf('kvm_sregs')))).toThrow(/kvm_segment\.base/);
  });
});
