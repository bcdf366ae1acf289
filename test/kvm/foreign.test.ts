import { execFileSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MicroVM, type MicroVMOptions } from 'vmexit';
import { assembleMultiboot, MULTIBOOT_FORMATS } from '../support/kernel.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

async function run(options: MicroVMOptions) {
  const vm = await MicroVM.create({ accel: 'kvm', memory: '16M', ...options });
  onTestFinished(() => vm.close());
  const console = text(vm.console);
  await vm.start();
  const { reason, debugExit } = await vm.exited;
  return { reason, debugExit, console: await console };
}

/** RAM of 16 MiB, and PCI's ECAM, as the memory map tells of them: base, length, type. */
const MEMORY_MAP = [
  '00000000 0009fc00 00000001 ',
  '0009fc00 00060400 00000002 ',
  '00100000 00f00000 00000001 ',
  'e0000000 00100000 00000002 ',
];

describe.skipIf(!existsSync('/dev/kvm'))('a Multiboot kernel (skipped where there is no /dev/kvm)', () => {
  it.each(MULTIBOOT_FORMATS)('of the format %s gets command line, module and memory map', async (format) => {
    const kernel = assembleMultiboot(format);
    const initrd = `${kernel}.module`;
    writeFileSync(initrd, 'the module');
    const { console, ...end } = await run({ kernel, initrd, cmdline: 'one  "two"' });
    const goodbye = format === 'elf32' || format === 'flat' ? '' : '64';
    expect(console.split('\n')).toEqual(['multiboot one  "two"', 'the module', ...MEMORY_MAP, goodbye]);
    expect(end).toEqual({ reason: 'shutdown', debugExit: 42 });
  });

  it('may be linked for low memory, and needs neither module nor command line', async () => {
    const { console } = await run({ kernel: assembleMultiboot('flat', { address: '0x8000' }) });
    expect(console.split('\n')).toEqual(['multiboot', ...MEMORY_MAP, '']);
  });

  it.each([1, 4])('finds the test device that it expects of QEMU, with %d vCPUs', async (cpus) => {
    const kernel = assembleMultiboot('elf32', { name: 'test-device' });
    const { console, ...end } = await run({ kernel, cpus, testdev: true });
    expect(console.split('\n')).toEqual(['ports', 'page', 'memory', 'irq', `cpus ${cpus}`, '']);
    expect(end).toEqual({ reason: 'shutdown', debugExit: 0 });
  });

  it('finds no test device where none was asked for', async () => {
    const { console, debugExit } = await run({ kernel: assembleMultiboot('elf32', { name: 'test-device' }) });
    expect([console, debugExit]).toEqual(['', 0]);
  });

  it('has the debug-exit status that QEMU would give it, on the command line', () => {
    const kernel = assembleMultiboot('elf32');
    const args = [MAIN, 'run', '--accel', 'kvm', '--kernel', kernel, '--memory', '16M', '--cmdline', 'x'];
    expect(() => execFileSync(process.execPath, args, { stdio: 'pipe' })).toThrow(
      expect.objectContaining({
        status: (42 << 1) | 1,
        stdout: Buffer.from(`multiboot x\n${MEMORY_MAP.join('\n')}\n`),
      }),
    );
  });
});
