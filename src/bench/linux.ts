/** Linux guests of the benchmarks: Debian's kernel, busybox, and a program of benchmarks/guest that does what it is told. */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { execa } from 'execa';
import { VmmError } from '../errors.js';
import { findBusybox } from '../guest/busybox.js';
import { buildInitramfs } from '../guest/initramfs.js';
import { findKernel } from '../guest/kernel.js';
import type { Accelerator } from '../machine/accelerator.js';
import { MicroVM } from '../machine/microvm.js';
import type { MicroVMOptions } from '../machine/options.js';
import { guestProgram } from './baseline.js';
import { Unavailable, type Context } from './benchmark.js';

/** A program that answers each line with a JSON object of numbers. */
export interface Load extends AsyncDisposable {
  run(line: string): Promise<Record<string, number>>;
}

/** What boots. */
export interface LoadKernel {
  kernel: string;
  initrd: string;
}

export interface LoadImages extends LoadKernel, AsyncDisposable {
  /** The program itself, for the host. */
  program: string;
  /** For what else the benchmark needs, gone with the images. */
  directory: string;
}

export interface LoadOptions {
  /** In benchmarks/guest. */
  program: string;
  /** That the guest loads, of Debian's cloud kernel. */
  modules?: readonly string[];
  /** Shell, before the first line is read. */
  setup?: string;
}

const CMDLINE = 'quiet';
const TIMEOUT_MS = 180_000;

/** @throws Unavailable where there is no compiler, no kernel or no busybox to make a guest of. */
export async function loadImages(options: LoadOptions, context: Context): Promise<LoadImages> {
  const program = await guestProgram(options.program, context);
  if (program === undefined) throw new Unavailable("the guest's program is compiled here, and there is no C compiler");
  const [kernel, busyboxPath] = await Promise.all([findKernel(), findBusybox()]).catch((error: unknown) => {
    throw error instanceof VmmError ? new Unavailable(error.message) : error;
  });
  const directory = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
  const initrd = join(directory, 'initramfs.cpio');
  const script = `${options.setup ?? ':'}\necho {}; while read line && [ "$line" != end ]; do load $line; done`;
  await writeFile(
    initrd,
    await buildInitramfs({
      busyboxPath,
      modulesDir: kernel.modulesDir,
      modules: options.modules ?? [],
      files: [{ path: '/bin/load', bytes: await readFile(program), mode: 0o755 }],
      command: ['sh', '-c', script],
    }),
  );
  return {
    ...{ program, kernel: kernel.vmlinuzPath, initrd, directory },
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}

/** The program on this machine itself. */
export function hostLoad({ program }: LoadImages): Load {
  return {
    run: async (line) => JSON.parse((await execa(program, line.split(' '))).stdout) as Record<string, number>,
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** The program in a machine of ours. */
export async function guestLoad(
  { kernel, initrd }: LoadKernel,
  options: Omit<MicroVMOptions, 'kernel' | 'initrd' | 'cmdline'>,
): Promise<Load> {
  const vm = await MicroVM.create({ ...options, kernel, initrd, cmdline: CMDLINE });
  try {
    const answers = new Answers(vm.console, vm.console, async () => (await vm.exited).reason);
    await vm.start();
    await answers.next();
    return {
      run: (line) => answers.ask(line),
      [Symbol.asyncDispose]: () => vm.close(),
    };
  } catch (error) {
    await vm.close();
    throw error;
  }
}

/** The program in a machine of QEMU's. @param args Its devices. */
export async function qemuLoad(qemu: string, accel: Accelerator, images: LoadKernel, args: string[]): Promise<Load> {
  const machine = [
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
    '-no-reboot',
    '-machine',
    `q35,accel=${accel}`,
  ];
  machine.push('-cpu', accel === 'kvm' ? 'host' : 'max', '-m', '256', '-serial', 'stdio');
  machine.push('-kernel', images.kernel, '-initrd', images.initrd, '-append', `console=ttyS0 panic=-1 ${CMDLINE}`);
  return processLoad(qemu, [...machine, ...args]);
}

/** The program behind the standard streams of a process. @param graceMs For it to end when its input has. */
export async function processLoad(program: string, args: readonly string[], graceMs = 0): Promise<Load> {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.on('error', () => {}); // its end shows in what it does not answer
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.on('error', () => {}); // as does what could not be started
  const end = async () => {
    child.stdin.end();
    if (child.pid === undefined) return;
    const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
    await exited.finally(() => clearTimeout(timer));
  };
  try {
    const answers = new Answers(child.stdin, child.stdout, () => Promise.resolve(`${program} ended`));
    await answers.next();
    return { run: (line) => answers.ask(line), [Symbol.asyncDispose]: end };
  } catch (error) {
    await end();
    throw error;
  }
}

/** Lines that are JSON, among what kernels and firmware print. */
class Answers {
  readonly #input: Writable;
  readonly #lines: AsyncIterator<string>;
  readonly #ended: () => Promise<string>;

  /** @param ended How, once the output has. */
  constructor(input: Writable, output: Readable, ended: () => Promise<string>) {
    this.#input = input;
    this.#ended = ended;
    this.#lines = createInterface({ input: output })[Symbol.asyncIterator]();
  }

  ask(line: string): Promise<Record<string, number>> {
    this.#input.write(`${line}\n`);
    return this.next();
  }

  async next(): Promise<Record<string, number>> {
    const said: string[] = [];
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`no answer in ${TIMEOUT_MS / 1000} s:\n${said.join('\n')}`)),
        TIMEOUT_MS,
      );
    });
    try {
      for (;;) {
        const line = await Promise.race([this.#lines.next(), tooLong]);
        if (line.done) throw new Error(`the guest ended: ${await this.#ended()}\n${said.join('\n')}`);
        if (line.value.startsWith('{')) return JSON.parse(line.value) as Record<string, number>;
        said.push(line.value);
      }
    } finally {
      clearTimeout(timer);
    }
  }
}
