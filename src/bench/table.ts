import Table from 'cli-table3';
import { formatPlace, formatRatio, formatValue, scaleFor } from './format.js';
import type { BenchmarkReport, Series } from './report.js';

/** With more metrics than this along an axis, a row for each would be a table that nobody reads. */
const MANY_METRICS = 4;

/** One benchmark for a person at a terminal. */
export function benchmarkTable(report: BenchmarkReport): string {
  const { name, title, metrics, axis, skipped, notes } = report;
  const lines = [`${title} (${name})`];
  if (skipped !== undefined) lines.push(`  not measured: ${skipped}`);
  else lines.push((axis && Object.keys(metrics).length > MANY_METRICS ? wide : long)(report));
  lines.push(...notes.map((note) => `  ${note}`));
  return lines.join('\n');
}

/** A row for each figure, with how it is spread. */
function long({ metrics, axis, floor, series }: BenchmarkReport): string {
  const ratio = ratioColumn({ floor, series });
  const columns = ['median', '± MAD', 'min', 'p90', 'p99', 'samples', ...ratio];
  const table = newTable(['', ...(axis ? [axis.title] : []), ...columns], 1);
  for (const entry of series) {
    const { unit, title: what } = metrics[entry.metric];
    const { summary, at } = entry;
    const scale = scaleFor(summary.median, unit);
    const value = (number: number) => formatValue(number, unit, scale);
    table.push([
      Object.keys(metrics).length > 1 ? `${entry.contender}: ${what}` : entry.contender,
      ...(axis ? [at === undefined ? '' : formatPlace(at, axis)] : []),
      value(summary.median),
      value(summary.mad),
      value(summary.min),
      value(summary.p90),
      value(summary.p99),
      summary.samples.toLocaleString('en'),
      ...(ratio.length > 0 ? [ratioText(entry, floor)] : []),
    ]);
  }
  return table.toString();
}

/** A row for each contender at each place, a column for each metric's median; the ratio is that of the first. */
function wide({ metrics, axis, floor, series }: BenchmarkReport): string {
  const names = Object.keys(metrics);
  const titles = names.map((name) => metrics[name].title);
  const table = newTable([axis!.title, '', ...titles, `× ${floor ?? 'floor'}`], 2);
  const rows = series.filter(({ metric }) => metric === names[0]).sort((a, b) => a.at! - b.at!);
  for (const [index, entry] of rows.entries()) {
    const { contender, at } = entry;
    const medians = names.map((name) => {
      const found = series.find((other) => other.contender === contender && other.at === at && other.metric === name);
      return found ? formatValue(found.summary.median, metrics[name].unit) : '';
    });
    table.push([
      rows[index - 1]?.at === at ? '' : formatPlace(at!, axis!),
      contender,
      ...medians,
      ratioText(entry, floor),
    ]);
  }
  return table.toString();
}

/** @param labels How many columns from the left are words. */
const newTable = (head: string[], labels: number) =>
  new Table({
    head,
    colAligns: head.map((_, column) => (column < labels ? 'left' : 'right')),
    style: { head: [], border: [], compact: true },
  });

/** Its head; nothing where there is nothing to compare with. */
export function ratioColumn({ floor = 'floor', series }: Pick<BenchmarkReport, 'floor' | 'series'>): string[] {
  return series.some(({ ratio }) => ratio !== undefined) ? [`× ${floor}`] : [];
}

/** What is read first in a table: how far from the floor. */
export function ratioText({ isFloor, ratio }: Series, floor?: string): string {
  if (isFloor) return floor === undefined ? 'floor' : '1';
  return ratio ? `${formatRatio(ratio.median)} ± ${formatRatio(ratio.mad)}` : '';
}
