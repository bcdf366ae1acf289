/** How long Linux takes from the start of its machine to its first user-space instruction, and what the time goes into. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { VmmError } from '../../errors.js';
import { CpioWriter } from '../../guest/cpio.js';
import { findProgram } from '../../guest/debian.js';
import { staticExecutable } from '../../guest/exit-program.js';
import { findKernel } from '../../guest/kernel.js';
import { chooseAccelerator, type Accelerator } from '../../machine/accelerator.js';
import { MicroVM } from '../../machine/microvm.js';
import { runAlone } from '../alone.js';
import { microvmKernel } from './microvm-kernel.js';
import {
  Unavailable,
  type Benchmark,
  type Contender,
  type Context,
  type Sample,
  type Session,
  type Tally,
  type Timeline,
} from '../benchmark.js';

const MEMORY_MIB = 256;
const CMDLINE = 'panic=-1 quiet';
/** Between two looks at what the guest has done so far. */
const SAMPLING_MS = 250;
const TIMEOUT_MS = 60_000;
/** A guest of an emulated processor now and then hangs, whoever runs it: see docs/nested.md. */
const TRIES = 3;

/** What init says: a control character first, which no kernel prints. */
const MARK = '\x1eup\x1e';

/** Init, the whole user space: says {@link MARK}, and waits to be ended. */
const INIT = [
  [0xb8, 0x01, 0x00, 0x00, 0x00], //              mov   eax, 1    write(1, mark, 4)
  [0xbf, 0x01, 0x00, 0x00, 0x00], //              mov   edi, 1
  [0x48, 0x8d, 0x35, 0x10, 0x00, 0x00, 0x00], //  lea   rsi, [rip+16]
  [0xba, 0x04, 0x00, 0x00, 0x00], //              mov   edx, 4
  [0x0f, 0x05], //                                syscall
  [0xb8, 0x22, 0x00, 0x00, 0x00], //          1:  mov   eax, 34   pause()
  [0x0f, 0x05], //                                syscall
  [0xeb, 0xf7], //                                jmp   1b
  [...Buffer.from(MARK, 'latin1')],
].flat();

interface Images {
  kernel: string;
  initrd: string;
}

const tallies = new Map<string, Tally>();
const timelines = new Map<string, Timeline>();

export const bootLinux: Benchmark = {
  name: 'boot/linux',
  title: 'Boot to user space',
  description:
    "From MicroVM.create(), or from the start of another VMM's process, until the first program of user space speaks: " +
    `Debian's cloud kernel, an initramfs that is this one program, one CPU, ${MEMORY_MIB} MiB. The first boot is the ` +
    "warm-up, and a figure of its own: our machine's thread starts, which later ones find waiting, and of the others the " +
    'host reads the program.',
  metrics: {
    time: { title: 'time to user space', unit: 'ns' },
    make: { title: 'of it, before the guest starts', unit: 'ns' },
    first: { title: 'time to user space, first boot', unit: 'ns' },
  },
  floor: 'QEMU microvm',
  operations: { quick: 1, full: 1 },
  rounds: { quick: 1, full: 5 },
  async contenders(context) {
    tallies.clear();
    timelines.clear();
    const { accel, reason } = chooseAccelerator('auto');
    if (accel === 'tcg') {
      context.note(`${reason}. So these boots are emulated (TCG), whose exits nobody counts; times are those of QEMU.`);
    }
    const images = await makeImages(context);
    const [qemu, lkvm] = await Promise.all([findProgram('qemu-system-x86_64'), findProgram('lkvm')]);
    if (qemu === undefined && accel === 'tcg')
      throw new Unavailable('neither KVM nor QEMU can run a Linux kernel here');
    if (qemu === undefined) context.note('QEMU is not installed: there is nothing to compare with');
    const machines = [ours(accel, images)];
    if (qemu !== undefined) machines.push(byQemu(qemu, 'microvm', accel, images));
    // Without KVM ours is a q35 already.
    if (qemu !== undefined && accel === 'kvm' && !context.quick) machines.push(byQemu(qemu, 'q35', accel, images));
    if (lkvm !== undefined && accel === 'kvm') machines.push(byKvmtool(lkvm, images));
    return machines.map((machine): Contender => ({ ...machine, open: () => session(machine, images, context) }));
  },
  extras: () => ({ tallies: [...tallies.values()], timelines: [...timelines.values()] }),
};

