import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { Bus } from '../../../../src/bus/bus.js';
import type { AccessSize } from '../../../../src/bus/device.js';
import { assignBars } from '../../../../src/devices/pci/assign-bars.js';
import { InterruptPin } from '../../../../src/devices/pci/intx.js';
import { ECAM_BYTES, PciBus } from '../../../../src/devices/pci/pci-bus.js';
import { FakeIrqLine } from '../../../../src/irq/irq-line.js';
import { TestFunction } from './test-function.js';

const ECAM = 0xe000_0000;
const memoryWindows = [
  { base: 0xe800_0000, sizeBytes: 0x0100_0000 },
  { base: 0x80_0000_0000, sizeBytes: 2 ** 36 },
];
const portWindows = [{ base: 0xc000, sizeBytes: 0x1000 }];
const BAR0 = 0x10;
const COMMAND = 0x04;

let ports: Bus;
let mmio: Bus;
let lines: FakeIrqLine[];
let resets: number;
let pci: PciBus;

function makeBus(): PciBus {
  ports = new Bus('port');
  mmio = new Bus('mmio');
  lines = [0, 1, 2, 3].map(() => new FakeIrqLine());
  const intx = lines as unknown as [FakeIrqLine, FakeIrqLine, FakeIrqLine, FakeIrqLine];
  const bus = new PciBus({ ports, mmio, memoryWindows, portWindows, intx, onReset: () => resets++ });
  ports.register(bus.configPorts, 0xcf8, 8);
  mmio.register(bus.ecam, ECAM, ECAM_BYTES);
  return bus;
}

beforeEach(() => {
  resets = 0;
  pci = makeBus();
});

/** By mechanism #1, as a guest does it. */
const select = (device: number, functionNumber = 0, register = 0) =>
  ports.write(0xcf8, 4, (0x8000_0000 | (device << 11) | (functionNumber << 8) | (register & 0xfc)) >>> 0);
const ecam = (device: number, register: number, functionNumber = 0) =>
  ECAM + (device << 15) + (functionNumber << 12) + register;

describe('configuration accesses', () => {
  it('find the host bridge at device 0, by both mechanisms', () => {
    select(0, 0, 8);
    expect(ports.read(0xcff, 1)).toBe(0x06);
    expect(mmio.read(ecam(0, 0x0a), 2)).toBe(0x0600);
  });

  it('read all ones where no function is, and on any other bus', () => {
    select(1);
    expect([
      ports.read(0xcfc, 4),
      ports.read(0xcfe, 2),
      mmio.read(ecam(1, 0), 4),
      mmio.read(ecam(31, 0, 7), 1),
    ]).toEqual([0xffffffff, 0xffff, 0xffffffff, 0xff]);
    ports.write(0xcf8, 4, 0x8001_0000);
    expect(ports.read(0xcfc, 4)).toBe(0xffffffff);
    ports.write(0xcf8, 4, 0x0000_0000);
    expect(ports.read(0xcfc, 4)).toBe(0xffffffff);
  });

  it('take a dword alone for CONFIG_ADDRESS, and answer a guest that probes for it', () => {
    ports.write(0xcf8, 4, 0x8000_0000);
    ports.write(0xcfb, 1, 0x01);
    ports.write(0xcf8, 2, 0x1234);
    expect(ports.read(0xcf8, 4)).toBe(0x8000_0000);
    expect([ports.read(0xcf8, 1), ports.read(0xcfa, 2)]).toEqual([0xff, 0xffff]);
  });

  it('reach bytes and words of a register at the data port’s four addresses', () => {
    pci.add(new TestFunction(), 3);
    select(3);
    expect([0xcfc, 0xcfd, 0xcfe, 0xcff].map((port) => ports.read(port, 1))).toEqual([0x34, 0x12, 0x78, 0x56]);
    expect([ports.read(0xcfe, 2), ports.read(0xcfd, 2), ports.read(0xcfc, 4)]).toEqual([0x5678, 0x7812, 0x56781234]);
    select(3, 0, 0x3c);
    ports.write(0xcfc, 1, 11);
    expect(mmio.read(ecam(3, 0x3c), 1)).toBe(11);
  });

  it('do not cross from one function into the next', () => {
    pci.add(new TestFunction(), 1);
    expect([mmio.read(ecam(1, 0) - 2, 4), mmio.read(ecam(1, 0xffe), 4)]).toEqual([0xffffffff, 0xffff0000]);
    mmio.write(ecam(1, COMMAND) - 0x1001, 4, 0xffff_ffff);
    expect(mmio.read(ecam(1, COMMAND), 2)).toBe(0);
  });

  it('show several functions only where the header says so', () => {
    const device = pci.add(new TestFunction());
    expect(mmio.read(ecam(device, 0x0e), 1)).toBe(0);
    pci.add(new TestFunction({ deviceId: 0x9999 }), device, 5);
    expect(mmio.read(ecam(device, 0x0e), 1)).toBe(0x80);
    select(device, 5);
    expect(ports.read(0xcfe, 2)).toBe(0x9999);
  });

  it('reset the machine by port 0xcf9, once a rising edge of the CPU reset bit', () => {
    for (const value of [0x02, 0x06, 0x06, 0x00, 0x0e]) ports.write(0xcf9, 1, value);
    expect([resets, ports.read(0xcf9, 1)]).toEqual([2, 0x0e]);
  });
});

