import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stripVTControlCharacters, styleText } from 'node:util';
import { execa } from 'execa';
import { leftovers } from './leftovers.js';
import { SUMMARY_VARIABLE, type TestSummary } from './reporter.js';

/** What a file of a project may take, in seconds, on a quiet machine of two cores: docs/testing.md, "Levels". */
export const FILE_BUDGET_S: Readonly<Record<string, number>> = {
  unit: 10,
  kvm: 20,
  lifetime: 60,
  hostile: 40,
  package: 60,
  linux: 120,
  'linux-long': 600,
};

/** A guest that the nested host spoilt is booted again (docs/nested.md, "Traps"). It is rare: more often is a fault of ours. */
const MAX_RAN_AGAIN = 1;
const SLOWEST = 10;
/** Of a failure's message and stack: they are in full where vitest prints them. */
const MESSAGE_LENGTH = 400;

/** A word to whoever watches, on standard error. */
export const say = (line: string) => process.stderr.write(`${styleText('dim', line)}\n`);

/** In the environment of all that a run starts. */
const MARK = 'VMEXIT_TEST_RUN';

/**
 * Runs vitest, prints the time per project, the slowest files, every skipped test with its reason and every failure (a
 * process that outlives the run is one), and closes with `N passed, N failed, N skipped`. Failures, a line each that begins
 * with `failed: `, and the sums are on standard output.
 *
 * @param args For vitest.
 * @param env Added to the environment of all test processes.
 * @param budgetFactor How much longer than {@link FILE_BUDGET_S} a file may take before the run warns.
 * @returns What this process should exit with.
 */
export async function runVitest(
  args: readonly string[],
  env: Record<string, string> = {},
  budgetFactor = 1,
): Promise<number> {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
  const run = basename(directory);
  const summaryPath = join(directory, 'summary.json');
  try {
    const reporter = fileURLToPath(new URL('reporter.ts', import.meta.url));
    const { exitCode } = await execa('vitest', ['run', '--reporter=default', `--reporter=${reporter}`, ...args], {
      stdio: 'inherit',
      reject: false,
      preferLocal: true,
      env: { ...env, [MARK]: run, [SUMMARY_VARIABLE]: summaryPath },
    });
    const { passed, skipped, failures, files, ranAgain }: TestSummary = existsSync(summaryPath)
      ? (JSON.parse(readFileSync(summaryPath, 'utf8')) as TestSummary)
      : { passed: 0, skipped: [], failures: [], files: [], ranAgain: [] };
    showTimes(files, budgetFactor);
    for (const { name, reason } of skipped) say(`skipped: ${name}: ${reason}`);
    for (const found of await leftovers(`${MARK}=${run}`)) failures.push({ name: 'left behind', message: found });
    if (ranAgain.length > MAX_RAN_AGAIN) {
      failures.push({ name: `${ranAgain.length} guests had to be booted again`, message: ranAgain.join('; ') });
    }
    if (exitCode !== 0 && failures.length === 0) {
      failures.push({ name: 'vitest', message: `it ended with status ${exitCode}` });
    }
    for (const { name, message } of failures) {
      const text = stripVTControlCharacters(`${name}: ${message}`).replace(/\s+/g, ' ');
      console.log(`failed: ${text.slice(0, MESSAGE_LENGTH)}`);
    }
    console.log(`${passed} passed, ${failures.length} failed, ${skipped.length} skipped`);
    return failures.length > 0 ? exitCode || 1 : 0;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** Files run beside each other: a project's sum is more than its time by the clock. */
function showTimes(files: TestSummary['files'], budgetFactor: number): void {
  const line = (seconds: number, what: string) => say(`${seconds.toFixed(1).padStart(7)} s  ${what}`);
  say('seconds per project, its files added up');
  for (const project of new Set(files.map((file) => file.project))) {
    const own = files.filter((file) => file.project === project);
    line(
      own.reduce((sum, { seconds }) => sum + seconds, 0),
      `${project} (${own.length} files)`,
    );
  }
  say('the slowest files');
  const slowest = files.toSorted((a, b) => b.seconds - a.seconds);
  for (const { seconds, path } of slowest.slice(0, SLOWEST)) line(seconds, path);
  for (const { seconds, path, project } of slowest) {
    const budget = (FILE_BUDGET_S[project] ?? Infinity) * budgetFactor;
    if (seconds > budget)
      say(`over budget: ${path} took ${seconds.toFixed(1)} s, of ${budget} for a file of ${project}`);
  }
}
