import fc from 'fast-check';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { type GuestMemory, heapGuestMemory } from '../../../src/memory/guest-memory.js';
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../../../src/virtio/defs.js';
import { type DriverBuffer, DriverArena, DriverQueue } from '../../../src/virtio/driver.js';
import type { DescriptorChain } from '../../../src/virtio/queue/chain.js';
import { VirtQueue } from '../../../src/virtio/queue/queue.js';
import { QueueSetup } from '../../../src/virtio/queue/state.js';

const NEXT = VIRTQ_DESC_F_NEXT;
const WRITE = VIRTQ_DESC_F_WRITE;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;
const SIZE = 8;
const RAM = 0x10000;
/** A second region after a hole, as RAM lies around the MMIO space. */
const HIGH_GPA = 0x20000;

let memory: GuestMemory;
let arena: DriverArena;
let driver: DriverQueue;
let queue: VirtQueue;
let interrupts: number;
let faults: string[];

function setUp(features = VIRTIO_F_INDIRECT_DESC, size = SIZE): void {
  memory = heapGuestMemory({ gpa: 0, sizeBytes: RAM }, { gpa: HIGH_GPA, sizeBytes: RAM });
  arena = new DriverArena(memory, 0x1000);
  driver = new DriverQueue(arena, size);
  interrupts = 0;
  faults = [];
  queue = open(features, size);
}

function open(features: bigint, size = SIZE, inOrder = false): VirtQueue {
  const setup = new QueueSetup(size);
  for (const part of ['desc', 'avail', 'used'] as const) setup.onDriverAddress(part, 0, driver[part]);
  return new VirtQueue({
    memory,
    size,
    views: setup.views(memory)!,
    features,
    inOrder,
    interrupt: () => interrupts++,
    onFault: (fault) => faults.push(fault),
  });
}

const out = (text: string): DriverBuffer => ({ gpa: arena.place(text), length: text.length });
const room = (length: number): DriverBuffer => ({ gpa: arena.place(length), length, writable: true });
const text = (chain: DescriptorChain) => {
  const bytes = new Uint8Array(chain.readableBytes);
  expect(chain.read(0, bytes)).toBe(bytes.length);
  return Buffer.from(bytes).toString();
};

beforeEach(() => setUp());

describe('a queue that gives back in order', () => {
  it('keeps a chain that is complete until all before it are', () => {
    queue = open(VIRTIO_F_INDIRECT_DESC, SIZE, true);
    const heads = [room(4), room(8), room(16), room(1)].map((buffer) => driver.add([buffer]));
    const chains = heads.map(() => queue.pop()!);
    queue.push(chains[1], 5);
    queue.pushTogether([chains[2]], [6]);
    expect([driver.usedIdx, queue.inFlight]).toEqual([0, 4]);
    queue.unpop(chains[3]);
    queue.push(chains[0], 3);
    expect([driver.usedIdx, queue.inFlight]).toEqual([3, 0]);
    const used = [driver.takeUsed(), driver.takeUsed(), driver.takeUsed()];
    expect(used).toEqual(heads.slice(0, 3).map((head, i) => ({ head, writtenBytes: [3, 5, 6][i] })));
    queue.push(queue.pop()!, 1);
    expect(driver.takeUsed()).toEqual({ head: heads[3], writtenBytes: 1 });
  });

  it('has the next device begin with the first chain that was not given back', () => {
    queue = open(VIRTIO_F_INDIRECT_DESC, SIZE, true);
    const heads = [room(4), room(4), room(4)].map((buffer) => driver.add([buffer]));
    const [first, , third] = heads.map(() => queue.pop()!);
    queue.push(third, 1);
    queue.push(first, 1);
    const next = open(VIRTIO_F_INDIRECT_DESC, SIZE, true);
    next.restore({ nextAvail: driver.usedIdx, nextUsed: driver.usedIdx, signalledUsed: driver.usedIdx });
    expect([next.pop()!.head, next.pop()!.head]).toEqual(heads.slice(1));
  });
});

