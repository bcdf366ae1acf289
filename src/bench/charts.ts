/** Charts of a report, as SVG: vega-lite says what is drawn, vega draws it without a browser. */
import type * as Vega from 'vega';
import type * as VegaLite from 'vega-lite';
import type { Unit } from './benchmark.js';
import { formatPlace, formatRatio, formatValue, scaleFor } from './format.js';
import type { BenchmarkReport, Series } from './report.js';

export type Theme = 'light' | 'dark';

export interface Chart {
  title: string;
  /** One for each theme. */
  svg: Readonly<Record<Theme, string>>;
}

/** Inks of text and rules. */
const THEMES = {
  light: { text: '#1f2328', quiet: '#59636e', rule: '#d1d9e0' },
  dark: { text: '#e6edf3', quiet: '#9198a1', rule: '#3d444d' },
};
/** Okabe and Ito's colours, told apart by the colour-blind too. Who is in many charts has one of its own in all of them. */
const COLORS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442'];
const COLOR_OF: Readonly<Record<string, string>> = {
  C: '#999999',
  host: '#999999',
  QEMU: '#999999',
  inline: '#0072b2',
  threaded: '#e69f00',
  'by hand': '#009e73',
  'vmexit/kvm': '#009e73',
  MicroVM: '#cc79a7',
};
const WIDTH = 620;
/** Bins of a distribution. */
const BINS = 48;
/** A bar may be this many times as long as another. */
const SEEN_BESIDE = 1000;
/** Where a logarithmic axis has its lines. */
const POWERS_OF_TEN = Array.from({ length: 19 }, (_, i) => 10 ** (i - 6));

/** The parts of vega that are used here. They are an optional dependency: a report can do without its pictures. */
interface Renderer {
  compile: typeof VegaLite.compile;
  vega: typeof Vega;
}

