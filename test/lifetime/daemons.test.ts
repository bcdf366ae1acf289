/** The processes that serve a machine: QEMU's storage daemon, virtiofsd, and QEMU with a PCI device. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, beforeEach, expect, it, onTestFinished, vi } from 'vitest';
import { MicroVM, type DeviceError, type MicroVMOptions } from 'vmexit';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { assembleKernel } from '../support/kernel.js';
import { describeKvm } from '../support/kvm.js';
import { descendantsOf, namesOf } from '../support/processes.js';

const PROGRAM = fileURLToPath(new URL('programs/daemons.mjs', import.meta.url));
const NAMES = ['qemu-storage-da', 'qemu-system-x86', 'virtiofsd', 'virtiofsd'];

describeKvm('the processes behind a machine', () => {
  let folder: string;

  // virtiofsd and the storage daemon come with it.
  beforeAll(() => ensureInstalled([QEMU_X86]));

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
    mkdirSync(join(folder, 'dir'));
    writeFileSync(join(folder, 'disk.raw'), new Uint8Array(1 << 20));
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true });
  });

  const options = (): MicroVMOptions => ({
    kernel: assembleKernel('sti\n1: hlt\njmp 1b\n'),
    accel: 'kvm',
    memory: '16M',
    drives: [{ path: join(folder, 'disk.raw'), backend: 'qemu' }],
    shares: [{ dir: join(folder, 'dir'), tag: 'dir', backend: 'virtiofsd' }],
    devices: [{ type: 'qemu-pci', device: 'e1000' }],
  });

  it('are reported when they are killed; the machine goes on, and with the next ones, also after a reset', async () => {
    await using vm = await MicroVM.create(options());
    const errors: DeviceError[] = [];
    vm.on('deviceError', (error) => errors.push(error));
    await vm.start();
    for (const [device, daemon] of [['drive0', vm.drives[0]!] as const, ['share0', vm.shares[0]!] as const]) {
      const errorOf = async () => (await vm.stats()).devices[device].error;
      const died = new Promise((resolve) => daemon.once('died', resolve));
      process.kill(daemon.pid!, 'SIGKILL');
      expect(await died).toMatchObject({ code: 'QEMU_FAILED', message: expect.stringContaining('SIGKILL') as string });
      await expect.poll(() => errors.at(-1)).toMatchObject({ device, error: { code: 'BACKEND_FAILED' } });
      expect(await errorOf()).toContain('its backend failed');
      await daemon.restart();
      await expect.poll(errorOf).toBeUndefined();
    }
    expect(errors).toHaveLength(2);
    await vm.reset();
    expect(vm.state).toBe('running');
    expect(namesOf(descendantsOf(process.pid))).toEqual(expect.arrayContaining(NAMES));
  });

  it('leave nothing behind: neither a process nor a descriptor nor a file', async () => {
    const config = options();
    vi.stubEnv('TMPDIR', folder);
    const before = { files: readdirSync(folder), processes: descendantsOf(process.pid).length };
    const openFds = () => readdirSync('/proc/self/fd').length;
    let fds = 0;
    for (let round = 0; round < 4; round++) {
      const vm = await MicroVM.create(config);
      await vm.start();
      if (round % 2 === 1) await vm.reset();
      await vm.close();
      // The first round opens what a process opens once.
      if (round === 0) fds = openFds();
      else await expect.poll(openFds).toBeLessThanOrEqual(fds);
    }
    await expect.poll(() => descendantsOf(process.pid)).toHaveLength(before.processes);
    expect(readdirSync(folder)).toEqual(before.files);
  });

  it('do not outlive a program that is killed', async () => {
    const args = [PROGRAM, JSON.stringify(options())];
    // Its sockets' folders are nobody's when it is killed.
    const env = { ...process.env, TMPDIR: folder };
    const program = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], env });
    onTestFinished(() => void program.kill('SIGKILL'));
    await once(program.stdout, 'data');
    const pids = descendantsOf(program.pid!);
    expect(namesOf(pids)).toEqual(NAMES);
    program.kill('SIGKILL');
    await once(program, 'close');
    await expect.poll(() => pids.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);
  });
});
