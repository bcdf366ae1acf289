import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../src/bus/device.js';
import { Uart16550 } from '../../../src/devices/legacy/uart16550.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';

const [DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR] = [0, 1, 2, 3, 4, 5, 6, 7];
const FCR = IIR;

/** A sink with so much room. */
class Sink {
  readonly bytes: number[] = [];
  constructor(public room = Infinity) {}
  write(byte: number): boolean {
    if (this.room === 0) return false;
    this.room--;
    this.bytes.push(byte);
    return true;
  }
  get text(): string {
    return Buffer.from(this.bytes).toString('latin1');
  }
}

let irq: FakeIrqLine;
let sink: Sink;
let uart: Uart16550;
let rooms: number;
const rd = (offset: number) => uart.read(offset, 1);
const wr = (offset: number, value: number) => uart.write(offset, 1, value);
const print = (text: string) => [...Buffer.from(text)].forEach((byte) => wr(DATA, byte));
const bytes = (text: string) => new Uint8Array(Buffer.from(text));

beforeEach(() => {
  irq = new FakeIrqLine();
  sink = new Sink();
  rooms = 0;
  uart = new Uart16550({ irq, output: sink, onInputRoom: () => rooms++ });
});

describe('what a driver probes for', () => {
  it('stores only the four interrupt enables in IER', () => {
    wr(IER, 0);
    expect(rd(IER)).toBe(0);
    wr(IER, 0xff);
    expect(rd(IER)).toBe(0x0f);
  });

  it('keeps any byte in the scratch register', () => {
    wr(SCR, 0xa5);
    expect(rd(SCR)).toBe(0xa5);
  });

  it('shows RTS and OUT2 as CTS and DCD in loopback', () => {
    wr(MCR, 0x10 | 0x0a);
    expect(rd(MSR) & 0xf0).toBe(0x90);
    wr(MCR, 0x10 | 0x05);
    expect(rd(MSR) & 0xf0).toBe(0x60);
    wr(MCR, 0);
    expect(rd(MSR) & 0xf0).toBe(0xb0);
  });

  it('identifies as a 16550A by the FIFO bits in IIR', () => {
    expect(rd(IIR)).toBe(0x01);
    wr(FCR, 0x01);
    expect(rd(IIR)).toBe(0xc1);
    wr(FCR, 0);
    expect(rd(IIR)).toBe(0x01);
  });

  it('is not mistaken for a 16650, 16750, 16850, NS16C550 or XScale', () => {
    wr(FCR, 0x01);
    for (const lcr of [0x80, 0xbf]) {
      wr(LCR, lcr);
      expect(rd(IIR)).toBe(0xc1); // an EFR would read 0 here
    }
    wr(LCR, 0x80);
    wr(FCR, 0x21); // 64-byte FIFO, where there is one
    expect(rd(IIR) >> 5).toBe(6);
    wr(LCR, 0xe0);
    expect(rd(2) & 0x10).toBe(0); // EXCR1.LOOP
    wr(LCR, 0);
    wr(IER, 0x40);
    expect(rd(IER)).toBe(0);
  });

  it('hides data and IER behind the divisor while DLAB is set', () => {
    wr(LCR, 0x83);
    wr(DATA, 0x34);
    wr(IER, 0x12);
    expect([rd(DATA), rd(IER)]).toEqual([0x34, 0x12]);
    wr(LCR, 0x03);
    expect(rd(IER)).toBe(0);
    expect(sink.bytes).toEqual([]);
    wr(LCR, 0x83);
    expect([rd(DATA), rd(IER)]).toEqual([0x34, 0x12]);
  });

  it('is there at power-on: line idle, modem present, nothing pending', () => {
    expect([rd(LSR), rd(MSR), rd(IIR), irq.level]).toEqual([0x60, 0xb0, 0x01, false]);
  });
});

