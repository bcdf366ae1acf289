import type { Bus } from '../bus/bus.js';
import { VcpuGroup } from '../kvm/vcpu-group.js';
import type { Vcpu } from '../kvm/vcpu.js';
import { ExitServer } from './exit-server.js';
import type { FatalExit, RunLoop } from './run-loop.js';

/** Exits to serve before the event loop gets its turn: vCPUs that never stop exiting must not hold it up. */
const EXITS_PER_TURN = 256;

/** The run loop of several vCPUs: each runs on a thread of its own and hands its exits to this one. */
export class ThreadedRunLoop implements RunLoop {
  readonly #group: VcpuGroup;
  readonly #server: ExitServer;
  readonly #onTurn: () => void;
  #settle: { resolve: (exit: FatalExit | undefined) => void; reject: (error: unknown) => void } | undefined;
  #stopping = false;
  #paused = false;
  #parked: (() => void)[] = [];

  /** @param onTurn Called after each batch of exits: for what devices collect meanwhile. */
  constructor(vcpus: readonly Vcpu[], ports: Bus, mmio: Bus, onTurn: () => void = () => {}) {
    this.#group = new VcpuGroup(vcpus);
    this.#server = new ExitServer(ports, mmio);
    this.#onTurn = onTurn;
  }

  run(): Promise<FatalExit | undefined> {
    return new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
      if (this.#paused) this.#group.pause();
      this.#group.start(() => this.#serve());
      if (this.#stopping) this.#end(() => resolve(undefined));
    });
  }

  stop(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#end(() => this.#settle?.resolve(undefined));
  }

  async pause(): Promise<void> {
    this.#paused = true;
    // After the end the threads stay where they are, and before run() there are none to wait for.
    if (this.#stopping) return;
    this.#group.pause();
    if (!this.#settle || this.#group.allParked()) return;
    await new Promise<void>((resolve) => this.#parked.push(resolve));
  }

  get isPaused(): boolean {
    return this.#paused && !this.#stopping && this.#group.allParked();
  }

  resume(): void {
    this.#paused = false;
    if (!this.#stopping) this.#group.resume();
    // Who still waits for the pause would wait for ever.
    this.#tellParked();
  }

  exits(): Record<string, number> {
    return this.#server.counts();
  }

  [Symbol.dispose](): void {
    this.stop();
    this.#group.close();
  }

  #serve(): void {
    if (this.#stopping) return;
    try {
      for (let served = 0; !this.#stopping; served++) {
        const index = this.#group.nextExit();
        if (index < 0) break;
        if (served === EXITS_PER_TURN) {
          // No wake-up will come: the exit that was found is still there.
          setImmediate(() => this.#serve());
          break;
        }
        const vcpu = this.#group.vcpus[index];
        const exit = this.#server.serve(vcpu.exit, this.#group.exitCode(index));
        if (exit) {
          this.#stopping = true;
          this.#end(() => this.#settle?.resolve({ vcpu, exit }));
        }
        // stop() may have been called by a device.
        if (!this.#stopping) this.#group.continue(index);
      }
    } catch (error) {
      this.#stopping = true;
      this.#end(() => this.#settle?.reject(error));
    }
    this.#onTurn();
    if (!this.#stopping && this.#paused && this.#group.allParked()) this.#tellParked();
  }

  #end(settle: () => void): void {
    this.#group.pause();
    this.#tellParked();
    settle();
  }

  #tellParked(): void {
    for (const resolve of this.#parked.splice(0)) resolve();
  }
}
