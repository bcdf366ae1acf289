import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { cpus, loadavg, release, totalmem } from 'node:os';
import type { KernelConfig } from '../bench/benchmark.js';
import { BENCHMARKS, select } from '../bench/catalog.js';
import { changes } from '../bench/compare.js';
import { formatValue } from '../bench/format.js';
import { toHtml } from '../bench/html.js';
import { header, reportSchema, toReport, type BenchmarkReport, type Machine, type Report } from '../bench/report.js';
import { run, type Progress } from '../bench/runner.js';
import { benchmarkTable } from '../bench/table.js';
import { VmmError } from '../errors.js';
import { EXIT } from './exit-status.js';
import { examineHost } from './host-report.js';
import { paint, say } from './output.js';
import { columns } from './table.js';

export interface BenchOptions {
  quick?: boolean;
  kernelConfig: KernelConfig;
  list?: boolean;
  /** Where the report goes. */
  json: string;
  html: string;
  /** An earlier report. */
  compare?: string;
}

/** `vmexit bench`. @returns What to exit with. */
export async function bench(paths: readonly string[], options: BenchOptions, version: string): Promise<number> {
  if (options.list) {
    process.stdout.write(`${columns(BENCHMARKS.map(({ name, title }) => [name, title]))}\n`);
    return EXIT.OK;
  }
  const { benchmarks, unknown } = select(paths);
  if (unknown !== undefined) {
    throw new VmmError('INVALID_ARGUMENT', `there is no benchmark ${unknown}: vmexit bench --list shows all`);
  }
  const { quick = false, kernelConfig } = options;
  // Before minutes are spent.
  const baseline = options.compare === undefined ? undefined : await readReport(options.compare);

  const startedAt = new Date();
  const machine = await describeMachine();
  const reports: BenchmarkReport[] = [];
  for (const [index, benchmark] of benchmarks.entries()) {
    const onProgress = (progress: Progress) => showProgress(progress, index, benchmarks.length);
    const outcome = await run(benchmark, { quick, kernelConfig, onProgress }).finally(clearProgress);
    const report = toReport(benchmark, outcome);
    reports.push(report);
    process.stdout.write(`${benchmarkTable(report)}\n\n`);
  }
  const report: Report = {
    ...header,
    vmexit: version,
    startedAt: startedAt.toISOString(),
    seconds: (Date.now() - startedAt.getTime()) / 1000,
    quick,
    machine,
    benchmarks: reports,
  };
  await writeFile(options.json, `${JSON.stringify(report)}\n`);
  await writeFile(options.html, await toHtml(report, baseline));
  if (baseline) process.stdout.write(`${comparisonText(baseline, report)}\n\n`);
  say(`${Math.round(report.seconds)} s; the report is in ${options.html} and ${options.json}`);
  return EXIT.OK;
}

async function readReport(path: string): Promise<Report> {
  try {
    return reportSchema.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (cause) {
    throw new VmmError('INVALID_ARGUMENT', `${path} is no report of this version of vmexit bench`, { cause });
  }
}

/** What changed, for a person. */
function comparisonText(before: Report, after: Report): string {
  const found = changes(before, after);
  const title = paint(process.stdout, 'bold', `Compared with the run of ${before.startedAt}`);
  if (found.length === 0) return `${title}: nothing changed beyond noise`;
  const rows = found.map((change) => [
    `  ${change.what}`,
    formatValue(change.before, change.unit),
    `→ ${formatValue(change.after, change.unit)}`,
    paint(process.stdout, change.isWorse ? 'red' : 'green', `× ${change.factor.toFixed(2)}`),
    change.byRatio ? 'of the ratio to the floor' : '',
  ]);
  return `${title}\n${columns(rows)}`;
}

/** What figures depend on. */
export async function describeMachine(): Promise<Machine> {
  const loadAverage = loadavg()[0];
  const { verdicts, checks } = await examineHost();
  const governor = readText('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor');
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: Math.max(1, cpus().length),
    memoryBytes: totalmem(),
    kernel: release(),
    ...(governor !== undefined && { governor }),
    node: process.version,
    loadAverage,
    kvm: verdicts.kvm,
    details: checks.map(({ name, value }) => ({ name, value })),
  };
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

function showProgress({ benchmark, contender, done }: Progress, index: number, total: number): void {
  if (!process.stderr.isTTY) return;
  const percent = Math.round((100 * (index + done)) / total);
  process.stderr.write(`\r\x1b[K${String(percent).padStart(3)} % ${benchmark}: ${contender}`);
}

function clearProgress(): void {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
}