describe('the host', () => {
  it('gets the first free device, and an error for a slot that cannot be', () => {
    expect([pci.add(new TestFunction()), pci.add(new TestFunction())]).toEqual([1, 2]);
    const code = (wanted: string): unknown => expect.objectContaining({ code: wanted });
    expect(() => pci.add(new TestFunction(), 2)).toThrow(code('BUSY'));
    for (const device of [-1, 32, 1.5, NaN]) {
      expect(() => pci.add(new TestFunction(), device)).toThrow(code('INVALID_ARGUMENT'));
    }
    expect(() => pci.add(new TestFunction(), 9, 1)).toThrow(code('INVALID_ARGUMENT'));
    for (let i = 3; i < 32; i++) pci.add(new TestFunction());
    expect(() => pci.add(new TestFunction())).toThrow(code('BUSY'));
  });
});

describe('BARs', () => {
  const two = () =>
    new TestFunction({
      bars: [
        { kind: 'memory32', sizeBytes: 0x1000 },
        { kind: 'io', sizeBytes: 16 },
      ],
    });
  let fn: TestFunction;
  const put = (address: number, device = 1) => mmio.write(ecam(device, BAR0), 4, address);
  const decode = (command: number, device = 1) => mmio.write(ecam(device, COMMAND), 2, command);

  beforeEach(() => {
    fn = two();
    pci.add(fn, 1);
  });

  it('appear on the buses when the guest turns decoding on, move, and vanish', () => {
    put(0xe800_0000);
    mmio.write(ecam(1, BAR0 + 4), 4, 0xc100);
    expect(mmio.read(0xe800_0010, 4)).toBe(0xffffffff);
    decode(3);
    expect([mmio.read(0xe800_0010, 4), ports.read(0xc104, 2)]).toEqual([0x10, 0x1004]);
    mmio.write(0xe800_0ffc, 2, 7);
    expect(fn.written).toEqual([[0, 0xffc, 2, 7]]);
    put(0xe800_1000);
    expect([mmio.read(0xe800_0010, 4), mmio.read(0xe800_1010, 4)]).toEqual([0xffffffff, 0x10]);
    decode(1);
    expect([mmio.read(0xe800_1010, 4), ports.read(0xc104, 1)]).toEqual([0xffffffff, 4]);
    expect(fn.moves).toEqual([
      [0, 0xe800_0000],
      [1, 0xc100],
      [0, undefined],
      [0, 0xe800_1000],
      [0, undefined],
    ]);
    expect(pci.refusedMappings).toBe(0);
  });

  it.each([
    ['over RAM', 0x0010_0000],
    ['over the configuration window', ECAM],
    ['outside every window', 0xfec0_0000],
    ['beyond the end of one', 0xe900_0000],
    ['nowhere, still at 0', 0],
  ])('stay unmapped %s, which is counted', (_, address) => {
    put(address);
    decode(2);
    expect([fn.moves, pci.refusedMappings]).toEqual([[], 1]);
    expect(mmio.read(ecam(1, 0), 4)).toBe(0x56781234);
    put(0xe800_0000);
    expect(fn.moves).toEqual([[0, 0xe800_0000]]);
  });

  it('get a place that another one leaves, not one that it holds', () => {
    pci.add(two(), 2);
    put(0xe800_0000);
    decode(2);
    put(0xe800_0000, 2);
    decode(2, 2);
    expect(pci.refusedMappings).toBe(1);
    mmio.write(0xe800_0000, 4, 1);
    decode(0);
    mmio.write(0xe800_0000, 4, 2);
    expect(fn.written).toEqual([[0, 0, 4, 1]]);
    expect(mmio.read(0xe800_0008, 1)).toBe(8);
    expect(pci.refusedMappings).toBe(1);
  });

  it('of 64 bits go above 4 GiB', () => {
    const wide = new TestFunction({ bars: [{ kind: 'memory64', sizeBytes: 2 ** 20, prefetchable: true }] });
    const device = pci.add(wide);
    mmio.write(ecam(device, BAR0), 4, 0x0030_0000);
    mmio.write(ecam(device, BAR0 + 4), 4, 0x80);
    decode(2, device);
    expect(mmio.read(0x80_0030_0004, 1)).toBe(4);
    mmio.write(ecam(device, BAR0 + 4), 4, 0xffff_ffff); // 2^64: beyond what a number holds exactly
    expect([wide.moves.at(-1), pci.refusedMappings]).toEqual([[0, undefined], 1]);
  });

  it('get addresses as from firmware: aligned, apart, in their windows', () => {
    const kinds = [
      new TestFunction({ bars: [{ kind: 'memory32', sizeBytes: 0x10 }, , { kind: 'io', sizeBytes: 256 }] }), // eslint-disable-line no-sparse-arrays
      new TestFunction({ bars: [{ kind: 'memory32', sizeBytes: 0x0080_0000 }] }),
      new TestFunction({ bars: [{ kind: 'memory64', sizeBytes: 2 ** 32 }] }),
      new TestFunction({ bars: [{ kind: 'memory32', sizeBytes: 0x0200_0000 }] }), // has no room
    ];
    for (const kind of kinds) pci.add(kind);
    expect(assignBars(pci, { memoryWindows, portWindows })).toBe(1);
    for (const { pciFunction } of pci.functions()) pciFunction.config.write(COMMAND, 2, 3);
    expect(kinds.map((kind) => kind.moves)).toEqual([
      [
        [0, 0xe880_1000],
        [2, 0xc000],
      ],
      [[0, 0xe800_0000]],
      [[0, 0x80_0000_0000]],
      [],
    ]);
    expect(fn.moves).toEqual([
      [0, 0xe880_0000],
      [1, 0xc100],
    ]);
    expect(pci.refusedMappings).toBe(1);
  });
});

