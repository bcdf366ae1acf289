/** Figures of a series of measurements on a machine that does other things, too. */
export interface Summary {
  median: number;
  /** Median absolute deviation from the median: the spread, whatever the outliers. */
  mad: number;
  samples: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function summarize(values: readonly number[]): Summary {
  const center = median(values);
  return { median: center, mad: median(values.map((value) => Math.abs(value - center))), samples: values.length };
}
