import type { Unit } from './benchmark.js';

const SCALES: Readonly<Record<Unit, readonly (readonly [number, string])[]>> = {
  ns: [
    [1e9, 's'],
    [1e6, 'ms'],
    [1e3, 'µs'],
    [1, 'ns'],
  ],
  bytes: [
    [2 ** 30, 'GiB'],
    [2 ** 20, 'MiB'],
    [2 ** 10, 'KiB'],
    [1, 'bytes'],
  ],
  count: [[1, '']],
  'per-second': [[1, '/s']],
  'bytes-per-second': [
    [1e9, 'GB/s'],
    [1e6, 'MB/s'],
    [1e3, 'kB/s'],
    [1, 'B/s'],
  ],
};

/** The scale in which a value of this size reads best. */
export function scaleFor(value: number, unit: Unit): { divisor: number; symbol: string } {
  const scales = SCALES[unit];
  const [divisor, symbol] = scales.find(([least]) => Math.abs(value) >= least) ?? scales.at(-1)!;
  return { divisor, symbol };
}

/** 8.71 µs, 12.3 MiB, 1,024. */
export function formatValue(value: number, unit: Unit, scale = scaleFor(value, unit)): string {
  return `${formatNumber(value / scale.divisor)}${scale.symbol && ` ${scale.symbol}`}`;
}

/** A place on a benchmark's axis. */
export function formatPlace(
  at: number,
  { unit, places }: { unit: Unit; places?: readonly string[] | undefined },
): string {
  return places?.[at] ?? formatValue(at, unit);
}

/** Of rates more is better; all else are costs. */
export const isRate = (unit: Unit): boolean => unit.endsWith('per-second');

/** Three digits that count, and all of those before the point. */
export function formatNumber(value: number): string {
  const magnitude = Math.abs(value);
  if (Number.isInteger(value) || magnitude >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(magnitude >= 10 ? 1 : 2);
}

/** Two places, for a hundredth of the floor is what ratios are about, as long as they are small. */
export function formatRatio(ratio: number): string {
  return ratio >= 100 ? formatNumber(ratio) : ratio.toFixed(2);
}
