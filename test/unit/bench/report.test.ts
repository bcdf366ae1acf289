import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { changes } from '../../../src/bench/compare.js';
import { toHtml } from '../../../src/bench/html.js';
import { jsonSchema, reportSchema, type Report } from '../../../src/bench/report.js';
import { benchmarkTable } from '../../../src/bench/table.js';
import { benchmark, contender, report } from './support.js';

/** Around a value, as measurements are. */
const around = (value: number) => (round: number) => [{ time: value + (round % 3) - 1 }];
const pair = (ours: number, floor = 100) => [
  contender('C', around(floor), { isFloor: true }),
  contender('inline', around(ours)),
];

describe('a report', () => {
  it('holds medians, ratios to the floor of the same round, and the samples', async () => {
    const { benchmarks } = await report(benchmark(pair(200)));
    const [floor, inline] = benchmarks[0].series;
    expect(floor).toMatchObject({ contender: 'C', isFloor: true, summary: { median: 100, mad: 1 } });
    expect(floor.ratio).toBeUndefined();
    expect(inline.ratio!.median).toBeCloseTo(2, 2);
    expect(inline.samples).toEqual([199, 200, 201, 199, 200]);
  });

  it('compares each place of an axis with its own floor', async () => {
    const at = (place: number, value: number, floor: boolean) =>
      contender(floor ? 'C' : 'ours', () => [{ time: value }], { at: place, isFloor: floor });
    const made = benchmark([at(1, 10, true), at(1, 20, false), at(2, 40, true), at(2, 60, false)], {
      axis: { title: 'vCPUs', unit: 'count' },
    });
    const { benchmarks } = await report(made);
    expect(benchmarks[0].series.map(({ at, ratio }) => [at, ratio?.median])).toEqual([
      [1, undefined],
      [1, 2],
      [2, undefined],
      [2, 1.5],
    ]);
  });

  it('is what its schema says, after JSON too, and the schema refuses what is none', async () => {
    const made = await report(benchmark(pair(200)));
    expect(reportSchema.parse(JSON.parse(JSON.stringify(made)))).toEqual(made);
    expect(reportSchema.safeParse({ ...made, version: 99 }).success).toBe(false);
    expect(reportSchema.safeParse({ ...made, benchmarks: [{}] }).success).toBe(false);
  });

  it('has its schema published', () => {
    const path = new URL('../../../docs/bench-report.schema.json', import.meta.url);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual(jsonSchema());
  });

  it('is a table for a terminal', async () => {
    const text = benchmarkTable((await report(benchmark(pair(200)))).benchmarks[0]);
    expect(text).toMatch(/^Made up \(exits\/made-up\)/);
    expect(text).toMatch(/C .*100 ns.*floor/);
    expect(text).toMatch(/inline .*200 ns.*2\.00 ± /);
  });

  it('has no column for ratios where nothing is compared', async () => {
    const made = await report(benchmark([contender('inline', around(200))]));
    expect(benchmarkTable(made.benchmarks[0])).not.toContain('×');
    expect(await toHtml(made)).not.toContain('<th>× ');
  });
});

