import { access, constants, readFile, stat } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';
import { execa } from 'execa';
import { VmmError } from '../errors.js';
import { findBusybox } from '../guest/busybox.js';
import { findProgram } from '../guest/debian.js';
import { findOvmf } from '../guest/ovmf.js';
import { findKernel } from '../guest/kernel.js';
import { Kvm, type CapabilityName } from '../kvm/index.js';
import {
  kvmProblems,
  MIN_CPL0_RATE,
  probeKvmDetails,
  type KvmProbeDetails,
  type ProbeResult,
} from '../machine/kvm-probe.js';
import { formatBytes, formatCount } from './output.js';

export interface Check {
  section: string;
  name: string;
  /** `warning`: something is less than it could be. `lack`: something does not work without it. */
  state: 'ok' | 'warning' | 'lack';
  value: string;
  /** What to do about it. */
  advice?: string;
}

export interface Verdict {
  usable: boolean;
  reason: string;
}

export interface HostReport {
  /** `qemuKvm`: a machine `pc` or `q35` of `accel: 'kvm'`. */
  verdicts: { kvm: Verdict; tcg: Verdict; qemuKvm: Verdict };
  /** What `accel: 'auto'` takes. */
  auto: 'kvm' | 'tcg';
  /** KVM's measurements; absent where it cannot be opened. */
  kvm?: KvmProbeDetails & { apiVersion: number; extensions: Record<string, number> };
  checks: Check[];
}

/** Capabilities this package cannot do without, and those it makes use of where they are. */
const REQUIRED: readonly CapabilityName[] = [
  'USER_MEMORY',
  'IRQCHIP',
  'PIT2',
  'IRQFD',
  'IOEVENTFD',
  'SIGNAL_MSI',
  'EXT_CPUID',
  'MP_STATE',
  'IMMEDIATE_EXIT',
  'SET_TSS_ADDR',
  'SET_IDENTITY_MAP_ADDR',
];
const OPTIONAL: readonly CapabilityName[] = [
  'IRQFD_RESAMPLE',
  'READONLY_MEM',
  'VCPU_EVENTS',
  'DEBUGREGS',
  'XSAVE',
  'XCRS',
  'ADJUST_CLOCK',
  'TSC_DEADLINE_TIMER',
  'GET_TSC_KHZ',
  'SET_GUEST_DEBUG',
];

const apt = (name: string) => `sudo apt-get install --no-install-recommends ${name}`;

/** Looks at everything virtualization needs here, and measures what KVM can do. Takes about a second. */
export async function examineHost(): Promise<HostReport> {
  const { checks: kvmChecks, verdict: kvm, report } = await examineKvm();
  const [host, qemu, guest] = await Promise.all([examineHostFeatures(), examineQemu(), examineGuestPieces()]);
  const qemuPath = await findProgram('qemu-system-x86_64');
  const tcg: Verdict = qemuPath
    ? { usable: true, reason: `QEMU emulates guests here (${qemuPath}): slower than KVM, but on any host` }
    : { usable: false, reason: 'qemu-system-x86_64 is not installed' };
  const qemuKvm: Verdict =
    kvm.usable && qemuPath
      ? { usable: true, reason: 'sound: --machine pc and q35 run in QEMU with this KVM' }
      : { usable: false, reason: kvm.usable ? tcg.reason : 'it needs a sound KVM: --machine pc and q35 run by TCG' };
  return {
    verdicts: { kvm, tcg, qemuKvm },
    auto: kvm.usable ? 'kvm' : 'tcg',
    ...(report && { kvm: report }),
    checks: [...kvmChecks, ...host, ...qemu, ...guest],
  };
}

