import Table from 'cli-table3';
import { formatRatio, formatValue, scaleFor } from './format.js';
import type { BenchmarkReport, Series } from './report.js';

/** One benchmark for a person at a terminal. */
export function benchmarkTable(report: BenchmarkReport): string {
  const { name, title, metrics, axis, series, skipped, notes } = report;
  const lines = [`${title} (${name})`];
  if (skipped !== undefined) lines.push(`  not measured: ${skipped}`);
  else {
    const table = new Table({
      head: ['', ...(axis ? [axis.title] : []), 'median', '± MAD', 'min', 'p90', 'p99', 'samples', '× floor'],
      colAligns: ['left', ...Array.from({ length: axis ? 8 : 7 }, () => 'right' as const)],
      style: { head: [], border: [], compact: true },
    });
    for (const entry of series) {
      const { unit, title: what } = metrics[entry.metric];
      const { summary, at } = entry;
      const scale = scaleFor(summary.median, unit);
      const value = (number: number) => formatValue(number, unit, scale);
      table.push([
        Object.keys(metrics).length > 1 ? `${entry.contender}: ${what}` : entry.contender,
        ...(axis ? [at === undefined ? '' : formatValue(at, axis.unit)] : []),
        value(summary.median),
        value(summary.mad),
        value(summary.min),
        value(summary.p90),
        value(summary.p99),
        summary.samples.toLocaleString('en'),
        ratioText(entry),
      ]);
    }
    lines.push(table.toString());
  }
  lines.push(...notes.map((note) => `  ${note}`));
  return lines.join('\n');
}

/** What is read first in a table: how far from the floor. */
export function ratioText({ isFloor, ratio }: Series): string {
  if (isFloor) return 'floor';
  return ratio ? `${formatRatio(ratio.median)} ± ${formatRatio(ratio.mad)}` : '';
}
