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

  async function boot(options: { cpus?: number } = {}) {
    const vm = await MicroVM.create({ arch, kernel: kernel.vmlinuzPath, initrd, cmdline: 'quiet', ...options });
    let text = '';
    vm.console.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
    const said = (words: string) => expect.poll(() => text, { timeout: 300_000, interval: 50 }).toContain(words);
    await vm.start();
    return {
      vm,
      said,
      forget: () => void (text = ''),
      tell: (line: string) => void vm.console.write(`${line}\n`),
      [Symbol.asyncDispose]: () => vm.close(),
    };
  }

  it('has the CPUs it was given, can be paused and reset, and powers off', async () => {
    await using guest = await boot({ cpus: 2 });
    const { vm, said, tell } = guest;
    expect(vm.accel).toBe('tcg');
    expect(vm.accelReason).toMatch(/aarch64/);
    await said('READY\n');
    await vm.pause();
    await vm.resume();
    tell('touch /tmp/old; echo "cpus=$(nproc)"');
    await said('cpus=2\n');
    guest.forget();
    await vm.reset();
    await said('READY\n');
    tell('echo "old=$(ls /tmp)."; poweroff -f');
    expect(await vm.exited).toEqual({ reason: 'shutdown' });
    await said('old=.\n');
  });

  it('ends for reason reset when it reboots', async () => {
    await using guest = await boot();
    await guest.said('READY\n');
    guest.tell('reboot -f');
    expect(await guest.vm.exited).toEqual({ reason: 'reset' });
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
