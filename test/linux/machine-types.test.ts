import { execa } from 'execa';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { findKernel } from '../../src/guest/kernel.js';
import { findOvmf } from '../../src/guest/ovmf.js';
import { MicroVM } from '../../src/machine/microvm.js';
import type { MicroVMOptions } from '../../src/machine/options.js';
import { makeGrubDisk, MARKER } from '../support/grub-disk.js';
import { runNested } from '../support/nested.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** A variable of the firmware's, which keeps it in the machine's flash memory. */
const VARIABLE = '/sys/firmware/efi/efivars/Kept-5a7e5a6e-4f1c-4b5b-9d0b-0d6f6e1f2a3b';
const LOOK = `mount -t efivarfs efivarfs /sys/firmware/efi/efivars; echo "kept: <$(tail -c +5 ${VARIABLE} 2>/dev/null)>"`;

let directory: string;
let temporary: string;
/** Does, line by line, what it is told. */
let disk: string;
/** Looks for the variable. */
let brief: string;
/** With another kernel, for the nested host. */
let generic: string;

beforeAll(async () => {
  await ensureInstalled([QEMU_X86, { programs: ['qemu-img'], package: 'qemu-utils' }]);
  await findOvmf();
  directory = await mkdtemp(join(tmpdir(), 'vmexit-test-'));
  await mkdir((temporary = join(directory, 'tmp')));
  disk = await makeGrubDisk(join(directory, 'disk'), 'while read -r line; do eval "$line"; done');
  const raw = await makeGrubDisk(join(directory, 'brief'), `${LOOK}; exit 9`);
  generic = await makeGrubDisk(join(directory, 'generic'), 'exit 9', 'generic'); // it has /dev/port: docs/nested.md
  brief = join(directory, 'brief.qcow2');
  await execa('qemu-img', ['convert', '-O', 'qcow2', raw, brief]);
});

afterAll(() => rm(directory, { recursive: true, force: true }));

/** A machine of QEMU's under TCG, started. */
async function boot(options: MicroVMOptions) {
  const vm = await MicroVM.create({ accel: 'tcg', ...options });
  let text = '';
  vm.console.on('data', (bytes: Buffer) => {
    text += bytes.toString('latin1');
  });
  await vm.start();
  return {
    vm,
    said: (words: string) => expect.poll(() => text, { timeout: 300_000, interval: 50 }).toContain(words),
    forget: () => void (text = ''),
    tell: (line: string) => void vm.console.write(`${line}\n`),
    [Symbol.asyncDispose]: () => vm.close(),
  };
}

describe('a disk with GRUB', () => {
  it.each([
    ['q35', 'Standard PC (Q35 + ICH9, 2009), BIOS'],
    ['pc', 'Standard PC (i440FX + PIIX, 1996), BIOS'],
  ] as const)('boots on a %s by SeaBIOS', async (machine, board) => {
    await using guest = await boot({ machine, firmware: 'seabios', drives: [{ path: disk }] });
    await guest.said('GRUB on pc');
    await guest.said(`${MARKER}: ${board}\n`);
    guest.tell('exit 9');
    expect(await guest.vm.exited).toEqual({ reason: 'shutdown', debugExit: 9 });
  });

  it('boots on a q35 by OVMF, and finds what it told that after a reset', async () => {
    await using guest = await boot({ machine: 'q35', firmware: 'ovmf', drives: [{ path: disk }] });
    await guest.said('GRUB on efi');
    await guest.said(`${MARKER}: Standard PC (Q35 + ICH9, 2009), EFI\n`);
    guest.tell(LOOK);
    await guest.said('kept: <>');
    // Attributes first: non-volatile, for the boot services and for the system (UEFI 2.10, 8.2).
    guest.tell(`printf '\\007\\000\\000\\000here' >${VARIABLE} && echo written`);
    await guest.said('written');
    guest.forget();
    await guest.vm.reset();
    await guest.said(MARKER);
    guest.tell(LOOK);
    await guest.said('kept: <here>');
    guest.tell('exit 9');
    expect(await guest.vm.exited).toEqual({ reason: 'shutdown', debugExit: 9 });
  });

  it('is booted by the command line, in qcow2, finds nothing of another machine and leaves nothing behind', async () => {
    const args = ['run', '--machine', 'q35', '--firmware', 'ovmf', '--accel', 'tcg', '--drive', brief];
    const env = { TMPDIR: temporary };
    const { stdout, exitCode } = await execa(process.execPath, [MAIN, ...args], {
      reject: false,
      stdin: 'ignore',
      env,
    });
    expect(stdout).toContain(`${MARKER}: Standard PC (Q35 + ICH9, 2009), EFI\nkept: <>`);
    expect(exitCode).toBe(9);
    expect(await readdir(temporary)).toEqual([]);
  });
});

describe('vmexit run --machine', () => {
  const vmexit = (...args: string[]) =>
    execa(process.execPath, [MAIN, 'run', ...args], { reject: false, stdin: 'ignore' });

  it('runs a COMMAND on a pc, by firmware too', async () => {
    const script = 'cat /sys/class/dmi/id/product_name; ls -d /sys/firmware/efi; exit 5';
    const args = ['--machine', 'pc', '--firmware', 'ovmf', '--accel', 'tcg', '--', 'sh', '-c', script];
    expect(await vmexit(...args)).toMatchObject({
      stdout: 'Standard PC (i440FX + PIIX, 1996)\n/sys/firmware/efi',
      exitCode: 5,
    });
  });

  it.each([
    ['firmware: a microvm boots a kernel', 2, ['--firmware', 'ovmf', '--', 'true']],
    ['machine: q35 is for a guest of x86_64', 2, ['--machine', 'q35', '--arch', 'aarch64', '--', 'true']],
    ['firmware: /none is no file', 1, ['--machine', 'q35', '--accel', 'tcg', '--firmware', '/none', '--', 'true']],
  ])('refuses with "%s …"', async (message, status, args) => {
    const { stderr, exitCode } = await vmexit(...args);
    expect(stderr).toContain(message);
    expect(exitCode).toBe(status);
  });
});

describe('KVM in the hands of QEMU', () => {
  const nested = (...args: string[]) => runNested(['node', 'dist/cli/main.js', ...args], { timeoutMs: 300_000 });

  // By SeaBIOS alone: OVMF ends the emulator of the nested host (docs/nested.md).
  it('boots a disk on a host whose KVM is sound', async () => {
    const args = ['--machine', 'q35', '--drive', generic, '--stats', '--json'];
    const { stdout, stderr, exitCode } = await nested('run', ...args);
    expect(stdout).toContain(`${MARKER}: Standard PC (Q35 + ICH9, 2009), BIOS`);
    expect(exitCode).toBe(9);
    expect(JSON.parse(stderr)).toMatchObject({ accel: 'kvm', accelReason: expect.stringContaining('QEMU') as string });
  });

  it('runs a COMMAND there', async () => {
    const script = 'cat /sys/class/dmi/id/product_name; exit 7';
    const { vmlinuzPath } = await findKernel({ flavour: 'generic' }); // it has /dev/port: docs/nested.md
    const args = ['--accel', 'kvm', '--machine', 'pc', '--kernel', vmlinuzPath, '--', 'sh', '-c', script];
    const { stdout, stderr, exitCode } = await nested('run', ...args);
    expect({ stderr, stdout, exitCode }).toEqual({
      stderr: '',
      stdout: 'Standard PC (i440FX + PIIX, 1996)\n',
      exitCode: 7,
    });
  });
});
