/** One guest, run by the loops that can serve its exits: in C, inline, on threads, and by hand. */
import { Bus } from '../../bus/bus.js';
import type { BusDevice } from '../../bus/device.js';
import type { Vcpu, Vm } from '../../kvm/index.js';
import { InlineRunLoop } from '../../loop/inline-run-loop.js';
import type { RunLoop } from '../../loop/run-loop.js';
import { ThreadedRunLoop } from '../../loop/threaded-run-loop.js';
import { baseline, BaselineProcess } from '../baseline.js';
import type { Contender, Context, Session } from '../benchmark.js';
import { createGuest, DEBUG_EXIT, enter, MMIO_HOLE, openKvm, PORT, writeImage } from '../guest.js';

/** Adds up what it is written, and counts what is read. */
class Counter implements BusDevice {
  readonly name = 'counter';
  sum = 0;
  /** When it was first accessed; 0: not yet. */
  firstMs = 0;
  read(): number {
    if (this.firstMs === 0) this.firstMs = performance.now();
    this.sum++;
    return 0xffff_ffff;
  }
  write(_offset: number, _size: number, value: number): void {
    if (this.firstMs === 0) this.firstMs = performance.now();
    this.sum += value;
  }
  reset(): void {
    this.sum = 0;
    this.firstMs = 0;
  }
}

/** Notes when each write came, too. */
class Stamper extends Counter {
  #stampsMs: number[] = [];
  override write(offset: number, size: number, value: number): void {
    this.#stampsMs.push(performance.now());
    super.write(offset, size, value);
  }
  override reset(): void {
    super.reset();
    this.#stampsMs = [];
  }
  /** From each write to the next, in ns. */
  times(): number[] {
    return this.#stampsMs.slice(1).map((atMs, before) => (atMs - this.#stampsMs[before]) * 1e6);
  }
}

export interface ExitWork {
  /** Does the work ECX times, then ends by `FINISH`. */
  code: readonly number[];
  space: 'pio' | 'mmio';
  /** What one operation adds to the device's sum, at least. */
  exitsPerOperation?: number;
  /** Adds to the VM what the work needs. @returns What is to be closed in the end, and to be checked after each round. */
  attach?(vm: Vm): Disposable & { check(operations: number): void };
  /** Asks KVM for exits that it does not make by itself. */
  prepare?(vm: Vm): void;
}

/** The contenders of every kind of exit: the C loop, the inline loop, a thread for the vCPU, and `vcpu.run()` by hand. */
export async function exitContenders(work: ExitWork, context: Context): Promise<Contender[]> {
  openKvm().close();
  const floor = await baseline('exits', context);
  return [
    ...(floor === undefined ? [] : [cContender(floor, work.code, work.space)]),
    loopContender('inline', work),
    loopContender('threaded', work, { threaded: true }),
    { name: 'by hand', open: () => byHand(work) },
  ];
}

/** @param kind What `exits.c` calls it; one that ends in `-each` answers with a time for each operation. */
export function cContender(program: string, code: readonly number[], kind: string, vcpus?: number): Contender {
  return {
    name: 'C',
    isFloor: true,
    ...(vcpus !== undefined && { at: vcpus }),
    async open(): Promise<Session> {
      const image = await writeImage(code);
      const process = new BaselineProcess(program, [image.path, kind, String(vcpus ?? 1)]);
      return {
        async round(operations) {
          const answer = await process.ask(operations);
          if (kind.endsWith('-each')) return answer.map((time) => ({ time }));
          const [wallNs] = answer;
          return [{ time: wallNs / operations / (vcpus ?? 1) }];
        },
        async [Symbol.asyncDispose]() {
          await process[Symbol.asyncDispose]();
          await image[Symbol.asyncDispose]();
        },
      };
    },
  };
}

export interface LoopOptions {
  threaded?: boolean;
  /** More than one needs threads, and is the place on the benchmark's axis. */
  vcpus?: number;
  /** A sample is the time from one exit to the next, not a mean. */
  each?: boolean;
}