describe('transmission', () => {
  it('hands over each byte as it is written and stays empty', () => {
    print('Linux version 6.1');
    expect(sink.text).toBe('Linux version 6.1');
    expect(rd(LSR)).toBe(0x60);
  });

  it('raises the THRE interrupt each time it is enabled on an empty register', () => {
    for (let i = 0; i < 3; i++) {
      wr(IER, 0x02);
      expect(irq.level).toBe(true);
      expect(rd(IIR)).toBe(0x02);
      wr(IER, 0);
      expect([irq.level, rd(IIR)]).toEqual([false, 0x01]);
    }
    expect(irq.edges).toBe(3);
  });

  it('acknowledges THRE by reading IIR, once', () => {
    wr(IER, 0x02);
    expect([rd(IIR), rd(IIR), irq.level]).toEqual([0x02, 0x01, false]);
  });

  it('does not acknowledge THRE when IIR showed something more urgent', () => {
    wr(IER, 0x03);
    uart.receive(bytes('x'));
    expect(rd(IIR)).toBe(0x04);
    rd(DATA);
    expect(rd(IIR)).toBe(0x02);
  });

  it('gives an edge for each byte to a handler that never reads IIR', () => {
    wr(IER, 0x02);
    for (let i = 1; i <= 4; i++) {
      expect(irq.edges).toBe(i);
      expect(rd(LSR) & 0x20).toBe(0x20);
      wr(DATA, 0x41);
    }
  });

  it('gives one edge for a burst into the FIFO after IIR was read', () => {
    wr(FCR, 0x01);
    wr(IER, 0x02);
    rd(IIR);
    const before = irq.edges;
    print('0123456789abcdef');
    expect(irq.edges).toBe(before + 1);
    expect(irq.level).toBe(true);
  });

  it('shows a busy transmitter while the output has no room, and interrupts when it has', () => {
    wr(FCR, 0x01);
    sink.room = 2;
    print('abcd');
    expect(rd(LSR)).toBe(0);
    wr(IER, 0x02);
    expect([irq.level, rd(IIR)]).toEqual([false, 0xc1]);
    sink.room = 1;
    uart.resumeOutput();
    expect([rd(LSR), irq.level, sink.text]).toEqual([0, false, 'abc']);
    sink.room = 10;
    uart.resumeOutput();
    expect([rd(LSR), irq.level, sink.text]).toEqual([0x60, true, 'abcd']);
    expect(rd(IIR)).toBe(0xc2);
    expect(uart.droppedOutputBytes).toBe(0);
  });

  it('keeps 16 bytes for a busy output and drops and counts the rest', () => {
    wr(FCR, 0x01);
    sink.room = 0;
    print('0123456789abcdefXYZ');
    expect(uart.droppedOutputBytes).toBe(3);
    sink.room = Infinity;
    uart.resumeOutput();
    print('!');
    expect(sink.text).toBe('0123456789abcdef!');
  });

  it('keeps one byte for a busy output without FIFOs', () => {
    sink.room = 0;
    print('ab');
    sink.room = Infinity;
    uart.resumeOutput();
    expect([sink.text, uart.droppedOutputBytes]).toEqual(['a', 1]);
  });

  it('loses nothing of a guest that waits for THRE, however slow the output is', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(20), { minLength: 1, maxLength: 30 }), fc.boolean(), (rooms, fifos) => {
        const slow = new Sink(0);
        const port = new Uart16550({ irq: new FakeIrqLine(), output: slow });
        if (fifos) port.write(FCR, 1, 1);
        const sent: number[] = [];
        for (const room of rooms) {
          if (port.read(LSR, 1) & 0x20) {
            for (let i = 0; i < (fifos ? 16 : 1); i++) {
              sent.push(sent.length & 0xff);
              port.write(DATA, 1, sent.at(-1)!);
            }
          }
          slow.room = room;
          port.resumeOutput();
        }
        slow.room = Infinity;
        port.resumeOutput();
        expect(slow.bytes).toEqual(sent);
        expect(port.droppedOutputBytes).toBe(0);
      }),
    );
  });
});

