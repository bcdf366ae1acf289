import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BalloonStats, MachineExit, MachineStats, MicroVMOptions, ServeDeviceOptions } from '../../src/index.js';
import { execa } from 'execa';
import { findBusybox } from '../../src/guest/busybox.js';
import { buildInitramfs, type InitramfsOptions } from '../../src/guest/initramfs.js';
import { findKernel, type KernelFlavour } from '../../src/guest/kernel.js';
import { runNested } from './nested.js';

const PROJECT = new URL('../..', import.meta.url);

/** Something to do when the guest has printed a text; each step waits for the one before. */
export type GuestStep = { when: string } & (
  | { act: 'stats'; as: string }
  | { act: 'fetch'; url: string; as: string }
  | { act: 'type'; text: string }
  | { act: 'resizeConsole'; columns: number; rows: number }
  /** Random bytes to a console port, and back. */
  | { act: 'echo'; port: string; bytes: number }
  /** Returns when the machine has reported it. */
  | { act: 'killPasst' }
  /** Calls a method of `vm.drives[drive]`. */
  | { act: 'drive'; drive: number; method: 'snapshot' | 'commit' | 'mirror' | 'resize' | 'restart'; args?: unknown[] }
  /** Kills the process that serves a drive or a share, waits until that is reported, and starts another. */
  | { act: 'killDrive'; drive: number }
  | { act: 'killShare'; share: number }
  /** Kills the QEMU process whose command line holds a text; returns when the machine has reported it. */
  | { act: 'killQemu'; like: string }
  | { act: 'powerButton' }
  | { act: 'reset' }
  /** Until the guest has been silent for a second, a minute at most; `saidInPause` is what it said in the last second. */
  | { act: 'pause' }
  /** Random bytes to a socket of the guest, and back: by the program's own stream, and by the Unix socket. */
  | { act: 'vsock'; port: number; bytes: number }
  | { act: 'vsockUnix'; path: string; port: number; bytes: number }
  | { act: 'stop' }
  | { act: 'balloon'; target: string }
  /** Waits, a minute at most, until no more than so many bytes of RAM are resident and the balloon has just so many. */
  | { act: 'balloonStats'; as: string; atMost?: number; actual?: number }
);

/** One guest for programs/boot.mjs. */
export interface GuestPlan {
  name: string;
  options: MicroVMOptions;
  /** Told to the console before the guest starts. */
  consoleSize?: { columns: number; rows: number };
  /** Two network cards of type `port`, by index, to be piped together. */
  join?: [number, number];
  /** Devices to be served to it, while it runs. */
  backends?: ServeDeviceOptions[];
  /** A port of the host, whose connections get back what they send. */
  vsockEcho?: number;
  steps?: GuestStep[];
  /**
   * An HTTP server of the machine that the guest runs on, on its loopback or at `address`, as long as the guest runs:
   * `/large` is zeros, everything else the body. The guest has its port in `$HTTP_PORT`, a free one by default.
   */
  serve?: { address?: string; port?: number; body: string; largeBytes?: number };
  /** Files of zeros by their lengths, made for each boot: a guest that is booted again finds nothing of the time before. */
  blank?: Record<string, number>;
  /** Files to be hashed when the guest has ended. */
  hash?: string[];
  timeoutMs?: number;
}

/** What became of it. */
export interface GuestReport {
  name: string;
  /** All that the console said, a byte a character. */
  output: string;
  exit?: MachineExit;
  /** By the steps' names, and `end`. */
  stats: Record<string, MachineStats>;
  /** Between which two times of one clock the numbers of a step are from. */
  takenMs: Record<string, { afterMs: number; beforeMs: number }>;
  fetched: Record<string, string>;
  balloon: Record<string, BalloonStats>;
  /** SHA-256 of each file of `hash`. */
  hashes: Record<string, string>;
  saidInPause?: string;
  /** How many bytes came back, by the port's name; by `vsock PORT`, `unix PORT`. */
  echoed: Record<string, number>;
  deviceErrors: { device: string; code: string; message: string }[];
  /** What was reported of a killed drive or share. */
  died?: string;
  error?: string;
  /** How its first boot ended, in the way that guests of the nested host do now and then. */
  failure?: string;
  /** From its first boot to the end of its last one. */
  seconds: number;
}

/** A folder that this machine and the nested host both see; gone on disposal. */
export async function sharedFolder(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'vmexit-linux-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** Writes an initramfs for Debian's kernel. @returns The options that boot it. */
export async function linuxGuest(
  path: string,
  { flavour = 'cloud', ...options }: Omit<InitramfsOptions, 'busyboxPath'> & { flavour?: KernelFlavour },
): Promise<{ kernel: string; initrd: string; cmdline: string }> {
  const [kernel, busyboxPath] = await Promise.all([findKernel({ flavour }), findBusybox()]);
  await writeFile(path, await buildInitramfs({ busyboxPath, modulesDir: kernel.modulesDir, ...options }));
  return { kernel: kernel.vmlinuzPath, initrd: path, cmdline: 'quiet' };
}

/**
 * An address of the loopback network for a port of the host that is forwarded to a guest. No other test file that runs on
 * this machine has the same, for it holds the process ID.
 */
export function ownLoopback(): string {
  const { pid } = process;
  return `127.${128 + (pid >> 16)}.${(pid >> 8) & 0xff}.${pid & 0xff}`;
}

/**
 * Boots guests one after another in one process: of the nested host, whose KVM runs them, or of this machine, by TCG. One
 * that the nested host's emulation spoilt is booted once more, and that is said. So is how long each guest took.
 * @returns Their reports, by name.
 */
export async function bootGuests(
  plans: GuestPlan[],
  accel: 'kvm' | 'tcg' = 'kvm',
): Promise<Record<string, GuestReport>> {
  const command = ['node', 'test/linux/programs/boot.mjs'];
  const stdin = JSON.stringify(plans.map((plan) => ({ ...plan, options: { ...plan.options, accel } })));
  const timeoutMs = plans.reduce((sum, plan) => sum + Math.max(240_000, 60_000 + (plan.timeoutMs ?? 0)), 60_000);
  const { stdout, stderr, exitCode } =
    accel === 'kvm'
      ? await runNested(command, { stdin, timeoutMs })
      : await execa(command[0], command.slice(1), { input: stdin, timeout: timeoutMs, reject: false, cwd: PROJECT });
  if (exitCode !== 0) throw new Error(`boot.mjs ended with status ${exitCode}:\n${stderr}`);
  const reports = JSON.parse(stdout) as GuestReport[];
  for (const { name, failure } of reports) {
    // scripts/vitest.ts counts these lines.
    if (failure !== undefined) console.log(`RAN AGAIN: the guest ${name}, which ended by: ${failure}`);
  }
  console.log(
    `guests under ${accel}: ${reports.map(({ name, seconds }) => `${name} ${seconds.toFixed(1)} s`).join(', ')}`,
  );
  return Object.fromEntries(reports.map((report) => [report.name, report]));
}

/** Gives the nested host an address and a default route, which passt copies for the guest. Nothing is behind them. */
export async function makeRoutable(): Promise<void> {
  const script = `
    ip link show dummy0 >/dev/null 2>&1 || ip link add dummy0 type dummy
    ip link set dummy0 up && ip address replace 10.0.2.15/24 dev dummy0
    ip route replace default via 10.0.2.2 dev dummy0`;
  const { stderr, exitCode } = await runNested(['sh', '-c', script], { timeoutMs: 120_000 });
  if (exitCode !== 0) throw new Error(`the nested host gets no route: ${stderr}`);
}
