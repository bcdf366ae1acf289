import type { Unit } from './benchmark.js';
import { formatPlace, isRate } from './format.js';
import type { Report, Series } from './report.js';

/** A figure that is not what it was. */
export interface Change {
  /** Benchmark, contender, place on the axis and metric. */
  what: string;
  unit: Unit;
  before: number;
  after: number;
  /** `after` by `before`. */
  factor: number;
  isWorse: boolean;
  /** The factor is that of the ratios to the floor: the machine itself may have been faster or slower. */
  byRatio: boolean;
}

/** Less is not worth a word, however steady. */
const LEAST_CHANGE = 0.05;
/** In median absolute deviations of both series together; of normal noise fewer than 1 in 100 figures go further. */
const BEYOND_NOISE = 4;

/**
 * What changed beyond noise between two reports, the largest change first. Where both have a floor the ratios to it are
 * compared, for the machine's own speed is then in neither.
 */
export function changes(before: Report, after: Report): Change[] {
  const old = new Map(entries(before).map(({ key, series }) => [key, series]));
  const found = entries(after).flatMap(({ key, series, unit }) => {
    const earlier = old.get(key);
    return earlier ? compare(key, unit, earlier, series) : [];
  });
  return found.sort((a, b) => Math.abs(Math.log(b.factor)) - Math.abs(Math.log(a.factor)));
}

function compare(what: string, unit: Unit, before: Series, after: Series): Change[] {
  const byRatio = before.ratio !== undefined && after.ratio !== undefined;
  const [was, is] = byRatio ? [before.ratio!, after.ratio!] : [before.summary, after.summary];
  const difference = Math.abs(is.median - was.median);
  if (difference <= BEYOND_NOISE * Math.hypot(was.mad, is.mad)) return [];
  if (was.median <= 0 || difference < LEAST_CHANGE * was.median) return [];
  const factor = is.median / was.median;
  const isWorse = factor > 1 !== isRate(unit);
  return [{ what, unit, before: before.summary.median, after: after.summary.median, factor, isWorse, byRatio }];
}

const entries = ({ benchmarks }: Report) =>
  benchmarks.flatMap(({ name, metrics, axis, series }) =>
    series.map((entry) => ({
      key: [
        name,
        entry.contender,
        axis && entry.at !== undefined ? formatPlace(entry.at, axis) : '',
        metrics[entry.metric].title,
      ]
        .filter((part) => part !== '')
        .join(', '),
      unit: metrics[entry.metric].unit,
      series: entry,
    })),
  );
