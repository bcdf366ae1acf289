import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';

const ADDON = new URL('../../../src/native/addon.ts', import.meta.url).href;
/** ENOTSUPP, which the kernel keeps to itself and yet returns now and then. */
const NAMELESS = 524;

it('a system call that fails with an errno without a name fails with its number', () => {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-errno-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const library = join(directory, 'fail.so');
  writeFileSync(
    join(directory, 'fail.c'),
    `#include <errno.h>
     int fallocate64() { errno = ${NAMELESS}; return -1; }
     int fallocate() { errno = ${NAMELESS}; return -1; }`,
  );
  execFileSync('gcc', ['-shared', '-fPIC', '-w', '-o', library, join(directory, 'fail.c')], {
    env: { ...process.env, LD_PRELOAD: '' },
  });
  const program = `
    import { addon } from ${JSON.stringify(ADDON)};
    addon().fallocate(2, 0, 0, 4096).catch(({ code, errno }) => console.log(JSON.stringify({ code, errno })));`;
  const preload = [process.env['LD_PRELOAD'], library].filter(Boolean).join(' '); // the sanitizers' runtime comes first
  const output = execFileSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], {
    env: { ...process.env, LD_PRELOAD: preload },
    encoding: 'utf8',
  });
  expect(JSON.parse(output)).toEqual({ code: 'SYSCALL', errno: String(NAMELESS) });
});
