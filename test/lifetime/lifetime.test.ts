import { execa } from 'execa';
import { fileURLToPath } from 'node:url';
import { expect, it, vi } from 'vitest';
import { describeKvm } from '../support/kvm.js';
import { LEAK_BYTES, leftBehind, type Comparison } from './programs/census.js';

/** VMs in a row. */
const VMS = Number(process.env['VMEXIT_TEST_VMS'] ?? 1000);
/** A process that takes longer hangs. */
const LIMIT_MS = 600_000;

interface Ended<T> {
  result: T;
  exitCode: number | undefined;
  stderr: string;
}

/** Runs a program of programs/ in a process of its own, so that a crash is a failed test. */
async function run<T>(program: string, ...args: (string | number)[]): Promise<Ended<T>> {
  const path = fileURLToPath(new URL(`programs/${program}.ts`, import.meta.url));
  const { stdout, stderr, exitCode, signal, timedOut } = await execa(
    process.execPath,
    ['--expose-gc', '--import', 'tsx', path, ...args.map(String)],
    { reject: false, timeout: LIMIT_MS, killSignal: 'SIGKILL' },
  );
  expect({ signal, timedOut, stderr: stdout ? '' : stderr }).toEqual({
    signal: undefined,
    timedOut: false,
    stderr: '',
  });
  return { result: JSON.parse(stdout.trim().split('\n').at(-1)!) as T, exitCode, stderr };
}

vi.setConfig({ testTimeout: LIMIT_MS + 10_000 });

describeKvm('lifetimes', () => {
  it(`${VMS} VMs created, run and closed leave no descriptor, thread or memory behind`, async () => {
    const { result } = await run<Comparison & { bytesEach: number }>('cycles', 'close', VMS);
    expect(leftBehind(result)).toEqual([]);
    // AddressSanitizer holds freed memory back.
    if (process.env['ASAN_OPTIONS'] === undefined) expect(Math.abs(result.bytesEach)).toBeLessThan(LEAK_BYTES);
  });

  it('VMs that nobody closed go with garbage collection', async () => {
    const { result } = await run<Comparison>('cycles', 'gc', 200);
    expect(leftBehind(result)).toEqual([]);
  });

  it.each(['run', 'runInline'])(
    '200 workers terminated inside KVM_RUN (%s) end and leave nothing behind',
    async (method) => {
      const { result } = await run<Comparison & { terminated: number }>('terminated-workers', 200, 10, method);
      expect(result.terminated).toBe(200);
      expect(leftBehind(result)).toEqual([]);
    },
  );

  it('workers that end while the thread pool works on their files leave nothing behind', async () => {
    const { result } = await run<Comparison>('busy-workers', 30);
    expect(leftBehind(result)).toEqual([]);
  });

  it.each([
    ['worker-exit', [3]],
    ['worker-throws', ['deliberate']],
    ['worker-returns', [0]],
    ['worker-closes-half', [4]],
  ])('a worker that ends with its VM open (%s) leaves nothing behind', async (ending, codes) => {
    const { result } = await run<Comparison & { codes: unknown[] }>('endings', ending);
    expect(leftBehind(result)).toEqual([]);
    expect(result.codes).toEqual(codes);
  });

  it('process.exit() ends the process at once while workers run guests', async () => {
    const { result, exitCode } = await run('endings', 'main-exits');
    expect(result).toEqual({ exiting: true });
    expect(exitCode).toBe(7);
  });

  it('an uncaught exception ends the process while guests are open', async () => {
    const { exitCode, stderr } = await run('endings', 'main-throws');
    expect(exitCode).toBe(1);
    expect(stderr).toContain('deliberate');
  });

  it('open VMs do not keep the process alive', async () => {
    expect((await run('endings', 'main-returns')).exitCode).toBe(0);
  });

  it.each([
    'vm-before-vcpu',
    'kvm-first',
    'vcpu-twice',
    'views-outlive',
    'memory-outlives-vm',
    'attached-then-closed',
    'attached-then-collected',
    'attached-left-open',
    'several-workers',
  ])('any order of closing is sound: %s', async (ending) => {
    const { result, exitCode } = await run<{ ok: boolean }>('endings', ending);
    expect(result).toMatchObject({ ok: true });
    expect(exitCode).toBe(0);
  });
});
