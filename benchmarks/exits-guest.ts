/** The guest of the exits benchmark under our run loop. As a program: `exits-guest.ts pio|mmio COUNT` runs it once. */
import { Bus } from '../dist/bus/bus.js';
import { InlineRunLoop } from '../dist/loop/inline-run-loop.js';
import { createGuest, enter, MMIO_HOLE, pointEsAtMmio } from '../test/support/guests.js';

export type ExitPath = 'pio' | 'mmio';
export const PROGRAM: Record<ExitPath, string> = { pio: 'pio-loop', mmio: 'mmio-loop' };

const PORT = 0x80;
const DEBUG_EXIT = 0xf4;

class Counter {
  readonly name = 'counter';
  sum = 0;
  read(): number {
    return 0xff;
  }
  write(_offset: number, _size: number, value: number): void {
    this.sum += value;
  }
  reset(): void {
    this.sum = 0;
  }
}

export interface Round {
  wallNs: number;
  /** Of the values the device was given. */
  sum: number;
}

/** A VM with the guest, and a TypeScript device for it to write to. */
export class ExitsGuest implements Disposable {
  readonly #path: ExitPath;
  readonly #guest;
  readonly #ports = new Bus('port');
  readonly #mmio = new Bus('mmio');
  readonly #counter = new Counter();
  #loop: InlineRunLoop | undefined;

  constructor(path: ExitPath) {
    this.#path = path;
    this.#guest = createGuest(PROGRAM[path]);
    if (path === 'pio') this.#ports.register(this.#counter, PORT, 4);
    else this.#mmio.register(this.#counter, MMIO_HOLE, 4);
    const end = { name: 'end', read: () => 0xff, write: () => this.#loop?.stop(), reset() {} };
    this.#ports.register(end, DEBUG_EXIT, 1);
  }

  async run(exits: number): Promise<Round> {
    const { vcpu } = this.#guest;
    enter(vcpu, 'real', { rcx: BigInt(exits), rdx: BigInt(PORT) });
    if (this.#path === 'mmio') pointEsAtMmio(vcpu);
    this.#counter.reset();
    using loop = new InlineRunLoop(vcpu, this.#ports, this.#mmio);
    this.#loop = loop;
    const start = process.hrtime.bigint();
    const fatal = await loop.run();
    const wallNs = Number(process.hrtime.bigint() - start);
    if (fatal) throw new Error(`the guest ended: ${fatal.exit.reason}`);
    return { wallNs, sum: this.#counter.sum };
  }

  [Symbol.dispose](): void {
    this.#guest[Symbol.dispose]();
  }
}

if (process.argv[1] === import.meta.filename) {
  using guest = new ExitsGuest(process.argv[2] as ExitPath);
  await guest.run(Number(process.argv[3]));
}