describe('a well-behaved driver', () => {
  it('gets its buffers back with what was written', () => {
    const answer = room(4);
    const head = driver.add([out('hel'), out('lo'), answer, room(10)]);
    const chain = queue.pop()!;
    expect([text(chain), chain.writableBytes]).toEqual(['hello', 14]);
    expect(chain.write(1, new TextEncoder().encode('abcdefg'))).toBe(7);
    queue.push(chain, 8);
    expect(driver.takeUsed()).toEqual({ head, writtenBytes: 8 });
    expect(Buffer.from(memory.read(answer.gpa, 4)).toString()).toBe('\0abc');
    expect([queue.pop(), driver.takeUsed(), faults]).toEqual([undefined, undefined, []]);
  });

  it('may put the whole chain, or its tail, into an indirect table', () => {
    driver.addIndirect(arena.place(48), [out('in'), out('direct'), room(4)]);
    expect(text(queue.pop()!)).toBe('indirect');

    const table = arena.place(16);
    const [first, last] = [out('he'), out('ad')];
    memory.dataView(table, 16).setBigUint64(0, BigInt(last.gpa), true);
    memory.dataView(table, 16).setUint32(8, last.length, true);
    driver.setDescriptor(0, first.gpa, first.length, NEXT, 1);
    driver.setDescriptor(1, table, 16, INDIRECT | WRITE); // 2.7.5.3.2: WRITE means nothing here
    driver.publish(0);
    expect(text(queue.pop()!)).toBe('head');
    expect(faults).toEqual([]);
  });

  it('may fill the queue with one chain', () => {
    driver.add(Array.from({ length: SIZE }, () => out('x')));
    expect(queue.pop()!.readable).toHaveLength(SIZE);
  });

  it('may run through the 16-bit indices and get chains back out of order', () => {
    const buffers = Array.from({ length: SIZE }, () => [room(8)]);
    fc.assert(
      fc.property(fc.array(fc.nat(), { minLength: 40, maxLength: 40 }), (order) => {
        setUp();
        queue.restore({ nextAvail: 65530, nextUsed: 0, signalledUsed: 0 });
        driver.availIdx = 65530;
        const waiting: DescriptorChain[] = [];
        const heads: number[] = [];
        for (const pick of order) {
          if (waiting.length < SIZE) {
            driver.add(buffers[waiting.length]);
            waiting.push(queue.pop()!);
          } else {
            const [chain] = waiting.splice(pick % waiting.length, 1);
            queue.push(chain, 3);
            heads.push(chain.head);
            expect(driver.takeUsed()).toEqual({ head: chain.head, writtenBytes: 3 });
          }
        }
        expect(queue.inFlight).toBe(waiting.length);
        expect(faults).toEqual([]);
      }),
      { numRuns: 30 },
    );
  });
});

