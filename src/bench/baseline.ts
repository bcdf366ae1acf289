/** The C programs that show what KVM itself costs. They are sources of this package, compiled when they are first needed. */
import { createHash } from 'node:crypto';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { execa, ExecaError } from 'execa';
import { cacheDirectory, exists } from '../guest/debian.js';
import type { Context, Sample } from './benchmark.js';

const SOURCES = fileURLToPath(new URL('../../benchmarks/', import.meta.url));

/** A program of benchmarks/baseline. @returns Its path; undefined, with a note, where there is no C compiler. */
export function baseline(name: string, context: Pick<Context, 'note'>): Promise<string | undefined> {
  return compile(`baseline/${name}.c`, ['-pthread'], context);
}

/** A library of benchmarks/preload, for LD_PRELOAD. @returns As {@link baseline} does. */
export function preload(name: string, context: Pick<Context, 'note'>): Promise<string | undefined> {
  return compile(`preload/${name}.c`, ['-shared', '-fPIC', '-pthread'], context);
}

/** A program of benchmarks/guest: static, for guests have no libraries. @returns As {@link baseline} does. */
export function guestProgram(name: string, context: Pick<Context, 'note'>): Promise<string | undefined> {
  return compile(`guest/${name}.c`, ['-static', '-pthread'], context);
}

async function compile(source: string, flags: string[], { note }: Pick<Context, 'note'>): Promise<string | undefined> {
  const compiler = process.env['CC'] ?? 'cc';
  const command = ['-O2', ...flags];
  const hash = createHash('sha256').update(`${compiler} ${command.join(' ')}\n`);
  for (const file of [source, 'baseline/vm.h']) hash.update(await readFile(join(SOURCES, file)));
  const directory = join(cacheDirectory(), 'bench');
  const path = join(directory, `${source.replace(/\W/g, '-')}-${hash.digest('hex').slice(0, 16)}`);
  if (await exists(path)) return path;
  await mkdir(directory, { recursive: true });
  const mine = `${path}.${process.pid}`;
  try {
    await execa(compiler, [...command, '-o', mine, join(SOURCES, source)]);
  } catch (error) {
    if (!(error instanceof ExecaError)) throw error;
    const why = error.code === 'ENOENT' ? `there is no C compiler (${compiler})` : error.shortMessage;
    note(`no C baseline: ${why}. sudo apt-get install gcc libc6-dev`);
    return undefined;
  }
  await rename(mine, path);
  return path;
}

/** A C program that answers each line on its standard input with a line of numbers. */
export class BaselineProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(program: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.#child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env });
    this.#child.stdin!.on('error', () => {}); // its end shows in what it does not answer
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async ask(...request: number[]): Promise<number[]> {
    this.#child.stdin!.write(`${request.join(' ')}\n`);
    const line = await this.#lines.next();
    if (line.done) throw new Error(`${this.#child.spawnfile} ended before its answer`);
    return line.value.split(' ').map(Number);
  }

  /** Ends the program in good order. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin!.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
  }
}

/** Numbers of a C program that answers with those of one operation after another. @param parts What they are, in order. */
export function partsOf(answer: readonly number[], parts: readonly string[]): Sample[] {
  return Array.from({ length: answer.length / parts.length }, (_, operation) =>
    Object.fromEntries(parts.map((part, index) => [part, answer[operation * parts.length + index]])),
  );
}
