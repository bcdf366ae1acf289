/** A report as one page that needs nothing else: tables, and charts as SVG, in the reader's light or dark. */
import { charts, loadRenderer, type Chart } from './charts.js';
import { changes, type Change } from './compare.js';
import { formatPlace, formatValue, scaleFor } from './format.js';
import type { BenchmarkReport, Machine, Report } from './report.js';
import { ratioColumn, ratioText } from './table.js';

const STYLE = `
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --quiet: #59636e; --rule: #d1d9e0; --bad: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --quiet: #9198a1; --rule: #3d444d; --bad: #ff7b72; --good: #3fb950; }
  .light { display: none; }
}
@media not (prefers-color-scheme: dark) { .dark { display: none; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; } h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; font-weight: 600; }
code, .name { font-family: ui-monospace, monospace; font-size: .85em; color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .facts td { text-align: left; white-space: normal; } .facts td:first-child { white-space: nowrap; color: var(--quiet); }
th { font-weight: 500; color: var(--quiet); } svg { max-width: 100%; height: auto; }
tr.group td { color: var(--quiet); padding-top: .7rem; } .note { color: var(--quiet); } .worse { color: var(--bad); } .better { color: var(--good); }
`;

/** @param baseline An earlier report to compare with. */
export async function toHtml(report: Report, baseline?: Report): Promise<string> {
  const renderer = await loadRenderer();
  const sections: string[] = [];
  for (const benchmark of report.benchmarks) {
    sections.push(section(benchmark, renderer ? await charts(benchmark, renderer) : []));
  }
  const title = `vmexit bench, ${report.startedAt.slice(0, 10)}`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escape(title)}</h1>
<p>${escape(summaryOf(report))}</p>
${renderer ? '' : '<p class="note">There are no charts: the optional packages vega and vega-lite are not installed.</p>'}
${facts(report.machine)}
${baseline ? comparison(changes(baseline, report), baseline) : ''}
${sections.join('\n')}
<p class="note">A figure is a median over interleaved rounds, ± its median absolute deviation (MAD); × floor is the median of
the ratios to the floor in the same round. No sample is left out. The floor is the same work in C, by the
plain ioctls, where nothing else is said.</p>
</body>
</html>
`;
}

const summaryOf = ({ vmexit, quick, seconds }: Report) =>
  `vmexit ${vmexit}; ${quick ? 'a quick run' : 'a full run'} of ${Math.round(seconds)} s.`;

function facts({ cpu, cpus, memoryBytes, kernel, governor, node, loadAverage, kvm, details }: Machine): string {
  const rows = [
    ['processor', `${cpu}, ${cpus} CPUs`],
    ['memory', formatValue(memoryBytes, 'bytes')],
    ['kernel', `Linux ${kernel}`],
    ['KVM', kvm.reason],
    ...(governor === undefined ? [] : [['frequency governor', governor]]),
    ['Node.js', node],
    ['load as the run began', loadAverage.toFixed(2)],
  ];
  const table = (entries: string[][]) =>
    `<table class="facts">${entries.map(([name, value]) => `<tr><td>${escape(name)}</td><td>${escape(value)}</td></tr>`).join('')}</table>`;
  const more = details.map(({ name, value }) => [name, value]);
  return `${table(rows)}\n<details><summary>what vmexit doctor finds</summary>${table(more)}</details>`;
}

function section(benchmark: BenchmarkReport, pictures: readonly Chart[]): string {
  const { name, title, description, skipped, notes, tallies } = benchmark;
  const parts = [
    `<h2 id="${escape(name)}">${escape(title)} <span class="name">${escape(name)}</span></h2>`,
    `<p>${escape(description)}</p>`,
    skipped === undefined ? '' : `<p class="note">Not measured: ${escape(skipped)}</p>`,
    ...pictures.map(figure),
    benchmark.series.length > 0 ? figures(benchmark) : '',
    ...tallies.map(({ contender, title: what, counts }) => {
      const rows = Object.entries(counts).sort(([, a], [, b]) => b - a);
      const body = rows.map(([key, count]) => `<tr><td>${escape(key)}</td><td>${count.toLocaleString('en')}</td></tr>`);
      return `<h3>${escape(`${contender}: ${what}`)}</h3><table>${body.join('')}</table>`;
    }),
    ...notes.map((note) => `<p class="note">${escape(note)}</p>`),
  ];
  return `<section>\n${parts.filter(Boolean).join('\n')}\n</section>`;
}

/** The title is text of the page, so that it can be found and copied. */
function figure({ title, svg }: Chart): string {
  const label = `role="img" aria-label="${escape(title)}"`;
  return `<h3>${escape(title)}</h3><div class="light" ${label}>${svg.light}</div><div class="dark" ${label}>${svg.dark}</div>`;
}

function figures({ metrics, axis, floor, series }: BenchmarkReport): string {
  const ratio = ratioColumn({ floor, series });
  const columns = ['median', '± MAD', 'min', 'p90', 'p99', 'max', 'samples', ...ratio];
  const head = ['', ...(axis ? [axis.title] : []), ...columns];
  const several = Object.keys(metrics).length > 1;
  const rows = Object.entries(metrics).flatMap(([metric, { title, unit }]) => [
    ...(several ? [`<tr class="group"><td colspan="${head.length}">${escape(title)}</td></tr>`] : []),
    ...series
      .filter((entry) => entry.metric === metric)
      .map((entry) => {
        const { contender, at, summary } = entry;
        const scale = scaleFor(summary.median, unit);
        return line('td', [
          contender,
          ...(axis ? [at === undefined ? '' : formatPlace(at, axis)] : []),
          ...[summary.median, summary.mad, summary.min, summary.p90, summary.p99, summary.max].map((value) =>
            formatValue(value, unit, scale),
          ),
          summary.samples.toLocaleString('en'),
          ...(ratio.length > 0 ? [ratioText(entry, floor)] : []),
        ]);
      }),
  ]);
  return `<div class="scroll"><table>${line('th', head)}${rows.join('')}</table></div>`;
}

function comparison(found: readonly Change[], baseline: Report): string {
  const when = escape(baseline.startedAt.slice(0, 16).replace('T', ' '));
  if (found.length === 0) return `<h2>Compared with ${when}</h2><p>Nothing changed beyond noise.</p>`;
  const rows = found.map(({ what, before, after, factor, isWorse, unit }) => {
    const word = isWorse ? 'worse' : 'better';
    return `<tr><td>${escape(what)}</td><td>${formatValue(before, unit)}</td><td>${formatValue(after, unit)}</td><td class="${word}">× ${factor.toFixed(2)}</td></tr>`;
  });
  return `<h2>Compared with ${when}</h2><p>What changed beyond noise:</p><div class="scroll"><table><tr><th></th><th>before</th><th>now</th><th></th></tr>${rows.join('')}</table></div>`;
}

const line = (tag: string, cells: readonly string[]) =>
  `<tr>${cells.map((cell) => `<${tag}>${escape(cell)}</${tag}>`).join('')}</tr>`;

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
const escape = (text: string) => text.replace(/[&<>"]/g, (character) => ENTITIES[character]);
