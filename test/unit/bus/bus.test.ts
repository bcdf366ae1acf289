import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Bus, type BusSpace } from '../../../src/bus/bus.js';
import type { AccessSize, BusDevice } from '../../../src/bus/device.js';

/** Reads as a byte pattern that names the device and the offset; remembers every access. */
class Recorder implements BusDevice {
  readonly log: string[] = [];
  constructor(
    readonly name: string,
    readonly tag = 0,
  ) {}
  static byteAt = (tag: number, offset: number) => (tag * 31 + offset * 7) & 0xff;
  read(offset: number, size: AccessSize): number {
    this.log.push(`r${size}@${offset}`);
    let value = 0;
    for (let i = 0; i < size; i++) value += Recorder.byteAt(this.tag, offset + i) * 2 ** (8 * i);
    return value;
  }
  write(offset: number, size: AccessSize, value: number): void {
    this.log.push(`w${size}@${offset}=${value.toString(16)}`);
  }
  reset(): void {}
}

const sizes = fc.constantFrom<AccessSize[]>(1, 2, 4);

describe.each<BusSpace>(['port', 'mmio'])('Bus of the %s space', (space) => {
  const last = space === 'port' ? 2 ** 16 - 1 : 2 ** 52 - 1;

  it('hands a device offsets, not addresses', () => {
    const bus = new Bus(space);
    const device = new Recorder('a');
    bus.register(device, 0x3f8, 8);
    bus.write(0x3fb, 1, 0x80);
    bus.read(0x3f8, 4);
    expect(device.log).toEqual(['w1@3=80', 'r4@0']);
    expect(bus.accesses()).toEqual({ a: 2 });
    expect(bus.unmappedAccesses).toBe(0);
  });

  it('starts a range at the offset that the machine chose', () => {
    const bus = new Bus(space);
    const device = new Recorder('a');
    bus.register(device, 0x60, 1);
    bus.register(device, 0x64, 1, 4);
    bus.write(0x60, 1, 1);
    bus.write(0x64, 1, 2);
    expect(device.log).toEqual(['w1@0=1', 'w1@4=2']);
  });

  it('reads all ones and ignores writes where no device is, and counts both', () => {
    const bus = new Bus(space);
    bus.register(new Recorder('a'), 0x100, 4);
    expect([bus.read(0xff, 1), bus.read(0x104, 2), bus.read(0, 4)]).toEqual([0xff, 0xffff, 0xffffffff]);
    bus.write(0x104, 4, 1);
    expect(bus.unmappedAccesses).toBe(4);
    expect(bus.accesses()).toEqual({});
  });

  it('splits an access that passes the end of a range into bytes, each routed on its own', () => {
    const bus = new Bus(space);
    const a = new Recorder('a', 1);
    const b = new Recorder('b', 2);
    bus.register(a, 0x100, 2);
    bus.register(b, 0x103, 1);
    const expected = [Recorder.byteAt(1, 1), 0xff, Recorder.byteAt(2, 0), 0xff];
    expect(bus.read(0x101, 4)).toBe(Buffer.from(expected).readUInt32LE());
    bus.write(0x101, 4, 0x44332211);
    expect(a.log).toEqual(['r1@1', 'w1@1=11']);
    expect(b.log).toEqual(['r1@0', 'w1@0=33']);
    expect(bus.unmappedAccesses).toBe(4);
  });

  it('splits an access that begins below a range', () => {
    const bus = new Bus(space);
    const a = new Recorder('a', 1);
    bus.register(a, 0x101, 8);
    expect(bus.read(0x100, 2)).toBe(0xff | (Recorder.byteAt(1, 0) << 8));
    expect(a.log).toEqual(['r1@0']);
  });

  it('treats what lies beyond the end of the space as unmapped', () => {
    const bus = new Bus(space);
    const a = new Recorder('a', 3);
    bus.register(a, last, 1);
    expect(bus.read(last, 2)).toBe(0xff00 | Recorder.byteAt(3, 0));
    expect(bus.read(last + 1, 4)).toBe(0xffffffff);
  });

  it('makes an 8-byte access two of 4 bytes, low half first', () => {
    const bus = new Bus(space);
    const a = new Recorder('a');
    bus.register(a, 0x1000, 0x100);
    const data = new DataView(new ArrayBuffer(24));
    data.setBigUint64(3, 0x8877665544332211n, true);
    bus.writeWide(0x1010, 8, data, 3);
    bus.readWide(0x1020, 8, data, 11);
    expect(a.log).toEqual(['w4@16=44332211', 'w4@20=88776655', 'r4@32', 'r4@36']);
    for (let i = 0; i < 8; i++) expect(data.getUint8(11 + i)).toBe(Recorder.byteAt(0, 32 + i));
  });

  it('makes the odd lengths of a page crossing out of 4, 2 and 1 bytes', () => {
    const bus = new Bus(space);
    const a = new Recorder('a');
    bus.register(a, 0x1000, 0x100);
    const data = new DataView(new ArrayBuffer(8));
    for (const length of [1, 2, 3, 4, 5, 6, 7]) {
      bus.readWide(0x1000, length, data, 0);
      for (let i = 0; i < length; i++) expect(data.getUint8(i)).toBe(Recorder.byteAt(0, i));
    }
    bus.writeWide(0x1000, 7, data, 0);
    expect(a.log.slice(-3).map((entry) => entry.slice(0, 4))).toEqual(['w4@0', 'w2@4', 'w1@6']);
  });

  it.each([
    [0, 0],
    [-1, 2],
    [0.5, 1],
    [0, NaN],
    [0, Infinity],
    [last, 2],
    [last + 1, 1],
    [2 ** 53, 1],
  ])('refuses base %d, length %d with BUS_RANGE', (base, length) => {
    const bus = new Bus(space);
    expect(() => bus.register(new Recorder('a'), base, length)).toThrow(expect.objectContaining({ code: 'BUS_RANGE' }));
    expect(bus.isFree(base, length)).toBe(false);
    expect(bus.devices()).toEqual([]);
  });

  it('refuses a range that meets another with BUS_OVERLAP and names both', () => {
    const bus = new Bus(space);
    bus.register(new Recorder('first'), 0x100, 0x10);
    for (const [base, length] of [
      [0x100, 0x10],
      [0xff, 2],
      [0x10f, 1],
      [0x104, 2],
      [0, 0x1000],
    ]) {
      expect(() => bus.register(new Recorder('second'), base, length)).toThrow(
        expect.objectContaining({ code: 'BUS_OVERLAP', message: expect.stringMatching(/second.*first/) as string }),
      );
      expect(bus.isFree(base, length)).toBe(false);
    }
    bus.register(new Recorder('below'), 0xff, 1);
    bus.register(new Recorder('above'), 0x110, 1);
  });

  it('forgets an unregistered range at once, keeps its count, and lets another device have the place', () => {
    const bus = new Bus(space);
    const a = new Recorder('a');
    const b = new Recorder('b', 9);
    bus.register(a, 0x100, 4);
    bus.register(a, 0x200, 4);
    bus.read(0x100, 1);
    expect(bus.unregister(a, 0x100)).toBe(true);
    expect(bus.read(0x100, 1)).toBe(0xff);
    expect(bus.unregister(a, 0x100)).toBe(false);
    bus.register(b, 0x100, 4);
    expect(bus.read(0x100, 1)).toBe(Recorder.byteAt(9, 0));
    expect(bus.unregister(a)).toBe(true);
    expect(bus.devices()).toEqual([b]);
    expect(bus.accesses()).toEqual({ a: 1, b: 1 });
  });

  it('lets a handler move its own device', () => {
    const bus = new Bus(space);
    const seen: number[] = [];
    const mover: BusDevice = {
      name: 'mover',
      read: () => 1,
      write: (offset, _size, value) => {
        seen.push(offset);
        bus.unregister(mover);
        bus.register(mover, value, 4);
      },
      reset: () => {},
    };
    bus.register(mover, 0x100, 4);
    bus.write(0x100, 4, 0x200);
    bus.write(0x202, 2, 0x300);
    expect(seen).toEqual([0, 2]);
    expect([bus.read(0x100, 1), bus.read(0x300, 1)]).toEqual([0xff, 1]);
  });

  it('passes an exception of a handler on', () => {
    const bus = new Bus(space);
    const broken = new Recorder('broken');
    broken.read = () => {
      throw new Error('host bug');
    };
    bus.register(broken, 0, 4);
    expect(() => bus.read(0, 1)).toThrow('host bug');
  });

  it('never lets ranges overlap, and routes every byte to the device that owns it', () => {
    // Crowded at the bottom and at the very end of the space, where mistakes live.
    const address = fc.oneof(fc.integer({ min: 0, max: 300 }), fc.integer({ min: last - 40, max: last + 8 }));
    const step = fc.oneof(
      fc.record({ op: fc.constant('add' as const), base: address, length: fc.integer({ min: 0, max: 40 }) }),
      fc.record({ op: fc.constant('remove' as const), pick: fc.nat() }),
      fc.record({ op: fc.constant('read' as const), at: address, size: sizes }),
      fc.record({ op: fc.constant('write' as const), at: address, size: sizes, value: fc.integer() }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const bus = new Bus(space);
        const owner = new Map<number, { device: Recorder; base: number }>();
        const devices: Recorder[] = [];
        for (const s of steps) {
          if (s.op === 'add') {
            const device = new Recorder(`d${devices.length}`, devices.length + 1);
            const bytes = Array.from({ length: s.length }, (_, i) => s.base + i);
            const legal = s.length > 0 && s.base + s.length - 1 <= last && bytes.every((byte) => !owner.has(byte));
            expect(bus.isFree(s.base, s.length)).toBe(legal);
            if (!legal) {
              expect(() => bus.register(device, s.base, s.length)).toThrow(/.*/);
              continue;
            }
            bus.register(device, s.base, s.length);
            devices.push(device);
            for (const byte of bytes) owner.set(byte, { device, base: s.base });
          } else if (s.op === 'remove') {
            const device = devices[s.pick % (devices.length || 1)];
            if (!device) continue;
            bus.unregister(device);
            for (const [byte, own] of owner) if (own.device === device) owner.delete(byte);
          } else {
            const bytes = Array.from({ length: s.size }, (_, i) => owner.get(s.at + i));
            const whole = bytes.every((own) => own && own.device === bytes[0]?.device);
            for (const device of devices) device.log.length = 0;
            const unmappedBefore = bus.unmappedAccesses;
            const value = s.op === 'write' ? (s.size === 4 ? s.value >>> 0 : s.value & (2 ** (8 * s.size) - 1)) : 0;
            if (s.op === 'read') {
              const expected = bytes.reduce(
                (sum, own, i) =>
                  sum + (own ? Recorder.byteAt(own.device.tag, s.at + i - own.base) : 0xff) * 2 ** (8 * i),
                0,
              );
              expect(bus.read(s.at, s.size)).toBe(expected);
            } else bus.write(s.at, s.size, value);
            const suffix = (v: number) => (s.op === 'write' ? `=${v.toString(16)}` : '');
            const tag = s.op[0];
            const expected = new Map<Recorder, string[]>();
            if (whole) {
              const { device, base } = bytes[0]!;
              expected.set(device, [`${tag}${s.size}@${s.at - base}${suffix(value)}`]);
            } else {
              bytes.forEach((own, i) => {
                if (!own) return;
                const entry = `${tag}1@${s.at + i - own.base}${suffix((value >>> (8 * i)) & 0xff)}`;
                expected.set(own.device, [...(expected.get(own.device) ?? []), entry]);
              });
            }
            for (const device of devices) expect(device.log).toEqual(expected.get(device) ?? []);
            const mapped = bytes.filter(Boolean).length;
            expect(bus.unmappedAccesses - unmappedBefore).toBe(mapped === 0 ? 1 : s.size - mapped);
          }
        }
      }),
      { numRuns: 300 },
    );
  });

  it('never throws for any number as an address', () => {
    const bus = new Bus(space);
    bus.register(new Recorder('a'), 0, 4);
    bus.register(new Recorder('b'), last - 1, 2);
    fc.assert(
      fc.property(fc.oneof(fc.double(), fc.maxSafeInteger()), sizes, fc.nat(0xff), (address, size, value) => {
        bus.write(address, size, value);
        const got = bus.read(address, size);
        return Number.isInteger(got) && got >= 0 && got < 2 ** (8 * size);
      }),
    );
  });
});

it('gives every one of the 65,536 ports to a device of its own', () => {
  const bus = new Bus('port');
  const devices = [...Array(256).keys()].map((tag) => new Recorder(`d${tag}`, tag));
  devices.forEach((device, i) => bus.register(device, i * 256, 256));
  for (let port = 0; port < 65536; port += 97) {
    expect(bus.read(port, 1)).toBe(Recorder.byteAt(port >> 8, port & 0xff));
  }
  expect(bus.isFree(65535, 1)).toBe(false);
});
