/** Figures of a series of measurements on a machine that does other things, too. Nothing is thrown away as an outlier. */
export interface Summary {
  samples: number;
  min: number;
  median: number;
  /** Median absolute deviation from the median: the spread, whatever the outliers. */
  mad: number;
  p90: number;
  p99: number;
  max: number;
}

export function median(values: readonly number[]): number {
  return percentile(ascending(values), 50);
}

/** @param sorted In ascending order, at least one. @param p 0 to 100; between two samples it is interpolated. */
export function percentile(sorted: readonly number[], p: number): number {
  const at = ((sorted.length - 1) * p) / 100;
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

/** @param values At least one. */
export function summarize(values: readonly number[]): Summary {
  const sorted = ascending(values);
  const center = percentile(sorted, 50);
  return {
    samples: sorted.length,
    min: sorted[0],
    median: center,
    mad: median(values.map((value) => Math.abs(value - center))),
    p90: percentile(sorted, 90),
    p99: percentile(sorted, 99),
    max: sorted.at(-1)!,
  };
}

const ascending = (values: readonly number[]) => [...values].sort((a, b) => a - b);