async function examineKvm(): Promise<{ checks: Check[]; verdict: Verdict; report?: NonNullable<HostReport['kvm']> }> {
  const section = 'KVM';
  const checks: Check[] = [await deviceCheck(section, '/dev/kvm', 'lack')];
  let report: NonNullable<HostReport['kvm']>;
  try {
    using kvm = Kvm.open();
    report = { ...probeKvmDetails(), apiVersion: kvm.apiVersion, extensions: kvm.extensions() };
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    checks.push({ section, name: 'opening it', state: 'lack', value: error.code, advice: error.message });
    return { checks, verdict: { usable: false, reason: error.message } };
  }

  const { extensions } = report;
  const missing = REQUIRED.filter((name) => !extensions[name]);
  const without = OPTIONAL.filter((name) => !extensions[name]);
  checks.push(
    { section, name: 'API version', state: 'ok', value: String(report.apiVersion) },
    {
      section,
      name: 'extensions',
      state: missing.length > 0 ? 'lack' : without.length > 0 ? 'warning' : 'ok',
      value:
        missing.length + without.length === 0
          ? `all ${REQUIRED.length + OPTIONAL.length} that are made use of`
          : `${REQUIRED.length + OPTIONAL.length - missing.length - without.length} of ${REQUIRED.length + OPTIONAL.length}; not ${[...missing, ...without].join(', ')}`,
      ...(missing.length > 0 && { advice: 'a newer host kernel has them' }),
    },
    modeCheck('real mode', report.realMode),
    modeCheck('protected mode', report.protectedMode),
    modeCheck('long mode', report.longMode),
    {
      section,
      name: 'speed at CPL 0',
      state: report.cpl0Rate >= MIN_CPL0_RATE ? 'ok' : 'lack',
      value: formatRate(report.cpl0Rate) + (report.cpl0Rate < MIN_CPL0_RATE ? ': kernel code is emulated' : ''),
      ...(report.cpl0Rate < MIN_CPL0_RATE && {
        advice:
          'this KVM does not use VT-x or SVM. Use a host whose hypervisor passes them on (nested virtualization), or TCG',
      }),
    },
    {
      section,
      name: 'speed at CPL 3',
      state: report.cpl3Rate >= MIN_CPL0_RATE ? 'ok' : 'lack',
      value: formatRate(report.cpl3Rate),
    },
    {
      ...modeCheck('syscall, sysret', report.syscall),
      ...(!report.syscall.ok && { advice: 'Linux programs cannot run under this KVM: use TCG' }),
    },
    {
      section,
      name: 'cost of an exit',
      state: report.exitCostUs > 0 ? 'ok' : 'lack',
      value:
        report.exitCostUs > 0
          ? `${report.exitCostUs.toFixed(1)} µs, a port write to JavaScript and back`
          : 'not measured',
    },
  );
  const problems = [...kvmProblems(report), ...missing.map((name) => `KVM_CAP_${name} is missing`)];
  const verdict =
    problems.length === 0
      ? { usable: true, reason: `sound: it runs kernel code at ${formatRate(report.cpl0Rate)}` }
      : { usable: false, reason: `it cannot run an unmodified kernel: ${problems.join('; ')}` };
  return { checks, verdict, report };
}

async function examineHostFeatures(): Promise<Check[]> {
  const section = 'host';
  const hugePages = Number(/^HugePages_Total:\s+(\d+)/m.exec(await read('/proc/meminfo'))?.[1] ?? 0);
  const userfaultfd = await read('/proc/sys/vm/unprivileged_userfaultfd');
  const userfaultfdUsable = userfaultfd === '1' || (userfaultfd !== '' && process.getuid?.() === 0);
  return [
    { section, name: 'Linux', state: 'ok', value: `${release()}, ${cpus().length} CPUs, ${formatBytes(totalmem())}` },
    {
      section,
      name: 'userfaultfd',
      state: userfaultfdUsable ? 'ok' : 'warning',
      value: userfaultfd === '' ? 'not in this kernel' : userfaultfdUsable ? 'usable' : 'for root only',
      ...(userfaultfd === '0' && !userfaultfdUsable && { advice: 'sudo sysctl vm.unprivileged_userfaultfd=1' }),
    },
    await deviceCheck(section, '/dev/net/tun', 'warning', 'sudo modprobe tun'),
    await deviceCheck(section, '/dev/vhost-net', 'warning', 'sudo modprobe vhost_net'),
    await deviceCheck(section, '/dev/vhost-vsock', 'warning', 'sudo modprobe vhost_vsock'),
    { section, name: 'huge pages', state: 'ok', value: hugePages === 0 ? 'none reserved' : formatCount(hugePages) },
  ];
}

