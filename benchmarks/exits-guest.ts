/** The guest of the exits benchmark under our run loop. As a program: `exits-guest.ts pio|mmio COUNT` runs it once. */
import { Bus } from '../dist/bus/bus.js';
import { EventLoopTurns } from '../dist/loop/event-loop-turns.js';
import { RunLoop } from '../dist/loop/run-loop.js';
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
  readonly #turns = new EventLoopTurns();
  #loop: RunLoop | undefined;
  #ended = false;

  constructor(path: ExitPath) {
    this.#path = path;
    this.#guest = createGuest(PROGRAM[path]);
    if (path === 'pio') this.#ports.register(this.#counter, PORT, 4);
    else this.#mmio.register(this.#counter, MMIO_HOLE, 4);
    const write = () => {
      this.#ended = true;
      this.#loop?.stop();
    };
    this.#ports.register({ name: 'end', read: () => 0xff, write, reset() {} }, DEBUG_EXIT, 1);
  }

  async run(exits: number): Promise<Round> {
    const { vcpu } = this.#guest;
    enter(vcpu, 'real', { rcx: BigInt(exits), rdx: BigInt(PORT) });
    if (this.#path === 'mmio') pointEsAtMmio(vcpu);
    this.#counter.reset();
    this.#ended = false;
    const loop = (this.#loop = new RunLoop(vcpu, this.#ports, this.#mmio));
    const start = process.hrtime.bigint();
    while (!this.#ended) {
      const exit = loop.runTurn();
      if (exit) throw new Error(`the guest ended: ${exit.reason}`);
      if (!this.#ended) await this.#turns.next();
    }
    return { wallNs: Number(process.hrtime.bigint() - start), sum: this.#counter.sum };
  }

  [Symbol.dispose](): void {
    this.#turns[Symbol.dispose]();
    this.#guest[Symbol.dispose]();
  }
}

if (process.argv[1] === import.meta.filename) {
  using guest = new ExitsGuest(process.argv[2] as ExitPath);
  await guest.run(Number(process.argv[3]));
}