describe('a report of named places and many metrics', () => {
  const metrics = Object.fromEntries(
    ['iops', 'bytes', 'p50', 'cpu', 'exits'].map((name) => [name, { title: name, unit: 'count' as const }]),
  );
  const at = (name: string, place: number, value: number) =>
    contender(name, () => [Object.fromEntries(Object.keys(metrics).map((metric) => [metric, value]))], {
      at: place,
      isFloor: name === 'QEMU',
    });
  const made = benchmark([at('QEMU', 0, 100), at('ours', 0, 80), at('QEMU', 1, 10), at('ours', 1, 12)], {
    metrics,
    floor: "QEMU's own",
    axis: { title: 'load', unit: 'count', places: ['read', 'write'] },
  });

  it('is a table with a column for each metric, and a row for each contender at each place', async () => {
    const lines = benchmarkTable((await report(made)).benchmarks[0]).split('\n');
    expect(lines[2]).toMatch(/load .*iops .*exits .*× QEMU's own/);
    expect(lines.find((line) => /read .*QEMU/.test(line))).toMatch(/100 .* 1 │$/);
    expect(lines.filter((line) => line.includes('ours')).map((line) => /\d\.\d\d ±/.exec(line)?.[0])).toEqual([
      '0.80 ±',
      '1.20 ±',
    ]);
  });

  it('draws the ratios to what is compared with, then each metric by place', async () => {
    const html = await toHtml(await report(made));
    expect(html.match(/<svg/g)).toHaveLength(2 * (1 + 5));
    expect(html).toMatch(/>× QEMU's own<\/text>/);
    expect(html).toMatch(/>× 1.20<\/text>/);
    expect(html).toMatch(/>write<\/text>/);
  });
});

describe('comparing two reports', () => {
  const compared = async (before: number, after: number, floor = 100) =>
    changes(await report(benchmark(pair(before))), await report(benchmark(pair(after, floor))));

  it('says what became slower, by how much', async () => {
    expect(await compared(200, 300)).toMatchObject([
      { what: 'exits/made-up, inline, time each', before: 200, after: 300, byRatio: true },
    ]);
    expect((await compared(200, 300))[0].factor).toBeCloseTo(1.5, 1);
  });

  it('is silent about noise', async () => {
    expect(await compared(200, 203)).toEqual([]);
  });

  it('takes a slower machine for what it is, where there is a floor', async () => {
    const found = await compared(200, 400, 200);
    expect(found.map(({ what }) => what)).toEqual(['exits/made-up, C, time each']);
  });

  it('takes more for worse of a cost, and for better of a rate', async () => {
    const rate = (value: number) =>
      benchmark(pair(value), { metrics: { time: { title: 'IOPS', unit: 'per-second' as const } } });
    expect((await compared(200, 300))[0].isWorse).toBe(true);
    expect(changes(await report(rate(200)), await report(rate(300)))[0].isWorse).toBe(false);
  });

  it('leaves out what only one of them has', async () => {
    const before = await report(benchmark(pair(200)));
    const after = await report(benchmark(pair(900), { name: 'exits/other' }));
    expect(changes(before, after)).toEqual([]);
  });
});

describe('a report as a page', () => {
  const page = async (...args: [Report, Report?]) => toHtml(...args);

  it('has charts for light and for dark, and needs nothing from elsewhere', async () => {
    const html = await page(await report(benchmark(pair(200))));
    expect(html.match(/<svg/g)).toHaveLength(2);
    expect(html).toContain('class="light"');
    expect(html).toContain('class="dark"');
    expect(html).toMatch(/>C<\/text>/);
    expect(html).toMatch(/>time each \(ns\)<\/text>/);
    expect(html).not.toMatch(/<(script|link|img)\b/);
    expect(html.replaceAll(/xmlns(:\w+)?="[^"]*"/g, '')).not.toMatch(/https?:/);
  });

  it.each([
    ['the times', 300, />300 ns, × [23]\.\d\d</],
    ['ratios, where the shortest time could not be seen beside the longest', 200_000, />× (2,0|1,9)\d\d</],
  ])('draws, beside a floor that has a name, %s', async (_, ours, label) => {
    const html = await toHtml(await report(benchmark(pair(ours), { floor: 'host' })));
    expect(html.match(/<svg/g)).toHaveLength(2);
    expect(html).toMatch(label);
  });

  it('shows how single samples are spread, where there are many', async () => {
    const many = (offset: number) => () => Array.from({ length: 300 }, (_, i) => ({ time: offset + i }));
    const html = await page(await report(benchmark([contender('C', many(0)), contender('inline', many(50))])));
    expect(html.match(/<svg/g)).toHaveLength(4);
    expect(html).toContain('% of samples');
  });

  it('draws lines along an axis, and counts over time', async () => {
    const made = benchmark(
      [1, 2, 4].map((at) => contender('C', around(at), { at })),
      {
        axis: { title: 'vCPUs', unit: 'count' },
        extras: () => ({
          tallies: [{ contender: 'C', title: 'exits by reason', counts: { io: 7000, mmio: 12 } }],
          timelines: [{ contender: 'C', title: 'accesses', points: [{ atMs: 0, kind: 'uart', count: 3 }] }],
        }),
      },
    );
    const html = await page(await report(made));
    expect(html.match(/<svg/g)).toHaveLength(4);
    expect(html).toContain('7,000');
    expect(html).toMatch(/>uart<\/text>/);
  });

  it('escapes what it is told', async () => {
    expect(await page(await report(benchmark(pair(200))))).toContain('Nothing is &lt;measured&gt; here.');
  });

  it('says what changed since another run', async () => {
    const before = await report(benchmark(pair(200)));
    expect(await page(await report(benchmark(pair(300))), before)).toContain('<td class="worse">× 1.50</td>');
    expect(await page(before, before)).toContain('Nothing changed beyond noise');
  });
});
