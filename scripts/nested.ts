/**
 * npm run nested -- COMMAND…: runs a command in the nested KVM host, see nested/host.ts. Only the command's output
 * appears on stdout; the exit status is the command's, 124 after a timeout, 128 + n after signal n.
 */
import { constants } from 'node:os';
import { styleText } from 'node:util';
import { Command, InvalidArgumentError } from 'commander';
import { VmmError } from '../src/errors.js';
import { NestedHost } from './nested/host.js';
import { linkForNpx } from './npx.js';

interface CliOptions {
  memory?: number;
  cpus?: number;
  timeout?: number;
  tty?: boolean;
  quiet?: boolean;
}

const EXIT_TIMEOUT = 124; // as timeout(1) has it
const EXIT_FAILED = 125; // the host could not be started, or was lost

const program = new Command('nested')
  .description("Run a command in a nested KVM host: a real /dev/kvm, and this machine's files, copy-on-write.")
  .argument('<command...>', 'what to run there, in the present folder')
  .option('--memory <size>', 'memory of the nested host, such as 8G (default: 10G, or 80% of what there is)', parseSize)
  .option('--cpus <n>', 'processors of the nested host (default: 2)', parsePositive)
  .option('--timeout <seconds>', 'stop everything after this time, booting included', parsePositive)
  .option('-t, --tty', 'give the command a terminal, for interactive programs')
  .option('-q, --quiet', 'show no progress')
  .passThroughOptions()
  .action(main);
await program.parseAsync();

async function main(command: string[], options: CliOptions): Promise<never> {
  const aborter = new AbortController();
  let exitCode: number | undefined;
  const stopWith = (code: number) => {
    exitCode ??= code;
    aborter.abort();
    // The command is given a moment to end by itself; nobody waits for it longer.
    setTimeout(() => process.exit(exitCode), 3_000).unref();
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => stopWith(128 + constants.signals[signal]));
  }
  if (options.timeout !== undefined) setTimeout(() => stopWith(EXIT_TIMEOUT), options.timeout * 1_000).unref();
  // npm and tsx stand between this process and the caller: when they are killed, nothing else would tell us.
  const parent = process.ppid;
  setInterval(() => process.ppid !== parent && stopWith(128 + constants.signals.SIGHUP), 1_000).unref();

  const startedAt = performance.now();
  const progress = (line: string) => {
    const seconds = ((performance.now() - startedAt) / 1_000).toFixed(1).padStart(5);
    if (!options.quiet) process.stderr.write(styleText('dim', `${seconds} s  ${line}`) + '\n');
  };

  let host: NestedHost | undefined;
  try {
    if (command[0] === 'npx') {
      progress('linking this package for npx');
      await linkForNpx();
    }
    host = await NestedHost.start({
      onProgress: progress,
      signal: aborter.signal,
      ...(options.memory !== undefined && { memoryBytes: options.memory }),
      ...(options.cpus !== undefined && { cpus: options.cpus }),
    });
    progress(`running ${command.join(' ')}`);
    const tty = options.tty ? { columns: process.stdout.columns ?? 80, rows: process.stdout.rows ?? 24 } : undefined;
    if (tty && process.stdin.isTTY) process.stdin.setRawMode(true);
    const result = await host.run(command, {
      signal: aborter.signal,
      onStdout: (chunk) => write(process.stdout, chunk),
      onStderr: (chunk) => write(process.stderr, chunk),
      ...((tty || !process.stdin.isTTY) && { stdin: process.stdin }),
      ...(tty && { tty }),
    });
    exitCode ??= result.exitCode;
  } catch (error) {
    if (exitCode === undefined) {
      exitCode = EXIT_FAILED;
      const message = error instanceof VmmError ? error.message : String((error as Error).stack);
      process.stderr.write(`nested: ${message}\n`);
    }
  } finally {
    if (process.stdin.isTTY) process.stdin.setRawMode(false);
    await host?.stop();
  }
  await Promise.all([write(process.stdout, Buffer.alloc(0)), write(process.stderr, Buffer.alloc(0))]);
  process.exit(exitCode);
}

/** Resolves when the chunk has left this process, so that a slow reader slows the command instead of filling memory. */
function write(stream: NodeJS.WriteStream, chunk: Buffer): Promise<void> {
  return new Promise((resolve) => stream.write(chunk, () => resolve()));
}

function parseSize(text: string): number {
  const match = /^(\d+)([MG])$/i.exec(text);
  if (!match) throw new InvalidArgumentError('Give a number and a unit: 4096M or 8G.');
  return Number(match[1]) * (match[2].toUpperCase() === 'G' ? 2 ** 30 : 2 ** 20);
}

function parsePositive(text: string): number {
  const n = Number(text);
  if (!Number.isInteger(n) || n <= 0) throw new InvalidArgumentError('Give a whole number above zero.');
  return n;
}
