import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { median, percentile, summarize } from '../../../src/bench/statistics.js';

const values = fc.array(fc.double({ min: -1e9, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 200 });

describe('statistics of a benchmark', () => {
  it('takes the middle value, or the mean of the two in the middle', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });

  it('interpolates percentiles between samples', () => {
    expect(percentile([0, 10, 20, 30, 40], 90)).toBe(36);
    expect(percentile([0, 10], 0)).toBe(0);
    expect(percentile([0, 10], 100)).toBe(10);
  });

  it('summarizes without losing an outlier, and without being moved by it', () => {
    expect(summarize([10, 11, 12, 13, 9000])).toEqual({
      samples: 5,
      min: 10,
      median: 12,
      mad: 1,
      p90: percentile([10, 11, 12, 13, 9000], 90),
      p99: percentile([10, 11, 12, 13, 9000], 99),
      max: 9000,
    });
  });

  it('keeps figures in order whatever the samples', () => {
    fc.assert(
      fc.property(values, (samples) => {
        const { min, median: middle, p90, p99, max, mad } = summarize(samples);
        expect([min, middle, p90, p99, max]).toEqual([min, middle, p90, p99, max].sort((a, b) => a - b));
        expect(mad).toBeGreaterThanOrEqual(0);
        expect(mad).toBeLessThanOrEqual(max - min);
      }),
    );
  });

  it('does not reorder what it was given', () => {
    const samples = [3, 1, 2];
    summarize(samples);
    expect(samples).toEqual([3, 1, 2]);
  });
});
