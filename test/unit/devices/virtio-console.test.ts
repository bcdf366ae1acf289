import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { VirtioConsole, type VirtioConsoleConfig } from '../../../src/devices/virtio/console/console.js';
import { decodeControl, encodeControl } from '../../../src/devices/virtio/console/control.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { type GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { MMIO_CONFIG, MMIO_STATUS, STATUS_NEEDS_RESET } from '../../../src/virtio/defs.js';
import { DriverArena, type DriverQueue } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../../src/virtio/transport/mmio.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

const [RX, TX, CONTROL_RX, CONTROL_TX] = [0, 1, 2, 3];

/** A sink with so much room. */
class Sink {
  readonly bytes: number[] = [];
  constructor(public room = Infinity) {}
  write(bytes: Uint8Array): number {
    const taken = Math.min(bytes.length, this.room);
    this.room -= taken;
    this.bytes.push(...bytes.subarray(0, taken));
    return taken;
  }
  get text(): string {
    return Buffer.from(this.bytes).toString();
  }
}

/** Feature bit: the driver uses the control queues. */
const MULTIPORT = 1n << 1n;

let features: bigint;
let memory: GuestMemory;
let arena: DriverArena;
let irq: FakeIrqLine;
let sink: Sink;
let rooms: number;
let device: VirtioConsole;
let mmio: VirtioMmio;
let driver: MmioDriver;

function start(config: Partial<VirtioConsoleConfig> = {}, wanted = ~MULTIPORT): void {
  features = wanted;
  memory = heapGuestMemory({ gpa: 0, sizeBytes: 2 ** 20 });
  arena = new DriverArena(memory, 0x1000);
  irq = new FakeIrqLine();
  sink = new Sink();
  rooms = 0;
  device = new VirtioConsole({ ports: [{ output: sink, onInputRoom: () => rooms++, maxStallMs: 20 }], ...config });
  mmio = new MappedMmio({ device, memory, irq });
  driver = new MmioDriver(mmio, arena);
  driver.start(features, 16);
}

function print(text: string, queue = TX): void {
  driver.queues[queue].add([{ gpa: arena.place(text), length: text.length }]);
  driver.kick(queue);
}

/** Posts a receive buffer; the result reads what arrived in it. */
function post(queue: DriverQueue, length: number): () => Uint8Array {
  const gpa = arena.place(length);
  const head = queue.add([{ gpa, length, writable: true }]);
  return () => {
    const used = queue.takeUsed();
    expect(used?.head).toBe(head);
    return memory.read(gpa, used!.writtenBytes);
  };
}

const ascii = (bytes: Uint8Array) => Buffer.from(bytes).toString();
const bytes = (text: string) => new TextEncoder().encode(text);

