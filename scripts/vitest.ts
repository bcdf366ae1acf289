import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, relative } from 'node:path';
import { stripVTControlCharacters, styleText } from 'node:util';
import { execa } from 'execa';
import { leftovers } from './leftovers.js';

interface Report {
  numPassedTests: number;
  testResults: {
    name: string;
    status: string;
    message: string;
    assertionResults: { status: string; fullName: string; failureMessages?: string[] }[];
  }[];
}

/** Of a failure's message and stack: they are in full where vitest prints them. */
const MESSAGE_LENGTH = 400;

/** A word to whoever watches, on standard error. */
export const say = (line: string) => process.stderr.write(`${styleText('dim', line)}\n`);

/** In the environment of all that a run starts. */
const MARK = 'VMEXIT_TEST_RUN';

/**
 * Runs vitest, names every skipped test and every failure (a process that outlives the run is one), and closes with
 * `N passed, N failed, N skipped`. Failures, a line each that begins with `failed: `, and the sums are on standard output.
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
    const failures = report.testResults.flatMap((file) => {
      const failed = file.assertionResults.filter((test) => test.status === 'failed');
      if (file.status === 'failed' && failed.length === 0) return [`${relative('', file.name)}: ${file.message}`];
      return failed.map((test) => `${test.fullName}: ${test.failureMessages?.join(' ') ?? ''}`);
    });
    for (const found of await leftovers(`${MARK}=${run}`)) failures.push(`left behind: ${found}`);
    if (exitCode !== 0 && failures.length === 0) failures.push(`vitest ended with status ${exitCode}`);
    for (const failure of failures) {
      console.log(`failed: ${stripVTControlCharacters(failure).replace(/\s+/g, ' ').slice(0, MESSAGE_LENGTH)}`);
    }
    console.log(`${report.numPassedTests} passed, ${failures.length} failed, ${skipped.length} skipped`);
    return failures.length > 0 ? exitCode || 1 : 0;
  } finally {
    rmSync(directory, { recursive: true });
  }
}
