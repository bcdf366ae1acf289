import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { Unavailable } from '../../../src/bench/benchmark.js';
import { run } from '../../../src/bench/runner.js';
import { benchmark, contender, type Log } from './support.js';

const log = (): Log => ({ rounds: [], opened: [], closed: [] });
const one = () => [{ time: 1 }];

describe("a benchmark's runner", () => {
  it('interleaves rounds, and turns their order round each time', async () => {
    const seen = log();
    const contenders = ['A', 'B', 'C'].map((name) => contender(name, one, { log: seen }));
    await run(benchmark(contenders, { rounds: { quick: 3, full: 9 } }), { quick: true });
    expect(seen.rounds.join('')).toBe('ABCCBAABC');
    await run(benchmark(contenders, { rounds: { quick: 3, full: 9 } }), { quick: false });
    expect(seen.rounds).toHaveLength(9 + 27);
  });

  it('begins no further round when its time is up, and says how many there were', async () => {
    const slow = contender('A', one);
    const { measured, notes } = await run(benchmark([slow]), { quick: true, budgetMs: -1 });
    expect(measured[0].rounds).toHaveLength(1);
    expect(notes).toEqual(['1 of 5 rounds: this machine takes long for them']);
  });

  it('keeps every sample of every round', async () => {
    const made = benchmark([contender('A', (round) => [{ time: round }, { time: -round }])]);
    const { measured } = await run(made, { quick: true });
    expect(measured[0].rounds).toEqual([0, 1, 2, 3, 4].map((round) => [{ time: round }, { time: -round }]));
  });

  it('finds how often work must be done to fill a round, and does not count those rounds', async () => {
    vi.useFakeTimers({ toFake: ['performance'] });
    onTestFinished(() => void vi.useRealTimers());
    let calls = 0;
    const slow = {
      name: 'slow',
      open: () => ({
        round(operations: number) {
          calls++;
          // Ten microseconds each, once; the machine is busy otherwise.
          vi.advanceTimersByTime(operations * (calls === 2 ? 0.01 : 0.015));
          return Promise.resolve([{ time: 1e4 }]);
        },
        [Symbol.asyncDispose]: () => Promise.resolve(),
      }),
    };
    const { measured } = await run(benchmark([slow], { operations: 'timed' }), { quick: true });
    // 10 ms by 10 µs.
    expect(measured[0].operations).toBe(1000);
    expect(measured[0].rounds).toHaveLength(5);
    expect(calls).toBeGreaterThan(5);
  });

  it('closes what it opened, the last first, also when a round fails', async () => {
    const seen = log();
    const failing = contender('B', () => fail(new Error('no such luck')), { log: seen });
    await expect(run(benchmark([contender('A', one, { log: seen }), failing]), { quick: true })).rejects.toThrow(
      'no such luck',
    );
    expect(seen.opened).toEqual(['A', 'B']);
    expect(seen.closed).toEqual(['B', 'A']);
  });

  it('says why a benchmark cannot run here', async () => {
    const made = benchmark([], { contenders: () => fail(new Unavailable('there is no /dev/kvm')) });
    expect(await run(made, { quick: true })).toMatchObject({ measured: [], skipped: 'there is no /dev/kvm' });
  });

  it('tells how far it is', async () => {
    const seen: number[] = [];
    await run(benchmark([contender('A', one)]), { quick: true, onProgress: ({ done }) => seen.push(done) });
    expect(seen).toEqual([0, 0, 0.2, 0.4, 0.6, 0.8]);
  });
});

function fail(error: Error): never {
  throw error;
}
