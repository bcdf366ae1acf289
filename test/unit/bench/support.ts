/** Work whose cost is known: for the runner and for reports, without a guest. */
import type { Benchmark, Contender, Sample, Session } from '../../../src/bench/benchmark.js';
import { header, toReport, type Report } from '../../../src/bench/report.js';
import { run } from '../../../src/bench/runner.js';

export interface Log {
  rounds: string[];
  opened: string[];
  closed: string[];
}

/** @param sample What the nth round gives, warm-up included. */
export function contender(
  name: string,
  sample: (round: number) => readonly Sample[],
  options: Partial<Contender> & { log?: Log } = {},
): Contender {
  const { log, ...rest } = options;
  return {
    name,
    open(): Session {
      let round = 0;
      log?.opened.push(name);
      return {
        round() {
          log?.rounds.push(name);
          return Promise.resolve(sample(round++));
        },
        [Symbol.asyncDispose]() {
          log?.closed.push(name);
          return Promise.resolve();
        },
      };
    },
    ...rest,
  };
}

export function benchmark(contenders: Contender[], options: Partial<Benchmark> = {}): Benchmark {
  return {
    name: 'exits/made-up',
    title: 'Made up',
    description: 'Nothing is <measured> here.',
    metrics: { time: { title: 'time each', unit: 'ns' } },
    operations: { quick: 1, full: 1 },
    rounds: { quick: 5, full: 5 },
    contenders: () => contenders,
    ...options,
  };
}

export async function report(...benchmarks: Benchmark[]): Promise<Report> {
  const reports = [];
  for (const one of benchmarks) reports.push(toReport(one, await run(one, { quick: true })));
  return {
    ...header,
    vmexit: '0.0.0',
    startedAt: '2026-01-02T03:04:05.000Z',
    seconds: 1,
    quick: true,
    machine: {
      cpu: 'a processor',
      cpus: 2,
      memoryBytes: 2 ** 30,
      kernel: '6.1',
      node: 'v20',
      loadAverage: 0.5,
      kvm: { usable: true, reason: 'sound' },
      details: [{ name: 'long mode', value: 'works' }],
    },
    benchmarks: reports,
  };
}