describe('notifications', () => {
  it('interrupts for each signal with news, unless the driver asks not to', () => {
    driver.add([room(1)]);
    queue.signal();
    expect(interrupts).toBe(0);
    queue.push(queue.pop()!, 0);
    queue.signal();
    queue.signal();
    expect(interrupts).toBe(1);
    driver.noInterrupt = true;
    driver.add([room(1)]);
    queue.push(queue.pop()!, 0);
    queue.signal();
    expect(interrupts).toBe(1);
  });

  it('asks for no notification while it drains', () => {
    driver.add([room(1)]);
    const flags: number[] = [];
    const more = queue.drain((chain) => {
      flags.push(driver.usedFlags);
      queue.push(chain, 0);
    });
    expect([flags, driver.usedFlags, more, interrupts]).toEqual([[1], 0, false, 1]);
  });

  it('finds what the driver adds while it drains, up to a bound', () => {
    let added = 3;
    for (let i = 0; i < 3; i++) driver.add([room(1)]);
    const refill = (until: number) => (chain: DescriptorChain) => {
      queue.push(chain, 0);
      driver.takeUsed();
      if (added < until) {
        driver.add([room(1)]);
        added++;
      }
    };
    expect(queue.drain(refill(5))).toBe(false);
    expect(queue.inFlight).toBe(0);
    expect(queue.enableNotifications()).toBe(false);
    driver.add([room(1)]);
    let handled = 0;
    expect(queue.drain((chain) => (handled++, refill(Infinity)(chain)))).toBe(true);
    expect(handled).toBe(SIZE);
  });

  it('with EVENT_IDX interrupts only when used_event is passed, also across the wrap of the index', () => {
    const far = [0x7fff, 0x8000, 0x10000 - SIZE, 0xffff];
    for (const start of [0, ...far]) {
      for (const ahead of [...Array(SIZE + 2).keys(), ...far]) {
        for (let count = 1; count <= SIZE; count++) {
          setUp(VIRTIO_F_EVENT_IDX);
          queue.restore({ nextAvail: 0, nextUsed: start, signalledUsed: start });
          driver.usedEvent = start + ahead;
          for (let i = 0; i < count; i++) {
            driver.add([room(1)]);
            queue.push(queue.pop()!, 0);
          }
          queue.signal();
          expect(interrupts, `${count} used from ${start} on, used_event ${ahead} ahead`).toBe(ahead < count ? 1 : 0);
        }
      }
    }
  });

  it('with EVENT_IDX asks for a notification of exactly the next buffer', () => {
    setUp(VIRTIO_F_EVENT_IDX);
    driver.add([room(1)]);
    driver.add([room(1)]);
    queue.drain((chain) => queue.push(chain, 0));
    expect([driver.availEvent, driver.usedFlags]).toEqual([2, 0]);
    driver.add([room(1)]);
    expect(queue.enableNotifications()).toBe(true);
  });
});

