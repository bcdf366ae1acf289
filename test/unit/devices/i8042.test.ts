import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { Bus } from '../../../src/bus/bus.js';
import { I8042, I8042_COMMAND_OFFSET, I8042_DATA_OFFSET } from '../../../src/devices/legacy/i8042.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';

let irq: FakeIrqLine;
let resets: number;
let i8042: I8042;
let bus: Bus;
const status = () => bus.read(0x64, 1);
const data = () => bus.read(0x60, 1);
const command = (value: number, parameter?: number) => {
  bus.write(0x64, 1, value);
  if (parameter !== undefined) bus.write(0x60, 1, parameter);
};

beforeEach(() => {
  irq = new FakeIrqLine();
  resets = 0;
  i8042 = new I8042({ irq, onReset: () => resets++ });
  bus = new Bus('port');
  bus.register(i8042, 0x60, 1, I8042_DATA_OFFSET);
  bus.register(i8042, 0x64, 1, I8042_COMMAND_OFFSET);
});

it('pulls the reset line for 0xfe and for an output port with bit 0 low, and for nothing else', () => {
  command(0xfe);
  expect(resets).toBe(1);
  command(0xd1, 0xfe);
  expect(resets).toBe(2);
  for (let value = 0; value <= 0xff; value++) if (value < 0xf0 || value & 1) command(value);
  command(0xd1, 0xdf);
  expect(resets).toBe(2);
});

it('has its input buffer always empty, so that a reboot need not wait', () => {
  for (const value of [0x20, 0xaa, 0xd4]) {
    command(value);
    expect(status() & 0x02).toBe(0);
  }
});

describe('as a driver probes it', () => {
  it('starts with an empty output buffer', () => {
    expect(status() & 0x01).toBe(0);
  });

  it('passes the self test and the keyboard interface test', () => {
    command(0xaa);
    expect([status() & 0x01, data(), status() & 0x01]).toEqual([0x01, 0x55, 0]);
    command(0xab);
    expect(data()).toBe(0);
  });

  it('reads back the configuration that was written', () => {
    command(0x60, 0x47);
    command(0x20);
    expect(data()).toBe(0x47);
    command(0xad);
    command(0x20);
    expect(data()).toBe(0x57);
    command(0xae);
    command(0x20);
    expect(data()).toBe(0x47);
  });

  it('answers the auxiliary loop without the auxiliary flag and fails the auxiliary test', () => {
    command(0xd3, 0x5a);
    expect(status() & 0x21).toBe(0x01);
    data();
    command(0xa9);
    expect(data()).toBe(0x01);
  });

  it('answers a byte for the absent keyboard at once, with the time-out flag and an interrupt', () => {
    command(0x60, 0x01);
    bus.write(0x60, 1, 0xf2);
    expect([status() & 0x41, irq.level]).toEqual([0x41, true]);
    expect(data()).toBe(0xfe);
    expect([status() & 0x41, irq.level]).toEqual([0, false]);
    bus.write(0x60, 1, 0xf2);
    bus.write(0x60, 1, 0xf2);
    expect(irq.edges).toBe(3);
  });

  it('raises no interrupt while the guest has it off', () => {
    bus.write(0x60, 1, 0xff);
    expect([status() & 0x01, irq.level]).toEqual([0x01, false]);
  });

  it('leaves ports 0x61 to 0x63 to others', () => {
    expect([1, 2, 3].map((i) => bus.read(0x60 + i, 1))).toEqual([0xff, 0xff, 0xff]);
    expect(bus.unmappedAccesses).toBe(3);
  });
});

it('carries its state over, and refuses a damaged one', () => {
  command(0x60, 0x33);
  command(0xd2);
  const state = structuredClone(i8042.save());
  i8042.reset();
  command(0x20);
  expect(data()).toBe(0x24);
  i8042.restore(state);
  bus.write(0x60, 1, 0x99); // the parameter of 0xd2
  expect(data()).toBe(0x99);
  command(0x20);
  expect(data()).toBe(0x33);
  expect(() => i8042.restore({ ...state, config: 256 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});

it('never throws and answers in bytes, whatever the guest does', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), fc.boolean(), fc.nat(0xff)), { maxLength: 100 }), (steps) => {
      for (const [isWrite, isCommand, value] of steps) {
        const port = isCommand ? 0x64 : 0x60;
        if (isWrite) bus.write(port, 1, value);
        else expect(bus.read(port, 1) & ~0xff).toBe(0);
      }
    }),
  );
});