/** The guest under a run loop of this package. */
export function loopContender(name: string, work: ExitWork, options: LoopOptions = {}): Contender {
  const { threaded = false, vcpus, each = false } = options;
  return {
    name,
    ...(vcpus !== undefined && { at: vcpus }),
    open(): Session {
      const count = vcpus ?? 1;
      // With interrupt controllers a vCPU that has finished waits in the kernel for the others.
      const guest = createGuest(work.code, { vcpus: count, irqchip: count > 1 });
      const device = each ? new Stamper() : new Counter();
      const attached = work.attach?.(guest.vm);
      let endMs = 0;
      let running: { loop: RunLoop; left: number } | undefined;
      const end: BusDevice = {
        name: 'end',
        read: () => 0xff,
        write: () => {
          if (!running || --running.left > 0) return;
          endMs = performance.now();
          running.loop.stop();
        },
        reset() {},
      };
      const { ports, mmio } = buses(work, device, end);
      return {
        async round(operations) {
          for (const vcpu of guest.vcpus) enter(vcpu, operations);
          device.reset();
          using loop = threaded
            ? new ThreadedRunLoop(guest.vcpus, ports, mmio)
            : new InlineRunLoop(guest.vcpus[0], ports, mmio);
          running = { loop, left: count };
          const startMs = performance.now();
          const fatal = await loop.run();
          // Without what a loop's start costs: as many exits lie between the first one and the guest's last word.
          const wallMs = endMs - (device.firstMs || startMs);
          if (fatal) throw new Error(`the guest ended: ${fatal.exit.reason}`);
          if (attached) attached.check(operations * count);
          else checkSum(device, operations * count * (work.exitsPerOperation ?? 1));
          if (device instanceof Stamper) return device.times().map((time) => ({ time }));
          return [{ time: (wallMs * 1e6) / operations / count }];
        },
        [Symbol.asyncDispose]() {
          attached?.[Symbol.dispose]();
          guest[Symbol.dispose]();
          return Promise.resolve();
        },
      };
    },
  };
}

export function buses({ space }: ExitWork, device: BusDevice, end: BusDevice): { ports: Bus; mmio: Bus } {
  const ports = new Bus('port');
  const mmio = new Bus('mmio');
  if (space === 'pio') ports.register(device, PORT, 4);
  else mmio.register(device, MMIO_HOLE, 4);
  ports.register(end, DEBUG_EXIT, 1);
  return { ports, mmio };
}

/** As a program does that uses `vmexit/kvm` without a run loop. */
export function byHand({ code, exitsPerOperation = 1, prepare }: Omit<ExitWork, 'space'>): Session {
  const guest = createGuest(code);
  prepare?.(guest.vm);
  const device = new Counter();
  const [vcpu] = guest.vcpus;
  return {
    round(operations) {
      enter(vcpu, operations);
      device.reset();
      const startMs = performance.now();
      serve(vcpu, device);
      const wallMs = performance.now() - startMs;
      checkSum(device, operations * exitsPerOperation);
      return Promise.resolve([{ time: (wallMs * 1e6) / operations }]);
    },
    [Symbol.asyncDispose]() {
      guest[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}

function serve(vcpu: Vcpu, device: Counter): void {
  for (const exit of vcpu.exits()) {
    if (exit.reason === 'io') {
      if (exit.port === DEBUG_EXIT) return;
      for (let i = 0; i < exit.count; i++) {
        if (exit.isWrite) device.write(0, exit.size, exit.getValue(i));
        else exit.setValue(device.read(), i);
      }
    } else if (exit.reason === 'mmio') {
      if (exit.isWrite) device.write(0, 4, exit.getValue(4));
      else exit.setValue(device.read(), 4);
    } else if (exit.reason === 'msr') {
      device.write(0, 4, Number(exit.data));
    } else if (exit.reason === 'hypercall') {
      device.write(0, 4, Number(exit.args[1]));
      exit.ret = 0n;
    } else {
      throw new Error(`the guest ended: ${exit.reason}`);
    }
  }
}

/** A benchmark that lost exits would be a fast one. Writes count down to 1, so they add up to no less than their number. */
function checkSum(device: Counter, exits: number): void {
  // Of the bytes counted down by the port loop some are 0.
  if (device.sum < exits - Math.ceil(exits / 256)) throw new Error(`of ${exits} exits the device saw ${device.sum}`);
}