describe('reception', () => {
  beforeEach(() => wr(MCR, 0x0b));

  it('takes nothing before the guest raises RTS or enables the receive interrupt, then asks for it', () => {
    wr(MCR, 0);
    expect(uart.receive(bytes('early'))).toBe(0);
    expect([rd(LSR), rooms]).toEqual([0x60, 0]);
    wr(IER, 0x01);
    expect(rooms).toBe(1);
    expect(uart.receive(bytes('e'))).toBe(1);
    wr(IER, 0);
    expect(uart.receive(bytes('arly'))).toBe(0);
    rd(DATA);
    wr(MCR, 0x02);
    expect(rooms).toBe(2);
  });

  it('loses nothing that was sent before Linux probed and opened the port', () => {
    wr(MCR, 0);
    const input = bytes('uname -a; poweroff\n');
    let sent = 0;
    const port: Uart16550 = new Uart16550({
      irq,
      output: sink,
      onInputRoom: () => (sent += port.receive(input.subarray(sent))),
    });
    sent = port.receive(input);
    // What Linux 6.1 was seen to do, from its probe to the first interrupt: wN=value writes, rN reads.
    const trace =
      'w1=0 w3=93 w0=c w1=0 w3=13 w2=0 w4=1 w1=0 w1=0 w1=0 w1=f r1 w1=0 r4 r3 w3=bf w2=0 w3=0 w2=1 r2 w3=13 w4=1 ' +
      'w2=1 w2=7 w2=0 r0 w1=0 w4=1 w2=1 w2=7 w2=0 r5 r0 r2 r6 r5 r5 w1=2 r2 w1=0 w1=2 r2 w1=0 r2 w3=3 w4=9 w1=2 r5 ' +
      'r2 w1=0 r2 r5 r0 r2 r6 w1=5 w3=93 w0=c w1=0 w3=13 w2=1 w2=81 w4=9 w4=b';
    for (const step of trace.split(' ')) {
      const offset = Number(step[1]);
      if (step[0] === 'w') port.write(offset, 1, parseInt(step.slice(3), 16));
      else port.read(offset, 1);
    }
    let text = '';
    while (irq.level && (port.read(IIR, 1) & 1) === 0) {
      while (port.read(LSR, 1) & 1) text += String.fromCharCode(port.read(DATA, 1));
    }
    expect(text).toBe('uname -a; poweroff\n');
  });

  it('takes 16 bytes with FIFOs, one without', () => {
    expect(uart.receive(bytes('ab'))).toBe(1);
    expect(rd(DATA)).toBe(0x61);
    wr(FCR, 0x01);
    expect(uart.receive(bytes('0123456789abcdefXYZ'))).toBe(16);
    expect(uart.receive(bytes('X'))).toBe(0);
    let text = '';
    while (rd(LSR) & 1) text += String.fromCharCode(rd(DATA));
    expect(text).toBe('0123456789abcdef');
  });

  it('says once that there is room, when the refused guest has emptied the FIFO', () => {
    wr(FCR, 0x01);
    uart.receive(bytes('0123456789abcdefXYZ'));
    for (let i = 0; i < 15; i++) rd(DATA);
    expect(rooms).toBe(0);
    rd(DATA);
    rd(DATA);
    expect(rooms).toBe(1);
  });

  it('passes any amount of input, in order, when the refill comes from inside the read', () => {
    const input = bytes('The quick brown fox jumps over the lazy dog. '.repeat(20));
    let sent = 0;
    const port: Uart16550 = new Uart16550({
      irq,
      output: sink,
      onInputRoom: () => (sent += port.receive(input.subarray(sent))),
    });
    port.write(FCR, 1, 0x81);
    port.write(MCR, 1, 0x0b);
    port.write(IER, 1, 0x01);
    sent = port.receive(input);
    const got: number[] = [];
    let edges = 0;
    while (irq.level) {
      expect(irq.edges).toBeGreaterThan(edges); // an edge-triggered controller saw every refill
      edges = irq.edges;
      expect(port.read(IIR, 1) & 0xf7).toBe(0xc4);
      for (let i = 0; i < 16 && port.read(LSR, 1) & 1; i++) got.push(port.read(DATA, 1));
    }
    expect(Buffer.from(got).equals(input)).toBe(true);
  });

  it('tells data at the trigger level from a time-out below it', () => {
    wr(FCR, 0x41); // 4 bytes
    wr(IER, 0x01);
    uart.receive(bytes('abc'));
    expect([rd(IIR), irq.level]).toEqual([0xcc, true]);
    uart.receive(bytes('d'));
    expect(rd(IIR)).toBe(0xc4);
    rd(DATA);
    expect(rd(IIR)).toBe(0xcc);
    for (let i = 0; i < 3; i++) rd(DATA);
    expect([rd(IIR), irq.level]).toEqual([0xc1, false]);
  });

  it('forgets what it received when the guest clears the FIFO', () => {
    wr(FCR, 0x01);
    wr(IER, 0x01);
    uart.receive(bytes('stale'));
    wr(FCR, 0x03);
    expect([rd(LSR) & 1, irq.level, rd(DATA)]).toEqual([0, false, 0]);
  });
});

describe('loopback', () => {
  beforeEach(() => {
    wr(FCR, 0x01);
    wr(MCR, 0x1b);
    rd(MSR);
  });

  it('receives what it sends and keeps it off the line, both ways', () => {
    print('test');
    expect(uart.receive(bytes('x'))).toBe(0);
    let text = '';
    while (rd(LSR) & 1) text += String.fromCharCode(rd(DATA));
    expect([text, sink.text]).toEqual(['test', '']);
  });

  it('reports an overrun until LSR is read, as the most urgent interrupt', () => {
    wr(IER, 0x05);
    print('0123456789abcdefX');
    expect([rd(IIR), irq.level]).toEqual([0xc6, true]);
    expect(rd(LSR)).toBe(0x63);
    expect([rd(LSR), rd(IIR)]).toEqual([0x61, 0xc4]);
  });

  it('reports changes of the modem lines until MSR is read', () => {
    wr(IER, 0x08);
    wr(MCR, 0x10 | 0x04); // RTS, DTR and OUT2 down, OUT1 (RI) up
    expect([rd(IIR), irq.level]).toEqual([0xc0, true]);
    expect(rd(MSR)).toBe(0x40 | 0x0b);
    expect([rd(MSR), rd(IIR), irq.level]).toEqual([0x40, 0xc1, false]);
    wr(MCR, 0x10);
    expect(rd(MSR)).toBe(0x04); // trailing edge of RI
  });
});