describe('a console whose driver knows of one port', () => {
  beforeEach(() => start());

  it('leaves the control queues alone', () => {
    driver.queues[CONTROL_TX].add([{ gpa: arena.place(encodeControl(0, 0, 1)), length: 8 }]);
    driver.kick(CONTROL_TX);
    driver.kick(CONTROL_RX);
    expect([driver.get(0x008), driver.queues[CONTROL_TX].usedIdx]).toEqual([3, 0]);
  });

  it('hands over what the guest prints, in order', () => {
    const pieces = ['Hello', ', ', 'world'].map((text) => ({ gpa: arena.place(text), length: text.length }));
    driver.queues[TX].add(pieces);
    print('!\n');
    expect(sink.text).toBe('Hello, world!\n');
    expect([driver.queues[TX].usedIdx, irq.level]).toEqual([2, true]);
  });

  it('gives input to as many buffers as it takes, and asks for more when there are some', () => {
    const first = post(driver.queues[RX], 4);
    const second = post(driver.queues[RX], 4);
    expect(device.ports[0].receive(bytes('uname -a\nls\n'))).toBe(8);
    expect([ascii(first()), ascii(second()), irq.level, rooms]).toEqual(['unam', 'e -a', true, 0]);
    const third = post(driver.queues[RX], 16);
    driver.kick(RX);
    expect(rooms).toBe(1);
    expect(device.ports[0].receive(bytes('\nls\n'))).toBe(4);
    expect(ascii(third())).toBe('\nls\n');
    driver.kick(RX);
    expect(rooms).toBe(1);
  });

  it('takes no input before the driver is there, and asks for it then', () => {
    driver.set(MMIO_STATUS, 0);
    expect(device.ports[0].receive(bytes('early'))).toBe(0);
    driver.start(features, 16);
    expect(rooms).toBe(1);
  });

  it('keeps a buffer until the output has room, and goes on where it stopped', () => {
    sink.room = 3;
    print('abcdef');
    print('ghi');
    expect([sink.text, driver.queues[TX].usedIdx]).toEqual(['abc', 0]);
    sink.room = 4;
    device.ports[0].resumeOutput();
    expect([sink.text, driver.queues[TX].usedIdx]).toEqual(['abcdefg', 1]);
    sink.room = Infinity;
    device.ports[0].resumeOutput();
    expect([sink.text, driver.queues[TX].usedIdx, device.ports[0].droppedOutputBytes]).toEqual(['abcdefghi', 2, 0]);
  });

  it('prints the emergency register, also before the queues work', () => {
    driver.set(MMIO_STATUS, 0);
    for (const byte of bytes('oops')) mmio.write(MMIO_CONFIG + 8, 4, byte);
    expect(sink.text).toBe('oops');
    sink.room = 0;
    mmio.write(MMIO_CONFIG + 8, 1, 0x21);
    expect(device.ports[0].droppedOutputBytes).toBe(1);
  });

  it('forgets a stuck buffer at a reset', () => {
    sink.room = 1;
    print('ab');
    driver.set(MMIO_STATUS, 0);
    sink.room = Infinity;
    device.ports[0].resumeOutput();
    driver.start(features, 16);
    print('new');
    expect(sink.text).toBe('anew');
  });

  it('goes on in another process in the middle of a buffer', () => {
    sink.room = 2;
    print('abcd');
    const state = structuredClone(mmio.save());
    const rest = new Sink();
    const other = new MappedMmio({ device: new VirtioConsole({ ports: [{ output: rest }] }), memory, irq });
    other.restore(state);
    expect([rest.text, driver.queues[TX].usedIdx]).toEqual(['cd', 1]);
  });
});

describe('a console that nobody reads', () => {
  beforeEach(() => {
    vi.useFakeTimers();
    start();
  });
  afterEach(() => void vi.useRealTimers());

  it('holds the guest for a moment, then drops and counts, until somebody reads', () => {
    sink.room = 2;
    print('abcdef');
    vi.advanceTimersByTime(19);
    expect(driver.queues[TX].usedIdx).toBe(0);
    vi.advanceTimersByTime(2);
    expect([driver.queues[TX].usedIdx, device.ports[0].droppedOutputBytes]).toEqual([1, 4]);
    print('lost');
    expect([driver.queues[TX].usedIdx, device.ports[0].droppedOutputBytes]).toEqual([2, 8]);
    sink.room = Infinity;
    device.ports[0].resumeOutput();
    print('seen');
    expect(sink.text).toBe('abseen');
  });
});

