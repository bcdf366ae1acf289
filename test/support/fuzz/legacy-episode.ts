import { Bus } from '../../../src/bus/bus.js';
import type { BusDevice, Snapshottable } from '../../../src/bus/device.js';
import { AcpiPm } from '../../../src/devices/legacy/acpi-pm.js';
import { CmosRtc } from '../../../src/devices/legacy/cmos-rtc.js';
import { DebugConsole } from '../../../src/devices/legacy/debug-console.js';
import { DebugExit } from '../../../src/devices/legacy/debug-exit.js';
import { FW_CFG_PORTS, FwCfg } from '../../../src/devices/legacy/fw-cfg.js';
import { I8042 } from '../../../src/devices/legacy/i8042.js';
import { PostPort } from '../../../src/devices/legacy/post-port.js';
import { Pvpanic } from '../../../src/devices/legacy/pvpanic.js';
import {
  TEST_MEMORY_BYTES,
  TEST_PORTS,
  TestIrqs,
  TestMemory,
  TestPorts,
} from '../../../src/devices/legacy/test-device.js';
import { Uart16550 } from '../../../src/devices/legacy/uart16550.js';
import { ECAM_BYTES, PciBus } from '../../../src/devices/pci/pci-bus.js';
import { VmmError } from '../../../src/errors.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { CASES_PER_EPISODE, checkRead, hex, type Log } from './episode.js';
import type { FuzzRandom } from './random.js';

/** Of some range that a device has, or beside it. */
interface Target {
  bus: Bus;
  base: number;
  length: number;
}

/** A PC's old devices where a machine has them, against a guest that accesses anything in any width. */
export function legacyEpisode(random: FuzzRandom, log: Log): void {
  const ports = new Bus('port');
  const mmio = new Bus('mmio');
  const targets: Target[] = [];
  const put = <T extends BusDevice>(bus: Bus, device: T, base: number, length: number, offset = 0): T => {
    bus.register(device, base, length, offset);
    targets.push({ bus, base, length });
    return device;
  };
  const nothing = () => {};
  const output = { write: () => !random.chance(4) };
  const line = () => new FakeIrqLine();
  const uart = put(ports, new Uart16550({ irq: line(), output, onInputRoom: nothing }), 0x3f8, 8);
  const i8042 = put(ports, new I8042({ irq: line(), onReset: nothing }), 0x60, 1);
  put(ports, i8042, 0x64, 1, 4);
  put(ports, new CmosRtc({ memoryBelow4GiB: 2 ** 28, memoryAbove4GiB: 2 ** 30, now: () => 1.7e12 }), 0x70, 2);
  put(ports, new PostPort(), 0x80, 1);
  put(ports, new DebugConsole({ output }), 0xe9, 1);
  put(ports, new DebugExit({ onExit: nothing }), 0xf4, 4);
  put(ports, new Pvpanic({ onPanic: nothing }), 0x505, 1);
  const power = { sleepTypeS5: 5, resetValue: 1, onShutdown: nothing, onReset: nothing };
  put(ports, new AcpiPm(power), 0x604, 3);
  const checkPage = (gpa: number) => {
    if (!(gpa >= 0 && gpa < 2 ** 32 && gpa % 4096 === 0)) throw new Error(`dropPage(${gpa})`);
  };
  put(ports, new TestPorts({ onDropPage: checkPage }), 0xe0, TEST_PORTS);
  put(ports, new TestIrqs(Array.from({ length: 24 }, line)), 0x2000, 24);
  put(ports, new FwCfg({ memoryBytes: 2 ** 33, cpus: 4 }), 0x510, FW_CFG_PORTS);
  put(mmio, new TestMemory(), 0xff000000, TEST_MEMORY_BYTES);
  const windows = {
    memoryWindows: [{ base: 0xc0000000, sizeBytes: 0x10000 }],
    portWindows: [{ base: 0xc000, sizeBytes: 0x4000 }],
  };
  const pci = new PciBus({ ports, mmio, ...windows, intx: [line(), line(), line(), line()], onReset: nothing });
  put(ports, pci.configPorts, 0xcf8, 8);
  put(mmio, pci.ecam, 0xe0000000, ECAM_BYTES);

  const data = new DataView(new ArrayBuffer(8));
  for (let i = 0; i < CASES_PER_EPISODE; i++) {
    const { bus, base, length } = random.pick(targets);
    const address = random.chance(20)
      ? random.below(bus.space === 'port' ? 0x10000 : 2 ** 32)
      : Math.max(0, base - 2 + random.below(length + 4));
    const size = random.pick([1, 1, 2, 4] as const);
    const where = `${bus.space} ${hex(address)}, ${size}`;
    const kind = random.below(20);
    if (kind < 8) {
      checkRead(
        log.step(`read ${where}`, () => bus.read(address, size)),
        size,
        `the read at ${where}`,
      );
    } else if (kind < 16) {
      const value = random.u32() % 2 ** (8 * size);
      log.step(`write ${where}: ${hex(value)}`, () => bus.write(address, size, value));
    } else if (kind === 16) {
      const wide = 1 + random.below(8);
      log.step(`wide accesses ${where}`, () => {
        bus.writeWide(address, wide, data, 0);
        bus.readWide(address, wide, data, 0);
      });
    } else if (kind === 17) {
      log.step('input for the serial port', () => uart.receive(random.bytes(random.below(40))));
      log.step('room behind the serial port', () => uart.resumeOutput());
    } else {
      const device = random.pick([...ports.devices(), ...mmio.devices()]);
      if (kind === 18) log.step(`reset ${device.name}`, () => device.reset());
      else roundTrip(device, random, log);
    }
  }
}

/** A saved state is taken again; one with a wrong value is taken or refused, and nothing else happens. */
function roundTrip(device: BusDevice, random: FuzzRandom, log: Log): void {
  if (!('save' in device && 'restore' in device)) return;
  const snapshottable = device as BusDevice & Snapshottable<Record<string, unknown>>;
  log.step(`save and restore ${device.name}`, () => {
    const state = structuredClone(snapshottable.save());
    const wrong = structuredClone(state);
    const fields = Object.keys(wrong);
    if (fields.length > 0) wrong[random.pick(fields)] = random.pick([-1, NaN, 1e9, 'x', null, undefined, [], {}]);
    try {
      snapshottable.restore(wrong);
    } catch (error) {
      if (!(error instanceof VmmError && error.code === 'INVALID_ARGUMENT')) throw error;
    }
    snapshottable.restore(state);
  });
}
