import { describe, expect, it } from 'vitest';
import { bestRate, MIN_CPL0_RATE, stopwatch } from '../../../src/machine/kvm-probe.js';

/**
 * A host whose processor runs that many million instructions a second.
 *
 * @param takeMs How long a run is kept off the CPU by others. @param otherThreads How many threads of this process use a CPU.
 */
function host(rate: number, takeMs: (run: number) => number = () => 0, otherThreads = 0) {
  const at = { nowMs: 0, cpuUs: 0 };
  const clocks = { nowMs: () => at.nowMs, cpuUs: () => at.cpuUs };
  let runs = 0;
  const run = (instructions: number) => {
    const elapsedMs = stopwatch(clocks);
    const ownMs = instructions / (rate * 1000);
    const wallMs = ownMs + takeMs(runs++);
    at.nowMs += wallMs;
    at.cpuUs += (ownMs + otherThreads * wallMs) * 1000;
    return elapsedMs();
  };
  return { run, at };
}

describe('the rate of a loop', () => {
  it.each([2, 400, 8000])('is that of a quiet host: %d M instructions/s', (rate) => {
    const { run, at } = host(rate);
    expect(bestRate(run)).toBeCloseTo(rate);
    expect(at.nowMs).toBeLessThan(100);
  });

  it.each([2, 400, 8000])('is that of a host that keeps each run off the CPU, too: %d M instructions/s', (rate) => {
    expect(bestRate(host(rate, () => 100).run)).toBeCloseTo(rate);
  });

  it('is above the least of a sound KVM, with busy threads in this process and most of the long runs interrupted', () => {
    const others = 3;
    const takeMs = (run: number) => (run > 0 && run !== 2 ? 100 : 0);
    expect(bestRate(host(400, takeMs, others).run)).toBeGreaterThan(MIN_CPL0_RATE);
    expect(bestRate(host(2, takeMs, others).run)).toBeLessThan(MIN_CPL0_RATE);
  });

  it.each([2, 400])(
    'is by the clock where CPU time is counted in ticks longer than a run: %d M instructions/s',
    (rate) => {
      let nowMs = 0;
      const run = (instructions: number) => {
        const elapsedMs = stopwatch({ nowMs: () => nowMs, cpuUs: () => 0 });
        nowMs += instructions / (rate * 1000);
        return elapsedMs();
      };
      expect(bestRate(run)).toBeCloseTo(rate);
    },
  );
});
