import { describe, expect, it } from 'vitest';
import { VmmError } from '../../../src/errors.js';
import { decodeCpuid, encodeCpuid } from '../../../src/kvm/cpuid.js';
import { growing } from '../../../src/kvm/growing.js';

describe('CPUID tables', () => {
  it('come back as they were written', () => {
    const entries = Array.from({ length: 5 }, (_, i) => ({
      function: 0x8000_0000 + i,
      index: i,
      flags: i % 2,
      eax: 0xffff_ffff,
      ebx: i,
      ecx: i * 2,
      edx: i * 3,
    }));
    expect(decodeCpuid(encodeCpuid(entries, entries.length))).toEqual(entries);
  });
});

describe('growing', () => {
  const tooBig = new VmmError('IOCTL', 'too small', { errno: 'E2BIG' });

  it('doubles the room until the kernel is content', () => {
    const sizes: number[] = [];
    const result = growing(4, 64, (size) => {
      sizes.push(size);
      if (size < 30) throw tooBig;
      return size;
    });
    expect(result).toBe(32);
    expect(sizes).toEqual([4, 8, 16, 32]);
  });

  it('gives up at the limit, and at once for another error', () => {
    expect(() =>
      growing(4, 8, () => {
        throw tooBig;
      }),
    ).toThrow(tooBig);
    const other = new VmmError('IOCTL', 'no', { errno: 'EPERM' });
    let calls = 0;
    expect(() =>
      growing(4, 64, () => {
        calls++;
        throw other;
      }),
    ).toThrow(other);
    expect(calls).toBe(1);
  });
});
