/** What Linux finds in a machine under a real KVM: processors, memory, the PCI bus. And vmexit, as its users run it there. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import type { KernelFlavour } from '../../src/guest/kernel.js';
import type { MicroVMOptions } from '../../src/index.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestPlan, type GuestReport } from '../support/linux-guests.js';
import { runNested } from '../support/nested.js';
import { programFiles } from '../support/program-files.js';

const SIZE = `uname -r; nproc; cat /sys/devices/system/cpu/online; sed -n 's/^MemTotal: *\\(.*\\) kB$/\\1/p' /proc/meminfo`;

const LOOK = `
echo '--- size'
${SIZE}
echo '--- lscpu'
lscpu
echo '--- cpuinfo'
cat /proc/cpuinfo
echo '--- clock'
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
echo '--- pci'
lspci -vvnn -x
echo '--- log'
dmesg
echo '---'
`;

/** Output of {@link SIZE}. */
function expectSize(lines: string, { kernel, cpus, memoryMiB }: { kernel: RegExp; cpus: number; memoryMiB: number }) {
  const [release, nproc, online, totalKib] = lines.split('\n');
  expect(release).toMatch(kernel);
  expect(nproc).toBe(String(cpus));
  expect(online).toBe(cpus === 1 ? '0' : `0-${cpus - 1}`);
  // The kernel keeps its image, the initramfs' share and 1/64 for page structures to itself.
  expect(Number(totalKib)).toBeLessThan(memoryMiB * 1024);
  expect(Number(totalKib)).toBeGreaterThan(memoryMiB * 1024 * 0.95 - 64 * 1024);
}

describe('vmexit under a real KVM', () => {
  const vmexit = (...args: string[]) => runNested(['node', 'dist/cli/main.js', ...args], { timeoutMs: 300_000 });

  it("boots Debian's cloud kernel for a command, with the memory that was asked for, and exits as it does", async () => {
    const script = `${SIZE}; dmesg | grep Fatal; uname -a; exit 7`;
    const args = ['run', '--accel', 'kvm', '--memory', '3G', '--', 'sh', '-c', script];
    const { stdout, stderr, exitCode } = await vmexit(...args);
    expect({ stderr, exitCode }, stdout).toEqual({ stderr: '', exitCode: 7 });
    expectSize(stdout, { kernel: /-cloud-amd64$/, cpus: 1, memoryMiB: 3072 });
    expect(stdout).toMatch(/^(.+\n){4}Linux vmexit \S+-cloud-amd64 #1 SMP .* x86_64 GNU\/Linux\n$/);
  });

  it('is called sound by vmexit doctor, in the hands of QEMU, too', async () => {
    const { stdout, exitCode } = await vmexit('doctor', '--json');
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      verdicts: { kvm: { usable: true }, qemuKvm: { usable: true } },
      auto: 'kvm',
    });
  });
});

