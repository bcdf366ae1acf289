/**
 * npm test: installs what the tests need, runs them all, and closes with `N passed, N failed, N skipped`.
 *
 * Arguments go to vitest: `npm test -- --project unit`. Skipped tests are listed with their reasons.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { styleText } from 'node:util';
import { execa } from 'execa';
import { findBusybox } from '../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86, type Requirement } from '../src/guest/debian.js';
import { findKernel } from '../src/guest/kernel.js';

const REQUIREMENTS: readonly Requirement[] = [
  QEMU_X86,
  { programs: ['cpio'], package: 'cpio' },
  { programs: ['iasl'], package: 'acpica-tools' },
  { programs: ['xz'], package: 'xz-utils' },
  { programs: ['passt'], package: 'passt' },
  { programs: ['ip', '/usr/sbin/ip', '/sbin/ip'], package: 'iproute2' },
  { programs: ['mke2fs', '/usr/sbin/mke2fs', '/sbin/mke2fs'], package: 'e2fsprogs' },
];

interface Report {
  numPassedTests: number;
  numFailedTests: number;
  numPendingTests: number;
  numTodoTests: number;
  success: boolean;
  testResults: { name: string; status: string; assertionResults: { status: string; fullName: string }[] }[];
}

const say = (line: string) => process.stderr.write(`${styleText('dim', line)}\n`);

if (process.argv.length === 2) {
  const options = { onProgress: say };
  await ensureInstalled(REQUIREMENTS, options);
  await findBusybox({ ...options, fetch: true });
  for (const flavour of ['cloud', 'generic'] as const) await findKernel({ flavour, fetch: true, ...options });
}

const directory = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
try {
  const reportPath = join(directory, 'report.json');
  const { exitCode } = await execa(
    'vitest',
    ['run', '--reporter=default', '--reporter=json', `--outputFile.json=${reportPath}`, ...process.argv.slice(2)],
    { stdio: 'inherit', reject: false, preferLocal: true },
  );
  const report = JSON.parse(readFileSync(reportPath, 'utf8')) as Report;
  const skipped = report.testResults.flatMap((file) =>
    file.assertionResults.filter((test) => test.status === 'pending' || test.status === 'skipped'),
  );
  for (const test of skipped) say(`skipped: ${test.fullName}`);
  // A file that fails to load fails without any test of its own.
  const brokenFiles = report.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  for (const file of brokenFiles) say(`failed to load: ${file.name}`);
  const failed = report.numFailedTests + brokenFiles.length + (exitCode !== 0 && report.success ? 1 : 0);
  console.log(`${report.numPassedTests} passed, ${failed} failed, ${skipped.length} skipped`);
  process.exitCode = exitCode ?? 1;
} finally {
  rmSync(directory, { recursive: true });
}
