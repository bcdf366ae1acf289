import fc from 'fast-check';
import { beforeEach, expect, it } from 'vitest';
import { CmosRtc } from '../../../src/devices/legacy/cmos-rtc.js';

const GIB = 2 ** 30;
const MIB = 2 ** 20;
let now: number;
let rtc: CmosRtc;
const get = (index: number) => {
  rtc.write(0, 1, index);
  return rtc.read(1, 1);
};
const set = (index: number, value: number) => {
  rtc.write(0, 1, index);
  rtc.write(1, 1, value);
};
/** Century, year, month, day of month, hours, minutes, seconds, as they stand in the registers. */
const clock = () => [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00].map(get);

beforeEach(() => {
  now = Date.UTC(2026, 10, 22, 19, 58, 7, 250);
  rtc = new CmosRtc({ now: () => now, memoryBelow4GiB: 256 * MIB });
});

it('tells the time in BCD and 24 hours, as PCs do', () => {
  expect(clock()).toEqual([0x20, 0x26, 0x11, 0x22, 0x19, 0x58, 0x07]);
  expect(get(0x06)).toBe(1); // a Sunday
});

it('tells the time in binary when the guest asks for it', () => {
  set(0x0b, 0x06);
  expect(clock()).toEqual([20, 26, 11, 22, 19, 58, 7]);
});

it.each([
  [0, 0x12],
  [1, 0x01],
  [11, 0x11],
  [12, 0x92],
  [13, 0x81],
  [23, 0x91],
])('shows %d o’clock as %i in the 12-hour format', (hours, shown) => {
  now = Date.UTC(2026, 0, 1, hours);
  set(0x0b, 0x00);
  expect(get(0x04)).toBe(shown);
});

it('is never in the middle of an update', () => {
  for (let ms = 0; ms < 2000; ms++) {
    now += 1;
    expect(get(0x0a)).toBe(0x26);
  }
});

it('never mixes two moments when the registers are read one by one', () => {
  now = Date.UTC(2026, 11, 31, 23, 59, 59, 999);
  const read = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32].map((index) => {
    const value = get(index);
    now += 1;
    return value;
  });
  expect(read).toEqual([0x59, 0x59, 0x23, 0x31, 0x12, 0x26, 0x20]);
  now += 10;
  expect(clock()).toEqual([0x20, 0x27, 0x01, 0x01, 0, 0, 0]);
});

it('stands still while the guest sets it, then runs from there', () => {
  set(0x0b, 0x82);
  for (const [index, value] of [
    [0x00, 0x30],
    [0x02, 0x15],
    [0x04, 0x06],
    [0x08, 0x02],
    [0x07, 0x28],
    [0x09, 0x99],
    [0x32, 0x19],
  ]) {
    set(index, value);
  }
  now += 5000;
  expect(clock()).toEqual([0x19, 0x99, 0x02, 0x28, 0x06, 0x15, 0x30]);
  set(0x0b, 0x02);
  now += 4000;
  expect(clock()).toEqual([0x19, 0x99, 0x02, 0x28, 0x06, 0x15, 0x34]);
});

it('ignores the NMI mask in the index', () => {
  expect(get(0x80 | 0x07)).toBe(0x22);
});

it('says that its battery is good and that no interrupt is pending', () => {
  expect([get(0x0d), get(0x0c)]).toEqual([0x80, 0]);
  set(0x0d, 0);
  expect(get(0x0d)).toBe(0x80);
});

it('tells firmware how much memory there is, at most what fits', () => {
  const word = (index: number) => get(index) | (get(index + 1) << 8);
  expect([word(0x15), word(0x17), word(0x30), word(0x34)]).toEqual([640, 0xffff, 0xffff, 3840]);
  rtc = new CmosRtc({ memoryBelow4GiB: 3 * GIB, memoryAbove4GiB: 5 * GIB });
  expect(word(0x34)).toBe((3 * GIB - 16 * MIB) / 65536);
  expect(word(0x5b) | (get(0x5d) << 16)).toBe((5 * GIB) / 65536);
  rtc = new CmosRtc({ memoryBelow4GiB: 512 * 1024 });
  expect([word(0x15), word(0x17), word(0x34)]).toEqual([512, 0, 0]);
});

it('keeps RAM and clock over a reset', () => {
  set(0x40, 0xab);
  set(0x09, 0x30);
  rtc.reset();
  expect([get(0x40), get(0x09)]).toEqual([0xab, 0x30]);
});

it('carries its state over, and refuses a damaged one', () => {
  set(0x0b, 0x82);
  set(0x09, 0x30);
  set(0x50, 0x11);
  const state = structuredClone(rtc.save());
  const other = rtc;
  rtc = new CmosRtc({ now: () => now, memoryBelow4GiB: 0 });
  rtc.restore(state);
  expect([get(0x50), get(0x09), get(0x0b)]).toEqual([0x11, 0x30, 0x82]);
  expect(rtc.save()).toEqual({ ...other.save(), index: 0x0b });
  for (const damage of [{ ram: new Uint8Array(127) }, { index: 128 }, { offsetMs: NaN }, { heldMs: 1e300 }]) {
    expect(() => rtc.restore({ ...state, ...damage })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
});

it('never throws and answers in bytes, whatever the guest writes', () => {
  const step = fc.tuple(
    fc.boolean(),
    fc.oneof(fc.nat(0xff), fc.constantFrom(0, 2, 4, 7, 8, 9, 0x0b, 0x32)),
    fc.nat(0xff),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
      rtc = new CmosRtc({ memoryBelow4GiB: GIB });
      for (const [isWrite, index, value] of steps) {
        if (isWrite) set(index, value);
        else expect(get(index)).toSatisfy((byte: number) => Number.isInteger(byte) && byte >= 0 && byte <= 0xff);
      }
    }),
  );
});