describe('Linux', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;

  beforeAll(async () => {
    await ensureInstalled([
      { programs: ['lscpu'], package: 'util-linux', code: 'IMAGE_NOT_FOUND' },
      { programs: ['lspci'], package: 'pciutils', code: 'IMAGE_NOT_FOUND' },
    ]);
    scratch = await sharedFolder();
    guests = await bootGuests([
      await plan('cores', { cpus: 4 }),
      await plan('threads', { cpus: 4, threadsPerCore: 2 }),
      await plan('baseline', { cpus: 2, memory: '6G', cpuTemplate: 'baseline' }, 'generic'),
    ]);
  });

  afterAll(() => scratch[Symbol.asyncDispose]());

  async function plan(name: string, options: MicroVMOptions, flavour: KernelFlavour = 'cloud'): Promise<GuestPlan> {
    const { modules } = guestSetup({ console: 'virtio', drives: 0, nets: 0, rng: true, transport: 'pci' });
    const files = await programFiles('lscpu', 'lspci');
    const command = ['sh', '-c', LOOK];
    const guest = await linuxGuest(join(scratch.path, `${name}.cpio`), { flavour, modules, files, command });
    return { name, options: { ...guest, console: 'virtio', rng: true, ...options } };
  }

  const section = (name: string, title: string) => {
    const { exit, error, output } = guests[name];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    const start = output.indexOf(`--- ${title}\n`);
    return output.slice(start + title.length + 5, output.indexOf('\n---', start));
  };
  const lscpu = (name: string) =>
    Object.fromEntries(
      section(name, 'lscpu')
        .split('\n')
        .map((line) => line.split(/:\s+/, 2).map((part) => part.trim())),
    ) as Record<string, string>;

  it.each([
    ['cores', { kernel: /-cloud-amd64$/, cpus: 4, memoryMiB: 256 }],
    ['threads', { kernel: /-cloud-amd64$/, cpus: 4, memoryMiB: 256 }],
    ['baseline', { kernel: /\d-amd64$/, cpus: 2, memoryMiB: 6144 }],
  ])('brings its processors online, with all of the memory: %s', (name, size) => {
    expectSize(section(name, 'size'), size);
  });
  it.each([
    ['cores', { 'CPU(s)': '4', 'Thread(s) per core': '1', 'Core(s) per socket': '4', 'Socket(s)': '1' }],
    ['threads', { 'CPU(s)': '4', 'Thread(s) per core': '2', 'Core(s) per socket': '2', 'Socket(s)': '1' }],
    ['baseline', { 'CPU(s)': '2', 'Thread(s) per core': '1', 'Core(s) per socket': '2', 'Socket(s)': '1' }],
  ])('arranges the processors as asked: %s', (name, topology) => {
    expect(lscpu(name)).toMatchObject({ ...topology, 'Hypervisor vendor': 'KVM' });
    const cpus = section(name, 'cpuinfo').trim().split('\n\n');
    const field = (key: string) => cpus.map((cpu) => new RegExp(`^${key}\\s*: (.*)$`, 'm').exec(cpu)?.[1]);
    const numbers = Array.from({ length: cpus.length }, (_, i) => i);
    expect(field('apicid')).toEqual(numbers.map(String));
    expect(field('initial apicid')).toEqual(numbers.map(String));
    expect(field('physical id')).toEqual(numbers.map(() => '0'));
    const threads = Number(topology['Thread(s) per core']);
    expect(field('core id')).toEqual(numbers.map((cpu) => String(Math.floor(cpu / threads))));
    expect(field('siblings')).toEqual(numbers.map(() => String(cpus.length)));
  });

  it.each(['cores', 'threads', 'baseline'])('finds nothing to complain of in processors and firmware: %s', (name) => {
    const log = section(name, 'log').split('\n');
    const complaints = /WARNING: CPU|Fatal|XSAVE consistency|inconsistent|your BIOS|Firmware Bug|ACPI (Error|Warning)/;
    expect(log.filter((line) => complaints.test(line))).toEqual([]);
    expect(log.join('\n')).toMatch(/x2apic enabled/);
    expect(section(name, 'clock').trim()).toBe('kvm-clock');
  });

  it('has the same features under the baseline whatever the host, and no more than it promises', () => {
    const field = (key: string) =>
      new RegExp(`^${key}\\s*: (.*)$`, 'm').exec(section('baseline', 'cpuinfo'))?.[1] ?? '';
    expect(field('model name')).toBe('vmexit baseline (x86-64-v2)');
    const flags = field('flags').split(' ');
    for (const flag of ['sse4_2', 'aes', 'rdrand', 'popcnt', 'fsgsbase', 'smep', 'hypervisor', 'x2apic']) {
      expect(flags).toContain(flag);
    }
    for (const flag of ['xsave', 'avx', 'avx2', 'la57', 'bmi1']) expect(flags).not.toContain(flag);
    expect(lscpu('baseline')['Address sizes']).toMatch(/^(3\d|40) bits physical, 48 bits virtual$/);
  });

  it('shows sane devices on the PCI bus', () => {
    const functions = section('cores', 'pci').trim().split('\n\n');
    expect(functions.map((text) => /^\S+ .*?\[(\w{4})\]: .*\[(\w{4}:\w{4})\]/.exec(text)?.slice(1))).toEqual([
      ['0600', expect.any(String)], // host bridge
      ['0780', '1af4:1043'], // virtio console
      ['ff00', '1af4:1044'], // virtio entropy
    ]);
    for (const text of functions.slice(1)) {
      expect(text).toContain('Kernel driver in use: virtio-pci');
      expect(text).toMatch(/Capabilities: \[\w+\] MSI-X: Enable\+ Count=\d+ Masked-/);
      expect(text.match(/Capabilities: \[\w+\] Vendor Specific Information: VirtIO: /g)).toHaveLength(5);
      expect(text).toMatch(/Region 0: Memory at c\w{7} \(32-bit, non-prefetchable\) \[size=\w+\]/);
    }
    for (const complaint of ['!!!', '<access denied>', 'virtual', 'disabled]']) {
      expect(section('cores', 'pci')).not.toContain(complaint);
    }
  });
});
