import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';

describe('GuestMemory', () => {
  it('refuses a region that meets another', () => {
    const memory = heapGuestMemory({ gpa: 0x1000, sizeBytes: 0x1000 });
    const region = (gpa: number, sizeBytes: number) => ({
      gpa,
      sizeBytes,
      windows: [new Uint8Array(sizeBytes)],
      windowStride: 2 ** 30,
    });
    for (const bad of [region(0x1000, 0x1000), region(0x1fff, 1), region(0, 0x1001)]) {
      expect(() => memory.addRegion(bad)).toThrow(expect.objectContaining({ code: 'MEMORY_OVERLAP' }));
    }
    memory.addRegion(region(0, 0x1000));
    expect(memory.regions.map(({ gpa }) => gpa)).toEqual([0, 0x1000]);
    expect(memory.sizeBytes).toBe(0x2000);
  });

  it('throws GPA_OUT_OF_RANGE at the host, and tells a device undefined', () => {
    const memory = heapGuestMemory({ gpa: 0, sizeBytes: 16 });
    expect(() => memory.view(10, 7)).toThrow(expect.objectContaining({ code: 'GPA_OUT_OF_RANGE' }));
    expect(memory.tryView(10, 7)).toBeUndefined();
    expect(memory.tryView(10, 6)).toHaveLength(6);
  });

  it('knows where its bytes are, in regions that share a buffer, too', () => {
    const backing = new Uint8Array(64);
    const memory = new GuestMemory();
    const region = (gpa: number, start: number) => ({
      gpa,
      sizeBytes: 16,
      windows: [backing.subarray(start, start + 16)],
      windowStride: 16,
    });
    memory.addRegion(region(0, 32));
    memory.addRegion(region(0x100, 8));
    expect(memory.gpaOf(memory.view(3, 5))).toBe(3);
    expect(memory.gpaOf(memory.view(0x10f, 1))).toBe(0x10f);
    expect(memory.gpaOf(backing.subarray(28, 36))).toBeUndefined();
    expect(memory.gpaOf(new Uint8Array(4))).toBeUndefined();
  });

  it('gives back what was written, as a copy', () => {
    const memory = heapGuestMemory({ gpa: 0x100, sizeBytes: 16 });
    memory.write(0x104, Uint8Array.of(1, 2, 3));
    const copy = memory.read(0x103, 5);
    memory.write(0x104, Uint8Array.of(9));
    expect([...copy]).toEqual([0, 1, 2, 3, 0]);
    expect(memory.dataView(0x104, 2).getUint16(0, true)).toBe(0x0209);
  });

  it('lets every byte of a windowed region be reached, at the same place through each window', () => {
    const stride = 16;
    const backing = new Uint8Array(56).map((_, i) => i);
    const windows = [0, 16, 32].map((start) => backing.subarray(start, Math.min(start + 2 * stride, 56)));
    const memory = new GuestMemory();
    memory.addRegion({ gpa: 100, sizeBytes: 56, windows, windowStride: stride });
    fc.assert(
      fc.property(fc.integer({ min: 90, max: 170 }), fc.nat(stride), (gpa, length) => {
        const view = memory.tryView(gpa, length);
        const inside = gpa >= 100 && gpa + length <= 156;
        if (view) expect(memory.gpaOf(view)).toBe(gpa);
        expect(view !== undefined).toBe(inside);
        if (view) expect([...view]).toEqual(Array.from({ length }, (_, i) => gpa - 100 + i));
      }),
    );
  });

  it('never throws and never leaves its regions, whatever numbers a guest supplies', () => {
    const memory = heapGuestMemory({ gpa: 0, sizeBytes: 64 }, { gpa: 64, sizeBytes: 64 }, { gpa: 256, sizeBytes: 64 });
    const any = fc.oneof(fc.double(), fc.integer({ min: -8, max: 400 }), fc.maxSafeInteger());
    fc.assert(
      fc.property(any, any, (gpa, length) => {
        const view = memory.tryView(gpa, length);
        const inside = [0, 64, 256].some((base) => gpa >= base && length >= 0 && gpa + length <= base + 64);
        expect(view !== undefined).toBe(inside && Number.isInteger(gpa) && Number.isInteger(length));
        if (view) expect(view.length).toBe(length + 0); // -0 is a length, too
      }),
    );
  });
});
