import { execa } from 'execa';
import type { Context } from './benchmark.js';

/**
 * Keeps the main thread, and the programs that it starts meanwhile, on the first processor that it may use: what a kernel
 * does for one processor can cost others an interrupt more, such as the callbacks of SRCU, which a memory slot waits for.
 *
 * @returns Lets it go again.
 */
export async function pinMainThread({ note }: Pick<Context, 'note'>): Promise<AsyncDisposable> {
  try {
    const processors = await affinity();
    await affinity(/^\d+/.exec(processors)![0]);
    return {
      async [Symbol.asyncDispose]() {
        await affinity(processors);
      },
    };
  } catch {
    note('not on one processor: taskset(1) of util-linux cannot be run');
    return { [Symbol.asyncDispose]: () => Promise.resolve() };
  }
}

/** Sets the processors, if given. @returns Those before, as taskset(1) lists them: 0-3,8 */
async function affinity(processors?: string): Promise<string> {
  const { stdout } = await execa('taskset', [
    '-cp',
    ...(processors === undefined ? [] : [processors]),
    `${process.pid}`,
  ]);
  return /: (.*)/.exec(stdout)![1];
}