it('makes wider accesses of byte accesses to ascending registers', () => {
  uart.write(SCR - 3, 4, 0x7f_00_00_1f);
  expect([rd(MCR), rd(SCR)]).toEqual([0x1f, 0x7f]);
  expect(uart.read(LCR, 2)).toBe(0x1f00);
});

it('returns to its power-on state, whatever happened before', () => {
  const fresh = uart.save();
  wr(MCR, 0x0b);
  wr(FCR, 0xc1);
  wr(IER, 0x0f);
  uart.receive(bytes('abc'));
  sink.room = 0;
  print('x');
  uart.reset();
  expect(uart.save()).toEqual(fresh);
  expect([irq.level, rd(LSR)]).toEqual([false, 0x60]);
});

const access = fc.oneof(
  fc.record({ op: fc.constant('r' as const), offset: fc.nat(7), size: fc.constantFrom<AccessSize[]>(1, 2, 4) }),
  fc.record({
    op: fc.constant('w' as const),
    offset: fc.nat(7),
    size: fc.constantFrom<AccessSize[]>(1, 2, 4),
    value: fc.nat(0xffffffff),
  }),
  fc.record({ op: fc.constant('in' as const), data: fc.uint8Array({ maxLength: 40 }) }),
  fc.record({ op: fc.constant('room' as const), room: fc.nat(20) }),
);
type Access = typeof access extends fc.Arbitrary<infer T> ? T : never;

function apply(port: Uart16550, output: Sink, step: Access): number {
  if (step.op === 'r') return port.read(step.offset, step.size);
  if (step.op === 'w') port.write(step.offset, step.size, step.value % 2 ** (8 * step.size));
  else if (step.op === 'in') return port.receive(step.data);
  else {
    output.room = step.room;
    port.resumeOutput();
  }
  return 0;
}

it('never throws and returns values of the access width, whatever the guest does', () => {
  fc.assert(
    fc.property(fc.array(access, { maxLength: 100 }), (steps) => {
      const output = new Sink(3);
      const port = new Uart16550({ irq: new FakeIrqLine(), output });
      for (const step of steps) {
        const value = apply(port, output, step);
        expect(Number.isInteger(value) && value >= 0).toBe(true);
        if (step.op === 'r') expect(value).toBeLessThan(2 ** (8 * step.size));
        if (step.op === 'in') expect(value).toBeLessThanOrEqual(16);
      }
    }),
  );
});

it('goes on from a saved state exactly as the original does', () => {
  fc.assert(
    fc.property(fc.array(access, { maxLength: 40 }), fc.array(access, { maxLength: 40 }), (before, after) => {
      const [outA, outB] = [new Sink(3), new Sink(3)];
      const [irqA, irqB] = [new FakeIrqLine(), new FakeIrqLine()];
      const a = new Uart16550({ irq: irqA, output: outA });
      for (const step of before) apply(a, outA, step);
      const b = new Uart16550({ irq: irqB, output: outB });
      b.restore(structuredClone(a.save()));
      outB.room = outA.room;
      expect(irqB.level).toBe(irqA.level);
      for (const step of after) expect(apply(b, outB, step)).toBe(apply(a, outA, step));
      expect(b.save()).toEqual(a.save());
      expect(irqB.level).toBe(irqA.level);
    }),
  );
});

it.each<[string, unknown]>([
  ['ier', 0x10],
  ['lcr', -1],
  ['mcr', 1.5],
  ['divisor', 0x10000],
  ['overrun', 1],
  ['received', new Uint8Array(17)],
  ['transmitting', [1, 2]],
  ['scratch', undefined],
])('refuses a saved state whose %s is damaged, and changes nothing', (field, value) => {
  wr(SCR, 0x77);
  const before = uart.save();
  const damaged = { ...new Uart16550({ irq, output: sink }).save(), [field]: value };
  expect(() => uart.restore(damaged)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  expect(uart.save()).toEqual(before);
});
