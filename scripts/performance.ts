/**
 * Retakes the figures of docs/performance.md: a full run of `vmexit bench` on this machine, best while it does nothing else.
 *
 *   npm run bench:figures [-- [--from report.json] [--nested nested-report.json]]
 *
 * `--from` takes the figures from a run that was made before, `--nested` those of one in the nested host.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { execa } from 'execa';
import { formatPlace, formatRatio, formatValue } from '../src/bench/format.js';
import { reportSchema, type BenchmarkReport, type Report } from '../src/bench/report.js';
import { writeFormatted } from './write-formatted.js';

const PAGE = fileURLToPath(new URL('../docs/performance.md', import.meta.url));
const COMMAND = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));

const { values } = parseArgs({ options: { from: { type: 'string' }, nested: { type: 'string' } } });
let page = readFileSync(PAGE, 'utf8');
if (values.from || !values.nested) {
  page = replace(page, 'figures', figures(values.from ? read(values.from) : await measure()));
}
if (values.nested) page = replace(page, 'nested figures', figures(read(values.nested)));
await writeFormatted(PAGE, page);

async function measure(): Promise<Report> {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-figures-'));
  try {
    await execa(process.execPath, [COMMAND, 'bench'], { cwd: directory, stdio: 'inherit' });
    return read(join(directory, 'report.json'));
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function read(path: string): Report {
  return reportSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
}

/** What stands between `<!-- NAME -->` and `<!-- /NAME -->`. */
function replace(text: string, name: string, by: string): string {
  const [open, close] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const [from, to] = [text.indexOf(open), text.indexOf(close)];
  if (from < 0 || to < from) throw new Error(`${PAGE} has no ${open} … ${close}`);
  return `${text.slice(0, from + open.length)}\n\n${by}\n\n${text.slice(to)}`;
}

function figures({ machine, startedAt, quick, benchmarks }: Report): string {
  const { cpu, cpus, kernel, node, loadAverage } = machine;
  const run = `${quick ? 'A quick run' : 'A full run'} of ${startedAt.slice(0, 10)}: ${cpu}, ${cpus} CPUs, Linux ${kernel}`;
  return [
    `${run}, Node.js ${node}, load average ${loadAverage.toFixed(1)} as it began.`,
    ...benchmarks.map(section),
  ].join('\n\n');
}

function section({ name, title, metrics, axis, floor = 'floor', series, skipped, tallies }: BenchmarkReport): string {
  const lines = [`**${title}** (\`${name}\`)`, ''];
  if (skipped !== undefined) return [...lines, `Not measured: ${skipped}.`].join('\n');
  const several = Object.keys(metrics).length > 1;
  const head = [several ? 'what' : '', axis?.title ?? '', '', 'median', '± MAD', `× ${floor}`];
  const rows = series.map(({ contender, at, metric, summary, isFloor, ratio }) => {
    const { unit, title: what } = metrics[metric];
    return [
      several ? what : '',
      axis && at !== undefined ? formatPlace(at, axis) : '',
      contender,
      formatValue(summary.median, unit),
      formatValue(summary.mad, unit),
      isFloor ? 'floor' : ratio ? formatRatio(ratio.median) : '',
    ];
  });
  const columns = head.flatMap((_, column) => (column === 2 || rows.some((row) => row[column] !== '') ? [column] : []));
  const line = (cells: readonly string[]) => `| ${columns.map((column) => cells[column]).join(' | ')} |`;
  lines.push(line(head), line(head.map((_, column) => (column < 3 ? '---' : '---:'))), ...rows.map(line));
  for (const { contender, title: what, counts } of tallies) {
    const list = Object.entries(counts)
      .sort(([, a], [, b]) => b - a)
      .map(([key, count]) => `${key} ${count.toLocaleString('en')}`);
    lines.push('', `${contender}, ${what}: ${list.join(', ')}.`);
  }
  return lines.join('\n');
}
