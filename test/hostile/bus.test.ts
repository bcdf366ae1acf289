/** HOSTILE case 20: random accesses of every size to a bus full of real devices. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Bus } from '../../src/bus/bus.js';
import type { AccessSize } from '../../src/bus/device.js';
import { AcpiPm } from '../../src/devices/legacy/acpi-pm.js';
import { CmosRtc } from '../../src/devices/legacy/cmos-rtc.js';
import { DebugConsole } from '../../src/devices/legacy/debug-console.js';
import { DebugExit } from '../../src/devices/legacy/debug-exit.js';
import { I8042, I8042_COMMAND_OFFSET } from '../../src/devices/legacy/i8042.js';
import { PostPort } from '../../src/devices/legacy/post-port.js';
import { Pvpanic } from '../../src/devices/legacy/pvpanic.js';
import { Uart16550 } from '../../src/devices/legacy/uart16550.js';
import { FakeIrqLine } from '../../src/irq/irq-line.js';

const RANGES: readonly [number, number][] = [
  [0x60, 1],
  [0x64, 1],
  [0x70, 2],
  [0x80, 1],
  [0xe9, 1],
  [0xf4, 4],
  [0x3f8, 8],
  [0x505, 1],
  [0x600, 3],
];

function legacyBus(): Bus {
  const bus = new Bus('port');
  const irq = new FakeIrqLine();
  let room = 100; // then nobody reads the console any more
  const output = { write: () => room-- > 0 };
  const onReset = () => {};
  const i8042 = new I8042({ irq, onReset });
  bus.register(i8042, 0x60, 1);
  bus.register(i8042, 0x64, 1, I8042_COMMAND_OFFSET);
  bus.register(new CmosRtc({ memoryBelow4GiB: 2 ** 28 }), 0x70, 2);
  bus.register(new PostPort(), 0x80, 1);
  bus.register(new DebugConsole({ output }), 0xe9, 1);
  bus.register(new DebugExit({ onExit: () => {} }), 0xf4, 4);
  bus.register(new Uart16550({ irq, output }), 0x3f8, 8);
  bus.register(new Pvpanic({ onPanic: () => {} }), 0x505, 1);
  bus.register(new AcpiPm({ sleepTypeS5: 5, resetValue: 6, onShutdown: () => {}, onReset }), 0x600, 3);
  return bus;
}

const near = fc
  .constantFrom(...RANGES)
  .chain(([base, length]) => fc.integer({ min: base - 4, max: base + length + 4 }));
const access = fc.record({
  port: fc.oneof({ weight: 4, arbitrary: near }, { weight: 1, arbitrary: fc.nat(0xffff) }),
  size: fc.constantFrom<AccessSize[]>(1, 2, 4),
  isWrite: fc.boolean(),
  value: fc.nat(0xffffffff),
  /** As REP INS and OUTS do it: the same port again and again. */
  count: fc.oneof(fc.constant(1), fc.nat(40)),
});

it('lets no guest make a device throw, and reads all ones in every byte without a device', () => {
  const mapped = (port: number) => RANGES.some(([base, length]) => port >= base && port < base + length);
  fc.assert(
    fc.property(fc.array(access, { maxLength: 60 }), (accesses) => {
      const bus = legacyBus();
      for (const { port, size, isWrite, value, count } of accesses) {
        for (let i = 0; i < count; i++) {
          if (isWrite) {
            bus.write(port, size, value % 2 ** (8 * size));
            continue;
          }
          const got = bus.read(port, size);
          expect(Number.isInteger(got) && got >= 0 && got < 2 ** (8 * size)).toBe(true);
          for (let byte = 0; byte < size; byte++) {
            if (!mapped(port + byte)) expect((got >>> (8 * byte)) & 0xff).toBe(0xff);
          }
        }
      }
    }),
    { numRuns: 300 },
  );
});