describe('interrupt pins', () => {
  it('are rotated over the four lines, and share them', () => {
    const pins = [1, 2, 5].map((device) => {
      const fn = new TestFunction({ interruptPin: 1 });
      const pin = new InterruptPin(fn.config);
      pci.add(fn, device);
      pin.connect(fn.slot!.intx);
      return { fn, pin };
    });
    const levels = () => lines.map(({ level }) => level);
    for (const { pin } of pins) pin.set(true);
    expect(levels()).toEqual([false, true, true, false]); // devices 1 and 5, and 2
    pins[0].pin.set(false);
    expect(levels()).toEqual([false, true, true, false]);
    pins[2].pin.set(false);
    expect(levels()).toEqual([false, false, true, false]);
  });

  it('keep still when the guest disables them, while the status bit goes on telling', () => {
    const fn = new TestFunction({ interruptPin: 4 });
    const pin = new InterruptPin(fn.config);
    pci.add(fn, 4); // pin D of device 4: line 3
    pin.connect(fn.slot!.intx);
    mmio.write(ecam(4, COMMAND), 2, 0x400);
    pin.set(true);
    expect([lines[3].level, mmio.read(ecam(4, 6), 2)]).toEqual([false, 0x08]);
    mmio.write(ecam(4, COMMAND), 2, 0);
    expect(lines[3].level).toBe(true);
    pin.set(false);
    expect([lines[3].level, mmio.read(ecam(4, 6), 2)]).toEqual([false, 0]);
  });

  it('are no one’s business in a function without one', () => {
    const fn = new TestFunction();
    pci.add(fn);
    expect(fn.slot).toEqual({ device: 1, function: 0, intx: undefined });
  });
});