async function makeImages(context: Context): Promise<Images & AsyncDisposable> {
  const kernel = await findBootKernel(context).catch((error: unknown) => {
    throw error instanceof VmmError ? new Unavailable(error.message) : error;
  });
  const directory = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
  const initrd = join(directory, 'initramfs.cpio');
  const init = staticExecutable(INIT);
  await writeFile(initrd, new CpioWriter().device('dev/console', 'char', 5, 1).file('init', init, 0o755).finish());
  return {
    kernel,
    initrd,
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}

async function findBootKernel(context: Context): Promise<string> {
  if (context.kernelConfig === 'debian') return (await findKernel()).vmlinuzPath;
  context.note(
    "These boots are not of Debian's kernel, but of one built of its source with what a microVM needs alone.",
  );
  return microvmKernel((what, done) => context.progress(what, done));
}

interface Machine extends Pick<Contender, 'name' | 'isFloor'> {
  /** Boots once and ends the guest. */
  boot: () => Promise<Sample>;
}

/** Boots and boots again; a machine that does not come up is left out, and the report says so. */
function session({ name, boot }: Machine, images: AsyncDisposable, context: Context): Session {
  const bootUp = async (tries = TRIES): Promise<Sample> => {
    try {
      return await boot();
    } catch (error) {
      if (tries === 1) throw error;
      context.note(`${name} was booted again: ${firstLine(error)}`);
      return bootUp(tries - 1);
    }
  };
  let isFirst = true;
  let isLeftOut = false;
  return {
    async round() {
      if (isLeftOut) return [];
      try {
        const first = isFirst ? { first: (await bootUp())['time'] } : {};
        isFirst = false;
        return [{ ...(await bootUp()), ...first }];
      } catch (error) {
        isLeftOut = true;
        context.note(`${name} is left out after ${TRIES} tries: ${firstLine(error)}`);
        return [];
      }
    },
    [Symbol.asyncDispose]: () => images[Symbol.asyncDispose](),
  };
}

const firstLine = (error: unknown) => (error as Error).message.split('\n')[0];

function ours(accel: Accelerator, { kernel, initrd }: Images): Machine {
  const name = accel === 'kvm' ? 'vmexit, KVM' : "vmexit, QEMU's q35 by TCG";
  const boot = async () => {
    const kvmBefore = await kvmCounters();
    const startMs = performance.now();
    await using vm = await MicroVM.create({ kernel, initrd, cmdline: 'quiet', memory: `${MEMORY_MIB}M`, accel });
    const points: Timeline['points'] = [];
    let before: Readonly<Record<string, number>> = {};
    const look = async () => {
      const { accesses } = await vm.stats();
      const atMs = performance.now() - startMs;
      for (const [kind, count] of Object.entries(accesses))
        points.push({ atMs, kind, count: count - (before[kind] ?? 0) });
      before = accesses;
    };
    const up = says(vm.console, MARK);
    const make = (performance.now() - startMs) * 1e6;
    await vm.start();
    const timer = accel === 'kvm' ? setInterval(() => void look().catch(() => {}), SAMPLING_MS) : undefined;
    const time = await up.finally(() => clearInterval(timer));
    const { exits, accesses } = await vm.stats();
    if (accel === 'kvm') {
      await look();
      tallies.set(`${name} exits`, { contender: name, title: 'exits to user space, by reason', counts: exits });
      tallies.set(`${name} accesses`, { contender: name, title: 'accesses by device', counts: accesses });
      timelines.set(name, { contender: name, title: `accesses by device, in ${SAMPLING_MS} ms each`, points });
      await countKvm(name, kvmBefore);
    }
    return { time: (time - startMs) * 1e6, make };
  };
  return { name, boot };
}

/** With ACPI, Debian 12's microvm leaves the kernel without a timer unless it has KVM's clock. */
const MICROVM = 'acpi=off,isa-serial=on,pit=on,pic=on,rtc=on';

/** A machine of QEMU's with the same kernel, initramfs and memory. */
function byQemu(qemu: string, machine: string, accel: Accelerator, { kernel, initrd }: Images): Machine {
  const args = [
    ...['-machine', `${machine},accel=${accel}${machine === 'microvm' ? `,${MICROVM}` : ''}`],
    ...['-cpu', accel === 'kvm' ? 'host' : 'max'],
    ...['-m', String(MEMORY_MIB), '-smp', '1', '-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-serial', 'stdio', '-kernel', kernel, '-initrd', initrd, '-append', `console=ttyS0 ${CMDLINE}`],
  ];
  return { ...byProcess(`QEMU ${machine}`, accel, qemu, args), isFloor: machine === 'microvm' };
}

/** kvmtool's, which adds to the command line what its guests need, the console among it. */
function byKvmtool(lkvm: string, { kernel, initrd }: Images): Machine {
  const machine = ['--cpus', '1', '--mem', String(MEMORY_MIB), '--console', 'serial'];
  const args = ['run', ...machine, '--network', 'mode=none', '--kernel', kernel, '--initrd', initrd];
  // It keeps a socket for each of its guests in a folder of the user's.
  return byProcess('kvmtool', 'kvm', lkvm, [...args, '--params', CMDLINE], { HOME: dirname(initrd) });
}

/** A machine that is a process, whose standard output is the guest's console. */
function byProcess(
  machine: string,
  accel: Accelerator,
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Machine {
  const name = `${machine}, ${accel === 'kvm' ? 'KVM' : 'TCG'}`;
  const boot = async () => {
    const kvmBefore = await kvmCounters();
    const startMs = performance.now();
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } });
    try {
      const time = await says(child.stdout, MARK);
      if (accel === 'kvm') await countKvm(name, kvmBefore);
      return { time: (time - startMs) * 1e6 };
    } finally {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
  };
  return { name, boot };
}

