import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../../src/bus/device.js';
import { ConfigSpace } from '../../../../src/devices/pci/config-space.js';
import { COMMAND, COMMAND_BUS_MASTER } from '../../../../src/devices/pci/defs.js';
import { Msix, msixLayout } from '../../../../src/devices/pci/msix.js';
import { FakeMsiTarget } from '../../../../src/irq/msi.js';

const ENABLE = 0x8000;
const FUNCTION_MASK = 0x4000;
const PBA = 3 * 16;
const message = { address: 0xfee0_1000n, data: 0x41 };

let config: ConfigSpace;
let target: FakeMsiTarget;
let msix: Msix;

function make(): void {
  config = new ConfigSpace({ vendorId: 1, deviceId: 2, classCode: 0 });
  target = new FakeMsiTarget();
  msix = new Msix(
    config,
    1,
    [0, 1, 2].map(() => target.vector()),
  );
}
const capability = () => config.read(0x34, 1);
const control = (value: number) => config.write(capability() + 2, 2, value);
const program = (vector: number, masked: boolean, { address, data } = message) => {
  [Number(address & 0xffff_ffffn), Number(address >> 32n), data, masked ? 1 : 0].forEach((value, field) =>
    msix.write(vector * 16 + field * 4, 4, value),
  );
};
const sent = () => target.vectors.map((vector) => vector.sent);

beforeEach(() => {
  make();
  config.write(COMMAND, 2, COMMAND_BUS_MASTER);
});

