import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../../src/bus/device.js';
import { type BarDescription, ConfigSpace } from '../../../../src/devices/pci/config-space.js';
import { COMMAND, INTERRUPT_LINE, STATUS } from '../../../../src/devices/pci/defs.js';

const make = (bars: (BarDescription | undefined)[] = [], more = {}) =>
  new ConfigSpace({ vendorId: 0x1af4, deviceId: 0x1042, classCode: 0x018000, revision: 1, bars, ...more });

const bar = (index: number) => 0x10 + 4 * index;

describe('the header', () => {
  it('has its fields where a type 0 header has them', () => {
    const config = make([], { subsystemVendorId: 0x1af4, subsystemId: 0x40, interruptPin: 2 });
    expect([0x00, 0x08, 0x0c, 0x2c, 0x3c].map((at) => config.read(at, 4))).toEqual([
      0x10421af4, 0x01800001, 0, 0x00401af4, 0x0200,
    ]);
    expect([config.read(0x0b, 1), config.read(0x0a, 2), config.read(0x01, 2)]).toEqual([0x01, 0x0180, 0x421a]);
  });

  it('lets a guest write the interrupt line and the command bits that mean something, nothing else', () => {
    const config = make([{ kind: 'memory32', sizeBytes: 4096 }]);
    for (let at = 0; at < 0x1000; at += 4) config.write(at, 4, 0xffff_ffff);
    expect(config.read(0, 4)).toBe(0x10421af4);
    expect(config.read(COMMAND, 2)).toBe(0x0546); // no I/O decoding: it has no I/O BAR
    expect(config.read(STATUS, 2)).toBe(0);
    expect(config.read(INTERRUPT_LINE, 4)).toBe(0xff);
    expect([config.read(0x30, 4), config.read(0x40, 4), config.read(0x100, 4), config.read(0xffc, 4)]).toEqual([
      0, 0, 0, 0,
    ]);
  });

  it('takes byte writes one byte at a time', () => {
    const config = make([{ kind: 'memory32', sizeBytes: 4096 }]);
    config.write(bar(0) + 3, 1, 0xe0);
    config.write(bar(0) + 1, 2, 0x1234);
    expect(config.read(bar(0), 4)).toBe(0xe0123000);
  });

  it('reads all ones beyond its end', () => {
    expect(make().read(0xffe, 4)).toBe(0xffff0000);
  });
});