/** Each breaks a rule, and makes head 0 available unless it says otherwise. */
const attacks: [string, string, (buffer: DriverBuffer) => void][] = [
  [
    'a chain that loops',
    'chain too long',
    ({ gpa, length }) => {
      driver.setDescriptor(0, gpa, length, NEXT, 1);
      driver.setDescriptor(1, gpa, length, NEXT, 0);
      driver.publish(0);
    },
  ],
  [
    'a loop inside an indirect table',
    'chain too long',
    ({ gpa, length }) => {
      const table = arena.place(32);
      for (const i of [0, 1]) {
        const view = memory.dataView(table + 16 * i, 16);
        view.setBigUint64(0, BigInt(gpa), true);
        view.setUint32(8, length, true);
        view.setUint16(12, NEXT, true);
        view.setUint16(14, 1 - i, true);
      }
      driver.setDescriptor(0, table, 32, INDIRECT);
      driver.publish(0);
    },
  ],
  [
    'an address that wraps 2^64',
    'buffer outside memory',
    () => {
      driver.setDescriptor(0, 2n ** 64n - 8n, 16);
      driver.publish(0);
    },
  ],
  [
    'an address that would be good modulo 2^53',
    'buffer outside memory',
    ({ gpa }) => {
      driver.setDescriptor(0, 2n ** 53n + BigInt(gpa), 4);
      driver.publish(0);
    },
  ],
  [
    'a buffer that runs into the hole',
    'buffer outside memory',
    () => {
      driver.setDescriptor(0, RAM - 4, 8);
      driver.publish(0);
    },
  ],
  [
    'a buffer that spans the hole',
    'buffer outside memory',
    () => {
      driver.setDescriptor(0, RAM - 4, HIGH_GPA - RAM + 8);
      driver.publish(0);
    },
  ],
  [
    'a buffer of 4 GiB',
    'buffer outside memory',
    ({ gpa }) => {
      driver.setDescriptor(0, gpa, 0xffff_ffff);
      driver.publish(0);
    },
  ],
  [
    'a good buffer before a bad one',
    'buffer outside memory',
    ({ gpa, length }) => {
      driver.setDescriptor(0, gpa, length, NEXT | WRITE, 1);
      driver.setDescriptor(1, RAM, 1, WRITE);
      driver.publish(0);
    },
  ],
  [
    'a next as large as the queue',
    'next out of range',
    ({ gpa, length }) => {
      driver.setDescriptor(0, gpa, length, NEXT, SIZE);
      driver.publish(0);
    },
  ],
  [
    'a next of 0xffff',
    'next out of range',
    ({ gpa, length }) => {
      driver.setDescriptor(0, gpa, length, NEXT, 0xffff);
      driver.publish(0);
    },
  ],
  ['a head as large as the queue', 'head out of range', () => driver.publish(SIZE)],
  [
    'an avail.idx that jumps by more than the queue',
    'avail index jumped',
    () => {
      driver.availIdx = SIZE + 1;
    },
  ],
  [
    'an avail.idx that goes back',
    'avail index jumped',
    () => {
      driver.availIdx = 0xffff;
    },
  ],
  [
    'an indirect table inside an indirect table',
    'indirect inside indirect',
    () => {
      const table = arena.place(16);
      memory.dataView(table, 16).setBigUint64(0, BigInt(table), true);
      memory.dataView(table, 16).setUint32(8, 16, true);
      memory.dataView(table, 16).setUint16(12, INDIRECT, true);
      driver.setDescriptor(0, table, 16, INDIRECT);
      driver.publish(0);
    },
  ],
  [
    'an indirect table of 24 bytes',
    'bad indirect length',
    ({ gpa }) => {
      driver.setDescriptor(0, gpa, 24, INDIRECT);
      driver.publish(0);
    },
  ],
  [
    'an empty indirect table',
    'bad indirect length',
    ({ gpa }) => {
      driver.setDescriptor(0, gpa, 0, INDIRECT);
      driver.publish(0);
    },
  ],
  [
    'an indirect table in the hole',
    'buffer outside memory',
    () => {
      driver.setDescriptor(0, RAM, 16, INDIRECT);
      driver.publish(0);
    },
  ],
  [
    'an indirect table with a next',
    'indirect with next',
    ({ gpa }) => {
      driver.setDescriptor(0, gpa, 16, INDIRECT | NEXT, 1);
      driver.publish(0);
    },
  ],
  [
    'a readable buffer after a writable one',
    'readable after writable',
    ({ gpa, length }) => {
      driver.setDescriptor(0, gpa, length, WRITE | NEXT, 1);
      driver.setDescriptor(1, gpa, length);
      driver.publish(0);
    },
  ],
];

