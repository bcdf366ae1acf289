import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../src/bus/device.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { type GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';
import * as defs from '../../../src/virtio/defs.js';
import { type DriverBuffer, DriverArena, DriverQueue } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import { EchoDevice } from './echo-device.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

let memory: GuestMemory;
let arena: DriverArena;
let irq: FakeIrqLine;
let device: EchoDevice;
let mmio: MappedMmio;
let driver: MmioDriver;

beforeEach(() => {
  memory = heapGuestMemory({ gpa: 0, sizeBytes: 0x10000 });
  arena = new DriverArena(memory, 0x1000);
  irq = new FakeIrqLine();
  device = new EchoDevice();
  mmio = new MappedMmio({ device, memory, irq });
  driver = new MmioDriver(mmio, arena);
});

const out = (text: string): DriverBuffer => ({ gpa: arena.place(text), length: text.length });
const room = (length: number): DriverBuffer => ({ gpa: arena.place(length), length, writable: true });

describe('initialisation', () => {
  it('shows magic, version 2, the device’s type and a vendor', () => {
    expect(driver.get(defs.MMIO_MAGIC_VALUE)).toBe(0x74726976);
    expect(driver.get(defs.MMIO_VERSION)).toBe(2);
    expect(driver.get(defs.MMIO_DEVICE_ID)).toBe(42);
    expect(Buffer.from(Uint32Array.of(driver.get(defs.MMIO_VENDOR_ID)).buffer).toString()).toBe('VMEX');
  });

  it('offers the device’s features with those of the transport, 32 bits at a time', () => {
    expect(driver.deviceFeatures()).toBe(0x5n | (1n << 40n) | (1n << 28n) | (1n << 29n) | (1n << 32n));
    driver.set(defs.MMIO_DEVICE_FEATURES_SEL, 2);
    expect(driver.get(defs.MMIO_DEVICE_FEATURES)).toBe(0);
  });

  it('activates the device once, at DRIVER_OK, with what was negotiated', () => {
    driver.start(0x4n | defs.VIRTIO_F_EVENT_IDX);
    expect(driver.status).toBe(0x0f);
    expect(device.context!.features).toBe(0x4n | defs.VIRTIO_F_EVENT_IDX | defs.VIRTIO_F_VERSION_1);
    expect(device.context!.queues.map((queue) => queue?.size)).toEqual([8, 4]);
    const context = device.context;
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect(device.context).toBe(context);
  });

  it.each([
    ['without VERSION_1', 0x5n],
    ['with a feature that was not offered', defs.VIRTIO_F_VERSION_1 | 0x2n],
  ])('keeps FEATURES_OK clear %s, and then ignores DRIVER_OK', (_what, features) => {
    driver.addStatus(defs.STATUS_ACKNOWLEDGE | defs.STATUS_DRIVER);
    driver.setFeatures(features);
    driver.addStatus(defs.STATUS_FEATURES_OK);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect([driver.status, device.context]).toEqual([0x03, undefined]);
  });

  it('does not let features change after FEATURES_OK', () => {
    driver.negotiate(0x5n);
    driver.setFeatures(0n);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect(device.context!.features).toBe(0x5n | defs.VIRTIO_F_VERSION_1);
  });

  it('does not let the driver take status bits back or set DEVICE_NEEDS_RESET', () => {
    driver.negotiate();
    driver.set(defs.MMIO_STATUS, defs.STATUS_ACKNOWLEDGE | defs.STATUS_NEEDS_RESET);
    expect(driver.status).toBe(0x0b);
  });
});

describe('operation', () => {
  it('carries buffers there and back, with an interrupt until it is acknowledged', () => {
    driver.start(defs.VIRTIO_F_VERSION_1);
    const answer = room(8);
    const head = driver.queues[0].add([out('echo'), answer]);
    driver.kick(0);
    expect(irq.level).toBe(true);
    expect(driver.acknowledge()).toBe(defs.INTERRUPT_USED_BUFFER);
    expect([irq.level, driver.get(defs.MMIO_INTERRUPT_STATUS)]).toEqual([false, 0]);
    expect(driver.queues[0].takeUsed()).toEqual({ head, writtenBytes: 4 });
    expect(Buffer.from(memory.read(answer.gpa, 4)).toString()).toBe('echo');
  });

  it('takes buffers that were there before DRIVER_OK', () => {
    driver.negotiate();
    const queue = new DriverQueue(arena, 8);
    driver.setQueue(0, queue);
    driver.set(defs.MMIO_QUEUE_READY, 1);
    queue.add([out('x'), room(1)]);
    driver.kick(0);
    expect(device.notifies).toBe(0);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect(queue.takeUsed()?.writtenBytes).toBe(1);
  });

  it('reads and writes configuration of any width, all ones beyond its end', () => {
    mmio.write(defs.MMIO_CONFIG, 4, 0x44332211);
    mmio.write(defs.MMIO_CONFIG + 6, 2, 0xbeef);
    expect([mmio.read(0x100, 2), mmio.read(0x101, 1), mmio.read(0x104, 4)]).toEqual([0x2211, 0x22, 0xbeef0000]);
    expect([mmio.read(0x10a, 4), mmio.read(0xffc, 4)]).toEqual([0xffff0000, 0xffffffff]);
  });

  it('raises the generation and interrupts when the configuration changes', () => {
    driver.start();
    const before = driver.get(defs.MMIO_CONFIG_GENERATION);
    device.context!.configChanged();
    expect(driver.get(defs.MMIO_CONFIG_GENERATION)).not.toBe(before);
    expect(driver.acknowledge()).toBe(defs.INTERRUPT_CONFIG_CHANGE);
  });

  it('asserts its line at each event, and for a cause that an acknowledgement left: an edge loses nothing', () => {
    const calls: boolean[] = [];
    irq.set = (level) => void calls.push(level);
    driver.start(defs.VIRTIO_F_VERSION_1);
    calls.length = 0;
    const send = () => {
      driver.queues[0].add([out('x'), room(1)]);
      driver.kick(0);
    };
    send();
    send();
    device.context!.configChanged();
    expect(calls).toEqual([true, true, true]);
    driver.set(defs.MMIO_INTERRUPT_ACK, defs.INTERRUPT_USED_BUFFER);
    expect(calls).toEqual([true, true, true, true]);
    driver.set(defs.MMIO_INTERRUPT_ACK, defs.INTERRUPT_CONFIG_CHANGE);
    expect(calls.at(-1)).toBe(false);
  });

  it('says that there are no shared memory regions', () => {
    for (const register of [0x0b0, 0x0b4]) expect(driver.get(register)).toBe(0xffffffff);
  });
});

describe('a page that the driver reads', () => {
  let page: MappedMmio;
  const status = () => page.words[defs.MMIO_INTERRUPT_STATUS / 4];

  beforeEach(() => {
    page = mmio;
    driver.start(defs.VIRTIO_F_VERSION_1);
  });

  const send = () => {
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
  };

  it('holds the cause before the interrupt is there, and not when it is acknowledged', () => {
    const seen: number[] = [];
    irq.set = (level) => void (level && seen.push(status()));
    send();
    driver.set(defs.MMIO_INTERRUPT_ACK, defs.INTERRUPT_USED_BUFFER);
    device.context!.configChanged();
    expect(seen).toEqual([defs.INTERRUPT_USED_BUFFER, defs.INTERRUPT_CONFIG_CHANGE]);
  });

  it('keeps the cause of an interrupt that comes after an acknowledgement nobody has looked at', () => {
    send();
    page.acknowledgeUnseen();
    send();
    page.settle();
    expect(status()).toBe(defs.INTERRUPT_USED_BUFFER);
    page.acknowledgeUnseen();
    page.settle();
    expect(status()).toBe(0);
  });

  it('keeps a change of configuration when used buffers are acknowledged', () => {
    send();
    device.context!.configChanged();
    page.acknowledgeUnseen();
    page.settle();
    expect(status()).toBe(defs.INTERRUPT_CONFIG_CHANGE);
    expect(driver.acknowledge()).toBe(defs.INTERRUPT_CONFIG_CHANGE);
    expect(status()).toBe(0);
  });

  it('holds a word of configuration that changed, and has the guest wait where several did', () => {
    device.config.set([1, 2, 3, 4]);
    device.context!.configChanged();
    expect([page.words[defs.MMIO_CONFIG / 4], page.exclusions()]).toEqual([0x04030201, 0]);
    device.config.set([5, 6, 7, 8, 9]);
    device.context!.configChanged();
    expect([page.words[defs.MMIO_CONFIG / 4], page.words[defs.MMIO_CONFIG / 4 + 1]]).toEqual([0x08070605, 9]);
    expect(page.exclusions()).toBe(1);
  });

  it('says that the device failed when nothing was written', () => {
    device.context!.fail('broken');
    expect(page.words[defs.MMIO_STATUS / 4]).toBe(0x4f);
  });

  it('is all ones behind the configuration space, where nothing can be', () => {
    expect(new Set(page.words.subarray((defs.MMIO_CONFIG + 12) / 4))).toEqual(new Set([0xffff_ffff]));
  });
});

describe('a reset', () => {
  it('brings everything back to where it was', () => {
    const fresh = mmio.save();
    driver.start();
    driver.queues[0].add([out('x'), room(1)]);
    driver.kick(0);
    driver.set(defs.MMIO_STATUS, 0);
    expect(mmio.save()).toEqual(fresh);
    expect([driver.status, irq.level, device.context]).toEqual([0, false, undefined]);
  });

  it('drops completions of before, and writes nothing to guest memory after', () => {
    driver.start();
    device.hold = true;
    const answer = room(4);
    driver.queues[0].add([out('late'), answer]);
    driver.kick(0);
    const context = device.context!;
    driver.set(defs.MMIO_STATUS, 0);
    const before = memory.read(0, 0x10000);
    device.context = context; // a device that forgot to forget
    for (const { index, chain } of device.held) device.complete(index, chain);
    expect(memory.read(0, 0x10000)).toEqual(before);
    expect(irq.level).toBe(false);
  });

  it('lets the driver start again, also after it failed', () => {
    for (let round = 1; round <= 3; round++) {
      driver.start();
      driver.queues[0].publish(99);
      driver.kick(0);
      expect(driver.status & defs.STATUS_NEEDS_RESET).toBe(defs.STATUS_NEEDS_RESET);
      expect([mmio.core.failures, mmio.core.lastFailure]).toEqual([round, 'queue 0: head out of range']);
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
    driver.set(defs.MMIO_QUEUE_READY, 1);
    return driver.get(defs.MMIO_QUEUE_READY);
  };

  it('cannot enable a queue of size 0, of no power of two, or over the maximum', () => {
    expect([0, 3, 7, 16, 0x8000, 0xffff].map((size) => enable(size))).toEqual([0, 0, 0, 0, 0, 0]);
    expect(enable(8)).toBe(1);
  });

  it('cannot enable a queue whose rings overlap or lie outside RAM', () => {
    expect(enable(8, 0x4000, 0x4000, 0x6000)).toBe(0);
    expect(enable(8, 0x4000, 0x5000, 0x10000)).toBe(0);
    expect(enable(8, 2 ** 40, 0x5000, 0x6000)).toBe(0);
    driver.addStatus(defs.STATUS_DRIVER_OK);
    expect(device.context!.queues).toEqual([undefined, undefined]);
    driver.kick(0);
    expect(device.notifies).toBe(0);
  });

  it('cannot change size or addresses after DRIVER_OK, nor while the queue is ready', () => {
    driver.start();
    driver.set(defs.MMIO_QUEUE_SEL, 0);
    const before = mmio.save();
    driver.setQueue(0, { size: 2, desc: 0x100, avail: 0x200, used: 0x300 });
    expect(mmio.save()).toEqual(before);
    driver.queues[0].add([out('still'), room(5)]);
    driver.kick(0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(5);
  });

  it('cannot enable a queue again that it took from a live device', () => {
    driver.start();
    driver.set(defs.MMIO_QUEUE_SEL, 0);
    driver.set(defs.MMIO_QUEUE_READY, 0);
    driver.set(defs.MMIO_QUEUE_READY, 1);
    expect(driver.get(defs.MMIO_QUEUE_READY)).toBe(0);
    driver.queues[0].add([out('x')]);
    driver.kick(0);
    expect(driver.queues[0].usedIdx).toBe(0);
  });

  it('reads 0 of a queue that does not exist, and writes nothing', () => {
    driver.start();
    const before = mmio.save();
    for (const index of [2, 0xffff, 0xffff_ffff]) {
      driver.set(defs.MMIO_QUEUE_SEL, index);
      expect([driver.get(defs.MMIO_QUEUE_SIZE_MAX), driver.get(defs.MMIO_QUEUE_READY)]).toEqual([0, 0]);
      driver.setQueue(index, { size: 8, desc: 0x4000, avail: 0x5000, used: 0x6000 });
      driver.set(defs.MMIO_QUEUE_READY, 1);
      driver.kick(index);
    }
    expect(mmio.save()).toEqual({ ...before, queueSelect: 0xffff_ffff });
  });

  it('that breaks a queue fails the device: DEVICE_NEEDS_RESET, an interrupt, a count, and silence', () => {
    driver.start();
    driver.queues[0].availIdx = 100;
    driver.kick(0);
    expect(driver.status).toBe(0x4f);
    expect(driver.acknowledge()).toBe(defs.INTERRUPT_CONFIG_CHANGE);
    expect(mmio.core.failures).toBe(1);
    driver.queues[1].add([out('x'), room(1)]);
    const { notifies } = device;
    driver.kick(1);
    expect([device.notifies, driver.queues[1].usedIdx]).toEqual([notifies, 0]);
  });

  it('gets all ones for odd widths and places, and nothing written', () => {
    driver.start();
    const before = mmio.save();
    mmio.write(defs.MMIO_STATUS, 1, 0);
    mmio.write(defs.MMIO_STATUS + 2, 4, 0);
    mmio.write(defs.MMIO_QUEUE_NOTIFY, 2, 0);
    expect(mmio.save()).toEqual(before);
    expect([mmio.read(defs.MMIO_STATUS, 1), mmio.read(2, 2), mmio.read(1, 4)]).toEqual([0xff, 0xffff, 0xffffffff]);
  });

  it('never makes it throw, whatever registers and rings hold', () => {
    const register = fc.oneof(
      fc.nat(0x110).map((n) => n & ~3),
      fc.nat(0xfff),
    );
    const value = fc.oneof(fc.nat(16), fc.nat(0xffffffff), fc.constantFrom(0x1000, 0x2000, 0x3000, 0x0f, 0xffff));
    const step = fc.oneof(
      fc.record({ op: fc.constant('start' as const) }),
      fc.record({ op: fc.constant('ram' as const), at: fc.nat(0x1ff), bytes: fc.uint8Array({ maxLength: 32 }) }),
      fc.record({ op: fc.constant('r' as const), register, size: fc.constantFrom<AccessSize[]>(1, 2, 4) }),
      fc.record({ op: fc.constant('w' as const), register, size: fc.constantFrom<AccessSize[]>(1, 2, 4), value }),
      fc.record({ op: fc.constant('kick' as const), queue: fc.nat(3) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const ram = heapGuestMemory({ gpa: 0, sizeBytes: 0x8000 });
        const target = new MappedMmio({ device: new EchoDevice(), memory: ram, irq: new FakeIrqLine() });
        for (const s of steps) {
          if (s.op === 'start') new MmioDriver(target, new DriverArena(ram, 0)).start();
          else if (s.op === 'ram') ram.write(s.at, s.bytes);
          else if (s.op === 'kick') target.write(defs.MMIO_QUEUE_NOTIFY, 4, s.queue);
          else if (s.op === 'w') target.write(s.register, s.size, s.value % 2 ** (8 * s.size));
          else {
            const got = target.read(s.register, s.size);
            expect(Number.isInteger(got) && got >= 0 && got < 2 ** (8 * s.size)).toBe(true);
          }
        }
        expect(ram.sizeBytes).toBe(0x8000);
      }),
      { numRuns: 400 },
    );
  });
});

describe('saved state', () => {
  it('lets another process go on with a live device, pending interrupt included', () => {
    driver.start();
    device.config.set([1, 2, 3]);
    device.hold = true;
    driver.queues[0].add([out('first'), room(5)]);
    driver.kick(0);
    device.context!.configChanged();
    const state = structuredClone(mmio.save());

    const otherIrq = new FakeIrqLine();
    const otherDevice = new EchoDevice();
    const other = new MappedMmio({ device: otherDevice, memory, irq: otherIrq });
    other.restore(state);
    expect(otherIrq.level).toBe(true);
    expect(other.read(defs.MMIO_CONFIG, 4)).toBe(0x00030201);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(5); // the chain in flight was taken again
    driver.queues[0].add([out('second'), room(6)]);
    other.write(defs.MMIO_QUEUE_NOTIFY, 4, 0);
    expect(driver.queues[0].takeUsed()?.writtenBytes).toBe(6);
    expect(other.save().core).toMatchObject({ status: 0x0f, configGeneration: 1 });
  });

  it('is refused when damaged, and leaves a reset device', () => {
    driver.start();
    const good = mmio.save();
    const fresh = new MappedMmio({ device: new EchoDevice(), memory, irq }).save().core.queues;
    const core = (damage: object) => ({ ...good, core: { ...good.core, ...damage } });
    const [first, second] = good.core.queues;
    for (const bad of [
      { ...good, interruptStatus: 4 },
      { ...good, core: undefined },
      core({ status: 256 }),
      core({ queues: [first] }),
      core({ queues: [first, null] }),
      core({ queues: [first, { ...second, setup: { ...second.setup, desc: [0] } }] }),
      core({ queues: [first, { ...second, position: { nextAvail: -1 } }] }),
      core({ driverFeatures: [0, 2 ** 32] }),
    ]) {
      const target = new MappedMmio({ device: new EchoDevice(), memory, irq });
      expect(() => target.restore(bad as typeof good)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(target.core.status).toBe(0);
      expect(target.save().core.queues).toEqual(fresh);
    }
  });
});
