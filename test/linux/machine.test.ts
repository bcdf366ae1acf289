import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findKernel } from '../../src/guest/kernel.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestPlan, type GuestReport } from '../support/linux-guests.js';
import { runNested } from '../support/nested.js';

/** vmexit, as its users run it, in the nested host. */
const vmexit = (...args: string[]) => runNested(['node', 'dist/cli/main.js', ...args], { timeoutMs: 180_000 });

describe('vmexit under a real KVM', () => {
  it("boots Debian's cloud kernel for a command, and exits as it does", async () => {
    const script = 'uname -a; exit 7';
    const { stdout, stderr, exitCode } = await vmexit('run', '--accel', 'kvm', '--', 'sh', '-c', script);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 7 });
    expect(stdout).toMatch(/^Linux vmexit \S+-cloud-amd64 #1 SMP .* x86_64 GNU\/Linux\n$/);
  });

  it("boots Debian's generic kernel", async () => {
    const { vmlinuzPath, release } = await findKernel({ flavour: 'generic' });
    const options = ['--accel', 'kvm', '--kernel', vmlinuzPath];
    const { stdout, exitCode } = await vmexit('run', ...options, '--', 'uname', '-r');
    expect({ stdout, exitCode }).toEqual({ stdout: `${release}\n`, exitCode: 0 });
  });

  it('is called sound by vmexit doctor', async () => {
    const { stdout, exitCode } = await vmexit('doctor', '--json');
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ verdicts: { kvm: { usable: true } }, auto: 'kvm' });
  });
});

describe('a machine under a real KVM', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;

  beforeAll(async () => {
    scratch = await sharedFolder();
    const look = await linuxGuest(join(scratch.path, 'look.cpio'), {
      command: [
        'sh',
        '-c',
        'nproc; cat /sys/devices/system/cpu/online; grep MemTotal /proc/meminfo; dmesg | grep Fatal || echo fine',
      ],
    });
    const plans: GuestPlan[] = [
      { name: '1 vCPU', options: { ...look, memory: '3G' } },
      { name: '2 vCPUs', options: { ...look, cpus: 2, memory: '6G' } },
      { name: '4 vCPUs', options: { ...look, cpus: 4 } },
    ];
    guests = await bootGuests(plans);
  });

  afterAll(() => scratch[Symbol.asyncDispose]());

  it.each([
    [1, 3072],
    [2, 6144],
    [4, 256],
  ])('brings %i vCPUs online, with %i MiB of RAM', (cpus, memoryMiB) => {
    const { output, exit, error } = guests[cpus === 1 ? '1 vCPU' : `${cpus} vCPUs`];
    expect({ error, exit }).toEqual({ error: undefined, exit: { reason: 'shutdown', debugExit: 0 } });
    const [nproc, online, memory, complaints] = said(output);
    expect(complaints).toBe('fine');
    expect(nproc).toBe(String(cpus));
    expect(online).toBe(cpus === 1 ? '0' : `0-${cpus - 1}`);
    const totalKib = Number(/^MemTotal: +(\d+) kB$/.exec(memory)?.[1]);
    // The kernel keeps its image, the initramfs' share and 1/64 for page structures to itself.
    expect(totalKib).toBeLessThan(memoryMiB * 1024);
    expect(totalKib).toBeGreaterThan(memoryMiB * 1024 * 0.95 - 64 * 1024);
  });
});

/** Lines of the console without the kernel's own: errors and its last words come in spite of `quiet`. */
function said(output: string): string[] {
  return output.replace(/^\[ *\d+\.\d+\] .*\r\n/gm, '').split('\n');
}