describe('a hostile driver', () => {
  it.each(attacks)('that sends %s fails the queue: %s', (_what, fault, attack) => {
    const buffer = room(64);
    const before = memory.read(buffer.gpa, 64);
    attack(buffer);
    let handled = 0;
    expect(queue.drain(() => void handled++)).toBe(false);
    expect([faults, handled, queue.closed, queue.pop(), interrupts]).toEqual([[fault], 0, true, undefined, 0]);
    expect(memory.read(buffer.gpa, 64)).toEqual(before);
  });

  it('that sends one buffer more than the queue has descriptors, by an indirect table, fails the queue', () => {
    const buffers = Array.from({ length: SIZE + 1 }, () => out('x'));
    driver.addIndirect(arena.place(16 * SIZE), buffers.slice(1));
    expect(queue.pop()!.readable).toHaveLength(SIZE);
    driver.addIndirect(arena.place(16 * (SIZE + 1)), buffers);
    expect([queue.pop(), faults]).toEqual([undefined, ['chain too long']]);
  });

  it('that uses indirect tables without having negotiated them fails the queue', () => {
    setUp(0n);
    driver.addIndirect(arena.place(16), [out('x')]);
    expect([queue.pop(), faults]).toEqual([undefined, ['indirect not negotiated']]);
  });

  it('that makes one chain available for ever cannot fill the host’s memory', () => {
    driver.setDescriptor(0, 0, 4);
    for (let i = 0; i < 4 * SIZE; i++) {
      driver.publish(0);
      queue.pop();
    }
    expect([queue.inFlight, faults]).toEqual([SIZE, ['too many in flight']]);
  });

  it('that rewrites descriptors all the time changes nothing in a chain that was taken', () => {
    const buffer = out('before');
    driver.add([buffer]);
    const chain = queue.pop()!;
    for (let i = 0; i < SIZE; i++) driver.setDescriptor(i, 2n ** 63n, 0xffff_ffff, 0xffff, 0xffff);
    expect(text(chain)).toBe('before');
    queue.push(chain, 0);
    expect(driver.takeUsed()).toEqual({ head: chain.head, writtenBytes: 0 });
  });

  it('reads each descriptor field once', () => {
    const buffer = out('once');
    driver.add([buffer, room(4)]);
    const reads = vi.spyOn(DataView.prototype, 'getUint32');
    queue.pop();
    const count = reads.mock.calls.length;
    reads.mockRestore();
    expect(count).toBe(2 * 4); // address low, address high, length, flags with next
  });

  it('never makes it throw, loop or leave memory, whatever stands in the rings', () => {
    const word = fc.oneof(fc.nat(0xffff), fc.nat(12), fc.constantFrom(0, 1, 2, 3, 4, 5, 7));
    const gpa = fc.oneof(fc.nat(RAM + 64), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
    const descriptor = fc.tuple(gpa, fc.oneof(fc.nat(256), fc.nat(0xffffffff)), word, word);
    fc.assert(
      fc.property(
        fc.array(descriptor, { minLength: SIZE, maxLength: SIZE }),
        fc.array(word, { minLength: SIZE, maxLength: SIZE }),
        fc.oneof(fc.nat(SIZE), fc.nat(0xffff)),
        (descriptors, heads, idx) => {
          setUp();
          descriptors.forEach((d, i) => driver.setDescriptor(i, ...d));
          heads.forEach((head, i) => driver.setAvail(i, head));
          driver.availIdx = idx;
          let handled = 0;
          queue.drain((chain) => {
            handled++;
            const pieces = [...chain.readable, ...chain.writable];
            expect(pieces.length).toBeLessThanOrEqual(SIZE);
            expect(pieces.reduce((sum, piece) => sum + piece.length, 0)).toBe(
              chain.readableBytes + chain.writableBytes,
            );
            queue.push(chain, chain.write(0, new Uint8Array(0)));
          });
          expect(handled).toBeLessThanOrEqual(SIZE);
          expect(faults.length).toBeLessThanOrEqual(1);
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe('the host', () => {
  it('drops what is completed after the queue was closed', () => {
    const answer = room(4);
    driver.add([answer]);
    const chain = queue.pop()!;
    expect(chain.live).toBe(true);
    queue.close();
    expect([chain.live, chain.write(0, Uint8Array.of(1, 2))]).toEqual([false, 0]);
    queue.push(chain, 0);
    queue.signal();
    expect([driver.usedIdx, interrupts, ...memory.read(answer.gpa, 4)]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('takes a chain back that the device could not use yet', () => {
    const [first, second] = ['one', 'two'].map((text) => driver.add([{ gpa: arena.place(text), length: 3 }]));
    queue.pop();
    const unused = queue.pop()!;
    queue.unpop(unused);
    expect([unused.live, queue.inFlight, queue.save().nextAvail]).toEqual([false, 1, 0]);
    expect(() => queue.unpop(unused)).toThrowError(expect.objectContaining({ code: 'INVALID_STATE' }));
    expect([first, queue.pop()?.head, queue.pop()]).toEqual([first, second, undefined]);
  });

  it('gives several chains back in one step', () => {
    const heads = Array.from({ length: 3 }, () => driver.add([{ gpa: arena.place(8), length: 8, writable: true }]));
    const chains = heads.map(() => queue.pop()!);
    const seen: number[] = [];
    const record = (array: Uint16Array, index: number, value: number) => {
      array[index] = value;
      seen.push(driver.usedIdx);
      return value;
    };
    const store = vi.spyOn(Atomics, 'store').mockImplementation(record as never);
    try {
      queue.pushTogether(chains, [8, 8, 3]);
    } finally {
      store.mockRestore();
    }
    expect(seen).toEqual([3]);
    expect(heads.map(() => driver.takeUsed())).toEqual(heads.map((head, i) => ({ head, writtenBytes: [8, 8, 3][i] })));
    expect(queue.inFlight).toBe(0);
  });

  it('may not complete a chain twice, nor with more than it can hold', () => {
    driver.add([room(4)]);
    const chain = queue.pop()!;
    expect(() => queue.push(chain, 5)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    queue.push(chain, 4);
    expect(() => queue.push(chain, 4)).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
  });

  it('takes chains again that were in flight when the state was saved', () => {
    driver.add([out('done')]);
    driver.add([out('in flight')]);
    driver.add([out('waiting')]);
    queue.push(queue.pop()!, 0);
    queue.pop();
    const state = structuredClone(queue.save());
    const other = open(VIRTIO_F_INDIRECT_DESC);
    other.restore(state);
    const seen: string[] = [];
    other.drain((chain) => {
      seen.push(text(chain));
      other.push(chain, 0);
    });
    expect([seen, driver.usedIdx]).toEqual([['in flight', 'waiting'], 3]);
    expect(() => other.restore({ ...state, nextUsed: 65536 })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('QueueSetup', () => {
  const ready = (size: number, desc: number, avail: number, used: number, high = 0) => {
    const setup = new QueueSetup(256);
    setup.onDriverSize(size);
    for (const [part, gpa] of [
      ['desc', desc],
      ['avail', avail],
      ['used', used],
    ] as const) {
      setup.onDriverAddress(part, 0, gpa);
      setup.onDriverAddress(part, 1, high);
    }
    return setup.onDriverReady(memory);
  };

  it('accepts every power of two up to the maximum, and nothing else', () => {
    const accepted = Array.from({ length: 70000 }, (_, size) => size).filter((size) => ready(size, 0, 0x4000, 0x8000));
    // The register has 16 bits: 65536 + n is n.
    expect(accepted.filter((size) => size < 65536)).toEqual([1, 2, 4, 8, 16, 32, 64, 128, 256]);
  });

  it.each([
    ['all parts at one place', 0, 0, 0],
    ['the available ring in the descriptor table', 0, 0x7e, 0x1000],
    ['the used ring in the available ring', 0, 0x1000, 0x1010],
    ['a misaligned descriptor table', 8, 0x1000, 0x2000],
    ['a misaligned available ring', 0, 0x1001, 0x2000],
    ['a misaligned used ring', 0, 0x1000, 0x2002],
    ['a descriptor table that leaves RAM', RAM - 0x70, 0x1000, 0x2000],
    ['an available ring that leaves RAM', 0, RAM - 20, 0x2000],
    ['a used ring that leaves RAM', 0, 0x1000, RAM - 68],
    ['a used ring in the hole', 0, 0x1000, RAM + 0x100],
  ])('refuses %s', (_what, desc, avail, used) => {
    expect(ready(8, desc, avail, used)).toBe(false);
    expect(ready(8, 0, 0x1000, 0x2000)).toBe(true);
  });

  it('refuses addresses over 4 GiB that have no memory', () => {
    for (const high of [1, 0x1f_ffff, 0xffff_ffff]) expect(ready(8, 0, 0x1000, 0x2000, high)).toBe(false);
  });

  it('cannot be made with a size that no driver could accept', () => {
    for (const size of [0, 3, 65536, NaN, -8]) {
      expect(() => new QueueSetup(size)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    }
  });
});
