/** What `vmexit bench` measures only where KVM runs Linux, as it is run there: in the nested host. */
import { describe, expect, it } from 'vitest';
import { reportSchema, type BenchmarkReport } from '../../src/bench/report.js';
import { runNested } from '../support/nested.js';

/** @returns The report of a quick run of these. */
async function bench(...paths: string[]): Promise<BenchmarkReport[]> {
  const script = 'cd "$(mktemp -d)" && node "$OLDPWD/dist/cli/main.js" bench --quick "$@" >&2 && cat report.json';
  const { exitCode, stdout, stderr } = await runNested(['sh', '-c', script, 'sh', ...paths], { timeoutMs: 590_000 });
  expect(exitCode, stderr).toBe(0);
  return reportSchema.parse(JSON.parse(stdout)).benchmarks;
}

describe('vmexit bench, where KVM runs Linux', () => {
  it.each([
    ['devices/disk', ['TypeScript', 'storage daemon', 'remote NVMe'], 4],
    ['devices/net', ['tap', 'passt'], 3],
  ])('measures %s by each backend, beside QEMU, with exits and host CPU a request', async (name, backends, loads) => {
    const [{ series, skipped, floor }] = await bench(name);
    expect([skipped, floor]).toEqual([undefined, 'QEMU']);
    const of = (contender: string, metric: string) =>
      series.filter((entry) => entry.contender === contender && entry.metric === metric);
    for (const contender of ['QEMU', ...backends]) {
      expect(of(contender, 'rate').map(({ at }) => at)).toEqual(Array.from({ length: loads }, (_, at) => at));
      for (const { summary, ratio, isFloor } of of(contender, 'rate')) {
        expect(summary.min).toBeGreaterThan(0);
        expect(ratio === undefined).toBe(isFloor);
      }
      for (const { summary } of of(contender, 'exits')) expect(summary.median).toBeGreaterThan(0);
      for (const { summary } of of(contender, 'p99')) expect(summary.median).toBeGreaterThan(0);
    }
  });
});
