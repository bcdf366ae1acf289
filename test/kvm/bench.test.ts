/** `vmexit bench` as it is run: a real quick run of a few paths, its report, and a comparison with itself. */
import { execa } from 'execa';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { reportSchema } from '../../src/bench/report.js';
import { describeKvm } from '../support/kvm.js';

const DIST = fileURLToPath(new URL('../../dist/', import.meta.url));

describeKvm('vmexit bench', () => {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-bench-test-'));
  afterAll(() => rmSync(directory, { recursive: true }));
  const bench = (args: string[], env: NodeJS.ProcessEnv = {}) =>
    execa(process.execPath, [join(DIST, 'cli/main.js'), 'bench', ...args], { cwd: directory, env, reject: false });
  const report = (name: string) => reportSchema.parse(JSON.parse(readFileSync(join(directory, name), 'utf8')));

  it('measures paths beside C, and writes a report for people and one for programs', { timeout: 600_000 }, async () => {
    const paths = [
      'exits/pio-out',
      'exits/mmio-read',
      'exits/msr',
      'exits/ioeventfd',
      'exits/irqfd-wakeup',
      'exits/vcpus',
    ];
    const { stdout, stderr, exitCode } = await bench(['--quick', ...paths, 'lifecycle/one-vm', 'memory']);
    expect(stderr).toMatch(/the report is in report\.html and report\.json/);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('Port write (exits/pio-out)');

    const { benchmarks, machine, quick } = report('report.json');
    expect(quick).toBe(true);
    expect(machine.cpus).toBeGreaterThan(0);
    expect(benchmarks.map(({ name }) => name)).toEqual([
      'exits/pio-out',
      'exits/mmio-read',
      'exits/msr',
      'exits/vcpus',
      'exits/ioeventfd',
      'exits/irqfd-wakeup',
      'lifecycle/one-vm',
      'memory/slots',
    ]);
    const html = readFileSync(join(directory, 'report.html'), 'utf8');
    for (const { name, series, skipped, metrics, axis } of benchmarks) {
      expect(skipped).toBeUndefined();
      expect(html).toContain(`id="${name}"`);
      for (const metric of Object.keys(metrics)) {
        const own = series.filter((entry) => entry.metric === metric);
        const places = new Set(own.map(({ at }) => at));
        expect(own.filter(({ isFloor }) => isFloor)).toHaveLength(axis ? places.size : 1);
        for (const { isFloor, ratio, summary } of own) {
          expect(summary.min).toBeGreaterThan(0);
          if (!isFloor) expect(ratio!.median).toBeGreaterThan(0);
        }
      }
    }
  });

  it("compares a Linux guest's work with the host's", { timeout: 600_000 }, async () => {
    const { stdout, exitCode } = await bench(['--quick', 'cpu/guest', '--json', 'cpu.json']);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('× host');
    const [{ series, floor, metrics, skipped }] = report('cpu.json').benchmarks;
    expect([skipped, floor]).toEqual([undefined, 'host']);
    for (const metric of Object.keys(metrics)) {
      const [host, guest] = series.filter((entry) => entry.metric === metric);
      expect([host.isFloor, guest.isFloor]).toEqual([true, false]);
      expect(Math.min(host.summary.min, guest.summary.min)).toBeGreaterThan(0);
      expect(guest.ratio!.median).toBeGreaterThan(0);
    }
  });

  it('compares with an earlier run', { timeout: 600_000 }, async () => {
    const { stdout, exitCode } = await bench([
      ...['--quick', 'exits/pio-in', '--compare', 'report.json', '--json', 'second.json', '--html', 'second.html'],
    ]);
    expect(exitCode).toBe(0);
    expect(stdout).toContain(`Compared with the run of ${report('report.json').startedAt}`);
    expect(report('second.json').benchmarks).toHaveLength(1);
    expect(readFileSync(join(directory, 'second.html'), 'utf8')).toContain('Compared with');
  });

  it('does without a floor where there is no compiler, and says so', { timeout: 600_000 }, async () => {
    const env = { CC: 'no-such-compiler', XDG_CACHE_HOME: join(directory, 'cache') };
    const { stdout, exitCode } = await bench(['--quick', 'exits/pio-out'], env);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('there is no C compiler (no-such-compiler)');
    const [{ series, notes }] = report('report.json').benchmarks;
    expect(series.map(({ contender }) => contender)).toEqual(['inline', 'threaded', 'by hand']);
    expect(notes).toHaveLength(1);
  });

  it('runs one benchmark as a program of its own', { timeout: 600_000 }, async () => {
    const { stdout } = await execa(process.execPath, [join(DIST, 'bench/exits/immediate-exit.js'), '--quick']);
    expect(stdout).toMatch(/^KVM_RUN with immediate_exit \(exits\/immediate-exit\)/);
    expect(stdout).toMatch(/by hand .*(ns|µs)/);
  });

  it.each([
    [['exits/no-such-path'], /there is no benchmark exits\/no-such-path: vmexit bench --list shows all/],
    [['--compare', 'missing.json', 'exits'], /missing\.json is no report/],
  ])('refuses %j', async (args, message) => {
    const { stderr, exitCode } = await bench(args);
    expect(stderr).toMatch(message);
    expect(exitCode).toBe(2);
  });

  it('lists what there is', async () => {
    const { stdout } = await bench(['--list']);
    for (const name of ['exits/pio-out', 'lifecycle/many-vms', 'memory/slots', 'boot/linux']) {
      expect(stdout).toContain(name);
    }
  });
});
