import type { Readable, Writable } from 'node:stream';
import type { CrashReport, MachineExit, MachineStats } from '../machine/machine.js';
import { MicroVM } from '../machine/microvm.js';
import type { MicroVMOptions } from '../machine/options.js';
import { BootMark } from './boot-mark.js';
import { EXIT, statusOf, statusOfSignal } from './exit-status.js';
import { complain, say } from './output.js';
import { interruptible, SIGNALS } from './signals.js';
import { attachTerminal, typeStream } from './terminal.js';

export interface SessionOptions {
  vm: MicroVMOptions;
  /** What the guest's init prints when user space is up; without it everything the console says is the guest's output. */
  mark?: string;
  /** Connect this process's terminal to the guest's console. */
  interactive: boolean;
  /** Show what the guest prints before its mark, on standard error. */
  showBoot?: boolean;
  timeoutMs?: number | undefined;
  /** The status for a byte that the guest writes to the debug-exit port. Default: that byte. */
  statusOfDebugExit?: (debugExit: number) => number;
  /** Told once, when the machine is made. */
  onCreated?: (vm: MicroVM) => void;
}

export interface SessionResult {
  /** What this process should exit with. */
  status: number;
  /** Absent when the machine itself failed. */
  exit?: MachineExit;
  accel: 'kvm' | 'tcg';
  accelReason: string;
  stats: MachineStats;
  /** From the guest's first instruction to its mark. */
  userSpaceMs?: number;
  /** From the guest's first instruction to its end. */
  runMs: number;
}

/** An end that came from outside the guest. */
interface Interruption {
  status: number;
  why?: string;
}

/**
 * Runs one guest on this process's standard streams, to its end or to a signal's.
 *
 * @throws VmmError as `MicroVM.create` does, or when the machine fails.
 */
export async function runSession(options: SessionOptions): Promise<SessionResult> {
  await using vm = await interruptible(async (signal) => {
    const made = await MicroVM.create(options.vm);
    if (signal.aborted) await made.close();
    signal.throwIfAborted();
    return made;
  });
  vm.on('deviceError', ({ device, error }) => complain(`${device}: ${error.message}`));
  options.onCreated?.(vm);

  let interruption: Interruption | undefined;
  const interrupt = (cause: Interruption) => {
    interruption ??= cause;
    vm.stop().catch(() => {}); // it fails only when the guest has ended
  };
  const onSignal = (signal: NodeJS.Signals) => interrupt({ status: statusOfSignal(signal) });
  const onOutputError = () => interrupt({ status: statusOfSignal('SIGPIPE') });
  for (const signal of SIGNALS) process.on(signal, onSignal);
  process.stdout.on('error', onOutputError);
  const cleanups = [
    () => SIGNALS.forEach((signal) => process.off(signal, onSignal)),
    () => process.stdout.off('error', onOutputError),
  ];

  try {
    let userSpaceMs: number | undefined;
    const startedMs = performance.now();
    const boot =
      options.mark === undefined
        ? undefined
        : new BootMark({
            mark: options.mark,
            onFound: () => {
              userSpaceMs = performance.now() - startedMs;
              // Not before: a serial port that nobody has opened yet loses what it is sent.
              if (!options.interactive && !process.stdin.isTTY) typeInput(vm.console);
            },
            ...(options.showBoot && { onBoot: (bytes: Buffer) => void process.stderr.write(bytes) }),
          });
    const output = boot ? vm.console.pipe(boot) : vm.console;
    const outputEnded = forward(output, process.stdout);
    if (options.interactive) {
      cleanups.push(attachTerminal(process.stdin, vm.console, () => interrupt({ status: EXIT.OK })));
    } else if (!boot && !process.stdin.isTTY) {
      typeInput(vm.console);
    }
    if (options.interactive && options.vm.console === 'virtio') {
      const { stdout } = process;
      const resize = () => {
        // A call that finds the guest ended is of no interest.
        vm.resizeConsole({ columns: stdout.columns, rows: stdout.rows }).catch(() => {});
      };
      resize();
      stdout.on('resize', resize);
      cleanups.push(() => stdout.off('resize', resize));
    }
    if (options.timeoutMs !== undefined) {
      const why = `the guest ran for ${options.timeoutMs / 1000} s and was stopped (--timeout)`;
      const timer = setTimeout(() => interrupt({ status: EXIT.TIMEOUT, why }), options.timeoutMs);
      cleanups.push(() => clearTimeout(timer));
    }

    if (!interruption) await vm.start();
    const exit = await vm.exited;
    const runMs = performance.now() - startedMs;
    await outputEnded;
    const stats = await vm.stats();
    for (const cleanup of cleanups.splice(0).reverse()) cleanup();

    if (interruption?.why) complain(interruption.why);
    if (!interruption && boot && !boot.found) {
      process.stderr.write(boot.bootLog);
      complain('the guest ended before its user space was up');
    }
    if (!interruption) explain(exit);
    const { statusOfDebugExit = (value: number) => value } = options;
    const ownStatus = exit.debugExit === undefined ? statusOf(exit.reason) : statusOfDebugExit(exit.debugExit);
    return {
      status: interruption?.status ?? ownStatus,
      exit,
      accel: vm.accel,
      accelReason: vm.accelReason,
      stats,
      ...(userSpaceMs !== undefined && { userSpaceMs }),
      runMs,
    };
  } finally {
    for (const cleanup of cleanups.reverse()) cleanup();
  }
}

/** Ends when all of it is written, or nobody reads any more. The destination stays open. */
function forward(source: Readable, destination: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    source.once('end', () => destination.write('', () => resolve()));
    destination.once('error', () => {
      source.resume(); // the guest's end is still to be seen
      resolve();
    });
    source.pipe(destination, { end: false });
  });
}

function typeInput(guest: Writable): void {
  typeStream(process.stdin, guest).catch((error: Error) => say(`standard input failed: ${error.message}`));
}

/** Says how a guest ended that did not end well. */
function explain({ reason, crash }: MachineExit): void {
  if (reason === 'reset') complain('the guest asked for a reset');
  if (reason === 'panic') complain("the guest's kernel panicked");
  if (reason === 'crash') complain(crash ? formatCrash(crash) : 'the guest crashed');
}

/** A crash for a person: cause, registers four a line, code. */
export function formatCrash(crash: CrashReport): string {
  const registers = Object.entries(crash.registers).map(
    ([name, value]) => `${name.padStart(7)} ${value.toString(16).padStart(16, '0')}`,
  );
  const lines = [`the guest crashed: ${crash.cause} (vCPU ${crash.vcpu})`];
  for (let i = 0; i < registers.length; i += 4) lines.push(registers.slice(i, i + 4).join(' '));
  if (crash.disassembly.length > 0) lines.push('code at rip:', ...crash.disassembly.map((line) => `  ${line}`));
  else
    lines.push(
      crash.code.length > 0 ? `bytes at rip: ${Buffer.from(crash.code).toString('hex')}` : 'rip is not mapped',
    );
  return lines.join('\n');
}
