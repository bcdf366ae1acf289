/**
 * Vitest's reporter beside its own: shows what runs while nothing else is printed, and writes a summary for
 * scripts/vitest.ts.
 */
import { writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import type { SerializedError, UserConsoleLog } from 'vitest';
import type { Reporter, TestCase, TestModule, TestSuite } from 'vitest/node';

/** In the environment of vitest: where the summary is to be written, as JSON. */
export const SUMMARY_VARIABLE = 'VMEXIT_TEST_SUMMARY';

export interface TestSummary {
  passed: number;
  skipped: { name: string; reason: string }[];
  failures: { name: string; message: string }[];
  files: { path: string; project: string; seconds: number }[];
  /** What test/support/linux-guests.ts prints when the nested host spoilt a guest, which is then booted again. */
  ranAgain: string[];
}

const PROGRESS_MS = 20_000;

export default class SummaryReporter implements Reporter {
  readonly #startedMs = performance.now();
  readonly #running = new Map<TestModule, number>();
  readonly #ranAgain: string[] = [];
  #ended = 0;
  #timer: NodeJS.Timeout | undefined;

  onTestRunStart(): void {
    // On a terminal, vitest itself shows what runs.
    if (process.stdout.isTTY) return;
    this.#timer = setInterval(() => this.#showProgress(), PROGRESS_MS);
  }

  onTestModuleStart(module: TestModule): void {
    this.#running.set(module, performance.now());
  }

  onTestModuleEnd(module: TestModule): void {
    this.#running.delete(module);
    this.#ended++;
  }

  onUserConsoleLog({ content }: UserConsoleLog): void {
    this.#ranAgain.push(...content.split('\n').filter((line) => line.startsWith('RAN AGAIN')));
  }

  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    clearInterval(this.#timer);
    const path = process.env[SUMMARY_VARIABLE];
    if (path !== undefined) writeFileSync(path, JSON.stringify(this.#summary(modules, errors)));
  }

  #showProgress(): void {
    const now = performance.now();
    const seconds = (sinceMs: number) => `${Math.round((now - sinceMs) / 1_000)} s`;
    const running = [...this.#running].map(([module, sinceMs]) => `${module.relativeModuleId} (${seconds(sinceMs)})`);
    process.stderr.write(`${seconds(this.#startedMs)}: ${this.#ended} files done; running: ${running.join(', ')}\n`);
  }

  #summary(modules: readonly TestModule[], errors: readonly SerializedError[]): TestSummary {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const failed = tests.filter((test) => test.result().state === 'failed');
    return {
      passed: tests.filter((test) => test.result().state === 'passed').length,
      skipped: tests
        .filter((test) => test.result().state === 'skipped')
        .map((test) => ({ name: fullName(test), reason: skipReason(test) })),
      failures: [
        ...failed.map((test) => ({ name: fullName(test), message: messages(test.result().errors) })),
        // A file that does not load, a hook that throws: no test of its own has failed.
        ...modules.flatMap((module) =>
          [module, ...module.children.allSuites()]
            .filter((suite) => suite.errors().length > 0)
            .map((suite) => ({
              name: suite.type === 'module' ? suite.relativeModuleId : fullName(suite),
              message: messages(suite.errors()),
            })),
        ),
        ...errors.map((error) => ({ name: 'unhandled error', message: messages([error]) })),
      ],
      files: modules.map((module) => {
        const { setupDuration, collectDuration, duration } = module.diagnostic();
        return {
          path: relative('', module.moduleId),
          project: module.project.name,
          seconds: (setupDuration + collectDuration + duration) / 1_000,
        };
      }),
      ranAgain: this.#ranAgain,
    };
  }
}

const fullName = (of: TestCase | TestSuite) => `${of.module.relativeModuleId} > ${of.fullName}`;
const messages = (errors: readonly { message?: string; stack?: string }[] | undefined) =>
  (errors ?? []).map(({ message, stack }) => stack ?? message ?? '').join(' ');

/** What the test said, or what stands in its name or the name of a suite around it. */
function skipReason(test: TestCase): string {
  const result = test.result();
  const note = result.state === 'skipped' ? result.note : undefined;
  return note ?? /\((skipped [^)]*)\)/.exec(test.fullName)?.[1] ?? 'it gives no reason';
}