describe('MSI-X', () => {
  it('shows its table and pending bits in the capability, all vectors masked', () => {
    expect(config.read(capability(), 4)).toBe(0x00020011);
    expect([config.read(capability() + 4, 4), config.read(capability() + 8, 4)]).toEqual([1, PBA | 1]);
    expect([0, 1, 2].map((vector) => msix.read(vector * 16 + 12, 4))).toEqual([1, 1, 1]);
    expect(msixLayout(2048)).toEqual({ pbaOffset: 32768, barBytes: 65536 });
    expect(msixLayout(3)).toEqual({ pbaOffset: PBA, barBytes: 4096 });
  });

  it('sends a vector’s message', () => {
    program(1, false);
    control(ENABLE);
    msix.signal(1);
    expect(sent()).toEqual([[], [message], []]);
  });

  it('tells the machine a message once, when it can be sent and not while it is being written', () => {
    control(ENABLE);
    program(0, true);
    expect(target.vectors[0].changes).toBe(0);
    msix.write(12, 4, 0);
    expect([target.vectors[0].changes, target.vectors[0].message]).toEqual([1, message]);
    msix.write(12, 4, 0);
    config.write(COMMAND, 2, COMMAND_BUS_MASTER | 0x40);
    expect(target.vectors[0].changes).toBe(1);
    msix.write(8, 4, 0x99); // unmasked: takes effect at once
    expect(target.vectors[0].message).toEqual({ ...message, data: 0x99 });
  });

  it.each([
    ['the vector is masked', () => msix.write(16 + 12, 4, 1), () => msix.write(16 + 12, 4, 0)],
    ['the function is masked', () => control(ENABLE | FUNCTION_MASK), () => control(ENABLE)],
    [
      'the function may not master the bus',
      () => config.write(COMMAND, 2, 0),
      () => config.write(COMMAND, 2, COMMAND_BUS_MASTER),
    ],
  ])('keeps a message pending while %s, and sends it once afterwards', (_, mask, unmask) => {
    program(1, false);
    control(ENABLE);
    mask();
    expect(target.vectors[1].message).toBeUndefined();
    msix.signal(1);
    msix.signal(1);
    expect([msix.read(PBA, 4), msix.read(PBA + 4, 4), sent()[1]]).toEqual([0b010, 0, []]);
    unmask();
    expect([msix.read(PBA, 4), sent()[1]]).toEqual([0, [message]]);
  });

  it('sends and remembers nothing while it is off, nor of a vector that does not exist', () => {
    program(0, false);
    msix.signal(0);
    control(ENABLE | FUNCTION_MASK);
    for (const vector of [3, -1, 0xffff]) msix.signal(vector);
    expect([msix.read(PBA, 4), sent()]).toEqual([0, [[], [], []]]);
    msix.signal(0);
    control(0);
    control(ENABLE);
    expect(sent()).toEqual([[], [], []]);
  });

  it('takes aligned dwords alone, and no writes to the pending bits', () => {
    program(0, true);
    const before = msix.save();
    msix.write(0, 2, 0xffff);
    msix.write(5, 4, 0xffff);
    msix.write(12, 1, 0);
    msix.write(PBA, 4, 0xffff);
    msix.write(0x800, 4, 0xffff);
    expect(msix.save()).toEqual(before);
    msix.write(0, 4, 0xfee0_1003);
    msix.write(12, 4, 0xffff_ffff);
    expect([msix.read(0, 4), msix.read(12, 4), msix.read(1, 1)]).toEqual([0xfee0_1000, 1, 0x10]);
  });

  it('is as new after a reset', () => {
    const fresh = msix.save();
    program(1, false);
    control(ENABLE);
    msix.reset();
    config.reset();
    expect(msix.save()).toEqual(fresh);
    expect([msix.enabled, target.vectors[1].message]).toEqual([false, undefined]);
  });

  it('goes on elsewhere: messages told, what was pending sent when it is unmasked', () => {
    program(1, false);
    program(2, true);
    control(ENABLE);
    msix.signal(2);
    const [space, state] = structuredClone([config.save(), msix.save()] as const);
    make();
    config.restore(space);
    msix.restore(state);
    expect(target.vectors.map((vector) => vector.message)).toEqual([undefined, message, undefined]);
    expect(sent()).toEqual([[], [], []]);
    msix.write(2 * 16 + 12, 4, 0);
    expect(sent()).toEqual([[], [], [message]]);
  });

  it('refuses a state of another size, and a number of vectors that cannot be', () => {
    const code: unknown = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    const { table, pending } = msix.save();
    for (const bad of [{ table, pending: new Uint8Array(2) }, { table: table.slice(16), pending }, undefined]) {
      expect(() => msix.restore(bad!)).toThrow(code);
    }
    for (const count of [0, 2049]) {
      const vectors = Array.from({ length: count }, () => target.vector());
      expect(() => new Msix(new ConfigSpace({ vendorId: 1, deviceId: 2, classCode: 0 }), 0, vectors)).toThrow(code);
    }
  });

  it('never signals a vector without a message, whatever the guest does', () => {
    const step = fc.oneof(
      fc.record({ op: fc.constant('signal' as const), value: fc.nat(4) }),
      fc.record({
        op: fc.constant('control' as const),
        value: fc.constantFrom(0, ENABLE, FUNCTION_MASK, 0xc000, 0xffff),
      }),
      fc.record({ op: fc.constant('command' as const), value: fc.constantFrom(0, 4, 0xffff) }),
      fc.record({
        op: fc.constant('write' as const),
        value: fc.oneof(fc.constantFrom(0, 1), fc.nat(0xffffffff)),
        at: fc.oneof(
          fc.nat(15).map((n) => 4 * n),
          fc.nat(0xfff),
        ),
        size: fc.constantFrom<AccessSize[]>(1, 2, 4),
      }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        make();
        for (const s of steps) {
          if (s.op === 'signal') msix.signal(s.value);
          else if (s.op === 'control') control(s.value);
          else if (s.op === 'command') config.write(COMMAND, 2, s.value);
          else {
            msix.write(s.at, s.size, s.value % 2 ** (8 * s.size));
            const got = msix.read(s.at, s.size);
            expect(got >= 0 && got < 2 ** (8 * s.size)).toBe(true);
          }
        }
        expect(sent().flat()).not.toContain(undefined);
      }),
    );
  });
});
