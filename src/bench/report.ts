import * as z from 'zod';
import type { Benchmark } from './benchmark.js';
import { seriesOf, type Measured, type Outcome } from './runner.js';
import { summarize } from './statistics.js';

/** Raised when a reader of older reports would misread newer ones. */
const VERSION = 1;

const unit = z.enum(['ns', 'bytes', 'count', 'per-second', 'bytes-per-second']);
const summary = z
  .object({
    samples: z.int().positive(),
    min: z.number(),
    median: z.number(),
    mad: z.number().nonnegative().meta({ description: 'median absolute deviation from the median' }),
    p90: z.number(),
    p99: z.number(),
    max: z.number(),
  })
  .meta({ description: 'of all samples; none is left out' });

const series = z.object({
  contender: z.string(),
  at: z.number().optional().meta({ description: "where on the benchmark's axis" }),
  isFloor: z.boolean().meta({ description: 'what others at the same place are compared with' }),
  metric: z.string().meta({ description: 'a key of `metrics`' }),
  operations: z.int().positive().meta({ description: 'how often the work was done in a round' }),
  summary,
  ratio: z
    .object({ median: z.number(), mad: z.number().nonnegative() })
    .optional()
    .meta({ description: "to the floor: median over rounds of this series' median by the floor's of the same round" }),
  samples: z.array(z.number()).meta({ description: 'in the order they were taken, rounded to four digits' }),
});

const benchmark = z.object({
  name: z.string(),
  title: z.string(),
  description: z.string(),
  metrics: z
    .record(z.string(), z.object({ title: z.string(), unit, isDrawn: z.boolean().optional() }))
    .meta({ description: 'the first is the main one' }),
  axis: z
    .object({
      title: z.string(),
      unit,
      places: z
        .array(z.string())
        .optional()
        .meta({ description: 'names of its places where they are no numbers; `at` is an index then' }),
    })
    .optional(),
  floor: z.string().optional().meta({ description: 'what the floor is, where it is not the same work in C' }),
  skipped: z.string().optional().meta({ description: 'why it could not run on this machine' }),
  notes: z.array(z.string()).meta({ description: 'what was left out, and why' }),
  series: z.array(series),
  tallies: z.array(z.object({ contender: z.string(), title: z.string(), counts: z.record(z.string(), z.number()) })),
  timelines: z.array(
    z.object({
      contender: z.string(),
      title: z.string(),
      points: z.array(z.object({ atMs: z.number(), kind: z.string(), count: z.number() })),
    }),
  ),
});

const machine = z.object({
  cpu: z.string(),
  cpus: z.int().positive(),
  memoryBytes: z.number(),
  kernel: z.string(),
  governor: z.string().optional().meta({ description: 'of CPU frequency; absent where the host has none' }),
  node: z.string(),
  loadAverage: z.number().meta({ description: 'over the last minute, as the run began' }),
  kvm: z.object({ usable: z.boolean(), reason: z.string() }).meta({ description: "the doctor's verdict" }),
  details: z.array(z.object({ name: z.string(), value: z.string() })).meta({ description: "the doctor's findings" }),
});

export const reportSchema = z
  .object({
    format: z.literal('vmexit-bench'),
    version: z.literal(VERSION),
    vmexit: z.string().meta({ description: 'version of the package' }),
    startedAt: z.iso.datetime(),
    seconds: z.number().nonnegative(),
    quick: z.boolean(),
    machine,
    benchmarks: z.array(benchmark),
  })
  .meta({ title: 'Report of vmexit bench', description: 'Times are in ns, memory in bytes.' });

export type Report = z.infer<typeof reportSchema>;
export type Machine = z.infer<typeof machine>;
export type BenchmarkReport = z.infer<typeof benchmark>;
export type Series = z.infer<typeof series>;

export const header = { format: 'vmexit-bench', version: VERSION } as const;

/** The published schema: JSON Schema 2020-12. */
export const jsonSchema = (): unknown => z.toJSONSchema(reportSchema);

/** What a benchmark's rounds come to. */
export function toReport(
  { name, title, description, metrics, axis, floor }: Benchmark,
  { measured, notes, extras, skipped }: Outcome,
): BenchmarkReport {
  return {
    name,
    title,
    description,
    metrics: { ...metrics },
    ...(axis && { axis }),
    ...(floor !== undefined && { floor }),
    ...(skipped !== undefined && { skipped }),
    notes,
    series: Object.keys(metrics).flatMap((metric) => measured.flatMap((entry) => toSeries(entry, metric, measured))),
    tallies: extras.tallies ?? [],
    timelines: extras.timelines ?? [],
  };
}

function toSeries(entry: Measured, metric: string, all: readonly Measured[]): Series[] {
  const { contender, operations } = entry;
  const { samples, medians } = seriesOf(entry, metric);
  if (samples.length === 0) return [];
  const floor = all.find((other) => other.contender.isFloor && other.contender.at === contender.at);
  const floors = floor && floor !== entry ? seriesOf(floor, metric).medians : [];
  const ratios = medians.flatMap((value, round) => (floors[round] > 0 ? [value / floors[round]] : []));
  const ratio = ratios.length > 0 ? summarize(ratios) : undefined;
  return [
    {
      contender: contender.name,
      ...(contender.at !== undefined && { at: contender.at }),
      isFloor: contender.isFloor ?? false,
      metric,
      operations,
      summary: summarize(samples),
      ...(ratio && { ratio: { median: ratio.median, mad: ratio.mad } }),
      samples: samples.map((value) => Number(value.toPrecision(4))),
    },
  ];
}
