import { CountedMemory } from './memory.js';

/** What an episode is: a device as new, and so many cases against it, all drawn from one seed. */
export const CASES_PER_EPISODE = 50;
/** One synchronous step must not hold up its thread: a queue has up to 64 chains of 64 buffers. Most steps need a few. */
const MAX_STEP_VIEWS = 10_000;
/** And it must end. The longest takes a tenth of a second, on a machine that has nothing else to do. */
const MAX_STEP_CPU_MS = 10_000;
const MAX_STEP_MS = 60_000;

/** The last things that were done, for whoever has to find out why it failed. */
export class Log {
  static readonly #KEPT = 30;
  readonly #lines: string[] = [];

  /** Does a step, under its name. @throws when the step does, or takes too long. */
  step<T>(name: string, body: () => T): T {
    this.#lines.push(name);
    if (this.#lines.length > Log.#KEPT) this.#lines.shift();
    const viewsBefore = CountedMemory.views;
    const before = performance.now();
    const cpuBefore = process.cpuUsage();
    const result = body();
    const ms = performance.now() - before;
    const { user, system } = process.cpuUsage(cpuBefore);
    const cpuMs = (user + system) / 1000;
    const views = CountedMemory.views - viewsBefore;
    if (views > MAX_STEP_VIEWS) throw new Error(`${name} looked into guest memory ${views} times`);
    if (ms > MAX_STEP_MS || cpuMs > MAX_STEP_CPU_MS) {
      throw new Error(`${name} took ${Math.round(ms)} ms, ${Math.round(cpuMs)} ms of them busy`);
    }
    return result;
  }

  toString(): string {
    return this.#lines.join('\n');
  }
}

export const hex = (value: number | bigint) => `0x${value.toString(16)}`;

export function checkRead(value: number, size: number, where: string): void {
  if (Number.isInteger(value) && value >= 0 && value < 2 ** (8 * size)) return;
  throw new Error(`${where} of ${size} bytes is ${value}`);
}
