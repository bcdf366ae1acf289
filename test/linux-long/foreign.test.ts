import { execa } from 'execa';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { downloadPackage, ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { assembleMultiboot } from '../support/kernel.js';
import { bootGuests } from '../support/linux-guests.js';
import { runNested } from '../support/nested.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const OPTIONS = ['--cpus', '4', '--memory', '256M', '--testdev'];
/** What firmware/test-device.S finds. */
const FOUND = 'ports\npage\nmemory\nirq\ncpus 4\n';

beforeAll(async () => void (await ensureInstalled([QEMU_X86])));

describe('a kernel that is no Linux', () => {
  it('runs on the command line under a real KVM, with the test device, and ends with the status it has in QEMU', async () => {
    const kernel = assembleMultiboot('elf32', { name: 'test-device' });
    const args = ['run', '--accel', 'kvm', '--kernel', kernel, ...OPTIONS];
    const { stdout, exitCode } = await runNested(['node', 'dist/cli/main.js', ...args], { timeoutMs: 180_000 });
    expect({ stdout, exitCode }).toEqual({ stdout: FOUND, exitCode: 1 });
  });

  it('does the same in QEMU itself', async () => {
    const kernel = assembleMultiboot('elf32', { name: 'test-device' });
    const args = [MAIN, 'run', '--accel', 'tcg', '--kernel', kernel, ...OPTIONS];
    const { stdout, exitCode } = await execa(process.execPath, args, {
      reject: false,
      stripFinalNewline: false,
      timeout: 120_000,
    });
    expect({ stdout, exitCode }).toEqual({ stdout: FOUND, exitCode: 1 });
  });

  it('gets 64-bit code in a 32-bit file into QEMU, its module and command line, too', async () => {
    const kernel = assembleMultiboot('wrapped');
    await writeFile(`${kernel}.module`, 'the module');
    const args = [MAIN, 'run', '--accel', 'tcg', '--kernel', kernel, '--initrd', `${kernel}.module`];
    const { stdout, exitCode } = await execa(process.execPath, [...args, '--cmdline', 'a b'], {
      reject: false,
      timeout: 120_000,
    });
    expect(exitCode).toBe((42 << 1) | 1);
    expect(stdout).toMatch(/\/multiboot a b\nthe module\n[^]*\n64$/);
  });

  it('is memtest86+ of Debian, which tests memory and finds no errors', async () => {
    const kernel = join(await downloadPackage('memtest86+'), 'boot/memtest86+x64.bin');
    const { memtest } = await bootGuests([
      {
        name: 'memtest',
        options: { kernel, cmdline: 'console=ttyS0,115200', memory: '64M' },
        // It draws a screen: a test's name, then how far it is.
        steps: [{ when: 'Moving inversions', act: 'stop' }],
      },
    ]);
    expect(memtest).toMatchObject({ exit: { reason: 'stopped' } });
    expect(memtest.error).toBeUndefined();
    expect(memtest.output).toContain('Memtest86+ v');
    expect(memtest.output).toMatch(/Memory *: +64MB/);
    expect(memtest.output).toContain('Errors: 0');
  });
});