/** @returns When the console had said it, as `performance.now()` has it. */
function says(console: Readable, mark: string): Promise<number> {
  return new Promise((resolve, reject) => {
    let text = '';
    const fail = (why: string) => reject(new Error(`the guest's user space is not up: ${why}\n${text.slice(-2000)}`));
    const timer = setTimeout(() => fail(`not after ${TIMEOUT_MS / 1000} s`), TIMEOUT_MS);
    console.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (!text.includes(mark)) return;
      clearTimeout(timer);
      resolve(performance.now());
    });
    console.once('end', () => {
      clearTimeout(timer);
      fail('it ended');
    });
  });
}

/** Where KVM counts what all guests of this host do, for those who may read it. */
const KVM_COUNTERS = '/sys/kernel/debug/kvm';

async function kvmCounters(): Promise<Record<string, number>> {
  const names = await readdir(KVM_COUNTERS).catch(() => []);
  const read = async (name: string) => Number(await readFile(join(KVM_COUNTERS, name), 'utf8').catch(() => 'none'));
  const entries = await Promise.all(names.map(async (name) => [name, await read(name)] as const));
  return Object.fromEntries(entries.filter(([, count]) => Number.isFinite(count)));
}

/** What KVM itself has counted since: the same for every VMM. */
async function countKvm(contender: string, before: Readonly<Record<string, number>>): Promise<void> {
  const after = await kvmCounters();
  const wanted = ['exits', 'io_exits', 'mmio_exits', 'irq_exits', 'halt_exits', 'signal_exits', 'pf_taken', 'pf_fixed'];
  const counts = Object.fromEntries(
    wanted.flatMap((name) => (name in after ? [[name, after[name] - (before[name] ?? 0)]] : [])),
  );
  if (Object.keys(counts).length === 0) return;
  tallies.set(`${contender} kvm`, { contender, title: "KVM's own counters (debugfs)", counts });
}

await runAlone(import.meta.filename, bootLinux);