describe('base address registers', () => {
  it.each<[string, BarDescription, number[]]>([
    ['32-bit memory of 16 KiB', { kind: 'memory32', sizeBytes: 0x4000 }, [0xffffc000, 0]],
    ['prefetchable memory', { kind: 'memory32', sizeBytes: 16, prefetchable: true }, [0xfffffff8, 0]],
    ['64-bit memory of 1 MiB', { kind: 'memory64', sizeBytes: 2 ** 20 }, [0xfff00004, 0xffffffff]],
    ['64-bit memory of 4 GiB', { kind: 'memory64', sizeBytes: 2 ** 32 }, [0x4, 0xffffffff]],
    ['64-bit memory of 16 GiB', { kind: 'memory64', sizeBytes: 2 ** 34 }, [0x4, 0xfffffffc]],
    ['32 ports', { kind: 'io', sizeBytes: 32 }, [0xffffffe1, 0]],
  ])('tell their size and kind: %s', (_, description, sizing) => {
    const config = make([description]);
    for (const index of [0, 1]) config.write(bar(index), 4, 0xffff_ffff);
    expect([0, 1].map((index) => config.read(bar(index), 4))).toEqual(sizing);
  });

  it('decode where the guest put them, while its command register says so', () => {
    const config = make([
      { kind: 'memory32', sizeBytes: 4096 },
      { kind: 'io', sizeBytes: 8 },
      { kind: 'memory64', sizeBytes: 4096 },
    ]);
    config.write(bar(0), 4, 0xe0001abc);
    config.write(bar(1), 4, 0xc00f);
    config.write(bar(2), 4, 0xfff);
    config.write(bar(3), 4, 0x12);
    const where = () => [0, 1, 2, 3].map((index) => config.barAddress(index));
    expect(where()).toEqual([undefined, undefined, undefined, undefined]);
    config.write(COMMAND, 2, 1);
    expect(where()).toEqual([undefined, 0xc008, undefined, undefined]);
    config.write(COMMAND, 2, 2);
    expect(where()).toEqual([0xe0001000, undefined, 0x12_0000_0000, undefined]);
  });

  it.each<[string, (BarDescription | undefined)[]]>([
    ['a size that is no power of two', [{ kind: 'memory32', sizeBytes: 0x3000 }]],
    ['a size of 0', [{ kind: 'memory32', sizeBytes: 0 }]],
    ['all ports', [{ kind: 'io', sizeBytes: 2 ** 16 }]],
    ['a 64-bit one in the last register', [, , , , , { kind: 'memory64', sizeBytes: 4096 }]], // eslint-disable-line no-sparse-arrays
    [
      'something in the upper half of a 64-bit one',
      [
        { kind: 'memory64', sizeBytes: 4096 },
        { kind: 'io', sizeBytes: 8 },
      ],
    ],
    ['seven registers', Array<BarDescription>(7).fill({ kind: 'io', sizeBytes: 8 })],
  ])('are refused to the host: %s', (_, bars) => {
    expect(() => make(bars)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('capabilities', () => {
  it('form a list, aligned, with the bits writable that are to be', () => {
    const config = make();
    const first = config.addCapability(0x09, Uint8Array.of(3), Uint8Array.of(0));
    const second = config.addCapability(0x11, Uint8Array.of(0x5a, 0), Uint8Array.of(0x0f, 0xff));
    expect([config.read(STATUS, 2), config.read(0x34, 1)]).toEqual([0x10, first]);
    expect([config.read(first, 4), config.read(second, 4)]).toEqual([0x00030009 | (second << 8), 0x005a0011]);
    config.write(second, 4, 0xffff_ffff);
    expect(config.read(second, 4)).toBe(0xff5f0011);
  });

  it('end with the conventional 256 bytes', () => {
    const config = make();
    config.addCapability(0x09, new Uint8Array(189));
    expect(() => config.addCapability(0x09, new Uint8Array(1))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('saved state', () => {
  const some = () => {
    const config = make([{ kind: 'memory32', sizeBytes: 4096 }]);
    config.addCapability(0x11, Uint8Array.of(0), Uint8Array.of(0xf0));
    return config;
  };

  it('carries what the guest wrote, and tells watchers', () => {
    const config = some();
    config.write(bar(0), 4, 0xe0000000);
    config.write(COMMAND, 2, 6);
    const other = some();
    let loads = 0;
    other.watch(COMMAND, 2, { afterLoad: () => loads++ });
    other.restore(structuredClone(config.save()));
    expect([other.barAddress(0), other.command, loads]).toEqual([0xe0000000, 6, 1]);
  });

  it('of another function, or of the wrong size, is refused and changes nothing', () => {
    const config = some();
    const before = config.save();
    const bytes = (change: (bytes: Uint8Array) => void) => {
      const copy = before.bytes.slice();
      change(copy);
      return { bytes: copy };
    };
    for (const bad of [
      make().save(),
      bytes((b) => (b[2] ^= 1)),
      bytes((b) => (b[0x10] |= 1)),
      bytes((b) => (b[0x800] = 1)),
      { bytes: before.bytes.slice(1) },
      undefined,
    ]) {
      expect(() => config.restore(bad!)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(config.save()).toEqual(before);
    }
  });
});

it('stays in range and keeps its read-only bits, whatever a guest writes where', () => {
  const access = fc.record({
    offset: fc.oneof(fc.nat(0x60), fc.nat(0xfff)),
    size: fc.constantFrom<AccessSize[]>(1, 2, 4),
    value: fc.nat(0xffffffff),
  });
  fc.assert(
    fc.property(fc.array(access, { maxLength: 40 }), (accesses) => {
      const config = make([{ kind: 'memory64', sizeBytes: 4096 }, undefined, { kind: 'io', sizeBytes: 16 }]);
      config.addCapability(0x11, Uint8Array.of(7, 0), Uint8Array.of(0, 0xc0));
      const reference = config.save();
      for (const { offset, size, value } of accesses) {
        config.write(offset, size, value % 2 ** (8 * size));
        const got = config.read(offset, size);
        expect(Number.isInteger(got) && got >= 0 && got < 2 ** (8 * size)).toBe(true);
      }
      const fresh = make([{ kind: 'memory64', sizeBytes: 4096 }, undefined, { kind: 'io', sizeBytes: 16 }]);
      fresh.addCapability(0x11, Uint8Array.of(7, 0), Uint8Array.of(0, 0xc0));
      fresh.restore(config.save()); // refuses any change of a read-only bit
      expect(Buffer.compare(fresh.save().bytes, config.save().bytes)).toBe(0);
      config.reset();
      expect(Buffer.compare(config.save().bytes, reference.bytes)).toBe(0);
    }),
  );
});
