import type { Bus } from '../bus/bus.js';
import type { VmExit } from '../kvm/exit.js';
import type { Vcpu } from '../kvm/vcpu.js';
import { EventLoopTurns } from './event-loop-turns.js';
import { ExitServer } from './exit-server.js';
import type { FatalExit, RunLoop } from './run-loop.js';

/**
 * The run loop of one vCPU, on this thread itself: an exit reaches its device with no thread between. While the guest
 * runs the event loop stands still; it is given a turn as soon as it has something to do.
 */
export class InlineRunLoop implements RunLoop {
  readonly #vcpu: Vcpu;
  readonly #server: ExitServer;
  readonly #onTurn: () => void;
  #stopping = false;
  #whilePaused: { promise: Promise<void>; end: () => void } | undefined;

  /** @param onTurn Called before each turn of the event loop: for what devices collect while the guest runs. */
  constructor(vcpu: Vcpu, ports: Bus, mmio: Bus, onTurn: () => void = () => {}) {
    this.#vcpu = vcpu;
    this.#server = new ExitServer(ports, mmio);
    this.#onTurn = onTurn;
  }

  async run(): Promise<FatalExit | undefined> {
    using turns = new EventLoopTurns();
    let ticks = 0;
    while (!this.#stopping) {
      if (this.#whilePaused) await this.#whilePaused.promise;
      else {
        const ended = this.#runTurn();
        this.#onTurn();
        if (ended !== 'loop' && ended !== 'ticks') return { vcpu: this.#vcpu, exit: ended };
        // Now and then a whole turn all the same: for what a device may have changed in the loop without a trace.
        if (ended === 'ticks' && ++ticks % 10 !== 0) await new Promise<void>((resolve) => process.nextTick(resolve));
        else await turns.next();
      }
    }
    return undefined;
  }

  /** Runs the guest until this thread has something else to do, or until an exit that only the machine can judge. */
  #runTurn(): VmExit | 'loop' | 'ticks' {
    const vcpu = this.#vcpu;
    const server = this.#server;
    const { exit } = vcpu;
    while (!this.#stopping) {
      const code = vcpu.runInline();
      if (code < 0) {
        server.countInterruption();
        return code === -1 ? 'loop' : 'ticks';
      }
      const fatal = server.serve(exit, code);
      if (fatal) return fatal;
    }
    return 'loop';
  }

  stop(): void {
    this.#stopping = true;
    this.resume();
  }

  /** Called on this thread, so the vCPU is outside the guest already. */
  pause(): Promise<void> {
    if (!this.#whilePaused) {
      let end!: () => void;
      const promise = new Promise<void>((resolve) => (end = resolve));
      this.#whilePaused = { promise, end };
    }
    return Promise.resolve();
  }

  get isPaused(): boolean {
    return this.#whilePaused !== undefined && !this.#stopping;
  }

  resume(): void {
    this.#whilePaused?.end();
    this.#whilePaused = undefined;
  }

  exits(): Record<string, number> {
    return this.#server.counts();
  }

  [Symbol.dispose](): void {
    this.stop();
  }
}
