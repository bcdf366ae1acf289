import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { Bus } from '../../../src/bus/bus.js';
import type { AccessSize } from '../../../src/bus/device.js';
import { assignBars } from '../../../src/devices/pci/assign-bars.js';
import { ECAM_BYTES, PciBus } from '../../../src/devices/pci/pci-bus.js';
import { VirtioPci } from '../../../src/devices/pci/virtio-pci.js';
import { VirtioRng } from '../../../src/devices/virtio/rng/rng.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { FakeMsiTarget } from '../../../src/irq/msi.js';
import { type GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';
import * as defs from '../../../src/virtio/defs.js';
import { type DriverBuffer, DriverArena, DriverQueue } from '../../../src/virtio/driver.js';
import * as pci from '../../../src/virtio/transport/pci-defs.js';
import { PciDriver } from '../../../src/virtio/transport/pci-driver.js';
import type { RegisterWindow } from '../../../src/virtio/transport/mmio-driver.js';
import type { VirtioDevice } from '../../../src/virtio/device.js';
import { EchoDevice } from './echo-device.js';

const ECAM = 0xe000_0000;
const WINDOW = 0xe800_0000;
const memoryWindows = [{ base: WINDOW, sizeBytes: 0x10_0000 }];

/** A machine's worth of PCI around one virtio device, as device 1: its line is the second. */
class Rig {
  readonly mmio = new Bus('mmio');
  readonly lines = [0, 1, 2, 3].map(() => new FakeIrqLine());
  readonly irq = this.lines[1];
  readonly msi = new FakeMsiTarget();
  readonly notify = new Map<number, number | undefined>();
  notifyChanges = 0;
  readonly bus: PciBus;
  readonly fn: VirtioPci;
  readonly config: RegisterWindow = {
    read: (offset, size) => this.mmio.read(ECAM + 0x8000 + offset, size),
    write: (offset, size, value) => this.mmio.write(ECAM + 0x8000 + offset, size, value),
  };

  constructor(memory: GuestMemory, device: VirtioDevice, withMsi = true) {
    const intx = this.lines as unknown as [FakeIrqLine, FakeIrqLine, FakeIrqLine, FakeIrqLine];
    this.bus = new PciBus({ ports: new Bus('port'), mmio: this.mmio, memoryWindows, portWindows: [], intx });
    this.mmio.register(this.bus.ecam, ECAM, ECAM_BYTES);
    this.fn = new VirtioPci({
      device,
      memory,
      ...(withMsi && { msi: this.msi }),
      onNotifyAddress: (queue, gpa) => {
        this.notifyChanges++;
        this.notify.set(queue, gpa);
      },
    });
    this.bus.add(this.fn);
    assignBars(this.bus, { memoryWindows, portWindows: [] });
  }

  get sent(): number[] {
    return this.msi.vectors.flatMap((vector, index) => vector.sent.map(() => index));
  }
}

let memory: GuestMemory;
let arena: DriverArena;
let device: EchoDevice;
let rig: Rig;
let driver: PciDriver;

beforeEach(() => {
  memory = heapGuestMemory({ gpa: 0, sizeBytes: 0x10000 });
  arena = new DriverArena(memory, 0x1000);
  device = new EchoDevice();
  rig = new Rig(memory, device);
  driver = new PciDriver(rig.config, rig.mmio, arena);
});

const out = (text: string): DriverBuffer => ({ gpa: arena.place(text), length: text.length });
const room = (length: number): DriverBuffer => ({ gpa: arena.place(length), length, writable: true });
const MESSAGES = [0, 1, 2].map((vector) => ({ address: 0xfee0_0000n, data: 0x30 + vector }));
const selectQueue = (index: number) => driver.set(pci.COMMON_QUEUE_SELECT, 2, index);

describe('discovery', () => {
  it('shows a modern virtio device with an interrupt pin', () => {
    expect([rig.config.read(0, 4), rig.config.read(8, 4)]).toEqual([0x106a1af4, 0xff000001]);
    expect([rig.config.read(0x2c, 2), rig.config.read(0x2e, 2), rig.config.read(0x3d, 1)]).toEqual([0x1af4, 0x40, 1]);
  });

  it.each([
    [defs.VIRTIO_ID_NET, 0x020000],
    [defs.VIRTIO_ID_BLOCK, 0x018000],
    [defs.VIRTIO_ID_CONSOLE, 0x078000],
    [defs.VIRTIO_ID_ENTROPY, 0xff0000],
  ])('gives type %d a class by which people know it', (type, classCode) => {
    const fn = new VirtioPci({ device: Object.assign(new EchoDevice(), { type }), memory });
    expect([fn.config.read(2, 2), fn.config.read(8, 4) >>> 8]).toEqual([0x1040 + type, classCode]);
  });

  it('lists its structures, each inside the BAR and apart from the others', () => {
    const found: { type: number; bar: number; offset: number; length: number }[] = [];
    for (let at = rig.config.read(0x34, 1); at; at = rig.config.read(at + 1, 1)) {
      if (rig.config.read(at, 1) !== 0x09) continue;
      const type = rig.config.read(at + 3, 1);
      expect(rig.config.read(at + 2, 1)).toBe(type === pci.PCI_CAP_NOTIFY || type === pci.PCI_CAP_PCI ? 20 : 16);
      const [offset, length] = [rig.config.read(at + 8, 4), rig.config.read(at + 12, 4)];
      found.push({ type, bar: rig.config.read(at + 4, 1), offset, length });
    }
    expect(found.map(({ type }) => type)).toEqual([1, 3, 4, 2, 5]);
    const structures = found.slice(0, 4).sort((a, b) => a.offset - b.offset);
    structures.forEach(({ offset, length }, i) => {
      expect(offset + length).toBeLessThanOrEqual(structures[i + 1]?.offset ?? 0x4000);
    });
  });

  it('needs no MSI-X', () => {
    rig = new Rig(memory, device, false);
    driver = new PciDriver(rig.config, rig.mmio, arena);
    expect(() => driver.useMsix(MESSAGES)).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
    driver.start();
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    expect([rig.irq.level, driver.acknowledge()]).toEqual([true, 1]);
  });
});

describe('initialisation', () => {
  it('offers the device’s features with those of the transport, and remembers the driver’s', () => {
    expect(driver.deviceFeatures()).toBe(0x5n | (1n << 40n) | (1n << 28n) | (1n << 29n) | (1n << 32n));
    driver.setFeatures(0x1_0000_0004n);
    expect(driver.get(pci.COMMON_DRIVER_FEATURE, 4)).toBe(1);
    driver.set(pci.COMMON_DEVICE_FEATURE_SELECT, 4, 2);
    expect(driver.get(pci.COMMON_DEVICE_FEATURE, 4)).toBe(0);
  });

  it('activates the device at DRIVER_OK, with what was negotiated', () => {
    driver.start(0x4n | defs.VIRTIO_F_EVENT_IDX, 4);
    expect(driver.status).toBe(0x0f);
    expect(device.context!.features).toBe(0x4n | defs.VIRTIO_F_EVENT_IDX | defs.VIRTIO_F_VERSION_1);
    expect(device.context!.queues.map((queue) => queue?.size)).toEqual([4, 4]);
  });

  it('keeps FEATURES_OK clear without VERSION_1, and then ignores DRIVER_OK', () => {
    driver.addStatus(defs.STATUS_ACKNOWLEDGE | defs.STATUS_DRIVER);
    driver.setFeatures(0x5n);
    driver.addStatus(defs.STATUS_FEATURES_OK);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect([driver.status, device.context]).toEqual([0x03, undefined]);
  });

  it('reads back a queue’s size, addresses and place to kick', () => {
    driver.setQueue(1, { size: 2, desc: 0x1_0000_4000, avail: 0x5000, used: 0x6000 });
    const addresses = [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34].map((register) => driver.get(register, 4));
    expect(addresses).toEqual([0x4000, 1, 0x5000, 0, 0x6000, 0]);
    expect([driver.get(pci.COMMON_QUEUE_SIZE, 2), driver.get(pci.COMMON_QUEUE_NOTIFY_OFF, 2)]).toEqual([2, 1]);
    expect([driver.get(pci.COMMON_QUEUE_NOTIFY_DATA, 2), driver.get(pci.COMMON_QUEUE_RESET, 2)]).toEqual([0, 0]);
    expect(driver.notifyAddress(1) - driver.notifyAddress(0)).toBe(4);
  });

  it('takes each field in its own width alone', () => {
    driver.set(pci.COMMON_DEVICE_STATUS, 4, 1);
    driver.set(pci.COMMON_QUEUE_SIZE, 4, 2);
    driver.set(pci.COMMON_DEVICE_FEATURE_SELECT, 2, 1);
    expect([driver.status, driver.get(pci.COMMON_QUEUE_SIZE, 2)]).toEqual([0, 8]);
    expect([driver.get(pci.COMMON_DEVICE_STATUS, 2), driver.get(0x21, 1), driver.get(0x22, 4)]).toEqual([
      0xffff, 0xff, 0xffffffff,
    ]);
    expect([driver.get(pci.COMMON_BYTES, 4), driver.get(0xffc, 4)]).toEqual([0xffffffff, 0xffffffff]);
  });

  it('carries the device’s configuration in any width', () => {
    device.config.set([1, 2, 3, 4]);
    expect([driver.readConfig(0, 4), driver.readConfig(1, 1), driver.readConfig(10, 4)]).toEqual([
      0x04030201, 2, 0xffff0000,
    ]);
  });
});

describe('interrupts by the pin', () => {
  it('say what they are for in the ISR register, whose reading acknowledges', () => {
    driver.start(defs.VIRTIO_F_VERSION_1);
    const answer = room(8);
    const head = driver.queues[0].add([out('echo'), answer]);
    driver.kick(0);
    device.context!.configChanged();
    expect([rig.irq.level, driver.acknowledge(), rig.irq.level, driver.acknowledge()]).toEqual([true, 3, false, 0]);
    expect(driver.queues[0].takeUsed()).toEqual({ head, writtenBytes: 4 });
    expect(Buffer.from(memory.read(answer.gpa, 4)).toString()).toBe('echo');
    expect(driver.get(pci.COMMON_CONFIG_GENERATION, 1)).toBe(1);
    expect(rig.sent).toEqual([]);
  });

  it('wait while the guest disables the pin', () => {
    driver.start();
    rig.config.write(4, 2, 0x406);
    device.context!.configChanged();
    expect([rig.irq.level, rig.config.read(6, 2) & 8]).toEqual([false, 8]);
    rig.config.write(4, 2, 0x006);
    expect(rig.irq.level).toBe(true);
  });
});

describe('interrupts by MSI-X', () => {
  beforeEach(() => {
    driver.useMsix(MESSAGES);
    driver.start(defs.VIRTIO_F_VERSION_1);
  });

  it('come by the queue’s own vector, or that of configuration changes, and leave the pin alone', () => {
    driver.queues[1].add([out('x'), room(1)]);
    driver.kick(1);
    expect(rig.sent).toEqual([2]);
    device.context!.configChanged();
    expect(rig.msi.vectors.map((vector) => vector.sent)).toEqual([[MESSAGES[0]], [], [MESSAGES[2]]]);
    expect([rig.irq.level, driver.acknowledge()]).toEqual([false, defs.INTERRUPT_CONFIG_CHANGE]);
  });

  it('do not come where the driver wants none, or a vector that does not exist', () => {
    selectQueue(0);
    for (const vector of [3, 0x800, 0xfffe, pci.VIRTIO_MSI_NO_VECTOR]) {
      driver.set(pci.COMMON_QUEUE_MSIX_VECTOR, 2, vector);
      driver.set(pci.COMMON_CONFIG_MSIX_VECTOR, 2, vector);
      expect(driver.get(pci.COMMON_QUEUE_MSIX_VECTOR, 2)).toBe(pci.VIRTIO_MSI_NO_VECTOR);
      expect(driver.get(pci.COMMON_CONFIG_MSIX_VECTOR, 2)).toBe(pci.VIRTIO_MSI_NO_VECTOR);
    }
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    device.context!.configChanged();
    expect([rig.sent, rig.irq.level]).toEqual([[], false]);
  });

  it('wait for the vector to be unmasked', () => {
    driver.maskVector(1, true);
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    expect(rig.sent).toEqual([]);
    driver.maskVector(1, false);
    expect(rig.sent).toEqual([1]);
  });

  it('hand over to the pin when the guest turns MSI-X off', () => {
    device.context!.configChanged();
    expect(rig.irq.level).toBe(false);
    rig.config.write(rig.config.read(0x34, 1) + 2, 2, 0);
    expect(rig.irq.level).toBe(true);
  });
});

describe('the places to kick', () => {
  it('are told when the queues are live, by the address the guest uses, and untold by a reset', () => {
    expect(rig.notifyChanges).toBe(0);
    driver.start();
    expect([...rig.notify]).toEqual([0, 1].map((queue) => [queue, driver.notifyAddress(queue)]));
    driver.set(pci.COMMON_DEVICE_STATUS, 1, 0);
    expect([...rig.notify.values(), rig.notifyChanges]).toEqual([undefined, undefined, 4]);
  });

  it('cost nothing while a guest sizes and moves BARs before its driver comes', () => {
    for (const address of [0xffff_ffff, WINDOW + 0x8000]) {
      rig.config.write(4, 2, 0);
      rig.config.write(0x10, 4, address);
      rig.config.write(4, 2, 6);
    }
    expect(rig.notifyChanges).toBe(0);
  });

  it('follow the BAR', () => {
    driver.start();
    rig.config.write(4, 2, 0);
    expect([...rig.notify.values()]).toEqual([undefined, undefined]);
    rig.config.write(0x10, 4, WINDOW + 0x8000);
    rig.config.write(4, 2, 6);
    expect([...rig.notify.values()]).toEqual([WINDOW + 0xb000, WINDOW + 0xb004]);
  });

  it('are only those of enabled queues, and go when the device fails', () => {
    driver.negotiate();
    driver.setQueue(1, new DriverQueue(arena, 4));
    driver.set(pci.COMMON_QUEUE_ENABLE, 2, 1);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect([...rig.notify.keys()]).toEqual([1]);
    device.context!.fail('of its own');
    expect([...rig.notify]).toEqual([[1, undefined]]);
  });

  it('go by the address alone, as an ioeventfd does', () => {
    driver.start();
    driver.queues[1].add([out('x'), room(1)]);
    rig.mmio.write(driver.notifyAddress(1), 2, 0xffff);
    expect(driver.queues[1].takeUsed()?.writtenBytes).toBe(1);
    driver.queues[0].add([out('y'), room(1)]);
    rig.mmio.write(driver.notifyAddress(0) + 2, 2, 0);
    rig.mmio.write(driver.notifyAddress(0), 1, 0);
    expect(driver.queues[0].usedIdx).toBe(0);
    rig.fn.notify(0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(1);
    expect(rig.mmio.read(driver.notifyAddress(0), 2)).toBe(0xffff);
  });
});

describe('the configuration window', () => {
  let at: number;
  const aim = (bar: number, offset: number, length: number) => {
    rig.config.write(at + 4, 1, bar);
    rig.config.write(at + 8, 4, offset);
    rig.config.write(at + 12, 4, length);
  };
  beforeEach(() => {
    for (let next = rig.config.read(0x34, 1); next; next = rig.config.read(next + 1, 1)) at = next;
    expect(rig.config.read(at + 3, 1)).toBe(pci.PCI_CAP_PCI);
  });

  it('reaches the registers of a device whose BARs are off', () => {
    rig.config.write(4, 2, 0);
    aim(0, pci.COMMON_DEVICE_STATUS, 1);
    rig.config.write(at + 16, 1, 3);
    expect([rig.config.read(at + 16, 1), rig.fn.core.status]).toEqual([3, 3]);
    aim(0, pci.COMMON_NUM_QUEUES, 2);
    expect(rig.config.read(at + 16, 2)).toBe(2);
    aim(1, 12, 4);
    expect(rig.config.read(at + 16, 4)).toBe(1); // the first vector, masked
  });

  it.each([
    ['a BAR that does not exist', 2, 0, 4],
    ['a BAR number out of range', 0xff, 0, 4],
    ['the end of a BAR', 0, 0x4000, 1],
    ['an offset that wraps', 0, 0xffff_fffc, 4],
    ['a misaligned offset', 0, 0x16, 4],
    ['a length of 3', 0, 0, 3],
    ['a length of 2^32 - 1', 0, 0, 0xffff_ffff],
  ])('leads nowhere with %s', (_, bar, offset, length) => {
    aim(bar, offset, length);
    const before = rig.fn.save().transport;
    rig.config.write(at + 16, 4, 0x01020304);
    expect(rig.config.read(at + 16, 4)).toBe(0x01020304);
    expect(rig.fn.save().transport).toEqual(before);
  });

  it('is not acted on by a machine reset or a restore', () => {
    aim(0, pci.COMMON_DEVICE_STATUS, 1);
    rig.config.write(at + 16, 1, 1);
    const state = rig.fn.save();
    rig.fn.reset();
    expect(rig.fn.core.status).toBe(0);
    state.transport.core.status = 0;
    rig.fn.restore(state);
    expect(rig.fn.core.status).toBe(0);
  });
});

describe('a reset', () => {
  it('by the driver brings the device back, and leaves PCI as it is', () => {
    driver.useMsix(MESSAGES);
    const fresh = rig.fn.save();
    driver.start();
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    driver.set(pci.COMMON_DEVICE_STATUS, 1, 0);
    expect(rig.fn.save()).toEqual(fresh);
    expect([driver.status, device.context]).toEqual([0, undefined]);
  });

  it('of the machine brings PCI back too', () => {
    const other = new Rig(memory, new EchoDevice());
    other.bus.reset();
    driver.start();
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    expect(rig.irq.level).toBe(true);
    driver.useMsix(MESSAGES);
    rig.bus.reset();
    expect(rig.fn.save()).toEqual(other.fn.save());
    expect([rig.irq.level, rig.mmio.devices().length]).toEqual([false, 1]);
  });

  it('drops completions of before, and writes nothing to guest memory after', () => {
    driver.useMsix(MESSAGES);
    driver.start();
    device.hold = true;
    driver.queues[0].add([out('late'), room(4)]);
    driver.kick(0);
    const context = device.context!;
    driver.set(pci.COMMON_DEVICE_STATUS, 1, 0);
    const before = memory.read(0, 0x10000);
    device.context = context; // a device that forgot to forget
    for (const { index, chain } of device.held) device.complete(index, chain);
    expect(memory.read(0, 0x10000)).toEqual(before);
    expect([rig.sent, rig.irq.level]).toEqual([[], false]);
  });

  it('lets the driver start again after a failure', () => {
    for (let round = 1; round <= 2; round++) {
      driver.start();
      driver.queues[0].publish(99);
      driver.kick(0);
      expect(driver.status).toBe(0x4f);
      expect(driver.acknowledge()).toBe(defs.INTERRUPT_CONFIG_CHANGE);
      expect(rig.fn.core.failures).toBe(round);
    }
    driver.start();
    driver.queues[0].add([out('well'), room(4)]);
    driver.kick(0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(4);
  });
});

describe('a hostile driver', () => {
  const enable = (size: number, desc = 0x4000, avail = 0x5000, used = 0x6000) => {
    driver.negotiate();
    driver.setQueue(0, { size, desc, avail, used });
    driver.set(pci.COMMON_QUEUE_ENABLE, 2, 1);
    return driver.get(pci.COMMON_QUEUE_ENABLE, 2);
  };

  it('cannot enable a queue of size 0, of no power of two, or over the maximum', () => {
    expect([0, 3, 7, 16, 0x8000, 0xffff].map((size) => enable(size))).toEqual([0, 0, 0, 0, 0, 0]);
    expect(enable(8)).toBe(1);
  });

  it('cannot enable a queue whose rings overlap or lie outside RAM', () => {
    expect(enable(8, 0x4000, 0x4000, 0x6000)).toBe(0);
    expect(enable(8, 0x4000, 0x5000, 0x10000)).toBe(0);
    expect(enable(8, 2 ** 40, 0x5000, 0x6000)).toBe(0);
    expect(enable(8, WINDOW, WINDOW + 0x1000, WINDOW + 0x2000)).toBe(0);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect(device.context!.queues).toEqual([undefined, undefined]);
    driver.kick(0);
    expect([device.notifies, rig.notifyChanges]).toEqual([0, 0]);
  });

  it('cannot change size or addresses after DRIVER_OK, nor disable a queue', () => {
    driver.start();
    selectQueue(0);
    const before = rig.fn.save();
    driver.setQueue(0, { size: 2, desc: 0x100, avail: 0x200, used: 0x300 });
    driver.set(pci.COMMON_QUEUE_ENABLE, 2, 0);
    driver.set(pci.COMMON_QUEUE_RESET, 2, 1);
    expect(rig.fn.save()).toEqual(before);
    driver.queues[0].add([out('still'), room(5)]);
    driver.kick(0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(5);
  });

  it('reads 0 of a queue that does not exist, and writes nothing', () => {
    driver.start();
    selectQueue(0);
    const before = rig.fn.save();
    const words = [0x18, 0x1a, 0x1c, 0x1e, 0x38, 0x3a];
    const dwords = [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34];
    for (const index of [2, 0x7fff, 0xffff]) {
      selectQueue(index);
      const all = () => [
        ...words.map((register) => driver.get(register, 2)),
        ...dwords.map((register) => driver.get(register, 4)),
      ];
      expect(new Set(all())).toEqual(new Set([0]));
      for (const register of words) driver.set(register, 2, 1);
      for (const register of dwords) driver.set(register, 4, 0x4000);
      expect(new Set(all())).toEqual(new Set([0]));
      rig.mmio.write(driver.notifyAddress(0) + 4 * Math.min(index, 0x3ff), 2, index);
    }
    selectQueue(0);
    expect(rig.fn.save()).toEqual(before);
  });

  it('never makes it throw, map elsewhere or answer out of range', () => {
    const size = fc.constantFrom<AccessSize[]>(1, 2, 4);
    const value = fc.oneof(fc.nat(16), fc.nat(0xffffffff), fc.constantFrom(0x1000, 0x2000, 0x0f, WINDOW, 0xffff));
    const step = fc.oneof(
      fc.record({ op: fc.constant('start' as const), msix: fc.boolean() }),
      fc.record({ op: fc.constant('ram' as const), at: fc.nat(0x1ff), bytes: fc.uint8Array({ maxLength: 32 }) }),
      fc.record({ op: fc.constant('config' as const), at: fc.oneof(fc.nat(0x40), fc.nat(0xff)), size, value }),
      fc.record({ op: fc.constant('bar' as const), at: fc.oneof(fc.nat(0x40), fc.nat(0x3fff)), size, value }),
      fc.record({
        op: fc.constant('bar' as const),
        at: fc.oneof(
          fc.constant(0x14),
          fc.integer({ min: 0x3000, max: 0x3010 }),
          fc.integer({ min: 0x4000, max: 0x4040 }),
        ),
        size,
        value,
      }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const ram = heapGuestMemory({ gpa: 0, sizeBytes: 0x8000 });
        const target = new Rig(ram, new EchoDevice());
        for (const s of steps) {
          if (s.op === 'ram') ram.write(s.at, s.bytes);
          else if (s.op === 'start') {
            target.bus.reset();
            assignBars(target.bus, { memoryWindows, portWindows: [] });
            const guest = new PciDriver(target.config, target.mmio, new DriverArena(ram, 0));
            if (s.msix) guest.useMsix(MESSAGES);
            guest.start();
          } else {
            const base = s.op === 'config' ? ECAM + 0x8000 : WINDOW;
            target.mmio.write(base + s.at, s.size, s.value % 2 ** (8 * s.size));
            const got = target.mmio.read(base + s.at, s.size);
            expect(Number.isInteger(got) && got >= 0 && got < 2 ** (8 * s.size)).toBe(true);
          }
        }
        expect(target.msi.vectors.flatMap((vector) => vector.sent)).not.toContain(undefined);
        for (const gpa of target.notify.values()) {
          expect(gpa === undefined || (gpa >= WINDOW && gpa < WINDOW + 0x10_0000)).toBe(true);
        }
        target.bus.reset();
        expect([...target.notify.values()].filter((gpa) => gpa !== undefined)).toEqual([]);
      }),
      { numRuns: 300 },
    );
  });
});

describe('saved state', () => {
  it('lets another process go on with a live device, pending interrupts included', () => {
    driver.useMsix(MESSAGES);
    driver.start();
    driver.maskVector(1, true);
    device.config.set([1, 2, 3]);
    device.hold = true;
    driver.queues[0].add([out('first'), room(5)]);
    driver.kick(0);
    const state = structuredClone(rig.bus.save());

    const other = new Rig(memory, new EchoDevice());
    other.bus.restore(state);
    expect([...other.notify]).toEqual([...rig.notify]);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(5); // the chain in flight was taken again
    expect(other.sent).toEqual([]);
    const guest = new PciDriver(other.config, other.mmio, arena);
    expect([guest.status, guest.readConfig(0, 4)]).toEqual([0x0f, 0x00030201]);
    guest.maskVector(1, false);
    expect(other.msi.vectors[1].sent).toEqual([MESSAGES[1]]);
    driver.queues[0].add([out('second'), room(6)]);
    guest.kick(0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(6);
  });

  it('keeps the pin asserted that was', () => {
    driver.start();
    device.context!.configChanged();
    const other = new Rig(memory, new EchoDevice());
    other.bus.restore(rig.bus.save());
    expect(other.irq.level).toBe(true);
  });

  it('is refused when damaged, and leaves a reset device', () => {
    driver.useMsix(MESSAGES);
    driver.start();
    const good = rig.fn.save();
    const { transport } = good;
    for (const bad of [
      undefined,
      { ...good, msix: undefined },
      { ...good, config: { bytes: new Uint8Array(4096) } },
      { ...good, transport: undefined },
      { ...good, transport: { ...transport, isr: 4 } },
      { ...good, transport: { ...transport, queueVectors: [1] } },
      { ...good, transport: { ...transport, queueVectors: [1, -1] } },
      { ...good, transport: { ...transport, core: { ...transport.core, status: 256 } } },
      { ...good, transport: { ...transport, core: { ...transport.core, queues: [] } } },
    ]) {
      const target = new Rig(memory, new EchoDevice());
      target.bus.reset();
      const fresh = target.fn.save();
      expect(() => target.fn.restore(bad as typeof good)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      );
      expect(target.fn.save()).toEqual(fresh);
      expect(target.mmio.devices().length).toBe(1);
    }
  });

  it('that somebody tampered with is taken or refused, whole, and never breaks anything', () => {
    rig = new Rig(memory, new VirtioRng());
    driver = new PciDriver(rig.config, rig.mmio, arena);
    driver.useMsix(MESSAGES.slice(0, 2));
    driver.start();
    driver.queues[0].add([room(1)]);
    driver.kick(0);
    const good = rig.bus.save();
    const nonsense = fc.constantFrom<unknown>(
      undefined,
      null,
      -1,
      0.5,
      NaN,
      2 ** 40,
      'x',
      [],
      {},
      true,
      new Uint8Array(3),
    );
    const change = fc.record({
      steps: fc.array(fc.nat(), { minLength: 1, maxLength: 6 }),
      value: nonsense,
      bit: fc.nat(7),
    });
    fc.assert(
      fc.property(change, ({ steps, value, bit }) => {
        const state = structuredClone(good);
        // Down a random path; what is at its end is replaced, or has a bit flipped.
        let parent: Record<string, unknown> = state as never;
        for (const [depth, step] of steps.entries()) {
          const keys = Object.keys(parent);
          const key = keys[step % keys.length];
          const child = parent[key];
          if (
            depth < steps.length - 1 &&
            typeof child === 'object' &&
            child !== null &&
            Object.keys(child).length > 0
          ) {
            parent = child as Record<string, unknown>;
            continue;
          }
          parent[key] = typeof child === 'number' && bit < 6 ? child ^ (1 << bit) : value;
          break;
        }
        const other = new Rig(memory, new VirtioRng());
        try {
          other.bus.restore(state);
        } catch (error) {
          expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
          expect([other.fn.core.status, other.mmio.devices().length]).toEqual([0, 1]);
          expect([...other.notify.values()].filter((gpa) => gpa !== undefined)).toEqual([]);
        }
        other.bus.reset();
        expect(other.msi.vectors.flatMap((vector) => vector.sent)).not.toContain(undefined);
      }),
      { numRuns: 300 },
    );
  });

  it('with a vector that this machine has not got goes on without it', () => {
    driver.useMsix(MESSAGES);
    driver.start();
    const state = rig.fn.save();
    state.transport.queueVectors[0] = 77;
    const other = new Rig(memory, new EchoDevice());
    other.fn.restore(state);
    expect(other.fn.save().transport.queueVectors).toEqual([pci.VIRTIO_MSI_NO_VECTOR, 2]);
  });
});

it('serves the entropy device from probe to interrupt', async () => {
  rig = new Rig(memory, new VirtioRng());
  driver = new PciDriver(rig.config, rig.mmio, arena);
  driver.useMsix(MESSAGES.slice(0, 2));
  driver.start();
  const buffers = [32, 33].map(room);
  for (const buffer of buffers) driver.queues[0].add([buffer]);
  driver.kick(0);
  await setImmediate();
  expect([driver.queues[0].takeUsed()?.writtenBytes, driver.queues[0].takeUsed()?.writtenBytes]).toEqual([32, 33]);
  expect(rig.msi.vectors[1].sent).toEqual([MESSAGES[1]]);
  expect(new Set(memory.read(buffers[0].gpa, 32)).size).toBeGreaterThan(8);
});
