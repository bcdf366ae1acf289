import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { styleText } from 'node:util';
import { execa } from 'execa';
import { leftovers } from './leftovers.js';

interface Report {
  numPassedTests: number;
  numFailedTests: number;
  success: boolean;
  testResults: { name: string; status: string; assertionResults: { status: string; fullName: string }[] }[];
}

/** A word to whoever watches, on standard error. */
export const say = (line: string) => process.stderr.write(`${styleText('dim', line)}\n`);

/** In the environment of all that a run starts. */
const MARK = 'VMEXIT_TEST_RUN';

/**
 * Runs vitest, names every skipped test and every process that outlives the run (a failure), and closes with `N passed, N failed, N skipped` on standard output.
 *
 * @param args For vitest.
 * @param env Added to the environment of all test processes.
 * @returns What this process should exit with.
 */
export async function runVitest(args: readonly string[], env: Record<string, string> = {}): Promise<number> {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
  const run = basename(directory);
  try {
    const reportPath = join(directory, 'report.json');
    const { exitCode } = await execa(
      'vitest',
      ['run', '--reporter=default', '--reporter=json', `--outputFile.json=${reportPath}`, ...args],
      { stdio: 'inherit', reject: false, preferLocal: true, env: { ...env, [MARK]: run } },
    );
    const report = JSON.parse(readFileSync(reportPath, 'utf8')) as Report;
    const skipped = report.testResults.flatMap((file) =>
      file.assertionResults.filter((test) => test.status === 'pending' || test.status === 'skipped'),
    );
    for (const test of skipped) say(`skipped: ${test.fullName}`);
    // A file that cannot be loaded fails without any test of its own.
    const broken = report.testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0);
    for (const file of broken) say(`could not be loaded: ${file.name}`);
    const left = await leftovers(`${MARK}=${run}`);
    for (const found of left) say(`left behind: ${found}`);
    const unnamed = exitCode !== 0 && report.success ? 1 : 0;
    const failed = report.numFailedTests + broken.length + unnamed + left.length;
    console.log(`${report.numPassedTests} passed, ${failed} failed, ${skipped.length} skipped`);
    return left.length > 0 ? 1 : (exitCode ?? 1);
  } finally {
    rmSync(directory, { recursive: true });
  }
}