describe('reset and saved state', () => {
  const populate = () => {
    const fn = new TestFunction({ bars: [{ kind: 'memory32', sizeBytes: 0x1000 }] });
    pci.add(fn, 1);
    return fn;
  };

  it('takes the BARs off the buses', () => {
    populate();
    const fresh = pci.save();
    mmio.write(ecam(1, BAR0), 4, 0xe800_0000);
    mmio.write(ecam(1, COMMAND), 2, 2);
    select(1);
    pci.configPorts.reset();
    expect(pci.save()).toEqual(fresh);
    expect(mmio.devices()).toEqual([pci.ecam]);
  });

  it('brings the BARs back where they were', () => {
    populate();
    mmio.write(ecam(1, BAR0), 4, 0xe800_0000);
    mmio.write(ecam(1, COMMAND), 2, 2);
    select(1, 0, 0x10);
    const state = structuredClone(pci.save());
    pci = makeBus();
    populate();
    pci.restore(state);
    expect([mmio.read(0xe800_0008, 1), ports.read(0xcfc, 4)]).toEqual([8, 0xe800_0000]);
    expect(pci.save()).toEqual(state);
  });

  it('is refused when damaged or of another bus, and leaves a reset one', () => {
    populate();
    const fresh = pci.save();
    mmio.write(ecam(1, COMMAND), 2, 2);
    const state = pci.save();
    const [bridge, fn] = state.functions;
    for (const bad of [
      undefined,
      { ...state, configAddress: -1 },
      { ...state, functions: [bridge] },
      { ...state, functions: [bridge, { ...fn, slot: 16 }] },
      { ...state, functions: [bridge, { ...fn, state: { config: { bytes: new Uint8Array(3) } } }] },
      { ...state, functions: [fn, bridge] },
    ]) {
      expect(() => pci.restore(bad!)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(pci.save()).toEqual(fresh);
    }
  });
});

it('lets no guest throw, map over what is not its own, or read out of range', () => {
  const size = fc.constantFrom<AccessSize[]>(1, 2, 4);
  const value = fc.oneof(
    fc.nat(0xffffffff),
    fc.constantFrom(0xe800_0000, 0xe800_1000, 0xe800_0800, ECAM, 0, 7, 0xffff_ffff, 0xc000, 0xc008),
  );
  const registers = fc.oneof(fc.nat(0x40), fc.nat(ECAM_BYTES - 1));
  const access = fc.oneof(
    fc.record({ space: fc.constant('port' as const), at: fc.integer({ min: 0xcf0, max: 0xd08 }), size, value }),
    fc.record({ space: fc.constant('port' as const), at: fc.integer({ min: 0xbff0, max: 0xc020 }), size, value }),
    fc.record({ space: fc.constant('mmio' as const), at: registers.map((r) => ECAM + (1 << 15) + r), size, value }),
    fc.record({ space: fc.constant('mmio' as const), at: registers.map((r) => ECAM + (2 << 15) + r), size, value }),
    fc.record({ space: fc.constant('mmio' as const), at: fc.nat(0x2000).map((o) => 0xe800_0000 + o), size, value }),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), access), { maxLength: 80 }), (accesses) => {
      pci = makeBus();
      for (let i = 0; i < 2; i++) {
        const bars = [
          { kind: 'memory32', sizeBytes: 0x1000 },
          { kind: 'io', sizeBytes: 8 },
          { kind: 'memory64', sizeBytes: 0x1000 },
        ] as const;
        pci.add(new TestFunction({ bars }));
      }
      for (const [isWrite, { space, at, size: bytes, value: written }] of accesses) {
        const bus = space === 'port' ? ports : mmio;
        if (isWrite) bus.write(at, bytes, written % 2 ** (8 * bytes));
        const got = bus.read(at, bytes);
        expect(Number.isInteger(got) && got >= 0 && got < 2 ** (8 * bytes)).toBe(true);
      }
      expect(mmio.read(ECAM, 4)).toBe(0x00081b36);
      // What is mapped came through onBarMoved, in a window, and nothing of another device's.
      for (const { pciFunction } of pci.functions()) {
        for (const [bar, address] of (pciFunction as TestFunction).moves ?? []) {
          const windows = bar === 1 ? portWindows : memoryWindows;
          expect(
            address === undefined || windows.some((w) => address >= w.base && address < w.base + w.sizeBytes),
          ).toBe(true);
        }
      }
    }),
    { numRuns: 300 },
  );
});
