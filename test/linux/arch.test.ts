import { execa } from 'execa';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled, QEMU_SYSTEM } from '../../src/guest/debian.js';
import { buildInitramfs, EXIT_PORT_MODULES } from '../../src/guest/initramfs.js';
import { findKernel, type GuestKernel } from '../../src/guest/kernel.js';
import { MicroVM } from '../../src/machine/microvm.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const arch = 'aarch64';

/** Runs the built CLI on this machine. */
const vmexit = (...args: string[]) =>
  execa(process.execPath, [MAIN, ...args], { reject: false, stripFinalNewline: false, stdin: 'ignore' });

describe('a guest of another architecture', () => {
  let directory: string;
  let kernel: GuestKernel;
  let initrd: string;

  beforeAll(async () => {
    await ensureInstalled(QEMU_SYSTEM[arch]);
    kernel = await findKernel({ arch });
    directory = await mkdtemp(join(tmpdir(), 'vmexit-test-'));
    initrd = join(directory, 'initramfs.cpio');
    await writeFile(
      initrd,
      await buildInitramfs({
        arch,
        busyboxPath: await findBusybox({ arch }),
        modules: EXIT_PORT_MODULES,
        modulesDir: kernel.modulesDir,
        command: ['sh', '-c', 'echo READY; while read -r line; do eval "$line"; done'],
      }),
    );
  });

  afterAll(() => rm(directory, { recursive: true, force: true }));

  it('runs a command, whose output and status are all there is of it', async () => {
    const { stdout, exitCode } = await vmexit('run', '--arch', arch, '--', 'sh', '-c', 'uname -m; exit 201');
    expect({ stdout, exitCode }).toEqual({ stdout: 'aarch64\n', exitCode: 201 });
  });

  it('has the CPUs it was given, can be paused and reset, and says how it ended', async () => {
    await using vm = await MicroVM.create({ arch, kernel: kernel.vmlinuzPath, initrd, cmdline: 'quiet', cpus: 2 });
    expect(vm.accel).toBe('tcg');
    expect(vm.accelReason).toMatch(/aarch64/);
    let text = '';
    vm.console.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
    const until = (pattern: string) => expect.poll(() => text, { timeout: 120_000, interval: 50 }).toContain(pattern);
    await vm.start();
    await until('READY\n');
    await vm.pause();
    await vm.resume();
    vm.console.write('touch /tmp/old; echo "cpus=$(nproc)"\n');
    await until('cpus=2\n');
    text = '';
    await vm.reset();
    await until('READY\n');
    vm.console.write('echo "old=$(ls /tmp)."; exit 7\n');
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 7 });
    expect(text).toContain('old=.\n');
  });

  it.each([
    ['poweroff -f', 'shutdown'],
    ['reboot -f', 'reset'],
  ])('that says "%s" ends for reason %s', async (line, reason) => {
    await using vm = await MicroVM.create({ arch, kernel: kernel.vmlinuzPath, initrd, cmdline: 'quiet' });
    let text = '';
    vm.console.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
    await vm.start();
    await expect.poll(() => text, { timeout: 120_000, interval: 50 }).toContain('READY\n');
    vm.console.write(`${line}\n`);
    expect(await vm.exited).toEqual({ reason });
  });

  it('is not run by KVM, and takes no kernel of this host', async () => {
    const options = { arch, kernel: (await findKernel()).vmlinuzPath } as const;
    await expect(MicroVM.create({ ...options, accel: 'kvm' })).rejects.toMatchObject({ code: 'ACCEL_UNAVAILABLE' });
    await expect(MicroVM.create(options)).rejects.toMatchObject({
      code: 'BAD_KERNEL',
      message: expect.stringContaining('aarch64') as string,
    });
  });
});
