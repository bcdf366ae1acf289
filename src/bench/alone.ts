import type { Benchmark } from './benchmark.js';
import { toReport } from './report.js';
import { run } from './runner.js';
import { benchmarkTable } from './table.js';

/**
 * Runs the benchmark when its file is the program that node was started with: `node dist/bench/exits/pio-out.js [--quick]`.
 *
 * @param file Of the benchmark.
 */
export async function runAlone(file: string, benchmark: Benchmark): Promise<void> {
  if (process.argv[1] !== file) return;
  const outcome = await run(benchmark, { quick: process.argv.includes('--quick') });
  process.stdout.write(`${benchmarkTable(toReport(benchmark, outcome))}\n`);
}