/** @returns Undefined where vega is not installed. */
export async function loadRenderer(): Promise<Renderer | undefined> {
  try {
    const [{ compile }, vega] = await Promise.all([import('vega-lite'), import('vega')]);
    return { compile, vega };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
}

/** What there is to see of a benchmark. */
export async function charts(report: BenchmarkReport, renderer: Renderer): Promise<Chart[]> {
  if (report.series.length === 0) return [];
  const specs = [
    ...(report.axis ? [...(report.floor === undefined ? [] : ratios(report)), ...alongAxis(report)] : noAxis(report)),
    ...distribution(report),
    ...timelines(report),
  ];
  return Promise.all(
    specs.map(async ({ title, spec }) => ({
      title,
      svg: { light: await render(spec, 'light', renderer), dark: await render(spec, 'dark', renderer) },
    })),
  );
}

/** Bars, of ratios where the shortest of times could not be seen beside the longest. */
function noAxis(report: BenchmarkReport): Spec[] {
  const all = report.series.map(({ summary }) => summary.median);
  const inRatios = Math.max(...all) > SEEN_BESIDE * Math.min(...all) ? ratios(report) : [];
  return inRatios.length > 0 ? inRatios : [medians(report)];
}

function alongAxis(report: BenchmarkReport): Spec[] {
  const draw = report.axis!.places ? mediansByPlace : lines;
  return Object.entries(report.metrics).flatMap(([metric, { isDrawn = true }]) =>
    isDrawn ? draw(report, metric) : [],
  );
}

interface Spec {
  title: string;
  spec: object;
}

/** Medians side by side, with their spread, and the floor as a line across. */
function medians({ metrics, series }: BenchmarkReport): Spec {
  const names = Object.keys(metrics);
  const { unit } = metrics[names[0]];
  const { divisor, symbol } = scaleFor(Math.max(...series.map(({ summary }) => summary.median)), unit);
  const several = names.length > 1;
  return bars({
    title: several ? 'Medians, ± median absolute deviation' : `${metrics[names[0]].title}: median ± MAD`,
    axis: axisTitle(several ? 'time' : metrics[names[0]].title, symbol),
    bars: series.map((entry) => medianBar(entry, metrics[entry.metric].title, unit, divisor)),
    rows: several ? names.map((name) => metrics[name].title) : [],
  });
}

/** Medians of one metric, a group of bars for each named place. */
function mediansByPlace({ metrics, axis, series }: BenchmarkReport, metric: string): Spec[] {
  const own = series.filter((entry) => entry.metric === metric);
  if (own.length === 0) return [];
  const { title, unit } = metrics[metric];
  const { divisor, symbol } = scaleFor(Math.max(...own.map(({ summary }) => summary.median)), unit);
  return [
    bars({
      title: `${title}: median ± MAD`,
      axis: axisTitle(title, symbol),
      bars: own.map((entry) => medianBar(entry, formatPlace(entry.at!, axis!), unit, divisor)),
      rows: [...axis!.places!],
    }),
  ];
}

const medianBar = ({ contender, summary, ratio, isFloor }: Series, row: string, unit: Unit, divisor: number): Bar => ({
  contender,
  row,
  ...(isFloor && { line: summary.median / divisor }),
  value: summary.median / divisor,
  low: (summary.median - summary.mad) / divisor,
  high: (summary.median + summary.mad) / divisor,
  label: `${formatValue(summary.median, unit)}${ratio ? `, × ${formatRatio(ratio.median)}` : ''}`,
});

/** How far from the floor: the main metric at each place, or else every metric. */
function ratios({ metrics, axis, floor = 'floor', series }: BenchmarkReport): Spec[] {
  const [main] = Object.keys(metrics);
  const shown = series.filter(({ metric, ratio }) => ratio !== undefined && (!axis || metric === main));
  if (shown.length === 0) return [];
  return [
    bars({
      title: `${axis ? `${metrics[main].title}: ratio` : 'Ratio'} to ${floor}, median ± MAD`,
      axis: `× ${floor}`,
      bars: shown.map(({ contender, metric, at, ratio }) => ({
        contender,
        row: axis ? formatPlace(at!, axis) : metrics[metric].title,
        line: 1,
        value: ratio!.median,
        low: ratio!.median - ratio!.mad,
        high: ratio!.median + ratio!.mad,
        label: `× ${formatRatio(ratio!.median)}`,
      })),
      rows: axis?.places ? [...axis.places] : Object.values(metrics).map(({ title }) => title),
    }),
  ];
}

interface Bar {
  contender: string;
  /** The group it stands in. */
  row: string;
  value: number;
  /** Ends of the thin line on it. */
  low: number;
  high: number;
  label: string;
  /** Where its group has a dashed line across. */
  line?: number;
}

/** @param rows Groups, in order; none: all bars are one. */
function bars({ title, axis, bars, rows }: { title: string; axis: string; bars: Bar[]; rows: string[] }): Spec {
  const order = unique(bars.map(({ contender }) => contender));
  const y = { field: 'contender', type: 'nominal', sort: order, title: null, axis: { labelLimit: 320 } };
  const x = { type: 'quantitative', title: axis };
  const layer: { mark: object; encoding: { x: object } & Record<string, object> }[] = [
    // Of the floor's row alone, over the whole height.
    { mark: { type: 'rule', strokeDash: [4, 3], opacity: 0.6 }, encoding: { x: { ...x, field: 'line' } } },
    { mark: { type: 'bar', height: 18 }, encoding: { x: { ...x, field: 'value' }, y, color: color(order, false) } },
    { mark: { type: 'rule', strokeWidth: 1.5 }, encoding: { x: { ...x, field: 'low' }, x2: { field: 'high' }, y } },
    {
      mark: { type: 'text', align: 'left', dx: 6 },
      encoding: { x: { ...x, field: 'high' }, y, text: { field: 'label' } },
    },
  ];
  // Room for the labels at the longest bar's end.
  const scale = { domainMax: Math.max(...bars.map(({ high }) => high)) * 1.25 };
  for (const { encoding } of layer) Object.assign(encoding.x, { scale });
  const facet = { row: { field: 'row', type: 'nominal', title: null, sort: rows } };
  const single = { width: WIDTH, height: { step: 28 }, layer };
  return { title, spec: { data: { values: bars }, ...(rows.length > 0 ? { facet, spec: single } : single) } };
}

/** A metric along the benchmark's axis, a line a contender; logarithmic where one is a hundredfold of another. */
function lines({ metrics, axis, series }: BenchmarkReport, metric: string): Spec[] {
  const own = series.filter((entry) => entry.metric === metric);
  if (own.length === 0) return [];
  const { title, unit } = metrics[metric];
  const along = axis!;
  const medians = own.map(({ summary }) => summary.median);
  const y = scaleFor(Math.max(...medians), unit);
  const values = own.map(({ contender, at = 0, summary }) => ({
    contender,
    at: formatValue(at, along.unit),
    median: summary.median / y.divisor,
    low: Math.max(summary.median - summary.mad, summary.min) / y.divisor,
    high: (summary.median + summary.mad) / y.divisor,
  }));
  const isLog =
    Math.max(...medians) > 100 * Math.min(...medians) && Math.min(...own.map(({ summary }) => summary.min)) > 0;
  const domainMax = Math.max(...values.map(({ high }) => high));
  const x = {
    field: 'at',
    type: 'ordinal',
    title: along.title,
    sort: unique(own.map(({ at = 0 }) => at))
      .sort((a, b) => a - b)
      .map((at) => formatValue(at, along.unit)),
    axis: { labelAngle: 0 },
  };
  const value = {
    type: 'quantitative',
    // The heading says what it is.
    title: isLog ? `${y.symbol}, logarithmic` : y.symbol,
    scale: isLog ? { type: 'log' } : { zero: true, domainMax },
    ...(isLog && { axis: { values: POWERS_OF_TEN, format: '~r' } }),
  };
  const order = unique(own.map(({ contender }) => contender));
  return [
    {
      title: `${title}: median ± MAD`,
      spec: {
        data: { values },
        width: WIDTH,
        height: 220,
        encoding: { x, color: color(order, true) },
        layer: [
          { mark: { type: 'line', point: { size: 50 } }, encoding: { y: { ...value, field: 'median' } } },
          { mark: { type: 'rule' }, encoding: { y: { ...value, field: 'low' }, y2: { field: 'high' } } },
        ],
      },
    },
  ];
}

/** Where many samples were taken one by one: how all of them are spread. Logarithmic, for the slow ones are slow indeed. */
function distribution({ metrics, axis, series }: BenchmarkReport): Spec[] {
  const [metric] = Object.keys(metrics);
  const own = series.filter((entry) => entry.metric === metric && entry.samples.length >= 500 && entry.summary.min > 0);
  if (own.length === 0 || axis) return [];
  const { title, unit } = metrics[metric];
  const { divisor, symbol } = scaleFor(Math.max(...own.map(({ summary }) => summary.median)), unit);
  const start = Math.min(...own.map(({ summary }) => summary.min));
  const end = Math.max(...own.map(({ summary }) => summary.max)) * 1.001;
  /** From a bin's start to the next one's. */
  const factor = (end / start) ** (1 / BINS);
  const values = own.flatMap(({ contender, samples }) => {
    const bins = new Array<number>(BINS).fill(0);
    for (const sample of samples) {
      const bin = Math.floor(Math.log(sample / start) / Math.log(factor));
      bins[Math.min(BINS - 1, Math.max(0, bin))]++;
    }
    return bins.map((count, bin) => ({
      contender,
      from: (start * factor ** bin) / divisor,
      to: (start * factor ** (bin + 1)) / divisor,
      share: (100 * count) / samples.length,
    }));
  });
  const order = unique(own.map(({ contender }) => contender));
  const x = {
    field: 'from',
    type: 'quantitative',
    title: axisTitle(title, `${symbol}, logarithmic`),
    scale: { type: 'log', nice: false, domain: [start / divisor, end / divisor] },
    axis: { format: '~r', grid: false },
  };
  return [
    {
      title: `${title}: how single samples are spread`,
      spec: {
        data: { values },
        facet: { row: { field: 'contender', type: 'nominal', title: null, sort: order } },
        spec: {
          width: WIDTH,
          height: 80,
          mark: { type: 'bar' },
          encoding: {
            x,
            x2: { field: 'to' },
            y: { field: 'share', type: 'quantitative', title: '% of samples' },
            y2: { datum: 0 },
            color: color(order, false),
          },
        },
      },
    },
  ];
}

function timelines({ timelines }: BenchmarkReport): Spec[] {
  if (timelines.length === 0) return [];
  const kinds = unique(timelines.flatMap(({ points }) => points.map(({ kind }) => kind)));
  const values = timelines.flatMap(({ contender, points }) =>
    points.map(({ atMs, kind, count }) => ({ contender, seconds: atMs / 1000, kind, count })),
  );
  return [
    {
      title: `${timelines[0].title}, over time`,
      spec: {
        data: { values },
        facet: { row: { field: 'contender', type: 'nominal', title: null } },
        spec: {
          width: WIDTH,
          height: 140,
          mark: { type: 'bar', width: 4 },
          encoding: {
            x: { field: 'seconds', type: 'quantitative', title: 'time since the start (s)', scale: { domainMin: 0 } },
            y: { field: 'count', type: 'quantitative', title: 'in each interval', stack: 'zero' },
            color: color(kinds, true, 'kind'),
          },
        },
      },
    },
  ];
}

const color = (domain: readonly string[], legend: boolean, field = 'contender') => {
  const free = COLORS.filter((one) => !domain.some((name) => COLOR_OF[name] === one));
  return {
    field,
    type: 'nominal',
    scale: { domain, range: domain.map((name) => COLOR_OF[name] ?? free.shift() ?? COLORS[0]) },
    ...(legend ? { title: null, legend: { orient: 'top' } } : { legend: null }),
  };
};

const axisTitle = (title: string, symbol: string) => (symbol ? `${title} (${symbol})` : title);
const unique = <T>(values: readonly T[]): T[] => [...new Set(values)];

function render(spec: object, theme: Theme, { compile, vega }: Renderer): Promise<string> {
  const { text, quiet, rule } = THEMES[theme];
  const font = 'system-ui, sans-serif';
  const full = {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    background: 'transparent',
    config: {
      font,
      axis: {
        labelColor: quiet,
        titleColor: text,
        domainColor: rule,
        tickColor: rule,
        gridColor: rule,
        labelFontSize: 12,
        titleFontSize: 12,
        titleFontWeight: 'normal',
        gridOpacity: 0.6,
      },
      legend: { labelColor: text, titleColor: text, labelFontSize: 12 },
      headerRow: { labelColor: text, labelFontSize: 12, labelOrient: 'top', labelAnchor: 'start' },
      text: { color: text, fontSize: 12 },
      rule: { color: text },
      view: { stroke: null },
    },
    ...spec,
  };
  const { spec: compiled } = compile(full as VegaLite.TopLevelSpec);
  return new vega.View(vega.parse(compiled), { renderer: 'none' }).toSVG();
}