async function examineQemu(): Promise<Check[]> {
  const section = 'QEMU';
  return Promise.all([
    programCheck(section, 'qemu-system-x86_64', ['qemu-system-x86_64'], 'qemu-system-x86', 'lack'),
    programCheck(section, 'qemu-storage-daemon', ['qemu-storage-daemon'], 'qemu-system-common'),
    programCheck(
      section,
      'virtiofsd',
      ['virtiofsd', '/usr/libexec/virtiofsd', '/usr/lib/qemu/virtiofsd'],
      'qemu-system-common',
    ),
    programCheck(section, 'passt', ['passt'], 'passt'),
    ovmfCheck(section),
  ]);
}

async function ovmfCheck(section: string): Promise<Check> {
  const name = 'OVMF (UEFI)';
  const ovmf = await findOvmf({ fetch: false }).catch(() => undefined);
  if (ovmf) return { section, name, state: 'ok', value: ovmf.codePath };
  return { section, name, ...(await missing('ovmf', 'warning')) };
}

/** What comes by a package that is unpacked into the cache, and is not there. */
async function missing(name: string, severity: Check['state']): Promise<Pick<Check, 'state' | 'value' | 'advice'>> {
  return (await findProgram('apt-get'))
    ? { state: 'ok', value: 'not here yet: fetched when it is needed' }
    : { state: severity, value: 'not found', advice: apt(name) };
}

async function examineGuestPieces(): Promise<Check[]> {
  const section = 'guest';
  const kernel = await findKernel({ fetch: false }).catch(() => undefined);
  const busybox = await findBusybox({ fetch: false }).catch(() => undefined);
  return [
    {
      section,
      name: 'kernel',
      ...(kernel
        ? { state: 'ok' as const, value: `${kernel.release} (${kernel.vmlinuzPath})` }
        : await missing('linux-image-cloud-amd64', 'lack')),
    },
    {
      section,
      name: 'busybox, static',
      ...(busybox ? { state: 'ok' as const, value: busybox } : await missing('busybox-static', 'lack')),
    },
  ];
}

function modeCheck(name: string, result: ProbeResult): Check {
  return { section: 'KVM', name, state: result.ok ? 'ok' : 'lack', value: result.ok ? 'works' : result.problem };
}

async function deviceCheck(section: string, path: string, severity: Check['state'], load?: string): Promise<Check> {
  try {
    await access(path, constants.R_OK | constants.W_OK);
    return { section, name: path, state: 'ok', value: 'read and write' };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      const owner = await stat(path).catch(() => undefined);
      return {
        section,
        name: path,
        state: severity,
        value: `no permission (owner ${owner?.uid ?? '?'}, group ${owner?.gid ?? '?'})`,
        advice: `join the group that owns it: sudo usermod -aG "$(stat -c %G ${path})" "$USER", then log in again`,
      };
    }
    return { section, name: path, state: severity, value: 'absent', ...(load !== undefined && { advice: load }) };
  }
}

async function programCheck(
  section: string,
  name: string,
  programs: readonly string[],
  packageName: string,
  severity: Check['state'] = 'warning',
): Promise<Check> {
  const paths = await Promise.all(programs.map((program) => findProgram(program)));
  const path = paths.find((found) => found !== undefined);
  if (path === undefined) return { section, name, state: severity, value: 'not installed', advice: apt(packageName) };
  const { stdout, stderr } = await execa(path, ['--version'], { reject: false, timeout: 10_000, stdin: 'ignore' });
  const version = /\d+(?:[._]\w+)+/.exec((stdout || stderr).split('\n', 1)[0])?.[0];
  return { section, name, state: 'ok', value: version === undefined ? path : `${version} (${path})` };
}

const formatRate = (rate: number) =>
  rate === 0 ? 'does not run' : `${rate < 10 ? rate.toFixed(1) : formatCount(Math.round(rate))} M instructions/s`;

async function read(path: string): Promise<string> {
  return (await readFile(path, 'utf8').catch(() => '')).trim();
}
