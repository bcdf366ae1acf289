/**
 * `npm run test:asan`: the addon's tests against a build of it with AddressSanitizer and UndefinedBehaviorSanitizer.
 * Fails on a failed test and on any sanitizer report, whatever process of the tests it came from. Arguments go to vitest
 * in place of the default selection.
 */
import { execa } from 'execa';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runVitest } from './vitest.js';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const OUT = 'build-asan';
const SELECTION = [
  ...['test/kvm', 'test/lifetime', 'test/hostile/api', 'test/hostile/exits', 'test/unit/native'],
  '--exclude=test/kvm/bench.test.ts', // its C programs are not instrumented
];
/** The build, and Node beside it, run several times slower. */
const BUDGET_FACTOR = 4;

await execa('npx', ['cmake-js', '-i', '-O', OUT, '--CDVMEXIT_SANITIZE=ON', '-T', 'vmexit', 'build'], {
  cwd: ROOT,
  stdout: 'ignore',
  stderr: 'inherit',
});

const runtime = async (name: string) => (await execa('gcc', [`-print-file-name=${name}`])).stdout;
const logs = mkdtempSync(join(tmpdir(), 'vmexit-asan-'));
const env = {
  // Node itself is not instrumented: the runtime must be there before it.
  LD_PRELOAD: [await runtime('libasan.so'), await runtime('libubsan.so')].join(' '),
  VMEXIT_ADDON_ROOT: join(ROOT, OUT),
  VMEXIT_TEST_VMS: '200',
  ASAN_OPTIONS: [
    `log_path=${join(logs, 'report')}`,
    'detect_leaks=0', // V8 and Node free nothing at exit; test/lifetime counts what is ours
    'handle_segv=0', // V8 catches its own faults (WebAssembly bounds)
    'allocator_may_return_null=1',
    'detect_stack_use_after_return=0',
    'abort_on_error=1',
  ].join(':'),
  UBSAN_OPTIONS: `log_path=${join(logs, 'report')}:print_stacktrace=1:halt_on_error=1`,
};

const selection = process.argv.length > 2 ? process.argv.slice(2) : SELECTION;
const exitCode = await runVitest(selection, env, BUDGET_FACTOR);
// The runtime is in QEMU's processes, too, and warns there of coroutines; a report is what it calls an error.
const reports = readdirSync(logs)
  .map((name) => readFileSync(join(logs, name), 'utf8'))
  .filter((text) => /ERROR: \w+Sanitizer|runtime error:/.test(text));
for (const report of reports) console.error(report);
rmSync(logs, { recursive: true });
if (reports.length > 0) console.error(`${reports.length} sanitizer reports`);
process.exit(reports.length > 0 ? 1 : exitCode);