describe('the size of the terminal', () => {
  it('is in the configuration, and both DRIVER_OK and a change interrupt', () => {
    start({ ports: [{ output: new Sink() }], size: { columns: 80, rows: 25 } });
    expect(driver.acknowledge()).toBe(2);
    expect([mmio.read(MMIO_CONFIG, 2), mmio.read(MMIO_CONFIG + 2, 2)]).toEqual([80, 25]);
    device.resize({ columns: 132, rows: 43 });
    expect(mmio.read(MMIO_CONFIG, 4)).toBe(132 | (43 << 16));
    expect(driver.acknowledge()).toBe(2);
    expect(() => device.resize({ columns: 65536, rows: 1 })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('a console with several ports', () => {
  let agent: Sink;
  let opens: boolean[];
  const control = (port: number, event: number, value: number) => {
    driver.queues[CONTROL_TX].add([{ gpa: arena.place(encodeControl(port, event, value)), length: 8 }]);
    driver.kick(CONTROL_TX);
  };
  /** What the device said since the last call. */
  const heard = (count = 8): string[] => {
    const messages: string[] = [];
    for (let used; (used = driver.queues[CONTROL_RX].takeUsed());) {
      const gpa = posted.get(used.head)!;
      const message = memory.read(gpa, used.writtenBytes);
      const { port, event, value } = decodeControl(message);
      messages.push(`${port}:${event}=${value}${used.writtenBytes > 8 ? ` ${ascii(message.subarray(8))}` : ''}`);
    }
    listen(count);
    return messages;
  };
  const posted = new Map<number, number>();
  const listen = (count: number) => {
    for (let i = 0; i < count; i++) {
      const gpa = arena.place(64);
      try {
        posted.set(driver.queues[CONTROL_RX].add([{ gpa, length: 64, writable: true }]), gpa);
      } catch {
        break;
      }
    }
    driver.kick(CONTROL_RX);
  };

  beforeEach(() => {
    agent = new Sink();
    opens = [];
    posted.clear();
    start(
      {
        ports: [
          { output: new Sink() },
          {
            output: agent,
            name: 'org.example.agent',
            onGuestOpen: (open) => opens.push(open),
            onInputRoom: () => rooms++,
          },
        ],
        size: { columns: 0x4241, rows: 0x4443 },
      },
      ~0n,
    );
  });

  it('has a pair of queues for each and one for control, and says how many ports there are', () => {
    expect(driver.queues).toHaveLength(6);
    expect(mmio.read(MMIO_CONFIG + 4, 4)).toBe(2);
  });

  it('introduces its ports when the driver asks, and waits for buffers to do it in', () => {
    control(0, 0, 1);
    expect(heard(1)).toEqual([]);
    expect(heard()).toEqual(['0:1=1']);
    expect(heard()).toEqual(['1:1=1']);
    control(0, 3, 1);
    expect(heard()).toEqual(['0:4=1', '0:5=0 ABCD', '0:6=1']);
    control(1, 3, 1);
    expect(heard()).toEqual(['1:7=1 org.example.agent', '1:6=1']);
  });

  it('takes input for a port only while the guest has it open', () => {
    const buffer = post(driver.queues[4], 16);
    driver.kick(4);
    expect(device.ports[1].receive(bytes('hello'))).toBe(0);
    control(1, 6, 1);
    expect([opens, rooms]).toEqual([[true], 1]);
    expect(device.ports[1].receive(bytes('hello'))).toBe(5);
    expect(ascii(buffer())).toBe('hello');
    control(1, 6, 0);
    driver.set(MMIO_STATUS, 0);
    expect(opens).toEqual([true, false]);
  });

  it('keeps the ports’ output apart, and never drops that of a port that is no console', () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    agent.room = 0;
    print('to the agent', 5);
    vi.advanceTimersByTime(3_600_000);
    expect(driver.queues[5].usedIdx).toBe(0);
    agent.room = Infinity;
    device.ports[1].resumeOutput();
    expect([agent.text, driver.queues[5].usedIdx]).toEqual(['to the agent', 1]);
  });

  it('tells of a new size by a message when the driver listens', () => {
    control(0, 0, 1);
    heard();
    heard();
    device.resize({ columns: 0x3231, rows: 0x3433 });
    expect(heard()).toEqual(['0:5=0 1234']);
  });

  it('fails when the guest asks and asks and never listens', async () => {
    for (let i = 0; i < 2000 && !(driver.status & STATUS_NEEDS_RESET); i++) {
      control(0, 0, 1);
      driver.queues[CONTROL_TX].takeUsed();
      if (i % 16 === 15) await setImmediate();
    }
    expect(mmio.core.lastFailure).toBe('control messages are not fetched');
    expect(device.save().pendingControl.length).toBeLessThanOrEqual(1024);
  });

  it('ignores short messages and ports that do not exist', () => {
    driver.queues[CONTROL_TX].add([{ gpa: arena.place(7), length: 7 }]);
    driver.kick(CONTROL_TX);
    for (const port of [2, 31, 0xffffffff]) for (const event of [3, 6, 99]) control(port, event, 1);
    expect([heard(), driver.queues[CONTROL_TX].usedIdx, mmio.core.failures]).toEqual([[], 10, 0]);
  });

  it('carries open ports and unsaid messages over to another process', () => {
    control(0, 0, 1);
    control(1, 6, 1);
    const state = structuredClone(mmio.save());
    const again = new VirtioConsole({ ports: [{ output: new Sink() }, { output: agent, name: 'org.example.agent' }] });
    const other = new MappedMmio({ device: again, memory, irq });
    other.restore(state);
    expect(again.ports.map((port) => port.guestOpen)).toEqual([false, true]);
    expect(again.save().pendingControl).toHaveLength(2);
    expect(() => again.restore({ ...again.save(), ports: [] })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('a hostile guest', () => {
  it('that posts receive buffers without room fails the device', () => {
    start();
    driver.queues[RX].add([{ gpa: arena.place('x'), length: 1 }]);
    expect(device.ports[0].receive(bytes('x'))).toBe(0);
    expect([driver.status & STATUS_NEEDS_RESET, mmio.core.lastFailure]).toEqual([
      STATUS_NEEDS_RESET,
      'port 0: receive buffer without room',
    ]);
  });

  it('that prints megabytes gives the event loop its turns', async () => {
    start();
    let printed = 0;
    sink.write = (data) => ((printed += data.length), data.length);
    const big = { gpa: 0, length: 2 ** 20 };
    for (let i = 0; i < 4; i++) driver.queues[TX].add([big]);
    driver.kick(TX);
    driver.kick(TX);
    expect(printed).toBe(2 ** 20);
    for (let i = 0; i < 4; i++) await setImmediate();
    expect([printed, driver.queues[TX].usedIdx]).toEqual([4 * 2 ** 20, 4]);
  });

  it('never makes it throw, whatever it writes into control messages and configuration', () => {
    start({ ports: [{ output: new Sink(5), maxStallMs: 0 }, { output: new Sink(5) }] }, ~0n);
    const message = fc.tuple(fc.nat(3), fc.nat(8), fc.nat(2));
    fc.assert(
      fc.property(
        fc.array(fc.tuple(message, fc.nat(0x1f), fc.nat(0xffffffff), fc.nat(5)), { maxLength: 30 }),
        (steps) => {
          arena = new DriverArena(memory, 0x1000);
          driver = new MmioDriver(mmio, arena);
          driver.start(features, 16);
          for (const [[port, event, value], at, config, queue] of steps) {
            const { gpa, length } = { gpa: arena.place(encodeControl(port, event, value)), length: 8 };
            if (driver.queues[CONTROL_TX].takeUsed() || driver.queues[CONTROL_TX].availIdx < 16) {
              driver.queues[CONTROL_TX].add([{ gpa, length }]);
            }
            driver.kick(CONTROL_TX);
            driver.queues[queue].publish(at);
            driver.kick(queue);
            mmio.write(MMIO_CONFIG + at, 4, config);
            device.ports[1].receive(Uint8Array.of(1, 2, 3));
            expect(mmio.read(MMIO_CONFIG + at, 4)).toBeGreaterThanOrEqual(0);
          }
        },
      ),
    );
  });
});

it('cannot be made without ports or with too many', () => {
  for (const count of [0, 32]) {
    const ports = Array.from({ length: count }, () => ({ output: new Sink() }));
    expect(() => new VirtioConsole({ ports })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
});
